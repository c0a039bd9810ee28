"""The memory in which the dense losses work, and how masks get to their full size and slopes back.

Small maps are upsampled as `F.interpolate(mode="bilinear")` does, by products of matrices: rows and columns are cut
into bands, and what a band is mixed from is a few neighbours, so that little of each matrix is zero. The way back is
the product with the transposed matrix.

Shapes: L layers, M masks, h w cells of the small maps, H W pixels of the large ones.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from .at_once import AtOnce
from .log_sigmoid import is_bounded

# Pixels of large maps that are worked on at a time, at least one mask.
PIXELS_AT_ONCE = AtOnce(cpu=2**19, other=2**24)
# Rows and columns that are made by one product of matrices: the fewer, the fewer of its weights are zero.
ROWS_PER_BAND, COLUMNS_PER_BAND = 32, 120


class AxisBands(NamedTuple):
    """Large pixels of one axis, some at a time, as mixtures of small ones: `F.interpolate(mode="bilinear")`.

    Attributes:
        first: Small pixel of each band.
        weights: (bands, large, small), how much of each is in the mixture. Bands are of one size: the last may reach
            beyond the end, where weights are zero, and some small pixels of a band may have no weight at all.
    """

    first: list[int]
    weights: torch.Tensor


class Workspace(NamedTuple):
    """The memory that all masks are worked on in: making it anew would cost a CPU as much as the work.

    Attributes:
        num_masks, num_layers: How many are worked on at a time.
        large_width: W.
        rows, columns: How the large maps are made of the small ones.
        row_weights: The weights of `rows`, once for each map that is worked on.
        narrow, wide: Room for the small rows of all bands, of the masks of all layers, with small and large columns.
        targets: Room for four large maps of the targets, zero where no target reaches.
        maps: Room for four large maps of the masks of some layers.
        bounded: Whether no logit is extreme.
    """

    num_masks: int
    num_layers: int
    large_width: int
    rows: AxisBands
    columns: AxisBands
    row_weights: torch.Tensor
    narrow: torch.Tensor
    wide: torch.Tensor
    targets: torch.Tensor
    maps: torch.Tensor
    bounded: bool


def make_workspace(logits_LMhw: torch.Tensor, targets_MHW: torch.Tensor) -> Workspace:
    num_layers, num_masks, height, width = logits_LMhw.shape
    large_height, large_width = targets_MHW.shape[1:]
    rows, columns = (
        _bands(*sizes, logits_LMhw)
        for sizes in ((height, large_height, ROWS_PER_BAND), (width, large_width, COLUMNS_PER_BAND))
    )
    num_bands, num_large, num_small = rows.weights.shape
    map_size = num_bands * num_large * large_width
    at_once = max(1, PIXELS_AT_ONCE.on(logits_LMhw.device) // map_size)
    masks_at_once = _equal_parts(num_masks, at_once // num_layers)
    layers_at_once = _equal_parts(num_layers, at_once)
    num_maps = masks_at_once * layers_at_once
    num_rows = masks_at_once * num_layers * num_bands * num_small
    return Workspace(
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


def maps_in(memory: torch.Tensor, *size: int) -> torch.Tensor:
    """The beginning of some memory as maps of this size: the last masks or layers may be fewer. Contiguous."""
    return memory[: math.prod(size)].view(size)


def _bands(small: int, large: int, at_most: int, like: torch.Tensor) -> AxisBands:
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
    return AxisBands(first, weights.to(like))


def upsample_columns(small_MLhw: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    """(M, L, bands * small rows, W): those rows that the bands of rows are mixtures of, below each other."""
    num_small = workspace.rows.weights.shape[2]
    parts = [small_MLhw[:, :, first : first + num_small] for first in workspace.rows.first]
    num_masks, num_layers, _, width = small_MLhw.shape
    banded = maps_in(workspace.narrow, num_masks, num_layers, len(parts) * num_small, width)
    torch.cat(parts, dim=2, out=banded)
    wide = maps_in(workspace.wide, *banded.shape[:3], workspace.large_width)
    for here, around, weights in _column_bands(wide, banded, workspace.columns):
        torch.mm(around, weights.T, out=here)
    return wide


def add_slopes(slopes_MLhw: torch.Tensor, wide_MLhW: torch.Tensor, workspace: Workspace):
    """The way back of `upsample_columns`, by the transposed matrices."""
    num_small = workspace.rows.weights.shape[2]
    banded = maps_in(workspace.narrow, *wide_MLhW.shape[:3], slopes_MLhw.shape[-1]).zero_()
    for here, around, weights in _column_bands(wide_MLhW, banded, workspace.columns):
        around.addmm_(here, weights)
    for first, rows in zip(workspace.rows.first, banded.split(num_small, dim=2), strict=True):
        slopes_MLhw[:, :, first : first + num_small] += rows


def _column_bands(
    large: torch.Tensor, small: torch.Tensor, columns: AxisBands
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Each band's large columns, the small ones it is a mixture of, and the weights (large, small): all rows of all
    maps below each other. Views or an error: results are written into them."""
    num_large, num_small = columns.weights.shape[1:]
    for first, here, weights in zip(columns.first, large.split(num_large, dim=-1), columns.weights, strict=True):
        around = small[..., first : first + num_small]
        yield here.view(-1, here.shape[-1]), around.view(-1, num_small), weights[: here.shape[-1]]
