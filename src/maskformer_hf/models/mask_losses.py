"""What matched masks lose: focal loss or cross-entropy, and dice loss; of values at points, and of every pixel."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .matcher import FOCAL_ALPHA, is_bounded, log_sigmoid

# Pixels of upsampled masks that are worked on at a time, at least one mask: few enough for the cache of a CPU, many
# enough for a GPU.
CHUNK = {"cpu": 2**19}
DEFAULT_CHUNK = 2**24
# Rows and columns that are made by one product of matrices: the fewer, the fewer of its weights are zero.
ROWS, COLUMNS = 32, 120


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
    weights: tuple[float, float] = (1.0, 1.0),
    counted_BHW: torch.Tensor | None = None,
    image_M: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weighted sum, mask term and dice loss of each mask, (L, M) each, of logits upsampled bilinearly to the size of
    their targets.

    The same as `F.interpolate(mode="bilinear")` and the formulas above, but few masks at a time exist at their full
    size, and nothing of that size is kept for the backward pass. The weighted sum is differentiable, once; the terms
    are not.

    Args:
        targets_MHW: Boolean masks, common to the L layers.
        mask_term: `"focal"` or `"cross_entropy"`.
        weights: Of mask term and dice loss in the sum.
        counted_BHW: False at pixels of the images that do not count.
        image_M: Where each mask finds itself in `counted_BHW`.
    """
    return _DenseLosses.apply(logits_LMhw, targets_MHW, mask_term, weights, counted_BHW, image_M)


class _DenseLosses(torch.autograd.Function):
    """The slope of a loss at a small logit is a sum over the pixels around it, and can be had while these exist."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_LMhw: torch.Tensor,
        targets_MHW: torch.Tensor,
        mask_term: str,
        weights: tuple[float, float],
        counted_BHW: torch.Tensor | None,
        image_M: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        num_layers, num_masks = logits_LMhw.shape[:2]
        mask_loss_LM, dice_LM = logits_LMhw.new_empty(2, num_layers, num_masks)
        slopes_LMhw = torch.zeros_like(logits_LMhw) if ctx.needs_input_grad[0] else None
        workspace = _workspace(logits_LMhw, targets_MHW)
        # Under autocast too, products of matrices are of float32: TF32 where the user has allowed that.
        with torch.autocast(logits_LMhw.device.type, enabled=False):
            for start in range(0, num_masks, workspace.num_masks):
                masks = slice(start, start + workspace.num_masks)
                counted_MHW = None if counted_BHW is None or image_M is None else counted_BHW[image_M[masks]]
                target = _target(targets_MHW[masks], counted_MHW, mask_term, workspace)
                wide_MLhW = _upsample_columns(logits_LMhw[:, masks].transpose(0, 1), workspace)
                for first in range(0, num_layers, workspace.num_layers):
                    layers = slice(first, first + workspace.num_layers)
                    losses = _losses_and_slopes(
                        wide_MLhW[:, layers], target, mask_term, weights, workspace, slopes_LMhw is not None
                    )
                    mask_loss_LM[layers, masks], dice_LM[layers, masks] = (loss_ML.T for loss_ML in losses)
                if slopes_LMhw is not None:
                    _add_slopes(slopes_LMhw[:, masks].transpose(0, 1), wide_MLhW, workspace)
        ctx.save_for_backward(slopes_LMhw)
        ctx.mark_non_differentiable(mask_loss_LM, dice_LM)
        return weights[0] * mask_loss_LM + weights[1] * dice_LM, mask_loss_LM, dice_LM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        (slopes_LMhw,) = ctx.saved_tensors
        return slopes_LMhw * grad_outputs[0][..., None, None], None, None, None, None, None


class _Bands(NamedTuple):
    """Large pixels of one axis, some at a time, as mixtures of small ones: `F.interpolate(mode="bilinear")`.

    Attributes:
        first: Small pixel of each band.
        weights: (bands, large, small), how much of each is in the mixture. Bands are of one size: the last may reach
            beyond the end, where weights are zero, and some small pixels of a band may have no weight at all.
    """

    first: list[int]
    weights: torch.Tensor


class _Workspace(NamedTuple):
    """All masks are worked on in the same memory: making it anew would cost a CPU as much as the work.

    Attributes:
        num_masks, num_layers: That are worked on at a time.
        large_width: W.
        row_weights: Those of `rows`, once for each map that is worked on.
        narrow, wide: Room for the small rows of all bands, of the masks of all layers, with small and large columns.
        targets: Room for four large maps of the targets, zero where no target reaches.
        maps: Room for four large maps of the masks of some layers.
        bounded: Whether no logit is extreme.
    """

    num_masks: int
    num_layers: int
    large_width: int
    rows: _Bands
    columns: _Bands
    row_weights: torch.Tensor
    narrow: torch.Tensor
    wide: torch.Tensor
    targets: torch.Tensor
    maps: torch.Tensor
    bounded: bool


class _Target(NamedTuple):
    """What the masks of all layers are compared with, (M, 1, H, W), and H a whole number of bands.

    Attributes:
        sign: 1 inside of the target, -1 outside.
        inside: 1 at pixels of the target that count.
        counted: 1 at pixels that count; None if all do.
        weight: Of each pixel's loss in the mean.
        size: (M, 1), pixels of the target that count.
    """

    sign: torch.Tensor
    inside: torch.Tensor
    counted: torch.Tensor | None
    weight: torch.Tensor
    size: torch.Tensor


def _workspace(logits_LMhw: torch.Tensor, targets_MHW: torch.Tensor) -> _Workspace:
    num_layers, num_masks, height, width = logits_LMhw.shape
    large_height, large_width = targets_MHW.shape[1:]
    rows, columns = (
        _bands(*sizes, logits_LMhw) for sizes in ((height, large_height, ROWS), (width, large_width, COLUMNS))
    )
    num_bands, num_large, num_small = rows.weights.shape
    map_size = num_bands * num_large * large_width
    at_once = max(1, CHUNK.get(logits_LMhw.device.type, DEFAULT_CHUNK) // map_size)
    masks_at_once = _equal_parts(num_masks, at_once // num_layers)
    layers_at_once = _equal_parts(num_layers, at_once)
    num_maps = masks_at_once * layers_at_once
    num_rows = masks_at_once * num_layers * num_bands * num_small
    return _Workspace(
        masks_at_once,
        layers_at_once,
        large_width,
        rows,
        columns,
        rows.weights.repeat(num_maps, 1, 1),
        logits_LMhw.new_empty(num_rows * width),
        logits_LMhw.new_empty(num_rows * large_width),
        logits_LMhw.new_zeros(4, masks_at_once * map_size),
        logits_LMhw.new_empty(4, num_maps * map_size),
        is_bounded(torch.stack((logits_LMhw.amin(), -logits_LMhw.amax()))),
    )


def _equal_parts(total: int, at_most: int) -> int:
    """The size of parts that are as equal as can be, at least 1."""
    return math.ceil(total / math.ceil(total / max(1, at_most)))


def _maps(memory: torch.Tensor, *size: int) -> torch.Tensor:
    """The first of it: the last part of the masks or layers may be smaller. Contiguous."""
    return memory[: math.prod(size)].view(size)


def _bands(small: int, large: int, at_most: int, like: torch.Tensor) -> _Bands:
    position = ((torch.arange(large, dtype=torch.float64) + 0.5) * (small / large) - 0.5).clamp_(min=0)
    lower = position.long()
    upper = (lower + 1).clamp_(max=small - 1)
    share = position - lower
    step = _equal_parts(large, at_most)
    parts = [slice(start, min(start + step, large)) for start in range(0, large, step)]
    num_small = max(int(upper[part.stop - 1]) + 1 - int(lower[part.start]) for part in parts)
    first = [min(int(lower[part.start]), small - num_small) for part in parts]
    weights = torch.zeros(len(parts), step, num_small, dtype=torch.float64)
    for part, start, own in zip(parts, first, weights, strict=True):
        own = own[: part.stop - part.start]
        own.scatter_add_(1, (lower[part] - start)[:, None], (1 - share[part])[:, None])
        own.scatter_add_(1, (upper[part] - start)[:, None], share[part][:, None])
    return _Bands(first, weights.to(like))


def _target(
    targets_MHW: torch.Tensor, counted_MHW: torch.Tensor | None, mask_term: str, workspace: _Workspace
) -> _Target:
    num_masks, height, width = targets_MHW.shape
    whole_height = math.prod(workspace.rows.weights.shape[:2])
    inside, sign, weight, counted = (_maps(memory, num_masks, 1, whole_height, width) for memory in workspace.targets)
    # As bytes: a CPU makes floats of them much faster than of booleans.
    inside[:, 0, :height] = targets_MHW.view(torch.uint8)
    inside_weight, outside_weight = (FOCAL_ALPHA, 1 - FOCAL_ALPHA) if mask_term == "focal" else (1.0, 1.0)
    torch.add(inside.new_tensor(-1), inside, alpha=2, out=sign)
    torch.add(inside.new_tensor(outside_weight), inside, alpha=inside_weight - outside_weight, out=weight)
    if counted_MHW is None and height == whole_height:
        weight /= height * width
        return _Target(sign, inside, None, weight, inside.sum((2, 3)))
    counted[:, 0, :height] = True if counted_MHW is None else counted_MHW.view(torch.uint8)
    weight *= counted
    weight /= counted.sum((2, 3), keepdim=True).clamp_(min=1)
    inside *= counted
    return _Target(sign, inside, counted, weight, inside.sum((2, 3)))


def _losses_and_slopes(
    wide_MLhW: torch.Tensor,
    target: _Target,
    mask_term: str,
    weights: tuple[float, float],
    workspace: _Workspace,
    with_slopes: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses, (M, L); with slopes, leaves those of the weighted sum in place of the logits in `wide_MLhW`."""
    num_masks, num_layers, _, width = wide_MLhW.shape
    _, num_large, num_small = workspace.rows.weights.shape
    height = target.sign.shape[2]
    logits, right, wrong, scratch = (_maps(memory, num_masks, num_layers, height, width) for memory in workspace.maps)
    small_bands = wide_MLhW.view(-1, num_small, width)
    row_weights = workspace.row_weights[: len(small_bands)]
    torch.bmm(row_weights, small_bands, out=logits.view(-1, num_large, width))
    # Turned so that every pixel should be positive: its probability is how right it is.
    torch.sigmoid(logits.mul_(target.sign), out=right)
    log_right = log_sigmoid(logits, right, workspace.bounded, out=logits)
    torch.sub(torch.ones((), dtype=right.dtype, device=right.device), right, out=wrong)

    # What is wrong inside of the target is missing from the prediction, what is wrong outside is too much.
    counted = wrong if target.counted is None else torch.mul(wrong, target.counted, out=scratch)
    wrong_ML = counted.sum((2, 3))
    inside_ML = torch.mul(wrong, target.inside, out=scratch).sum((2, 3))
    numerator_ML = 2 * (target.size - inside_ML) + 1
    denominator_ML = 2 * target.size + wrong_ML - 2 * inside_ML + 1
    dice_ML = 1 - numerator_ML / denominator_ML

    if mask_term == "focal":
        # Of -w^2 log(r) by the logit, where r' = w r and w = 1 - r: -(w^2 w - 2 w^2 log(r) r).
        square = wrong.square_().mul_(target.weight)
        zero = torch.zeros((), dtype=right.dtype, device=right.device)
        double = torch.addcmul(zero, square, log_right, value=-2, out=log_right)
        mask_loss_ML = double.sum((2, 3)) / 2
        slope = torch.lerp(square, double, right, out=square) if with_slopes else square
    else:
        mask_loss_ML = -log_right.mul_(target.weight).sum((2, 3))
        slope = wrong.mul_(target.weight)
    if with_slopes:
        # Of the dice loss by the probability, then by the logit.
        inside_factor, factor = -2 / denominator_ML, numerator_ML / denominator_ML.square()
        torch.mul(target.inside, (weights[1] * inside_factor)[..., None, None], out=scratch)
        scratch += (weights[1] * factor)[..., None, None]
        if target.counted is not None:
            scratch *= target.counted
        torch.ops.aten.sigmoid_backward.grad_input(scratch, right, grad_input=scratch)
        scratch.addcmul_(slope, target.sign, value=-weights[0])
        torch.bmm(row_weights.mT, scratch.view(-1, num_large, width), out=small_bands)
    return mask_loss_ML, dice_ML


def _upsample_columns(small_MLhw: torch.Tensor, workspace: _Workspace) -> torch.Tensor:
    """(M, L, bands * small rows, W): those rows that the bands of rows are mixtures of, below each other."""
    num_small = workspace.rows.weights.shape[2]
    parts = [small_MLhw[:, :, first : first + num_small] for first in workspace.rows.first]
    num_masks, num_layers, _, width = small_MLhw.shape
    banded = _maps(workspace.narrow, num_masks, num_layers, len(parts) * num_small, width)
    torch.cat(parts, dim=2, out=banded)
    wide = _maps(workspace.wide, *banded.shape[:3], workspace.large_width)
    for here, around, weights in _column_bands(wide, banded, workspace.columns):
        torch.mm(around, weights.T, out=here)
    return wide


def _add_slopes(slopes_MLhw: torch.Tensor, wide_MLhW: torch.Tensor, workspace: _Workspace):
    """The way back of `_upsample_columns`, by the transposed matrices."""
    num_small = workspace.rows.weights.shape[2]
    banded = _maps(workspace.narrow, *wide_MLhW.shape[:3], slopes_MLhw.shape[-1]).zero_()
    for here, around, weights in _column_bands(wide_MLhW, banded, workspace.columns):
        around.addmm_(here, weights)
    for first, rows in zip(workspace.rows.first, banded.split(num_small, dim=2), strict=True):
        slopes_MLhw[:, :, first : first + num_small] += rows


def _column_bands(
    large: torch.Tensor, small: torch.Tensor, columns: _Bands
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Each band's large columns, the small ones it is a mixture of, and the weights (large, small): all rows of all
    maps below each other. Views or an error: results are written into them."""
    num_large, num_small = columns.weights.shape[1:]
    for first, here, weights in zip(columns.first, large.split(num_large, dim=-1), columns.weights, strict=True):
        around = small[..., first : first + num_small]
        yield here.view(-1, here.shape[-1]), around.view(-1, num_small), weights[: here.shape[-1]]
