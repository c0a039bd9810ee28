"""Who is taught by which target.

An assigner is called with a `PredictionSet`, the `Targets`, and a generator for its random numbers, and returns an
`Assignment`. A set names one of the table of parts, or brings one along.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .matcher import CostWeights, match, matching_costs
from .point_sampling import uniform_points
from .prediction_head import PredictionSet
from .targets import Targets

logger = logging.getLogger(__name__)

# Stable-DINO's exponent (https://arxiv.org/abs/2304.04742, `cec_beta` of its code).
IOU_EXPONENT = 0.5


class Assignment(NamedTuple):
    """
    matches: For each layer and image the matched queries and, in the same order, their targets, int64. Layers may
        differ, a target may have many queries, and a query has one target at most.
    num_targets: How many targets the batch has, counted as often as each is taught: what mask losses are divided by.
    """

    matches: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]
    num_targets: int


class HungarianAssigner:
    """The cheapest one-to-one assignment, layer by layer (MaskFormer, section 3.1)."""

    def __init__(self, weights: CostWeights, num_points: int | None):
        """`num_points`: compare masks at so many random points, as in Mask2Former; None for all pixels."""
        self.weights = weights
        self.num_points = num_points
        self.has_warned = False

    @classmethod
    def from_config(cls, config: Any) -> "HungarianAssigner":
        weights = CostWeights(config.class_weight, config.mask_weight, config.dice_weight, config.mask_term)
        return cls(weights, config.num_points if config.matching == "points" else None)

    def __call__(
        self, predictions: PredictionSet, targets: Targets, generator: torch.Generator | None = None
    ) -> Assignment:
        return Assignment(match(self.costs(predictions, targets, generator), targets.counts), sum(targets.counts))

    def costs(
        self, predictions: PredictionSet, targets: Targets, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """What each target costs each query, (L, B, Q, N); see `matching_costs`."""
        num_layers, num_images, num_queries = predictions.class_logits.shape[:3]
        if max(targets.counts) > num_queries and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "An image has %d targets but the model only %d queries: the rest is left unmatched. Raise "
                "`num_queries` if that is not meant (said once).",
                max(targets.counts),
                num_queries,
            )
        points_LBP2 = None
        if self.num_points is not None:
            points_LBP2 = uniform_points(
                num_layers, num_images, self.num_points, device=predictions.masks.device, generator=generator
            )
        return matching_costs(predictions.class_logits, predictions.masks, targets, self.weights, points_LBP2)


class SharedAssigner(HungarianAssigner):
    """Every layer is taught what the last one is, as in kMaX-DeepLab (https://arxiv.org/abs/2207.04044)."""

    def __call__(
        self, predictions: PredictionSet, targets: Targets, generator: torch.Generator | None = None
    ) -> Assignment:
        found = super().__call__(predictions.layers(slice(-1, None)), targets, generator)
        return found._replace(matches=list(found.matches) * len(predictions.class_logits))


class StableAssigner(HungarianAssigner):
    """A class counts as far as its mask fits: the class cost is that probability times the root of the masks' IoU.

    Stable-DINO's matching with the IoU of masks in place of that of boxes: a query that is sure of a class but lies
    elsewhere cannot take a target from one that lies there.
    """

    @classmethod
    def from_config(cls, config: Any) -> "StableAssigner":
        assigner = super().from_config(config)
        return cls(assigner.weights._replace(iou_exponent=IOU_EXPONENT), assigner.num_points)


class OneToManyAssigner(HungarianAssigner):
    """Each target is matched with k queries (H-DETR, https://arxiv.org/abs/2207.13080), for an extra group of queries.

    It is the one-to-one assignment of k copies of each target. With fewer queries than copies the costliest copies stay
    unmatched.
    """

    def __init__(self, assigner: HungarianAssigner, num_copies: int):
        super().__init__(assigner.weights, assigner.num_points)
        self.num_copies = num_copies
        # Copies without a query are nothing to be warned of.
        self.has_warned = True

    @classmethod
    def from_config(cls, config: Any) -> "OneToManyAssigner":
        return cls(HungarianAssigner.from_config(config), config.one_to_many_copies)

    @staticmethod
    def check(config: Any):
        if config.assigner == "one_to_many":
            raise ValueError(
                "`assigner='one_to_many'` would teach several queries of the result the same target: choose "
                "`query_source='one_to_many'`, whose extra queries it is for, and another `assigner`."
            )

    def __call__(
        self, predictions: PredictionSet, targets: Targets, generator: torch.Generator | None = None
    ) -> Assignment:
        costs = self.costs(predictions, targets, generator)
        matches = [[] for _ in costs]
        for image, count in enumerate(targets.counts):
            own = costs[:, image, None, :, : max(1, count)].repeat(1, 1, 1, self.num_copies)
            for layer, [(query, copy)] in zip(matches, match(own, [count * self.num_copies]), strict=True):
                layer.append((query, copy % max(1, count)))
        return Assignment(matches, sum(targets.counts) * self.num_copies)


class FixedAssigner:
    """Targets that are known beforehand, the same in every layer: those of denoising queries, for example."""

    def __init__(self, targets_BQ: Sequence[Sequence[int]]):
        """`targets_BQ`: the target of each query of each image, by its place among those of the image; -1 for none."""
        self.targets_BQ = [np.asarray(targets, dtype=np.int64) for targets in targets_BQ]

    def __call__(
        self, predictions: PredictionSet, targets: Targets, generator: torch.Generator | None = None
    ) -> Assignment:
        num_layers, num_images, num_queries = predictions.class_logits.shape[:3]
        images = []
        for image, (own, count) in enumerate(zip(self.targets_BQ, targets.counts, strict=True)):
            if len(own) != num_queries or (own >= count).any():
                raise ValueError(
                    f"The fixed targets of image {image} are {own.tolist()}, for {num_queries} queries and {count} "
                    "targets: give each query a target or -1."
                )
            query = np.flatnonzero(own >= 0)
            images.append((query, own[query]))
        assert len(images) == num_images
        return Assignment([images] * num_layers, sum(len(query) for query, _ in images))
