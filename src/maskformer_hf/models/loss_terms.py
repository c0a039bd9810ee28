"""The terms of the loss: what a matched mask loses, and what a class does.

A mask term is called with `Pixels` and returns the loss of each mask, (N,). It says in `maps` which maps of the targets
it needs, by name; each is a function of the masks (N, H, W), bool, of one image, to (N, H, W) or so, which the
collator's workers call. `register("loss_term", name, Part(build))` of `parts.py` makes one known, and the field
`loss_terms` of a configuration gives it a weight.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn import functional as F

# Weight of positive pixels in the focal loss, whose gamma is 2.
FOCAL_ALPHA = 0.25
# The class of a query that is taught none; any negative number.
NO_TARGET = -100

TargetMap = Callable[[torch.Tensor], torch.Tensor]


class Pixels(NamedTuple):
    """Values of N matched masks at X pixels or points, (N, X) each.

    logits: float32, with gradient.
    targets: bool, or between 0 and 1 at points that lie on an outline.
    valid: How much each pixel counts, bool or between 0 and 1; None if all count.
    maps: Those that the term asked for.
    progress: How far training is, from 0 to 1.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    valid: torch.Tensor | None = None
    maps: Mapping[str, torch.Tensor] = {}
    progress: float = 1.0


class MaskTerm(Protocol):
    maps: Mapping[str, TargetMap]

    def __call__(self, pixels: Pixels) -> torch.Tensor: ...


class FocalLoss:
    """Sigmoid focal loss (https://arxiv.org/abs/1708.02002), averaged over the pixels of a mask."""

    maps: Mapping[str, TargetMap] = {}

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        targets = pixels.targets.to(pixels.logits.dtype)
        probability = pixels.logits.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(pixels.logits, targets, reduction="none")
        miss = probability * (1 - targets) + (1 - probability) * targets
        alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
        return mean_over_pixels(alpha * miss.square() * entropy, pixels.valid)


class CrossEntropyLoss:
    """Binary cross-entropy, averaged over the pixels of a mask."""

    maps: Mapping[str, TargetMap] = {}

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        targets = pixels.targets.to(pixels.logits.dtype)
        entropy = F.binary_cross_entropy_with_logits(pixels.logits, targets, reduction="none")
        return mean_over_pixels(entropy, pixels.valid)


class DiceLoss:
    """One minus the dice coefficient, 1 added above and below the line."""

    maps: Mapping[str, TargetMap] = {}

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        probability, targets = pixels.logits.sigmoid(), pixels.targets
        overlap = probability * targets
        if pixels.valid is not None:
            probability, targets, overlap = (x * pixels.valid for x in (probability, targets, overlap))
        numerator = 2 * overlap.sum(1)
        denominator = probability.sum(1) + targets.sum(1)
        return 1 - (numerator + 1) / (denominator + 1)


def mean_over_pixels(values_NX: torch.Tensor, valid_NX: torch.Tensor | None) -> torch.Tensor:
    """The mean of each mask over the pixels that count, (N,)."""
    if valid_NX is None:
        return values_NX.mean(1)
    return (values_NX * valid_NX).sum(1) / valid_NX.sum(1).clamp(min=1)


class ClassCrossEntropy:
    """Cross-entropy of the classes, in which no-object has a weight of its own.

    A class loss is called with the logits (B, Q, K+1) of one layer and the class of each query (B, Q), which is K for
    no-object and `NO_TARGET` where nothing is taught, and returns a sum; `weight` is what that sum is divided by.
    """

    def __init__(self, no_object_weight: float):
        self.no_object_weight = no_object_weight

    @classmethod
    def from_config(cls, config: Any) -> "ClassCrossEntropy":
        return cls(config.no_object_weight)

    def __call__(self, logits_BQK: torch.Tensor, target_BQ: torch.Tensor) -> torch.Tensor:
        weight = torch.ones(logits_BQK.shape[-1], device=logits_BQK.device)
        weight[-1] = self.no_object_weight
        return F.cross_entropy(logits_BQK.transpose(1, 2), target_BQ, weight, ignore_index=NO_TARGET, reduction="sum")

    def weight(self, num_matched: int, num_unmatched: int) -> float:
        """The sum of the weights of so many queries with and without a target."""
        return num_matched + self.no_object_weight * num_unmatched
