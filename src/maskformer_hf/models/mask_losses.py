"""What matched masks lose: focal loss or cross-entropy, and dice loss; of values at points, and of every pixel."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .matcher import FOCAL_ALPHA, softplus

# Pixels of upsampled masks that are worked on at a time: few enough for the cache of a CPU, many enough for a GPU.
CHUNK = {"cpu": 2**19}
DEFAULT_CHUNK = 2**24
# Values of masks of which only the columns are upsampled, likewise: a bound on the memory of a step, not on its speed.
WIDE_CHUNK = 2**23
# Rows and columns that are made by one product of matrices: the fewer, the fewer of its weights are zero.
ROWS, COLUMNS = 32, 64


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
    overlap = probability * targets_NX
    if counted_NX is not None:
        probability, targets_NX, overlap = (x * counted_NX for x in (probability, targets_NX, overlap))
    numerator = 2 * overlap.sum(1)
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
    a sum over the pixels around it, and can be had in the same pass as the losses."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_LMhw: torch.Tensor,
        targets_MHW: torch.Tensor,
        mask_term: str,
        counted_BHW: torch.Tensor | None,
        image_M: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_layers, num_masks = logits_LMhw.shape[:2]
        with_slopes = ctx.needs_input_grad[0]
        mask_loss_LM, dice_LM = logits_LMhw.new_empty(2, num_layers, num_masks)
        slopes_KLMhw = logits_LMhw.new_empty(2 * with_slopes, *logits_LMhw.shape)
        workspace = _workspace(logits_LMhw, targets_MHW, with_slopes)
        # Under autocast too, products of matrices are of float32: TF32 where the user has allowed that.
        with torch.autocast(logits_LMhw.device.type, enabled=False):
            for start in range(0, num_masks, workspace.num_masks):
                masks = slice(start, start + workspace.num_masks)
                mask_loss_ML, dice_ML, slopes = _losses_and_slopes(
                    logits_LMhw[:, masks].transpose(0, 1).contiguous(),
                    targets_MHW[masks],
                    mask_term,
                    counted_BHW[image_M[masks]] if counted_BHW is not None and image_M is not None else None,
                    workspace,
                )
                mask_loss_LM[:, masks], dice_LM[:, masks] = mask_loss_ML.T, dice_ML.T
                for slope_LMhw, slope_MLhw in zip(slopes_KLMhw, slopes, strict=True):
                    slope_LMhw[:, masks] = slope_MLhw.transpose(0, 1)
        ctx.save_for_backward(slopes_KLMhw)
        return mask_loss_LM, dice_LM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        mask_grad_LM11, dice_grad_LM11 = (grad_LM[..., None, None] for grad_LM in grad_outputs)
        (slopes_KLMhw,) = ctx.saved_tensors
        grad_LMhw = (slopes_KLMhw[0] * mask_grad_LM11).addcmul_(slopes_KLMhw[1], dice_grad_LM11)
        return grad_LMhw, None, None, None, None


class _Band(NamedTuple):
    """Some rows (or columns) of an upsampled map, and those of the small map that they are mixtures of.

    Attributes:
        weights: (large, small), how much of each is in the mixture.
    """

    large: slice
    small: slice
    weights: torch.Tensor


class _Workspace(NamedTuple):
    """All masks are worked on in the same memory: making it anew would cost a CPU as much as the work.

    Attributes:
        num_masks: That are worked on at a time.
        wide: Room for the logits (num_masks, L, h, W), of which only the columns are upsampled.
        slopes: Room for three slopes (R, num_masks, L, h, W), likewise, of the h small rows of each of the R bands.
        parts: Room for three maps (num_masks, L, H, W) of the H upsampled rows of a band.
    """

    num_masks: int
    rows: list[_Band]
    columns: list[_Band]
    wide: torch.Tensor
    slopes: list[torch.Tensor]
    parts: list[torch.Tensor]


def _workspace(logits_LMhw: torch.Tensor, targets_MHW: torch.Tensor, with_slopes: bool) -> _Workspace:
    num_layers, num_masks, height, width = logits_LMhw.shape
    large_height, large_width = targets_MHW.shape[1:]
    chunk = CHUNK.get(logits_LMhw.device.type, DEFAULT_CHUNK)
    at_once = min(chunk // (num_layers * ROWS * large_width), WIDE_CHUNK // (num_layers * height * large_width))
    num_groups = max(1, math.ceil(num_masks / max(1, at_once)))
    num_masks = max(1, math.ceil(num_masks / num_groups))
    num_rows = min(large_height, max(1, chunk // (num_layers * num_masks * large_width * ROWS)) * ROWS)
    rows = _bands(height, large_height, num_rows, logits_LMhw)
    size = num_masks * num_layers * large_width
    slope_size = size * len(rows) * rows[0].weights.shape[1]
    return _Workspace(
        num_masks,
        rows,
        _bands(width, large_width, COLUMNS, logits_LMhw),
        logits_LMhw.new_empty(size * height),
        [logits_LMhw.new_empty(slope_size) for _ in range(3 * with_slopes)],
        [logits_LMhw.new_empty(size * num_rows) for _ in range(3)],
    )


def _maps(memory: torch.Tensor, *size: int) -> torch.Tensor:
    """The first of it. Contiguous, also for a last group of fewer masks or a last band of fewer rows."""
    return memory[: math.prod(size)].view(size)


def _bands(small: int, large: int, step: int, like: torch.Tensor) -> list[_Band]:
    """Of the pixels of one axis, `step` at a time, those of `F.interpolate(mode="bilinear", align_corners=False)`.

    All bands are mixtures of as many small ones, though some of these may have a weight of zero.
    """
    position = ((torch.arange(large, dtype=torch.float64) + 0.5) * (small / large) - 0.5).clamp_(min=0)
    lower = position.long()
    upper = (lower + 1).clamp_(max=small - 1)
    share = position - lower
    parts = [slice(start, min(start + step, large)) for start in range(0, large, step)]
    num_small = max(int(upper[part.stop - 1]) + 1 - int(lower[part.start]) for part in parts)
    bands = []
    for part in parts:
        first = min(int(lower[part.start]), small - num_small)
        weights = torch.zeros(part.stop - part.start, num_small, dtype=torch.float64)
        weights.scatter_add_(1, (lower[part] - first)[:, None], (1 - share[part])[:, None])
        weights.scatter_add_(1, (upper[part] - first)[:, None], share[part][:, None])
        bands.append(_Band(part, slice(first, first + num_small), weights.to(like)))
    return bands


def _losses_and_slopes(
    small_MLhw: torch.Tensor,
    targets_MHW: torch.Tensor,
    mask_term: str,
    counted_MHW: torch.Tensor | None,
    workspace: _Workspace,
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Both losses (M, L) of no more masks than `workspace` is for, and both slopes (M, L, h, w), where wanted.

    Maps are upsampled by products of matrices: all columns first, then the rows of one part after the other. What each
    part has of the slopes goes the same way back, by the transposed matrices.
    """
    num_masks, num_layers, height, _ = small_MLhw.shape
    large_width = targets_MHW.shape[2]
    logits_MLhW = _maps(workspace.wide, num_masks, num_layers, height, large_width)
    for columns in workspace.columns:
        around, here = small_MLhw[..., columns.small], logits_MLhW[..., columns.large]
        torch.mm(_as_rows(around), columns.weights.T, out=_as_rows(here))
    num_bands, num_small = len(workspace.rows), workspace.rows[0].weights.shape[1]
    slopes_RMLhW = [
        _maps(memory, num_bands, num_masks, num_layers, num_small, large_width) for memory in workspace.slopes
    ]
    sums = small_MLhw.new_zeros(3, num_masks, num_layers).unbind()  # mask term; wrong; wrong inside of the target
    counts = small_MLhw.new_zeros(2, num_masks, 1).unbind()  # pixels; pixels of the target
    for band, rows in enumerate(workspace.rows):
        weights_NHh = rows.weights.expand(num_masks * num_layers, -1, -1)
        part_MLHW, wrong_MLHW, slope_MLHW = (
            _maps(memory, num_masks, num_layers, len(rows.weights), large_width) for memory in workspace.parts
        )
        torch.bmm(weights_NHh, _as_matrices(logits_MLhW[:, :, rows.small]), out=_as_matrices(part_MLHW))
        # As bytes: a CPU makes floats of them much faster than of booleans.
        target_M1HW = targets_MHW.view(torch.uint8)[:, None, rows.large].to(small_MLhw.dtype)
        counted_M1HW = (
            None if counted_MHW is None else counted_MHW.view(torch.uint8)[:, None, rows.large].to(small_MLhw.dtype)
        )
        maps = (part_MLHW, wrong_MLHW, slope_MLHW, target_M1HW, counted_M1HW)
        _add_losses(*maps, mask_term, sums, counts)
        # Where no slopes are wanted, none is made.
        for slope_RMLhW, map_MLHW in zip(slopes_RMLhW, _slopes(*maps), strict=False):
            torch.bmm(weights_NHh.mT, _as_matrices(map_MLHW), out=_as_matrices(slope_RMLhW[band]))

    num_pixels, target_sum = counts
    num_pixels = num_pixels.clamp(min=1)
    mask_sum, wrong, wrong_inside = sums
    # What is wrong inside of the target is missing from the prediction, what is wrong outside is too much.
    numerator = 2 * (target_sum - wrong_inside) + 1
    denominator = 2 * target_sum + wrong - 2 * wrong_inside + 1
    slopes = []
    if slopes_RMLhW:
        mask_slope, variance, variance_inside = slopes_RMLhW
        mask_slope /= num_pixels[..., None, None]
        variance *= (numerator / denominator.square())[..., None, None]
        variance.addcmul_(variance_inside, (-2 / denominator)[..., None, None])
        for slope_RMLhW in (mask_slope, variance):
            small_RMLhw = small_MLhw.new_zeros(*slope_RMLhW.shape[:-1], small_MLhw.shape[-1])
            for columns in workspace.columns:
                around, here = small_RMLhw[..., columns.small], slope_RMLhW[..., columns.large]
                _as_rows(around).addmm_(_as_rows(here), columns.weights)
            slopes.append(torch.zeros_like(small_MLhw))
            for rows, band_MLhw in zip(workspace.rows, small_RMLhw, strict=True):
                slopes[-1][:, :, rows.small] += band_MLhw
    return mask_sum / num_pixels, 1 - numerator / denominator, slopes


def _add_losses(
    part_MLHW: torch.Tensor,
    wrong_MLHW: torch.Tensor,
    slope_MLHW: torch.Tensor,
    target_M1HW: torch.Tensor,
    counted_M1HW: torch.Tensor | None,
    mask_term: str,
    sums: Sequence[torch.Tensor],
    counts: Sequence[torch.Tensor],
) -> None:
    """Add the losses of some pixels, whose logits are in `part_MLHW`, to the sums.

    Leaves in `wrong_MLHW` how wrong each pixel's probability is, in `slope_MLHW` the slope of the mask term.
    """
    sign = 1 - 2 * target_M1HW
    positive_weight, negative_weight = (FOCAL_ALPHA, 1 - FOCAL_ALPHA) if mask_term == "focal" else (1.0, 1.0)
    weight = negative_weight + (positive_weight - negative_weight) * target_M1HW
    if counted_M1HW is None:
        counts[0].add_(target_M1HW[0].numel())
    else:
        weight, target_M1HW = weight * counted_M1HW, target_M1HW * counted_M1HW
        counts[0].add_(counted_M1HW.sum((2, 3)))
    counts[1].add_(target_M1HW.sum((2, 3)))
    # Turned so that every pixel is a negative one: its probability is how wrong it is.
    torch.sigmoid(part_MLHW.mul_(sign), out=wrong_MLHW)
    loss_MLHW = softplus(part_MLHW, wrong_MLHW, out=part_MLHW, scratch=slope_MLHW)
    if mask_term == "focal":
        square_MLHW = torch.mul(wrong_MLHW, weight, out=slope_MLHW).mul_(wrong_MLHW)
        sums[0].add_(loss_MLHW.mul_(square_MLHW).sum((2, 3)))
        # Of w^2 l by the logit, where w' = w (1 - w) and l' = w: 2 w^2 l (1 - w) + w^2 w.
        torch.lerp(loss_MLHW.mul_(2), square_MLHW, wrong_MLHW, out=slope_MLHW).mul_(sign)
    else:
        sums[0].add_(loss_MLHW.mul_(weight).sum((2, 3)))
        torch.mul(wrong_MLHW, sign * weight, out=slope_MLHW)
    scratch_MLHW = part_MLHW
    counted = wrong_MLHW if counted_M1HW is None else torch.mul(wrong_MLHW, counted_M1HW, out=scratch_MLHW)
    sums[1].add_(counted.sum((2, 3)))
    sums[2].add_(torch.mul(wrong_MLHW, target_M1HW, out=scratch_MLHW).sum((2, 3)))


def _slopes(
    scratch_MLHW: torch.Tensor,
    wrong_MLHW: torch.Tensor,
    slope_MLHW: torch.Tensor,
    target_M1HW: torch.Tensor,
    counted_M1HW: torch.Tensor | None,
) -> Iterator[torch.Tensor]:
    """The slope of the mask term, p (1 - p), and the latter inside of the target, from which follows the slope of the
    dice loss. The last two are in the same memory."""
    yield slope_MLHW
    variance_MLHW = torch.addcmul(wrong_MLHW, wrong_MLHW, wrong_MLHW, value=-1, out=scratch_MLHW)
    yield variance_MLHW if counted_M1HW is None else variance_MLHW.mul_(counted_M1HW)
    yield variance_MLHW.mul_(target_M1HW)


def _as_rows(maps: torch.Tensor) -> torch.Tensor:
    """All rows of all maps below each other. A view or an error: results are written into it."""
    return maps.view(-1, maps.shape[-1])


def _as_matrices(maps: torch.Tensor) -> torch.Tensor:
    """One map for each mask and layer: a view or an error, likewise."""
    return maps.view(-1, *maps.shape[-2:])
