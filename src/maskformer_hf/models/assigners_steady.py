"""Assigners against matching that wavers: between decoder layers, between steps, and while masks are still poor."""

from typing import Any

import torch

from .assigners import Assignment, HungarianAssigner
from .matcher import match
from .prediction_head import PredictionSet
from .targets import Targets

# Stable-DINO's exponent (https://arxiv.org/abs/2304.04742, `cec_beta` of its code).
IOU_EXPONENT = 0.5


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
