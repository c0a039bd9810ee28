"""Masks of single queries above a threshold, held as blocks: for instances and tracks, which may overlap.

Shapes: Q queries, H W target pixels, N instances, X pairs of a query and a block in which its mask has pixels, P side
of a block.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .block_grid import BlockAxis, BlockGrid, make_grid
from .image_geometry import ImageGeometry, plain_logits
from .mask_blocks import block_strips, full_precision, list_queries
from .probabilities import mask_values_


class BlockMasks(NamedTuple):
    """Masks of Q queries as blocks: only those blocks are held in which a mask has pixels."""

    grid: BlockGrid
    row: Tensor  # (X,) rows and columns of the blocks
    column: Tensor  # (X,)
    pixels: Tensor  # (X, P, P) bool
    order: Tensor  # (X,) the pairs, query by query
    starts: list[int]  # where the pairs of each query begin in this order; one more than queries
    areas: Tensor  # (Q,) int64
    probability_sums: Tensor  # (Q,) float32, of mask probabilities, or values, inside the mask
    boxes: Tensor  # (Q, 4) float32

    def draw(self, queries: list[int]) -> Tensor:
        """The full masks of some queries, (N, H, W) bool."""
        rows, columns = self.grid.rows, self.grid.columns
        masks_NHW = self.pixels.new_zeros((len(queries), rows.length, columns.length))
        boxes = self.boxes.int().tolist()
        for mask_HW, query in zip(masks_NHW, queries, strict=True):
            left, top, right, bottom = boxes[query]
            pairs = self.order[self.starts[query] : self.starts[query + 1]]
            # A canvas of the blocks that the box touches, drawn and then cut to the box.
            first_row = (top + rows.offset) // rows.block_length
            first_column = (left + columns.offset) // columns.block_length
            last_row = (bottom - 1 + rows.offset) // rows.block_length
            last_column = (right - 1 + columns.offset) // columns.block_length
            canvas = self.pixels.new_zeros(
                last_row - first_row + 1, rows.block_length, last_column - first_column + 1, columns.block_length
            )
            row, column = self.row[pairs] - first_row, self.column[pairs] - first_column
            canvas.permute(0, 2, 1, 3)[row, column] = self.pixels.index_select(0, pairs)
            y = top - (first_row * rows.block_length - rows.offset)
            x = left - (first_column * columns.block_length - columns.offset)
            image = canvas.flatten(2).flatten(0, 1)
            mask_HW[top:bottom, left:right] = image[y : y + bottom - top, x : x + right - left]
        return masks_NHW


def masks_above(
    mask_logits_Qhw: Tensor, geometry: ImageGeometry, limit: float, mask_values: str = "sigmoid"
) -> BlockMasks:
    """The pixels of each query where its logit exceeds the limit, computed only in the blocks where it can.

    The plain formula is `plain_masks_above`.
    """
    device = mask_logits_Qhw.device
    grid = make_grid(mask_logits_Qhw.shape[-2:], geometry, device)
    num_queries = len(mask_logits_Qhw)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    found: list[tuple[Tensor, ...]] = [(none, none, none, none.bool().view(0, grid.pixels_per_block))]
    probability_sums_Q = torch.zeros(num_queries, device=device)
    areas_Q = torch.zeros(num_queries, dtype=torch.int64, device=device)
    with full_precision(device):
        for strip in block_strips(mask_logits_Qhw, grid):
            for blocks, queries_NM, listed_NM in list_queries(strip.high > limit, grid):
                row, column = strip.position(blocks)
                logits = strip.listed_logits(row, column, queries_NM)
                pixels = (logits > limit) & grid.inside(row, column)[:, None]
                ones = pixels.float()  # much faster to multiply by and to sum up
                counts = (ones.sum(-1) * listed_NM).flatten()
                sums = (mask_values_(logits, mask_values).mul_(ones).sum(-1) * listed_NM).flatten()
                areas_Q.index_add_(0, queries_NM.flatten(), counts.long())
                probability_sums_Q.index_add_(0, queries_NM.flatten(), sums)
                hit = counts.nonzero()[:, 0]
                block = hit // queries_NM.shape[1]
                pixels = pixels.flatten(0, 1).index_select(0, hit)
                found.append((queries_NM.flatten()[hit], row[block], column[block], pixels))
    query, row, column, pixels = (torch.cat(parts) for parts in zip(*found, strict=True))
    pixels = pixels.unflatten(1, (grid.rows.block_length, grid.columns.block_length))
    left, right = _extent(grid.columns, query, column, pixels, 1, num_queries)
    top, bottom = _extent(grid.rows, query, row, pixels, 2, num_queries)
    boxes_Q4 = torch.stack([left, top, right, bottom], dim=1).float()
    query, order = query.sort()
    starts = torch.searchsorted(query, torch.arange(num_queries + 1, device=device)).tolist()
    return BlockMasks(grid, row, column, pixels, order, starts, areas_Q, probability_sums_Q, boxes_Q4)


def plain_masks_above(
    mask_logits_Qhw: Tensor, geometry: ImageGeometry, limit: float, mask_values: str = "sigmoid"
) -> tuple[Tensor, Tensor, Tensor]:
    """What `masks_above` finds, by the plain formula: masks (Q, H, W) bool, areas (Q,), sums of probabilities (Q,)."""
    logits_QHW = plain_logits(mask_logits_Qhw, geometry)
    masks_QHW = logits_QHW > limit
    values_QHW = mask_values_(logits_QHW.clone(), mask_values)
    return masks_QHW, masks_QHW.sum((1, 2)), (values_QHW * masks_QHW).sum((1, 2))


def _extent(
    axis: BlockAxis, query_X: Tensor, block_X: Tensor, pixels_XPP: Tensor, across: int, num_queries: int
) -> tuple[Tensor, Tensor]:
    """First pixel and last pixel + 1 of each query along one axis, (Q,) each, 0 and 0 for an empty mask.

    block_X is each block's place along this axis, `across` the dimension of its pixels that is the other axis. Each has
    some pixels.
    """
    first = query_X.new_full((num_queries,), axis.num_blocks).scatter_reduce_(0, query_X, block_X, "amin")
    last = query_X.new_full((num_queries,), -1).scatter_reduce_(0, query_X, block_X, "amax")
    at_end = ((block_X == first[query_X]) | (block_X == last[query_X])).nonzero()[:, 0]
    hits = torch.zeros(num_queries * axis.num_blocks, axis.block_length, dtype=torch.int32, device=query_X.device)
    hits.index_add_(0, query_X[at_end] * axis.num_blocks + block_X[at_end], pixels_XPP[at_end].any(across).int())
    along_axis = hits.view(num_queries, axis.num_blocks * axis.block_length)
    touched = (along_axis[:, axis.offset : axis.offset + axis.length] > 0).int()
    start, stop = touched.argmax(1), axis.length - touched.flip(1).argmax(1)
    return start, stop * touched.amax(1)
