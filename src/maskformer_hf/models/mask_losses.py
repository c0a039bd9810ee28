"""The mask terms of the loss, of all pixels as in MaskFormer (https://arxiv.org/abs/2107.06278) or at points as in
Mask2Former (https://arxiv.org/abs/2112.01527)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .dense_losses import DenseTerms, dense_losses
from .dense_workspace import PIXELS_AT_ONCE
from .loss_terms import MaskTerm, Pixels
from .point_sampling import sample_points, uncertain_points


class MatchedMasks(NamedTuple):
    """M matched masks of L layers, in which the same targets are matched. The frames of clips are masks of their own.

    logits: (L, M, h, w), float32, with gradient.
    targets: (M, H, W) bool.
    image: (M,), the image or frame of each, an index of `valid`.
    valid: (B, H, W) bool, false at void pixels; None if all count.
    maps: What terms ask for, (M, H, W) each.
    progress: How far training is, from 0 to 1.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    image: torch.Tensor
    valid: torch.Tensor | None
    maps: Mapping[str, torch.Tensor] = {}
    progress: float = 1.0


class WeightedTerm(NamedTuple):
    name: str
    weight: float
    term: MaskTerm


class TermSums(NamedTuple):
    """
    weighted: The weighted sum of all terms, layers and masks, with gradient.
    terms: Each term summed over the masks of a layer, (L,), by name.
    """

    weighted: torch.Tensor
    terms: dict[str, Sequence[torch.Tensor]]


def last_layer_first(num_layers: int) -> list[int]:
    """The order in which the original draws its random numbers and names its terms."""
    return [num_layers - 1, *range(num_layers - 1)]


class DenseMaskLosses:
    """Terms of every pixel. The first two, focal loss or cross-entropy and dice loss, are computed together."""

    def __init__(self, terms: Sequence[WeightedTerm], mask_term: str):
        self.terms = terms
        self.pair = DenseTerms(mask_term, terms[0].weight, terms[1].weight)

    def __call__(self, masks: MatchedMasks, generator: torch.Generator | None = None) -> TermSums:
        valid = masks.valid
        weighted_LM, mask_LM, dice_LM = dense_losses(masks.logits, masks.targets, self.pair, valid, masks.image)
        weighted = weighted_LM.sum()
        sums: dict[str, Any] = {
            self.terms[0].name: mask_LM.sum(1).unbind(),
            self.terms[1].name: dice_LM.sum(1).unbind(),
        }
        for name, weight, term in self.terms[2:]:
            sums[name] = [_dense_sum(term, masks, layer_Mhw) for layer_Mhw in masks.logits.unbind()]
            weighted = weighted + weight * torch.stack(sums[name]).sum()
        return TermSums(weighted, sums)


def _dense_sum(term: MaskTerm, masks: MatchedMasks, logits_Mhw: torch.Tensor) -> torch.Tensor:
    """A term of all masks of one layer. Few masks at a time exist at their full size, and again on the way back."""
    num_pixels = masks.targets[0].numel()
    at_once = max(1, PIXELS_AT_ONCE.on(logits_Mhw.device) // num_pixels)

    def part(logits_mhw: torch.Tensor, chosen: slice) -> torch.Tensor:
        size = masks.targets.shape[1:]
        logits_mHW = F.interpolate(logits_mhw[None], size=size, mode="bilinear", align_corners=False)[0]
        valid = None if masks.valid is None else masks.valid[masks.image[chosen]].flatten(1)
        maps = {name: values[chosen].flatten(1) for name, values in masks.maps.items() if name in term.maps}
        targets = masks.targets[chosen].flatten(1)
        return term(Pixels(logits_mHW.flatten(1), targets, valid, maps, masks.progress)).sum()

    total = logits_Mhw.new_zeros(())
    for start in range(0, len(logits_Mhw), at_once):
        chosen = slice(start, start + at_once)
        total = total + checkpoint(part, logits_Mhw[chosen], chosen, use_reentrant=False)
    return total


class PointMaskLosses:
    """Terms at points that are drawn anew for each mask: the most uncertain of many, and some at random (PointRend,
    https://arxiv.org/abs/1912.08193)."""

    def __init__(
        self, terms: Sequence[WeightedTerm], num_points: int, oversample_ratio: float, importance_sample_ratio: float
    ):
        self.terms = terms
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio

    def __call__(self, masks: MatchedMasks, generator: torch.Generator | None = None) -> TermSums:
        layers = masks.logits.unbind()  # its backward writes one gradient for all layers, not one each
        weighted = masks.logits.new_zeros(())
        sums: dict[str, Any] = {name: [None] * len(layers) for name, _, _ in self.terms}
        for layer in last_layer_first(len(layers)):
            pixels = self._pixels(masks, layers[layer], generator)
            for name, weight, term in self.terms:
                maps = {key: values for key, values in pixels.maps.items() if key in term.maps}
                sums[name][layer] = term(pixels._replace(maps=maps)).sum()
                weighted = weighted + weight * sums[name][layer]
        return TermSums(weighted, sums)

    def _pixels(self, masks: MatchedMasks, logits_Mhw: torch.Tensor, generator: torch.Generator | None) -> Pixels:
        points = uncertain_points(
            logits_Mhw, self.num_points, self.oversample_ratio, self.importance_sample_ratio, generator
        )
        logits, targets = sample_points(logits_Mhw, points), sample_points(masks.targets, points)
        # A point counts as far as its surroundings do.
        valid = None if masks.valid is None else sample_points(masks.valid[masks.image], points)
        maps = {name: sample_points(values, points) for name, values in masks.maps.items()}
        return Pixels(logits, targets, valid, maps, masks.progress)


MaskLosses = Callable[[MatchedMasks, torch.Generator | None], TermSums]
