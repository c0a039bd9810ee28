"""The block engine: decisions about every pixel of a target without mask logits at its full resolution.

The plain formula is `image_geometry.plain_logits`: resize all masks to the target, then compare them pixel by pixel.
For 100 queries and an image of 1024 x 2048 these are 840 MB, most of which decide nothing: inside a segment, thousands
of neighbouring pixels have the same winner. This engine gives the same answers in a fraction of the time and memory.

It rests on one fact: bilinear interpolation cannot leave the range of the cells that it mixes. So the target is cut
into blocks of about two by two mask cells, each query gets its smallest and largest logit per block, and from these
follow bounds of every score that hold for all pixels of the block. Where the bounds already name the winner the block
is filled; only the other blocks, mostly along outlines, are computed pixel by pixel. The result is that of the plain
formula, except that pixels whose two best scores differ by less than `MARGIN` may go either way, as they do between two
machines.

`semantic.py`, `panoptic.py` and `block_masks.py` hold what is decided, each beside its plain formula.

Mask logits may have any floating dtype and live on any device; all arithmetic is float32.

Shapes: Q queries or classes, h w mask cells, H W target pixels, N blocks (of a strip, or listed ones), PP pixels of a
block, SS cells that a block reads, M queries that are listed for each of some blocks.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .block_grid import BlockGrid, temporary_numel

# How much a lower bound must exceed its rivals' upper bounds before a block counts as decided: above the rounding of
# sums of some hundred float32 products, far below any difference that means something.
MARGIN = 1e-5

# float32 holds every whole number up to this one.
LARGEST_COUNT = 2**24


class BlockStrip(NamedTuple):
    """Some rows of blocks with the cells that they read; blocks are numbered row by row within the strip."""

    grid: BlockGrid
    start: int  # its first row of blocks, and one past its last
    stop: int
    cells: Tensor  # (h, w, Q) float32 mask logits of the cells
    first_cell_row: int  # where these rows of cells begin in the mask
    low: Tensor  # (N, Q) smallest logit in reach of a block
    high: Tensor  # (N, Q) largest

    @property
    def pixel_counts(self) -> Tensor:
        """Pixels of each block that belong to the image, (N,) int64."""
        return self.grid.pixel_counts[self.start : self.stop].flatten()

    def position(self, blocks_N: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column, in the whole grid, of blocks of this strip."""
        return self.start + blocks_N // self.grid.columns.num_blocks, blocks_N % self.grid.columns.num_blocks

    def logits(self, row_N: Tensor, column_N: Tensor) -> Tensor:
        """Interpolated logits of all queries at all pixels of some blocks, (N, PP, Q)."""
        cell_rows, cell_columns = self._cells_of(row_N, column_N)
        cells = self.cells[cell_rows[:, :, None], cell_columns[:, None, :]]
        return torch.bmm(self.grid.pixel_weights(row_N, column_N), cells.flatten(1, 2))

    def listed_logits(self, row_N: Tensor, column_N: Tensor, queries_NM: Tensor) -> Tensor:
        """Interpolated logits of some queries at all pixels of some blocks, (N, M, PP)."""
        cell_rows, cell_columns = self._cells_of(row_N, column_N)
        cells = self.cells[cell_rows[:, None, :, None], cell_columns[:, None, None, :], queries_NM[:, :, None, None]]
        return torch.bmm(cells.flatten(2), self.grid.pixel_weights(row_N, column_N).transpose(1, 2))

    def _cells_of(self, row_N: Tensor, column_N: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = self.grid.rows, self.grid.columns
        return rows.cells[row_N] - self.first_cell_row, columns.cells[column_N]


def block_strips(mask_logits_Qhw: Tensor, grid: BlockGrid) -> Iterator[BlockStrip]:
    """Cuts a target into strips of block rows; the bounds of the last strip are free to be overwritten."""
    queries, _, width = mask_logits_Qhw.shape
    rows, columns = grid.rows, grid.columns
    span = rows.cells.shape[1]
    cells_per_row = max(1, (rows.first_cells[-1] - rows.first_cells[0]) // max(1, rows.num_blocks - 1))
    step = temporary_numel(mask_logits_Qhw.device) // (max(1, queries) * width * cells_per_row)
    step = max(1, min(step, LARGEST_COUNT // (rows.block_length * columns.length)))  # see count_pixels
    for start in range(0, rows.num_blocks, step):
        stop = min(start + step, rows.num_blocks)
        first_row = rows.first_cells[start]
        last_row = rows.first_cells[stop - 1] + span
        # Queries last, so that everything below runs over contiguous numbers.
        cells_hwQ = mask_logits_Qhw[:, first_row:last_row].permute(1, 2, 0).float().contiguous()
        row_cells = rows.cells[start:stop] - first_row
        low_NQ = _pool(cells_hwQ, row_cells, columns.cells, torch.minimum)
        high_NQ = _pool(cells_hwQ, row_cells, columns.cells, torch.maximum)
        if not bool(torch.isfinite(low_NQ.sum() + high_NQ.sum())):
            raise ValueError(
                "The logits of masks or pixels hold NaN or infinity; check the weights and the pixel values."
            )
        yield BlockStrip(grid, start, stop, cells_hwQ, first_row, low_NQ, high_NQ)


def _pool(cells_hwQ: Tensor, row_cells_NS: Tensor, column_cells_NS: Tensor, operation: Any) -> Tensor:
    """Minimum or maximum over the cells that each block reads, (N, Q)."""
    pooled = cells_hwQ
    for dim, index in enumerate((row_cells_NS, column_cells_NS)):
        cells = pooled
        pooled = cells.index_select(dim, index[:, 0])
        for offset in range(1, index.shape[1]):
            operation(pooled, cells.index_select(dim, index[:, offset]), out=pooled)
    return pooled.flatten(0, 1)


def split_blocks(blocks_N: Tensor, grid: BlockGrid, values_per_pixel: int) -> Sequence[Tensor]:
    """Cuts a list of blocks so that the values of all their pixels fit one temporary; an empty list has no parts."""
    at_once = _blocks_at_once(grid, values_per_pixel)
    return blocks_N.split(at_once) if len(blocks_N) else ()


def list_queries(concerned_NQ: Tensor, grid: BlockGrid) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Collects blocks that concern about as many queries each, so that their lists make full tensors.

    Yields blocks (N,), their queries (N, M), ascending and filled up with any others, and which of these are meant
    (N, M) bool.
    """
    block, query = concerned_NQ.nonzero(as_tuple=True)
    counts = torch.bincount(block, minlength=len(concerned_NQ))
    starts = counts.cumsum(0) - counts
    order = counts.argsort()
    sorted_counts = counts[order].tolist()
    stop = len(sorted_counts)
    while stop and sorted_counts[stop - 1]:
        most = sorted_counts[stop - 1]
        start = max(stop - _blocks_at_once(grid, most), bisect_left(sorted_counts, most // 2 + 1))
        blocks = order[start:stop]
        place = torch.arange(most, device=block.device)
        listed = place < counts[blocks, None]
        yield blocks, query[(starts[blocks, None] + place).clamp(max=len(query) - 1)], listed
        stop = start


def _blocks_at_once(grid: BlockGrid, values_per_pixel: int) -> int:
    # A pixel also has a weight for each cell that its block reads.
    values = grid.pixels_per_block * max(grid.cells_per_block, values_per_pixel)
    return max(1, temporary_numel(grid.pixel_counts.device) // values)


def count_pixels(pixel_counts_N: Tensor, covered_NQ: Tensor) -> Tensor:
    """Pixels that each query covers, (Q,) int64, if it covers the blocks in `covered_NQ` (bool) as a whole.

    As a product of float32 this is many times faster than a sum of integers, and exact up to `LARGEST_COUNT`.
    """
    return (pixel_counts_N.float() @ covered_NQ.float()).long()


class BlockCanvas:
    """A map of the target that is filled block by block."""

    def __init__(self, grid: BlockGrid, dtype: torch.dtype) -> None:
        rows, columns = grid.rows, grid.columns
        self.grid = grid
        self.values = torch.empty(
            (rows.num_blocks, rows.block_length, columns.num_blocks, columns.block_length),
            dtype=dtype,
            device=grid.pixel_counts.device,
        )

    def fill(self, strip: BlockStrip, values_N: Tensor) -> None:
        """Gives each block of a strip one value."""
        self.values[strip.start : strip.stop] = values_N.view(strip.stop - strip.start, 1, -1, 1).to(self.values.dtype)

    def paint(self, row_N: Tensor, column_N: Tensor, values: Tensor) -> None:
        """Gives each pixel of some blocks its value; values (N * PP,) in any shape."""
        values = values.reshape(len(row_N), self.values.shape[1], self.values.shape[3]).to(self.values.dtype)
        self.values.permute(0, 2, 1, 3)[row_N, column_N] = values

    def image(self) -> Tensor:
        """The finished map without the pixels beyond the image, (H, W)."""
        rows, columns = self.grid.rows, self.grid.columns
        image = self.values.flatten(2).flatten(0, 1)
        return image[
            rows.offset : rows.offset + rows.length, columns.offset : columns.offset + columns.length
        ].contiguous()


def full_precision(device: torch.device) -> torch.autocast:
    """Switches autocast off: it would run matrix products in half precision, below the margin that decides blocks."""
    return torch.autocast(device.type, enabled=False)
