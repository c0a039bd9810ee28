"""The family's loss: each set of predictions is matched with the targets, then its terms are summed.

Cross-entropy of the classes, focal loss or cross-entropy and dice loss of the matched masks, of MaskFormer
(https://arxiv.org/abs/2107.06278), Mask2Former (https://arxiv.org/abs/2112.01527) and, with T frames, Mask2Former-VIS
(https://arxiv.org/abs/2112.10764).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import distributed as dist
from torch import nn

from .assigners import Assignment
from .loss_terms import NO_TARGET, TargetMap
from .mask_losses import MaskLosses, MatchedMasks, TermSums, last_layer_first
from .masks import Masks
from .prediction_head import PredictionSet
from .resize import resize_nearest
from .targets import Targets


def is_auxiliary(name: str) -> bool:
    """Whether an entry of `loss_dict` belongs to an auxiliary layer: `loss_dice_3` does, `loss_l1` does not."""
    return re.search(r"_\d+$", name) is not None


class Pairs(NamedTuple):
    """Matched queries and targets of some layers, in which the same targets are matched.

    layers: Which layers.
    num_matched: Pairs of each image, in any of the layers.
    image: (M,), the image of each pair. query: (L, M). target: (M,), counted over the batch, ascending.
    are_all: Whether the targets are all targets of the batch, once each.
    """

    layers: slice
    num_matched: list[int]
    image: torch.Tensor
    query: torch.Tensor
    target: torch.Tensor
    are_all: bool


class Criterion(nn.Module):
    """Match, then sum the loss over all sets and supervised decoder layers, all in float32, under autocast too."""

    def __init__(
        self,
        num_labels: int,
        class_weight: float,
        class_loss: Any,
        mask_losses: MaskLosses,
        target_maps: Mapping[str, TargetMap],
        assigners: Any,
    ):
        """
        Args:
            class_loss: See `ClassCrossEntropy`.
            mask_losses: `DenseMaskLosses` or `PointMaskLosses`.
            target_maps: The maps of targets that terms need, and how they are made.
            assigners: By the names that prediction sets have for them, a mapping.
        """
        super().__init__()
        self.num_labels = num_labels
        self.class_weight = class_weight
        self.class_loss = class_loss
        self.mask_losses = mask_losses
        self.target_maps = target_maps
        self.assigners = assigners

    # Compiled, a model breaks its graph here: the matching of a step is no computation of a device.
    @torch.compiler.disable
    def forward(self, sets: Sequence[PredictionSet], targets: Targets) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of all terms of all sets, and each term unweighted and detached under the original's names.

        Mask logits never exist as a whole: matching looks at them part by part, and the losses need only those of
        matched queries, a tenth of all or fewer. Each frame of a target of a clip is a mask of the loss, but their sum
        is divided by the number of targets, as in the original.
        """
        missing = self.target_maps.keys() - targets.maps.keys()
        if missing:
            raise ValueError(
                f"The loss needs `target_maps` {sorted(missing)}: let the collator make them, "
                "`Collator(..., target_maps=model.criterion.target_maps)`."
            )
        device = sets[-1].class_logits.device
        # A loss that is evaluated must not change from run to run.
        generator = None if self.training else torch.Generator(device).manual_seed(0)
        total, terms = torch.zeros((), device=device), {}
        for predictions in reversed(sets):
            loss, own_terms = self._loss_of(predictions, targets, generator)
            total = total + predictions.weight * loss
            terms |= {f"{predictions.name}{name}": term.detach() for name, term in own_terms.items()}
        return total, terms

    def _loss_of(
        self, predictions: PredictionSet, targets: Targets, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        device = predictions.class_logits.device
        assign = self._assigner_of(predictions)
        with torch.autocast(device.type, enabled=False):
            predictions = predictions._replace(class_logits=predictions.class_logits.float())
            assignment = assign(predictions, targets, generator)
            blocks = pair_up(assignment, targets.counts, device)
        # Products of embeddings, in the precision of the network.
        matched = [predictions.masks.matched(pairs.layers, pairs.query, pairs.num_matched) for pairs in blocks]
        with torch.autocast(device.type, enabled=False):
            num_layers = len(predictions.class_logits)
            num_masks, *class_weights = self._normalizers(assignment, predictions.class_logits)
            sums = self._mask_sums(blocks, matched, targets, generator)
            loss, terms = sums.weighted / num_masks, {}
            void_queries = _mostly_void(predictions.masks, targets.void)
            for layer in last_layer_first(num_layers):
                suffix = "" if layer == num_layers - 1 else f"_{layer}"
                classes = self._classes_of(predictions, layer, blocks, targets, void_queries[layer])
                class_loss = self.class_loss(predictions.class_logits[layer], classes) / class_weights[layer]
                if predictions.has_class_loss:
                    terms[f"loss_ce{suffix}"] = class_loss
                    loss = loss + self.class_weight * class_loss
                terms |= {f"loss_{name}{suffix}": values[layer] / num_masks for name, values in sums.terms.items()}
        return loss, terms

    def _assigner_of(self, predictions: PredictionSet) -> Any:
        assigner = predictions.assigner
        if callable(assigner):
            return assigner
        try:
            return self.assigners[assigner]
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"The prediction set {predictions.name!r} has no assigner that says who is taught by which target: "
                f"{error}"
            ) from error

    def _classes_of(
        self,
        predictions: PredictionSet,
        layer: int,
        blocks: Sequence[Pairs],
        targets: Targets,
        void_queries_BQ: torch.Tensor | None,
    ) -> torch.Tensor:
        """What class each query of a layer is taught, (B, Q)."""
        shape, device = predictions.class_logits.shape[1:3], predictions.class_logits.device
        classes_BQ = torch.full(shape, self.num_labels, device=device)
        if void_queries_BQ is not None:
            classes_BQ = classes_BQ.masked_fill(void_queries_BQ, NO_TARGET)
        pairs = blocks[layer] if len(blocks) > 1 else blocks[0]
        query_M = pairs.query[layer - (pairs.layers.start or 0)]
        classes_BQ[pairs.image, query_M] = torch.cat(targets.labels)[pairs.target]
        return classes_BQ

    def _mask_sums(
        self,
        blocks: Sequence[Pairs],
        matched: Sequence[torch.Tensor],
        targets: Targets,
        generator: torch.Generator | None,
    ) -> TermSums:
        """The mask terms of all layers."""
        parts = {}
        for number in last_layer_first(len(blocks)):
            pairs, logits_LMhw = blocks[number], matched[number].float()
            if pairs.target.numel():
                parts[number] = self.mask_losses(_masks_of(pairs, logits_LMhw, targets), generator)
            else:
                nothing = logits_LMhw.sum()  # zero, but part of the graph: every parameter has a gradient in every step
                names = [term.name for term in self.mask_losses.terms]  # pyrefly: ignore[missing-attribute]
                parts[number] = TermSums(nothing, {name: [nothing] * len(logits_LMhw) for name in names})
        weighted = torch.stack([parts[number].weighted for number in sorted(parts)]).sum()
        names = parts[0].terms
        return TermSums(weighted, {name: [x for i in sorted(parts) for x in parts[i].terms[name]] for name in names})

    def _normalizers(self, assignment: Assignment, class_logits_LBQK: torch.Tensor) -> list[torch.Tensor]:
        """What mask losses are divided by, the number of targets, at least 1; and for each layer what its class loss is
        divided by, the sum of the class weights of all queries. Targets beyond the number of queries count as well.

        All are averages over processes: with DDP's averaging of gradients, the loss of many processes is the loss of
        one with the joined batch. The original averages the first and divides its class loss within each process.
        """
        num_queries = class_logits_LBQK.shape[1] * class_logits_LBQK.shape[2]
        num_matched = [sum(len(query) for query, _ in layer) for layer in assignment.matches]
        weights = [self.class_loss.weight(matched, num_queries - matched) for matched in num_matched]
        sums = torch.tensor([assignment.num_targets, *weights], dtype=torch.float32, device=class_logits_LBQK.device)
        average_over_processes(sums)
        num_targets, *class_weights = sums.unbind()
        return [num_targets.clamp(min=1), *class_weights]


def pair_up(assignment: Assignment, counts: Sequence[int], device: torch.device) -> list[Pairs]:
    """The pairs of all layers at once if each has the same targets, else layer by layer."""
    offsets = np.cumsum([0, *counts])
    rows = []
    for layer in assignment.matches:
        image = np.concatenate([np.full(len(query), i) for i, (query, _) in enumerate(layer)])
        query = np.concatenate([query for query, _ in layer])
        target = np.concatenate([target + offset for (_, target), offset in zip(layer, offsets[:-1], strict=True)])
        order = np.argsort(target, kind="stable")
        rows.append((image[order], query[order], target[order]))
    same = all(np.array_equal(row[2], rows[0][2]) for row in rows)
    groups = [rows] if same else [[row] for row in rows]
    blocks = []
    for number, group in enumerate(groups):
        image, _, target = group[0]
        on_device = torch.from_numpy(np.stack((image, target, *(row[1] for row in group))).astype(np.int64)).to(device)
        blocks.append(
            Pairs(
                slice(None) if same else slice(number, number + 1),
                np.bincount(image.astype(np.int64), minlength=len(counts)).tolist(),
                on_device[0],
                on_device[2:],
                on_device[1],
                np.array_equal(target, np.arange(offsets[-1])),
            )
        )
    return blocks


def _masks_of(pairs: Pairs, logits_LMhw: torch.Tensor, targets: Targets) -> MatchedMasks:
    """Matched masks and their targets, frame by frame."""

    def matched(values: Sequence[torch.Tensor]) -> torch.Tensor:
        joined = torch.cat(list(values))
        # One stack of all images' targets serves every layer: predictions are put in its order, not it in theirs.
        return joined if pairs.are_all else joined[pairs.target]

    valid = None if targets.void is None else ~targets.void
    masks = MatchedMasks(
        logits_LMhw,
        matched(targets.masks),
        pairs.image,
        valid,
        {name: matched(images) for name, images in targets.maps.items()},
        targets.progress,
    )
    if targets.num_frames is None:
        return masks
    frames = torch.arange(targets.num_frames, device=pairs.image.device)
    return masks._replace(
        logits=logits_LMhw.flatten(1, 2),
        targets=masks.targets.flatten(0, 1),
        image=(pairs.image[:, None] * targets.num_frames + frames).flatten(),
        valid=None if valid is None else valid.flatten(0, 1),
        maps={name: values.flatten(0, 1) for name, values in masks.maps.items()},
    )


@torch.no_grad()
def _mostly_void(masks: Masks, void_BHW: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
    """Queries of which more than half of the mask lies where nothing counts: (B, Q) bool of each layer.

    They are not taught no-object, for they may have found what nobody labelled; panoptic quality excuses such a segment
    as well.
    """
    if void_BHW is None:
        return [None] * masks.shape[0]
    masks = masks.float()
    valid_BX1 = resize_nearest(~void_BHW, masks.shape[-2:]).float().flatten(1)[..., None]
    void_queries = []
    for layer in range(masks.shape[0]):
        inside_BQX = (masks.layer(layer) > 0).flatten(2).float()
        void_queries.append((inside_BQX @ valid_BX1)[..., 0] < 0.5 * inside_BQX.sum(-1))
    return void_queries


def average_over_processes(sums: torch.Tensor):
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
        sums /= dist.get_world_size()
