"""Panoptic SegFormer's mask decoder, whose masks are attention maps (https://arxiv.org/abs/2109.03814, section 3.4).

Shapes: B images, N queries, C channels, h heads, S cells of the three maps one after the other, J blocks; M (H, W) are
the cells of the finest map.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .masks import Masks
from .probabilities import LOGIT_SCALE

NUM_MASK_LEVELS = 3
NORM_EPS = 1e-6


class Cells(NamedTuple):
    """The memory of mask decoders.

    states: (B, S, C), finest map first. sizes: Height and width of each map.
    """

    states: torch.Tensor
    sizes: list[tuple[int, int]]

    def image(self, image: int) -> "Cells":
        return self._replace(states=self.states[image, None])


class AttentionMaps(nn.Module):
    """Masks of attention logits, before any softmax: a linear layer and ReLU on the heads of each map, all maps at the
    size of the finest, a linear layer and ReLU on all heads. The paper calls it a 1x1 convolution."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.levels = nn.ModuleList(nn.Linear(num_heads, num_heads) for _ in range(NUM_MASK_LEVELS))
        self.join = nn.Linear(NUM_MASK_LEVELS * num_heads, 1)

    def forward(self, logits_BhNS: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """(B, N, H, W), 0 or more."""
        parts = logits_BhNS.permute(0, 2, 3, 1).split([height * width for height, width in sizes], dim=2)
        joined = []
        for level, part, size in zip(self.levels, parts, sizes, strict=True):
            maps = F.relu(level(part)).flatten(0, 1).transpose(1, 2).unflatten(2, size)
            if size != sizes[0]:
                maps = F.interpolate(maps, size=tuple(sizes[0]), mode="bilinear", align_corners=False)
            joined.append(maps)
        joined_nChw = torch.cat(joined, dim=1)
        masks = F.relu(self.join(joined_nChw.permute(0, 2, 3, 1)))[..., 0]
        return masks.unflatten(0, (logits_BhNS.shape[0], logits_BhNS.shape[2]))


class MaskAttention(nn.Module):
    """Cross-attention whose logits give masks. The last one has masks alone: no values."""

    def __init__(self, hidden_size: int, num_heads: int, has_values: bool):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        if has_values:
            self.v_proj = nn.Linear(hidden_size, hidden_size)
            self.o_proj = nn.Linear(hidden_size, hidden_size)
        self.has_values = has_values
        self.maps = AttentionMaps(num_heads)

    def init_weights(self):
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                init.xavier_uniform_(layer.weight)

    def logits(self, queries_BNC: torch.Tensor, cells: Cells) -> torch.Tensor:
        """Scaled products of queries and keys, (B, h, N, S)."""
        q, k = self.q_proj(queries_BNC), self.k_proj(cells.states)
        q, k = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k))
        return q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)

    def forward(
        self, queries_BNC: torch.Tensor, cells: Cells, with_masks: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The update of the queries (B, N, C), if there are values, and masks (B, N, H, W) if asked for."""
        if not with_masks:
            q, k, v = self.q_proj(queries_BNC), self.k_proj(cells.states), self.v_proj(cells.states)
            q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
            return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), None
        logits_BhNS = self.logits(queries_BNC, cells)
        masks = self.maps(logits_BhNS, cells.sizes)
        if not self.has_values:
            return None, masks
        v = self.v_proj(cells.states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return self.o_proj((logits_BhNS.softmax(-1) @ v).transpose(1, 2).flatten(2)), masks


class PackedSelfAttention(nn.Module):
    """Self-attention with its three projections in one matrix."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def init_weights(self):
        for layer in (self.qkv, self.o_proj):
            init.xavier_uniform_(layer.weight)

    def forward(self, queries_BNC: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(queries_BNC).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.o_proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class MaskBlock(GradientCheckpointingLayer):
    """Self-attention, if it has one, attention to the memory, MLP; norms behind each."""

    def __init__(self, hidden_size: int, num_heads: int, has_self_attention: bool):
        super().__init__()
        self.has_self_attention = has_self_attention
        if has_self_attention:
            self.self_attn = PackedSelfAttention(hidden_size, num_heads)
            self.self_attn_norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.cross_attn = MaskAttention(hidden_size, num_heads, has_values=True)
        self.cross_attn_norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.fc1 = nn.Linear(hidden_size, 4 * hidden_size)
        self.fc2 = nn.Linear(4 * hidden_size, hidden_size)
        self.ffn_norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)

    def init_weights(self):
        for layer in (self.fc1, self.fc2):
            init.xavier_uniform_(layer.weight)

    def forward(
        self, queries_BNC: torch.Tensor, states_BSC: torch.Tensor, sizes: list[tuple[int, int]], with_masks: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.has_self_attention:
            queries_BNC = self.self_attn_norm(queries_BNC + self.self_attn(queries_BNC))
        update, masks = self.cross_attn(queries_BNC, Cells(states_BSC, sizes), with_masks)
        queries_BNC = self.cross_attn_norm(queries_BNC + update)
        return self.ffn_norm(queries_BNC + self.fc2(F.gelu(self.fc1(queries_BNC)))), masks


class MaskDecoder(nn.Module):
    """J blocks and a last attention, each of which makes masks."""

    def __init__(self, hidden_size: int, num_heads: int, num_blocks: int, has_self_attention: bool):
        super().__init__()
        self.layers = nn.ModuleList(MaskBlock(hidden_size, num_heads, has_self_attention) for _ in range(num_blocks))
        self.last = MaskAttention(hidden_size, num_heads, has_values=False)

    def forward(
        self, queries_BNC: torch.Tensor, cells: Cells, every_layer: bool, position_NC: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Queries after each block, and masks (B, N, H, W) of the last attention, or of every block and of it.

        `position_NC` is added before each block and before the last attention, and stays in the queries.
        """
        queries, masks = [], []
        for block in self.layers:
            queries_BNC = queries_BNC if position_NC is None else queries_BNC + position_NC
            queries_BNC, own = block(queries_BNC, cells.states, cells.sizes, every_layer)
            queries.append(queries_BNC)
            masks.append(own)
        queries_BNC = queries_BNC if position_NC is None else queries_BNC + position_NC
        masks.append(self.last(queries_BNC, cells, with_masks=True)[1])
        return queries, masks if every_layer else masks[-1:]


def as_logits(masks: torch.Tensor) -> torch.Tensor:
    """Logits of masks, which are values from 0 on; see `LOGIT_SCALE`."""
    return LOGIT_SCALE * (masks - 0.5)


class ThingAndStuffMasks(Masks):
    """Masks of thing queries, made when they are asked for, and of stuff queries, which are there; as logits.

    There is one layer, the result.
    """

    def __init__(self, decoder: MaskDecoder, things_BQC: torch.Tensor, cells: Cells, stuff_BSHW: torch.Tensor):
        self.decoder = decoder
        self.things_BQC = things_BQC
        self.cells = cells
        self.stuff_BSHW = stuff_BSHW
        num_queries = things_BQC.shape[1] + stuff_BSHW.shape[1]
        self.shape = torch.Size((1, things_BQC.shape[0], num_queries, *stuff_BSHW.shape[-2:]))
        self.device = things_BQC.device

    def layer(self, layer: int) -> torch.Tensor:
        _, [things] = self.decoder(self.things_BQC, self.cells, every_layer=False)
        return as_logits(torch.cat((things, self.stuff_BSHW), dim=1))

    def image(self, layer: int, image: int, queries: Any) -> torch.Tensor:
        num_things = self.things_BQC.shape[1]
        wanted = torch.arange(self.shape[2], device=self.device)[queries]
        is_thing = wanted < num_things
        masks = self.stuff_BSHW.new_empty(len(wanted), *self.shape[-2:])
        masks[~is_thing] = self.stuff_BSHW[image, wanted[~is_thing] - num_things]
        # A thing query may be asked for twice, in different classes.
        things, place = torch.unique(wanted[is_thing], return_inverse=True)
        if len(things):
            _, [made] = self.decoder(self.things_BQC[image, things][None], self.cells.image(image), every_layer=False)
            masks[is_thing] = made[0, place]
        return as_logits(masks)

    def part(self, layers: slice = slice(None), queries: slice = slice(None)) -> "ThingAndStuffMasks":
        if queries != slice(None):
            raise ValueError("Masks of things and stuff are not cut by queries: ask for those of an image.")
        return self

    def float(self) -> "ThingAndStuffMasks":
        cells = self.cells._replace(states=self.cells.states.float())
        return ThingAndStuffMasks(self.decoder, self.things_BQC.float(), cells, self.stuff_BSHW.float())
