"""Multi-scale deformable attention (https://arxiv.org/abs/2010.04159) in plain PyTorch.

Each cell of a few maps looks at a few points of every map, at offsets that it chooses itself. Reading the maps there
is what takes the time, and there are two ways of doing it. On a CPU the four cells around all points of a query are a
bag of rows of the values, and one `embedding_bag` reads and weighs them: no sampled value is ever stored, and nothing
of the maps is copied. Elsewhere, and in an exported graph, each map is read by `grid_sample`; on CUDA optionally by a
kernel of the `kernels` library (`from_pretrained(..., use_kernels=True)`).

Shapes: B images, S cells of all maps one after the other, C channels, h heads, D = C / h channels a head, L maps, P
points a map, X = h * L * P points of a query, N = 2 for x and y.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.integrations import use_kernel_forward_from_hub


class SamplingPlan(NamedTuple):
    """What sampling needs to know of the sizes of the maps, the same in every layer. Columns X are those of a query's
    points, by head, map and point.

    sizes, shapes: Height and width of each map, as numbers and as (L, 2) int64.
    first_cells: Of each map among all S, (L,) int64.
    centers: Where each cell lies on each map, in cells of that map from the centre of its first one on, (N, S, X).
    widths, heights, starts: Of each point's map, and its first cell among all S, (X,).
    last: The last column (row) that has a neighbour on its right (below), (N, X); 0 on a map of one column.
    neighbors: How far that neighbour is, (N, X): 1, and infinitely far on a map of one column.
    rows: The head as a row of the values, (X,).
    steps: From a row of the values to that of the right (lower) neighbour, (N, X); 0 where there is none.
    padding: Cells whose values are zero, (B, S) bool; None if there are none. `centers` are then (N, B, S, X).
    valid: The share of each point's map that is no padding, (N, B, 1, X); None if there is none.
    """

    sizes: list[tuple[int, int]]
    shapes: torch.Tensor
    first_cells: torch.Tensor
    centers: torch.Tensor
    widths: torch.Tensor
    heights: torch.Tensor
    starts: torch.Tensor
    last: torch.Tensor
    neighbors: torch.Tensor
    rows: torch.Tensor
    steps: torch.Tensor
    padding: torch.Tensor | None = None
    valid: torch.Tensor | None = None


def plan_sampling(
    sizes: Sequence[tuple[int, int]], num_heads: int, num_points: int, device: torch.device
) -> SamplingPlan:
    """
    Args:
        sizes: Height and width of each map.
    """
    num_levels = len(sizes)

    def spread(values_L: torch.Tensor) -> torch.Tensor:
        """(..., L) to (..., X)."""
        shape = (*values_L.shape[:-1], num_heads, num_levels, num_points)
        return values_L[..., None, :, None].expand(shape).flatten(-3)

    def centers(cells: torch.Tensor, length: int, lengths: Sequence[int]) -> torch.Tensor:
        """Columns (or rows) of a map as columns of every map."""
        return torch.stack([(cells + 0.5) * (other / length) - 0.5 for other in lengths], dim=-1)

    heights, widths = [height for height, _ in sizes], [width for _, width in sizes]
    centers_NSL = torch.cat(
        [
            torch.stack(
                (
                    centers(torch.arange(width, device=device), width, widths).expand(height, -1, -1),
                    centers(torch.arange(height, device=device), height, heights)[:, None].expand(-1, width, -1),
                )
            ).flatten(1, 2)
            for height, width in sizes
        ],
        dim=1,
    )
    starts = [0]
    for height, width in sizes[:-1]:
        starts.append(starts[-1] + height * width)
    widths_L, heights_L, starts_L = (
        # Filled on the device: a copy from the host could not be part of a CUDA graph.
        torch.stack([torch.full((), number, dtype=torch.float32, device=device) for number in numbers])
        for numbers in (widths, heights, starts)
    )
    lengths_NL = torch.stack((widths_L, heights_L))
    heads_X = torch.arange(num_heads, dtype=torch.int32, device=device).repeat_interleave(num_levels * num_points)
    to_neighbor_NL = (lengths_NL > 1) * torch.stack((torch.ones_like(widths_L), widths_L)) * num_heads
    return SamplingPlan(
        sizes=list(sizes),
        shapes=torch.stack((heights_L, widths_L), dim=1).long(),
        first_cells=starts_L.long(),
        centers=spread(centers_NSL),
        widths=spread(widths_L),
        heights=spread(heights_L),
        starts=spread(starts_L),
        last=spread((lengths_NL - 2).clamp(min=0)),
        neighbors=spread(torch.where(lengths_NL > 1, 1.0, torch.inf)),
        rows=heads_X,
        steps=spread(to_neighbor_NL.int()),
    )


def plan_for_padding(plan: SamplingPlan, padding: Sequence[torch.Tensor]) -> SamplingPlan:
    """The same for maps of which parts are padding, (B, h, w) bool each: places are shares of what is no padding.

    How wide and high that is, the first row and the first column say.
    """
    valid_NBL = torch.stack(
        [torch.stack([(~mask[:, 0]).float().mean(-1), (~mask[:, :, 0]).float().mean(-1)]) for mask in padding],
        dim=-1,
    )
    sizes = torch.tensor([height * width for height, width in plan.sizes], device=valid_NBL.device)
    # Each point has the first cell of its map.
    level_X = torch.searchsorted(plan.first_cells, plan.starts.long())
    own_NBS = valid_NBL.repeat_interleave(sizes, dim=-1)
    valid_NBX = valid_NBL[..., level_X]
    centers_NBSX = (plan.centers[:, None] + 0.5) / own_NBS[..., None] * valid_NBX[:, :, None] - 0.5
    return plan._replace(
        centers=centers_NBSX,
        padding=torch.cat([mask.flatten(1) for mask in padding], dim=1),
        valid=valid_NBX[:, :, None],
    )


def sample_bags(
    values_BSC: torch.Tensor,
    x_BSX: torch.Tensor,
    y_BSX: torch.Tensor,
    weights_BSX: torch.Tensor,
    plan: SamplingPlan,
    num_heads: int,
) -> torch.Tensor:
    """Weighted sums (B, S, C) of values that are read bilinearly, as `sample_grids`, by `embedding_bag`."""
    batch_size, num_cells, channels = values_BSC.shape
    num_queries = x_BSX.shape[1]
    left_BSX, weight_left, weight_right = _neighbors(x_BSX, plan.last[0], plan.neighbors[0])
    top_BSX, weight_top, weight_bottom = _neighbors(y_BSX, plan.last[1], plan.neighbors[1])
    weight_top, weight_bottom = weight_top * weights_BSX, weight_bottom * weights_BSX
    # Cells are whole numbers below 2^24, which float32 holds exactly.
    cell_BSX = (top_BSX * plan.widths + left_BSX + plan.starts).to(torch.int32)
    images = torch.arange(batch_size, dtype=torch.int32, device=values_BSC.device)[:, None, None]
    # The values seen as one table of rows (D,), with the heads of a cell below each other.
    row = cell_BSX * num_heads + (plan.rows + images * (num_cells * num_heads))
    row_below = row + plan.steps[1]
    corners = ((row, weight_top), (row_below, weight_bottom))
    rows = [corner for row, _ in corners for corner in (row, row + plan.steps[0])]
    weights = [weight * side for _, weight in corners for side in (weight_left, weight_right)]

    def bags(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """One bag for each query and head: (B * S * h, 4 * L * P)."""
        return torch.cat([part.view(batch_size * num_queries * num_heads, -1) for part in parts], dim=1)

    table = values_BSC.reshape(-1, channels // num_heads)
    sums = F.embedding_bag(bags(rows), table, mode="sum", per_sample_weights=bags(weights).to(table.dtype))
    return sums.view(batch_size, num_queries, channels)


def _neighbors(
    position: torch.Tensor, last_X: torch.Tensor, neighbors_X: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The column left of each position that has a right neighbour, and the weights of the two. Outside of the map
    weights fade to 0 within one cell."""
    left = position.floor().clamp(min=0).minimum(last_X)
    offset = position - left
    # All points of a new model lie exactly on cells. There the derivative must be the one from the right, as that of
    # grid_sample is, not 0 or the mean of both sides. leaky_relu with slope -1 is an absolute value with such a
    # derivative. A clamp would not do: at its lower end the derivative is 1 in torch 2.11 and 0 in torch 2.14.
    weight_left = F.relu(1 - F.leaky_relu(-offset, -1.0))
    weight_right = 1 - F.leaky_relu(neighbors_X - offset, -1.0)
    return left, weight_left, torch.where(weight_right >= 0, weight_right, 0.0)


@use_kernel_forward_from_hub("MultiScaleDeformableAttention")
class GridSampling(nn.Module):
    """Weighted sums (B, S, C) of what is read at some places of several maps, bilinearly, 0 outside of them.

    A kernel may take its place, and says what the arguments are. All are float32 but for the sizes.

    Args:
        value: (B, S, h, D), the cells of all maps one after the other.
        value_spatial_shapes, value_spatial_shapes_list: Height and width of each map, (L, 2) int64, and the same as
            numbers.
        level_start_index: First cell of each map, (L,) int64.
        sampling_locations: (B, S, h, L, P, N), x and y as shares of the map's width and height.
        attention_weights: (B, S, h, L, P).
        im2col_step: Images that a kernel takes at once, which must divide their number.
    """

    def forward(
        self,
        value: torch.Tensor,
        value_spatial_shapes: torch.Tensor,
        value_spatial_shapes_list: list[tuple],
        level_start_index: torch.Tensor,
        sampling_locations: torch.Tensor,
        attention_weights: torch.Tensor,
        im2col_step: int,
    ):
        num_heads = value.shape[2]
        maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B * h, D, S)
        # (B, S, h, L, P) to (L, B * h, S, P)
        grids = (2 * sampling_locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
        weights = attention_weights.permute(3, 0, 2, 1, 4).flatten(1, 2)
        sums = maps.new_zeros(*maps.shape[:2], weights.shape[2])
        sizes = value_spatial_shapes_list
        for level, part in enumerate(maps.split([height * width for height, width in sizes], dim=-1)):
            sampled = F.grid_sample(part.unflatten(-1, sizes[level]), grids[level], align_corners=False)
            sums = sums + (sampled * weights[level][:, None]).sum(-1)
        return sums.unflatten(0, (-1, num_heads)).permute(0, 3, 1, 2).flatten(2)


def sample_grids(
    values_BSC: torch.Tensor,
    x_BSX: torch.Tensor,
    y_BSX: torch.Tensor,
    weights_BSX: torch.Tensor,
    plan: SamplingPlan,
    num_heads: int,
    sampling: nn.Module,
) -> torch.Tensor:
    """Weighted sums (B, S, C) of values that are read bilinearly, 0 outside of the maps.

    Args:
        values_BSC: The cells of all maps one after the other.
        x_BSX, y_BSX: Where to read, in cells of the point's map; the centre of the first one is at 0. float32.
        weights_BSX: Attention weights, float32.
        plan: Of the same maps.
        sampling: A `GridSampling`.
    """
    points = (num_heads, len(plan.sizes), -1)
    locations = torch.stack(((x_BSX + 0.5) / plan.widths, (y_BSX + 0.5) / plan.heights), dim=-1)
    sums_BSC = sampling(
        values_BSC.float().unflatten(-1, (num_heads, -1)),
        plan.shapes,
        plan.sizes,
        plan.first_cells,
        locations.unflatten(2, points),
        weights_BSX.unflatten(2, points),
        values_BSC.shape[0],  # `len` would make it a constant of an exported graph
    )
    return sums_BSC.to(values_BSC.dtype)


class DeformableAttention(nn.Module):
    """Attention of all cells of L maps to P points of every map and head."""

    def __init__(self, hidden_size: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(hidden_size, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(hidden_size, num_heads * num_levels * num_points)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        self.grid_sampling = GridSampling()

    def init_weights(self):
        """Each head looks into a direction of its own, its points 1, 2, ... cells away; all points weigh the same."""
        angles_h = torch.arange(self.num_heads) * (2 * torch.pi / self.num_heads)
        directions = torch.stack((angles_h.cos(), angles_h.sin()), dim=-1)
        # As far as the square around the cell reaches in this direction.
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances_P = torch.arange(1, self.num_points + 1)
        offsets = directions[:, None, None] * distances_P[:, None]  # (h, 1, P, N)
        init.zeros_(self.sampling_offsets.weight)
        init.copy_(self.sampling_offsets.bias, offsets.expand(-1, self.num_levels, -1, -1).flatten())
        init.zeros_(self.attention_weights.weight)
        init.zeros_(self.attention_weights.bias)
        for projection in (self.v_proj, self.o_proj):
            init.xavier_uniform_(projection.weight)
            init.zeros_(projection.bias)

    def forward(
        self, states_BSC: torch.Tensor, position_BSC: torch.Tensor, plan: SamplingPlan, need_weights: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from `states_BSC`, to which positions are added, to the same states without positions.

        Returns the result (B, S, C), and the weights (B, h, S, L * P) if `need_weights`.
        """
        return self.look(states_BSC + position_BSC, states_BSC, plan.centers, plan, need_weights)

    def look(
        self,
        queries_BQC: torch.Tensor,
        states_BSC: torch.Tensor,
        centers: torch.Tensor,
        plan: SamplingPlan,
        need_weights: bool = False,
        scales: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from queries, with their positions, to states at places around `centers`.

        Args:
            centers: In cells of each point's map, broadcast to (N, B, Q, X); as those of the plan.
            scales: What offsets are multiplied by, in such cells, likewise; None for 1.

        Returns the result (B, Q, C), and the weights (B, h, Q, L * P) if `need_weights`.
        """
        # x of all points and then y of all, so that each lies in one piece. The parameters have them in pairs.
        weight_NXC = self.sampling_offsets.weight.unflatten(0, (-1, 2)).transpose(0, 1)
        bias_NX = self.sampling_offsets.bias.unflatten(0, (-1, 2)).T
        # Positions are float32 whatever the weights are: the next number after 64 in bfloat16 is 64.5.
        offsets = [F.linear(queries_BQC, weight_NXC[axis], bias_NX[axis]).float() for axis in (0, 1)]
        if scales is not None:
            offsets = [offset * scale for offset, scale in zip(offsets, scales, strict=True)]
        x_BSX, y_BSX = (offset + center for offset, center in zip(offsets, centers, strict=True))
        logits = self.attention_weights(queries_BQC).float().unflatten(-1, (self.num_heads, -1))
        weights_BShX = logits.softmax(-1)
        values_BSC = self.v_proj(states_BSC)
        if plan.padding is not None:
            values_BSC = values_BSC.masked_fill(plan.padding[..., None], 0.0)
        arguments = (values_BSC, x_BSX, y_BSX, weights_BShX.flatten(2), plan, self.num_heads)
        if states_BSC.device.type != "cpu" or torch.compiler.is_exporting():
            sums_BSC = sample_grids(*arguments, self.grid_sampling)
        else:
            sums_BSC = sample_bags(*arguments)
        return self.o_proj(sums_BSC), weights_BShX.transpose(1, 2) if need_weights else None
