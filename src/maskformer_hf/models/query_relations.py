"""How queries lie to each other, as a bias of their self-attention.

The bias of each head starts at zero. It is made of the masks that queries have one layer before, as the boxes around
them (Relation-DETR, https://arxiv.org/abs/2407.11699) or as how far they overlap and touch. No gradient passes to the
masks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .interfaces import Attended

# Waves that each of the four numbers of a pair of boxes is written in, the scale of the numbers, and the longest wave.
NUM_WAVES, SCALE, TEMPERATURE = 8, 100.0, 10000.0


class QueryRelations(nn.Module):
    """Base of relations, which make features of pairs of masks, (B, heads, R, R)."""

    def __init__(self, num_heads: int):
        super().__init__()
        # One for each head. With all at zero, queries attend to each other as if there were no relations.
        self.gain = nn.Parameter(torch.zeros(num_heads))

    @classmethod
    def from_config(cls, config: Any) -> "QueryRelations":
        return cls(config.num_attention_heads)

    @staticmethod
    def check(config: Any):
        if config.transformer_decoder != "masked":
            raise ValueError(
                f"`query_relations`={config.query_relations!r} is made of the masks before each layer of "
                f"`transformer_decoder`='masked', got {config.transformer_decoder!r}: choose that, or None for "
                "`query_relations`."
            )

    def init_weights(self):
        init.zeros_(self.gain)

    def forward(self, inside_BRS: torch.Tensor, size: Sequence[int], attended: Attended | None = None) -> Attended:
        """The bias of all heads, (B, heads, R, R), which is added to the logits of self-attention.

        Args:
            inside_BRS: Which cells are each query's, bool, at least one for each.
            size: (h, w) of the map, or (T, h, w).
            attended: Which query may attend to which; None if all may.
        """
        bias_BhRR = self.gain[:, None, None] * self.features(inside_BRS.unflatten(-1, tuple(size)))
        if attended is None:
            return Attended(bias_BhRR)
        return attended._replace(mask=bias_BhRR.masked_fill(~attended.mask, -torch.inf))

    def features(self, inside_BRhw: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class BoxRelations(QueryRelations):
    """Distances of the middles of boxes in shares of a box's sides, and ratios of sides, all as logarithms."""

    def __init__(self, num_heads: int):
        super().__init__(num_heads)
        self.projection = nn.Linear(4 * 2 * NUM_WAVES, num_heads)

    def features(self, inside_BRhw: torch.Tensor) -> torch.Tensor:
        middle, sides = soft_boxes(inside_BRhw)
        weight, total = self.projection.weight, self.projection.bias
        waves = SCALE / TEMPERATURE ** (torch.arange(NUM_WAVES, device=sides.device) / NUM_WAVES)
        for number, weights in zip(box_relations(middle, sides), weight.chunk(4, dim=1), strict=True):
            angles = number[..., None] * waves
            for wave, part in zip((angles.sin(), angles.cos()), weights.chunk(2, dim=1), strict=True):
                total = total + F.linear(wave.to(weight.dtype), part)
        return F.relu(total).movedim(-1, 1)


class MaskRelations(QueryRelations):
    """How much two masks overlap, how much of the one lies in the other, and how much of its outline touches it."""

    def __init__(self, num_heads: int):
        super().__init__(num_heads)
        self.projection = nn.Linear(3, num_heads)

    def features(self, inside_BRhw: torch.Tensor) -> torch.Tensor:
        relations = torch.stack(mask_relations(inside_BRhw), dim=-1)
        return self.projection(relations.to(self.projection.weight.dtype)).movedim(-1, 1)


@torch.no_grad()
def soft_boxes(inside_BRhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Middle and sides (B, R, 2), x and y in cells, of the boxes with the mean and the variance of each mask.

    The box of a rectangle is the rectangle. Masks of clips, (B, R, T, h, w), have one for all frames.
    """
    inside = inside_BRhw.float()
    middles, sides = [], []
    for axis in (-1, -2):
        others = [dim for dim in range(2, inside.dim()) if dim != axis % inside.dim()]
        counts_BRn = inside.sum(others)
        share_BRn = counts_BRn / counts_BRn.sum(-1, keepdim=True).clamp(min=1)
        place_n = torch.arange(counts_BRn.shape[-1], device=inside.device, dtype=inside.dtype)
        middle = (share_BRn * place_n).sum(-1)
        variance = (share_BRn * (place_n - middle[..., None]).square()).sum(-1)
        middles.append(middle)
        # n cells in a row have a variance of (n^2 - 1) / 12.
        sides.append((12 * variance + 1).sqrt())
    return torch.stack(middles, dim=-1), torch.stack(sides, dim=-1)


@torch.no_grad()
def box_relations(middle_BR2: torch.Tensor, sides_BR2: torch.Tensor) -> list[torch.Tensor]:
    """Four numbers of each pair of boxes, (B, R, R) each, which neither moving nor scaling all boxes changes."""
    distance = (middle_BR2[:, :, None] - middle_BR2[:, None]).abs() / sides_BR2[:, :, None]
    ratio = sides_BR2[:, :, None] / sides_BR2[:, None]
    return [*distance.log1p().unbind(-1), *ratio.log().unbind(-1)]


@torch.no_grad()
def mask_relations(inside_BRhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three shares for each pair of masks, (B, R, R): intersection over union, how much of the first mask lies in the
    second, and how many of the cells around the first do."""
    inside = inside_BRhw.float()
    frames = inside.flatten(0, -3)[:, None]
    around = F.max_pool2d(frames, 3, stride=1, padding=1)[:, 0].view_as(inside) - inside
    inside_BRS, around_BRS = inside.flatten(2), around.flatten(2)
    area_BR1 = inside_BRS.sum(-1, keepdim=True)
    both = inside_BRS @ inside_BRS.mT
    union = area_BR1 + area_BR1.mT - both
    touching = around_BRS @ inside_BRS.mT
    return (
        both / union.clamp(min=1),
        both / area_BR1.clamp(min=1),
        touching / around_BRS.sum(-1, keepdim=True).clamp(min=1),
    )
