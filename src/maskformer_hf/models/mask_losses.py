"""What matched masks lose: focal loss or cross-entropy, and dice loss; of values at points, and of every pixel."""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .matcher import FOCAL_ALPHA

# Pixels of upsampled masks that are worked on at a time: few enough for the cache of a CPU, many enough for a GPU.
CHUNK = {"cpu": 2**18}
DEFAULT_CHUNK = 2**24
# Values of masks before they are upsampled, likewise: a bound on the memory of a step, not on its speed.
SMALL_CHUNK = 2**23


def focal_loss(
    logits_NX: torch.Tensor, targets_NX: torch.Tensor, counted_NX: torch.Tensor | None = None
) -> torch.Tensor:
    """Sigmoid focal loss (alpha 0.25, gamma 2), averaged over the pixels of a mask and summed over masks.

    `targets_NX` is boolean, or holds values in [0, 1]; `counted_NX` likewise, and is the weight of each pixel.
    """
    targets = targets_NX.to(logits_NX.dtype)
    probability = logits_NX.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits_NX, targets, reduction="none")
    miss = probability * (1 - targets) + (1 - probability) * targets
    alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    return _mean_over_pixels(alpha * miss.square() * entropy, counted_NX)


def cross_entropy_loss(
    logits_NX: torch.Tensor, targets_NX: torch.Tensor, counted_NX: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross-entropy, averaged over the pixels of a mask and summed over masks; arguments of `focal_loss`."""
    targets = targets_NX.to(logits_NX.dtype)
    return _mean_over_pixels(F.binary_cross_entropy_with_logits(logits_NX, targets, reduction="none"), counted_NX)


def dice_loss(
    logits_NX: torch.Tensor, targets_NX: torch.Tensor, counted_NX: torch.Tensor | None = None
) -> torch.Tensor:
    """One minus the dice coefficient, 1 added above and below the line, summed over masks."""
    probability = logits_NX.sigmoid()
    if counted_NX is not None:
        probability, targets_NX = probability * counted_NX, targets_NX * counted_NX
    numerator = 2 * (probability * targets_NX).sum(1)
    denominator = probability.sum(1) + targets_NX.sum(1)
    return (1 - (numerator + 1) / (denominator + 1)).sum()


def _mean_over_pixels(loss_NX: torch.Tensor, counted_NX: torch.Tensor | None) -> torch.Tensor:
    if counted_NX is None:
        return loss_NX.mean(1).sum()
    return ((loss_NX * counted_NX).sum(1) / counted_NX.sum(1).clamp(min=1)).sum()


def dense_losses(
    logits_LMhw: torch.Tensor,
    targets_MHW: torch.Tensor,
    mask_term: str,
    counted_BHW: torch.Tensor | None = None,
    image_M: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask term and dice loss of each mask, (L, M) each, of logits upsampled bilinearly to the size of their targets.

    The same as `F.interpolate(mode="bilinear")` and the formulas above, but a mask at its full size exists only in
    small parts, and nothing of that size is kept for the backward pass. It is differentiable once.

    Args:
        targets_MHW: Boolean masks, common to the L layers.
        mask_term: `"focal"` or `"cross_entropy"`.
        counted_BHW: False at pixels of the images that do not count.
        image_M: Where each mask finds itself in `counted_BHW`.
    """
    return _DenseLosses.apply(logits_LMhw, targets_MHW, mask_term, counted_BHW, image_M)


class _DenseLosses(torch.autograd.Function):
    """Both losses are sums over pixels, up to factors that are known at the end. So is their slope at each small logit,
    a sum over the pixels around it, and can be had in the same pass as the losses.

    Maps are held with the masks as their last dimension, so that both axes of the image are far from it and reading or
    adding to rows and columns by index is fast.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_LMhw: torch.Tensor,
        targets_MHW: torch.Tensor,
        mask_term: str,
        counted_BHW: torch.Tensor | None,
        image_M: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_layers, num_masks, *small_size = logits_LMhw.shape
        with_slopes = ctx.needs_input_grad[0]
        mask_loss_LM, dice_LM = logits_LMhw.new_empty(2, num_layers, num_masks)
        slopes_KLMhw = logits_LMhw.new_empty(2 * with_slopes, *logits_LMhw.shape)
        step = max(1, SMALL_CHUNK // (num_layers * small_size[0] * small_size[1]))
        for start in range(0, num_masks, step):
            masks = slice(start, start + step)
            small_LhwM = logits_LMhw[:, masks].permute(0, 2, 3, 1).contiguous()
            mask_loss, dice, slopes = _losses_and_slopes(
                small_LhwM,
                targets_MHW[masks],
                mask_term,
                counted_BHW,
                None if image_M is None else image_M[masks],
                with_slopes,
            )
            mask_loss_LM[:, masks], dice_LM[:, masks] = mask_loss, dice
            if with_slopes:
                slopes_KLMhw[:, :, masks] = slopes.permute(0, 1, 4, 2, 3)
        ctx.save_for_backward(slopes_KLMhw)
        return mask_loss_LM, dice_LM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        mask_grad_LM11, dice_grad_LM11 = (grad_LM[..., None, None] for grad_LM in grad_outputs)
        (slopes_KLMhw,) = ctx.saved_tensors
        grad_LMhw = (slopes_KLMhw[0] * mask_grad_LM11).addcmul_(slopes_KLMhw[1], dice_grad_LM11)
        return grad_LMhw, None, None, None, None


def _losses_and_slopes(
    small_LhwM: torch.Tensor,
    targets_MHW: torch.Tensor,
    mask_term: str,
    counted_BHW: torch.Tensor | None,
    image_M: torch.Tensor | None,
    with_slopes: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_layers, height, width, num_masks = small_LhwM.shape
    sums_KLM = small_LhwM.new_zeros(3, num_layers, num_masks)  # mask term; wrong; wrong inside of the target
    counts_KM = small_LhwM.new_zeros(2, num_masks)  # pixels; pixels of the target
    slopes_KLhwM = small_LhwM.new_zeros(3 * with_slopes, *small_LhwM.shape)
    chunk = CHUNK.get(small_LhwM.device.type, DEFAULT_CHUNK) // (num_layers * num_masks)
    # Parts a few columns wide and many rows high: the last step adds row by row, whatever the number of columns.
    num_columns = max(8, chunk // 32)
    num_rows = max(8, chunk // min(num_columns, targets_MHW.shape[2]))
    all_columns = _bands(width, targets_MHW.shape[2], num_columns, small_LhwM)
    for rows in _bands(height, targets_MHW.shape[1], num_rows, small_LhwM):
        for columns in all_columns:
            here = (slice(None), rows.large, columns.large)
            target_HWM = targets_MHW[here].permute(1, 2, 0).contiguous().to(small_LhwM.dtype)
            counted_HWM = None
            if counted_BHW is not None:
                counted_HWM = counted_BHW[here][image_M].permute(1, 2, 0).contiguous().to(small_LhwM.dtype)
            around = small_LhwM[:, rows.small, columns.small]
            logits_LHWM = rows.read(columns.read(around, 2), 1)
            maps_KLHWM = _pixel_losses(
                logits_LHWM, target_HWM, counted_HWM, mask_term, sums_KLM, counts_KM, with_slopes
            )
            if with_slopes:
                sums_of_rows = maps_KLHWM.new_zeros(3, *around.shape[:2], *maps_KLHWM.shape[3:])
                rows.add(sums_of_rows, maps_KLHWM, 2)
                columns.add(slopes_KLhwM[:, :, rows.small, columns.small], sums_of_rows, 3)

    num_pixels, target_sum = counts_KM
    num_pixels = num_pixels.clamp(min=1)
    mask_sum, wrong, wrong_inside = sums_KLM
    # What is wrong inside of the target is missing from the prediction, what is wrong outside is too much.
    numerator = 2 * (target_sum - wrong_inside) + 1
    denominator = 2 * target_sum + wrong - 2 * wrong_inside + 1
    if with_slopes:
        mask_slope, variance, variance_inside = (slopes_KLhwM[k] for k in range(3))
        mask_slope /= num_pixels
        per_mask = (slice(None), None, None)
        variance *= (numerator / denominator.square())[per_mask]
        variance.addcmul_(variance_inside, (-2 / denominator)[per_mask])
    return mask_sum / num_pixels, 1 - numerator / denominator, slopes_KLhwM[:2]


def _pixel_losses(
    logits_LHWM: torch.Tensor,
    target_HWM: torch.Tensor,
    counted_HWM: torch.Tensor | None,
    mask_term: str,
    sums_KLM: torch.Tensor,
    counts_KM: torch.Tensor,
    with_slopes: bool,
) -> torch.Tensor:
    """Add the losses of some pixels to the sums, and return (3, L, H, W, M): the slope of the mask term, p (1 - p), and
    the latter inside of the target, from which follows the slope of the dice loss. `logits_LHWM` is overwritten."""
    sign_HWM = 1 - 2 * target_HWM
    weight_HWM = (1 - FOCAL_ALPHA) + (2 * FOCAL_ALPHA - 1) * target_HWM if mask_term == "focal" else None
    if counted_HWM is not None:
        target_HWM = target_HWM * counted_HWM
        weight_HWM = counted_HWM if weight_HWM is None else weight_HWM * counted_HWM
    counts_KM[0] += target_HWM.shape[0] * target_HWM.shape[1] if counted_HWM is None else counted_HWM.sum((0, 1))
    counts_KM[1] += target_HWM.sum((0, 1))
    # Turned so that every pixel is a negative one: its probability is how wrong it is.
    logits_LHWM *= sign_HWM
    wrong = logits_LHWM.sigmoid()
    loss = F.softplus(logits_LHWM)
    square = wrong.square() if mask_term == "focal" else None
    if square is not None:
        loss *= square
    maps_KLHWM = logits_LHWM.new_empty(3 * with_slopes, *logits_LHWM.shape)
    scratch = logits_LHWM  # no longer needed
    if with_slopes:
        mask_slope, variance, variance_inside = maps_KLHWM.unbind(0)
        if square is None:
            mask_slope.copy_(wrong)
        else:
            # Of w^2 l by the logit, where w' = w (1 - w) and l' = w: 2 w^2 l (1 - w) + w^3.
            torch.add(square, loss, alpha=-2, out=mask_slope)
            mask_slope.mul_(wrong).add_(loss, alpha=2)
        mask_slope *= sign_HWM if weight_HWM is None else sign_HWM * weight_HWM
        torch.addcmul(wrong, wrong, wrong, value=-1, out=variance)
        torch.mul(variance, target_HWM, out=variance_inside)
        if counted_HWM is not None:
            variance *= counted_HWM
    sums_KLM[0] += (loss if weight_HWM is None else torch.mul(loss, weight_HWM, out=scratch)).sum((1, 2))
    sums_KLM[1] += (wrong if counted_HWM is None else torch.mul(wrong, counted_HWM, out=scratch)).sum((1, 2))
    sums_KLM[2] += torch.mul(wrong, target_HWM, out=scratch).sum((1, 2))
    return maps_KLHWM


class _Band(NamedTuple):
    """Some rows (or columns) of an upsampled map, and those of the small map that they are mixtures of.

    Attributes:
        lower, upper: Indices into `small`, one for each row of `large`.
        share: Of the upper one in the mixture.
    """

    large: slice
    small: slice
    lower: torch.Tensor
    upper: torch.Tensor
    share: torch.Tensor

    def read(self, small: torch.Tensor, dim: int) -> torch.Tensor:
        share = self._along(dim, small)
        return torch.lerp(small.index_select(dim, self.lower), small.index_select(dim, self.upper), share)

    def add(self, small: torch.Tensor, large: torch.Tensor, dim: int):
        """The transpose of `read`. `large` is overwritten."""
        upper = large * self._along(dim, large)
        small.index_add_(dim, self.upper, upper)
        small.index_add_(dim, self.lower, large.sub_(upper))

    def _along(self, dim: int, like: torch.Tensor) -> torch.Tensor:
        return self.share.reshape(-1, *[1] * (like.dim() - dim - 1))


def _bands(small: int, large: int, step: int, like: torch.Tensor) -> list[_Band]:
    """Of the pixels of one axis, `step` at a time, those of `F.interpolate(mode="bilinear", align_corners=False)`."""
    position = ((torch.arange(large, dtype=torch.float64) + 0.5) * (small / large) - 0.5).clamp_(min=0)
    lower = position.long()
    upper = (lower + 1).clamp_(max=small - 1)
    share = (position - lower).to(like)
    bands = []
    for start in range(0, large, step):
        part = slice(start, min(start + step, large))
        first, last = int(lower[part.start]), int(upper[part.stop - 1])
        own_lower, own_upper = (x[part].sub(first).to(like.device) for x in (lower, upper))
        bands.append(_Band(part, slice(first, last + 1), own_lower, own_upper, share[part]))
    return bands
