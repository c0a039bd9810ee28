"""Tensors that tests of the losses make, and those that they watch."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maskformer_hf import MaskFormerConfig
from maskformer_hf.models.assembly import make_criterion
from maskformer_hf.models.criterion import Criterion
from maskformer_hf.models.masks import DenseMasks, Masks
from maskformer_hf.models.matcher import CostWeights, matching_costs
from maskformer_hf.models.prediction_head import PredictionSet
from maskformer_hf.models.targets import Targets, check_targets


def as_masks(mask_logits: Masks | torch.Tensor) -> Masks:
    return DenseMasks(mask_logits) if isinstance(mask_logits, torch.Tensor) else mask_logits


def as_targets(masks, labels, void=None, num_labels=1000) -> Targets:
    """Checked targets; masks of four dimensions are those of clips here."""
    num_frames = masks[0].shape[1] if masks and masks[0].dim() == 4 else None
    return Targets(*check_targets(masks, labels, len(masks), num_labels), num_frames, void)


def costs_of(class_logits, mask_logits, masks, labels, points_LBP2=None, void=None, **weights) -> torch.Tensor:
    """Matching costs of mask logits (L, B, Q, ...) that exist."""
    targets = as_targets(masks, labels, void)
    return matching_costs(class_logits, as_masks(mask_logits), targets, CostWeights(**weights), points_LBP2)


def criterion_with(**fields: Any) -> Criterion:
    """The criterion of a model with these fields of its configuration."""
    return make_criterion(MaskFormerConfig(**fields))


def loss_of(criterion, class_logits, mask_logits, masks, labels, void=None) -> tuple[torch.Tensor, dict]:
    """The loss of one set of predictions, of mask logits (L, B, Q, ...) that exist or of `Masks`."""
    checked = check_targets(masks, labels, class_logits.shape[1], criterion.num_labels)
    predictions = PredictionSet(class_logits, as_masks(mask_logits), assigner="hungarian")
    return criterion([predictions], as_targets(*checked, void, criterion.num_labels))


class LargestTensor(TorchDispatchMode):
    """Elements of the largest floating-point tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.numel = max(self.numel, result.numel())
        return result
