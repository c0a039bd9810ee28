"""How a target is cut into blocks, and which mask cells and weights each block needs.

Shapes: h w mask cells, H W target pixels, N blocks along an axis, P pixels of a block (PP of a block of an image), S
cells that a block reads along an axis (SS in an image).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .image_geometry import ImageGeometry, resize_matrix

# A block is about this many mask cells high and wide. Smaller blocks leave less area undecided and cost more bounds;
# of 1, 2, 3 and 4 this is the fastest at 100 queries, 150 classes and stride 4.
CELLS_PER_BLOCK = 2

# Numbers that one temporary tensor may hold: on a CPU what fits its caches, elsewhere what keeps the kernels busy.
CPU_TEMPORARY_NUMEL = 2**19
DEVICE_TEMPORARY_NUMEL = 2**24


def temporary_numel(device: torch.device) -> int:
    """How many numbers a temporary tensor on this device may hold."""
    return CPU_TEMPORARY_NUMEL if device.type == "cpu" else DEVICE_TEMPORARY_NUMEL


class BlockAxis(NamedTuple):
    """How one axis of the target is cut into blocks, and which mask cells each block reads."""

    length: int  # target pixels
    block_length: int  # P, pixels of a block
    offset: int  # pixels of the first block that lie before the image
    num_blocks: int
    cells: Tensor  # (N, S) int64, the neighbouring cells that a block reads
    first_cells: list[int]  # the first of these, on the host
    weights: Tensor  # (N, P, S) float32, what a pixel takes from a cell
    inside: Tensor  # (N, P) bool, False for pixels beyond the image


class BlockGrid(NamedTuple):
    """The blocks of an image.

    The weights of both axes are spread over the pixels of a block and the cells that it reads, so that their product is
    what interpolation does in one block.
    """

    rows: BlockAxis
    columns: BlockAxis
    row_weights: Tensor  # (block rows, PP, SS) float32
    column_weights: Tensor  # (block columns, PP, SS) float32
    pixel_counts: Tensor  # (block rows, block columns) int64, pixels of a block that belong to the image

    @property
    def pixels_per_block(self) -> int:
        return self.rows.block_length * self.columns.block_length

    @property
    def cells_per_block(self) -> int:
        return self.row_weights.shape[2]

    def pixel_weights(self, row_N: Tensor, column_N: Tensor) -> Tensor:
        """What each pixel takes from each cell that its block reads, (N, PP, SS); blocks by row and column."""
        return self.row_weights.index_select(0, row_N).mul_(self.column_weights.index_select(0, column_N))

    def inside(self, row_N: Tensor, column_N: Tensor) -> Tensor:
        """Which pixels of some blocks belong to the image, (N, PP) bool."""
        return (self.rows.inside[row_N][:, :, None] & self.columns.inside[column_N][:, None, :]).flatten(1)


def make_grid(cells_size: Sequence[int], geometry: ImageGeometry, device: torch.device) -> BlockGrid:
    """The blocks of a target for masks of `cells_size` (h, w)."""
    padded, image, target = geometry
    rows = _block_axis(cells_size[0], padded[0], image[0], target[0], device)
    columns = _block_axis(cells_size[1], padded[1], image[1], target[1], device)
    shape = (rows.block_length, columns.block_length, rows.cells.shape[1], columns.cells.shape[1])
    return BlockGrid(
        rows,
        columns,
        rows.weights[:, :, None, :, None].expand(-1, *shape).flatten(3).flatten(1, 2),
        columns.weights[:, None, :, None, :].expand(-1, *shape).flatten(3).flatten(1, 2),
        rows.inside.sum(1)[:, None] * columns.inside.sum(1),
    )


def _block_axis(cells: int, padded: int, image: int, target: int, device: torch.device) -> BlockAxis:
    weights_Hh = resize_matrix(cells, padded, image, target)
    pixels_per_cell = (padded / cells) * (target / image)
    block_length = max(1, round(CELLS_PER_BLOCK * pixels_per_cell))
    # Blocks begin where pixels begin to read the next pair of cells (pixel t lies at (t + 0.5) / pixels_per_cell -
    # 0.5). Thus, where a cell is a whole number of pixels, a block reads only one cell more than it spans.
    offset = -max(0, math.ceil(pixels_per_cell / 2 - 0.5)) % block_length
    num_blocks = -(-(target + offset) // block_length)
    pixels = slice(offset, offset + target)
    weights = torch.zeros(num_blocks * block_length, cells)
    weights[pixels] = weights_Hh
    inside = torch.zeros(num_blocks * block_length, dtype=torch.bool)
    inside[pixels] = True
    weights = weights.view(num_blocks, block_length, cells)
    reads_Nh = (weights != 0).any(1).int()
    first = reads_Nh.argmax(1)
    last = cells - 1 - reads_Nh.flip(1).argmax(1)
    span = int((last - first).max()) + 1
    first = first.clamp(max=cells - span)
    cells_NS = first[:, None] + torch.arange(span)
    weights_NPS = weights.gather(2, cells_NS[:, None].expand(-1, block_length, -1))
    return BlockAxis(
        target,
        block_length,
        offset,
        num_blocks,
        cells_NS.to(device),
        first.tolist(),
        weights_NPS.to(device),
        inside.view(num_blocks, block_length).to(device),
    )
