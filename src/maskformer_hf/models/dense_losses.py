"""Focal loss or cross-entropy, and dice loss, of every pixel of the matched masks.

`plain_dense_losses` is what is computed. It keeps a dozen maps of the full size for each mask: gigabytes in a training
step. `dense_losses` gives the same numbers, and the slope of their weighted sum, with few masks at a time at their full
size and nothing of it kept. It can, because the slope of a loss at a small logit is a sum over the pixels around it,
and these are all there while the loss is computed.

Shapes: L layers, M masks, h w cells of the small maps, H W pixels of the large ones.
"""

import math
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .dense_workspace import Workspace, add_slopes, make_workspace, maps_in, upsample_columns
from .log_sigmoid import log_sigmoid
from .loss_terms import FOCAL_ALPHA, CrossEntropyLoss, DiceLoss, FocalLoss, Pixels


class DenseTerms(NamedTuple):
    """
    mask_term: `"focal"` or `"cross_entropy"`.
    mask_weight, dice_weight: The weights of that term and of the dice loss in their sum.
    """

    mask_term: str
    mask_weight: float = 1.0
    dice_weight: float = 1.0


def plain_dense_losses(
    logits_LMhw: torch.Tensor,
    targets_MHW: torch.Tensor,
    terms: DenseTerms,
    valid_MHW: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The formula of `dense_losses`, written down."""
    mask_term = FocalLoss() if terms.mask_term == "focal" else CrossEntropyLoss()
    logits_LMHW = F.interpolate(logits_LMhw, size=targets_MHW.shape[1:], mode="bilinear", align_corners=False)
    valid_MX = None if valid_MHW is None else valid_MHW.flatten(1)
    layers = [Pixels(logits_MHW.flatten(1), targets_MHW.flatten(1), valid_MX) for logits_MHW in logits_LMHW]
    mask_loss_LM = torch.stack([mask_term(pixels) for pixels in layers])
    dice_LM = torch.stack([DiceLoss()(pixels) for pixels in layers])
    return terms.mask_weight * mask_loss_LM + terms.dice_weight * dice_LM, mask_loss_LM.detach(), dice_LM.detach()


def dense_losses(
    logits_LMhw: torch.Tensor,
    targets_MHW: torch.Tensor,
    terms: DenseTerms,
    valid_BHW: torch.Tensor | None = None,
    image_M: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weighted sum, mask term and dice loss of each mask, (L, M) each, of logits that are upsampled bilinearly to the
    size of their targets. The weighted sum is differentiable, once; the terms are not.

    Args:
        targets_MHW: Boolean masks, common to the L layers.
        valid_BHW: False at pixels of the images that do not count.
        image_M: The image of each mask, an index of `valid_BHW`.
    """
    return _DenseLosses.apply(logits_LMhw, targets_MHW, terms, valid_BHW, image_M)


class _DenseLosses(torch.autograd.Function):
    """Computes the slope of the weighted sum on the way forward, and keeps nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_LMhw: torch.Tensor,
        targets_MHW: torch.Tensor,
        terms: DenseTerms,
        valid_BHW: torch.Tensor | None,
        image_M: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        num_layers, num_masks = logits_LMhw.shape[:2]
        mask_loss_LM, dice_LM = logits_LMhw.new_empty(2, num_layers, num_masks)
        slopes_LMhw = torch.zeros_like(logits_LMhw) if ctx.needs_input_grad[0] else None
        workspace = make_workspace(logits_LMhw, targets_MHW)
        # Also under autocast, products of matrices are of float32, or of TF32 where the user has allowed that.
        with torch.autocast(logits_LMhw.device.type, enabled=False):
            for start in range(0, num_masks, workspace.num_masks):
                masks = slice(start, start + workspace.num_masks)
                valid_MHW = None if valid_BHW is None or image_M is None else valid_BHW[image_M[masks]]
                target = _target(targets_MHW[masks], valid_MHW, terms.mask_term, workspace)
                wide_MLhW = upsample_columns(logits_LMhw[:, masks].transpose(0, 1), workspace)
                for first in range(0, num_layers, workspace.num_layers):
                    layers = slice(first, first + workspace.num_layers)
                    losses = _losses_and_slopes(wide_MLhW[:, layers], target, terms, workspace, slopes_LMhw is not None)
                    mask_loss_LM[layers, masks], dice_LM[layers, masks] = (loss_ML.T for loss_ML in losses)
                if slopes_LMhw is not None:
                    add_slopes(slopes_LMhw[:, masks].transpose(0, 1), wide_MLhW, workspace)
        ctx.save_for_backward(slopes_LMhw)
        ctx.mark_non_differentiable(mask_loss_LM, dice_LM)
        weighted_LM = terms.mask_weight * mask_loss_LM + terms.dice_weight * dice_LM
        return weighted_LM, mask_loss_LM, dice_LM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        (slopes_LMhw,) = ctx.saved_tensors
        return slopes_LMhw * grad_outputs[0][..., None, None], None, None, None, None


class _Target(NamedTuple):
    """What the masks of all layers are compared with, (M, 1, H, W), and H a whole number of bands.

    Attributes:
        sign: 1 inside of the target, -1 outside.
        inside: 1 at pixels of the target that count.
        valid: 1 at pixels that count; None if all do.
        weight: What each pixel's loss weighs in the mean.
        size: (M, 1), pixels of the target that count.
    """

    sign: torch.Tensor
    inside: torch.Tensor
    valid: torch.Tensor | None
    weight: torch.Tensor
    size: torch.Tensor


def _target(targets_MHW: torch.Tensor, valid_MHW: torch.Tensor | None, mask_term: str, workspace: Workspace) -> _Target:
    num_masks, height, width = targets_MHW.shape
    whole_height = math.prod(workspace.rows.weights.shape[:2])
    inside, sign, weight, valid = (maps_in(memory, num_masks, 1, whole_height, width) for memory in workspace.targets)
    # As bytes: a CPU makes floats of them much faster than of booleans.
    inside[:, 0, :height] = targets_MHW.view(torch.uint8)
    inside_weight, outside_weight = (FOCAL_ALPHA, 1 - FOCAL_ALPHA) if mask_term == "focal" else (1.0, 1.0)
    torch.add(inside.new_tensor(-1), inside, alpha=2, out=sign)
    torch.add(inside.new_tensor(outside_weight), inside, alpha=inside_weight - outside_weight, out=weight)
    if valid_MHW is None and height == whole_height:
        weight /= height * width
        return _Target(sign, inside, None, weight, inside.sum((2, 3)))
    valid[:, 0, :height] = True if valid_MHW is None else valid_MHW.view(torch.uint8)
    weight *= valid
    weight /= valid.sum((2, 3), keepdim=True).clamp_(min=1)
    inside *= valid
    return _Target(sign, inside, valid, weight, inside.sum((2, 3)))


def _losses_and_slopes(
    wide_MLhW: torch.Tensor,
    target: _Target,
    terms: DenseTerms,
    workspace: Workspace,
    with_slopes: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses, (M, L); with slopes, leaves those of the weighted sum in place of the logits in `wide_MLhW`."""
    num_masks, num_layers, _, width = wide_MLhW.shape
    _, num_large, num_small = workspace.rows.weights.shape
    height = target.sign.shape[2]
    logits, right, wrong, scratch = (maps_in(memory, num_masks, num_layers, height, width) for memory in workspace.maps)
    small_bands = wide_MLhW.view(-1, num_small, width)
    row_weights = workspace.row_weights[: len(small_bands)]
    torch.bmm(row_weights, small_bands, out=logits.view(-1, num_large, width))
    # Turned so that every pixel should be positive: its probability is how right it is.
    torch.sigmoid(logits.mul_(target.sign), out=right)
    log_right = log_sigmoid(logits, right, workspace.bounded, out=logits)
    torch.sub(torch.ones((), dtype=right.dtype, device=right.device), right, out=wrong)

    # What is wrong inside of the target is missing from the prediction, what is wrong outside is too much.
    wrong_valid = wrong if target.valid is None else torch.mul(wrong, target.valid, out=scratch)
    wrong_ML = wrong_valid.sum((2, 3))
    inside_ML = torch.mul(wrong, target.inside, out=scratch).sum((2, 3))
    numerator_ML = 2 * (target.size - inside_ML) + 1
    denominator_ML = 2 * target.size + wrong_ML - 2 * inside_ML + 1
    dice_ML = 1 - numerator_ML / denominator_ML

    if terms.mask_term == "focal":
        # The derivative of -w^2 log(r) by the logit, where r' = w r and w = 1 - r, is -(w^2 w - 2 w^2 log(r) r).
        square = wrong.square_().mul_(target.weight)
        zero = torch.zeros((), dtype=right.dtype, device=right.device)
        double = torch.addcmul(zero, square, log_right, value=-2, out=log_right)
        mask_loss_ML = double.sum((2, 3)) / 2
        slope = torch.lerp(square, double, right, out=square) if with_slopes else square
    else:
        mask_loss_ML = -log_right.mul_(target.weight).sum((2, 3))
        slope = wrong.mul_(target.weight)
    if with_slopes:
        # The derivative of the dice loss by the probability, then by the logit.
        inside_factor, factor = -2 / denominator_ML, numerator_ML / denominator_ML.square()
        torch.mul(target.inside, (terms.dice_weight * inside_factor)[..., None, None], out=scratch)
        scratch += (terms.dice_weight * factor)[..., None, None]
        if target.valid is not None:
            scratch *= target.valid
        torch.ops.aten.sigmoid_backward.grad_input(scratch, right, grad_input=scratch)
        scratch.addcmul_(slope, target.sign, value=-terms.mask_weight)
        torch.bmm(row_weights.mT, scratch.view(-1, num_large, width), out=small_bands)
    return mask_loss_ML, dice_ML
