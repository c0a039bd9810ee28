"""Layers that more than one part is built of."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_maskformer import NUM_NORM_GROUPS


class ConvNorm(nn.Sequential):
    """Convolution without bias, GroupNorm(32) and, if asked for, ReLU; keeps the map's size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, activation: bool):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
            nn.GroupNorm(NUM_NORM_GROUPS, out_channels),
            nn.ReLU(inplace=True) if activation else nn.Identity(),
        )


def init_convolutions(module: nn.Module):
    """Initialise all convolutions below `module` as Detectron2's `c2_xavier_fill` does."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            init.kaiming_uniform_(layer.weight, a=1)
            if layer.bias is not None:
                init.zeros_(layer.bias)


Layer = TypeVar("Layer", bound=nn.Module)


@torch.no_grad()
def keep_rows(new: Layer, old: nn.Module, rows: Sequence[int | None]) -> Layer:
    """Make row i of every parameter of `new` row `rows[i]` of the same parameter of `old`; None leaves it as it is."""
    for name, parameter in new.named_parameters():
        for row, former in enumerate(rows):
            if former is not None:
                parameter[row] = old.get_parameter(name)[former]
    return new


class Attention(nn.Module):
    """Multi-head attention with separate projections of queries, keys and values."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def init_weights(self):
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            # The original draws one (3C, C) matrix for all three, which makes its Xavier bound smaller by sqrt(2).
            init.xavier_uniform_(projection.weight, gain=0.5**0.5)
            init.zeros_(projection.bias)
        init.xavier_uniform_(self.o_proj.weight)
        init.zeros_(self.o_proj.bias)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, need_weights: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from `query` (B, S, C) to `key` and `value` (B, T, C).

        Returns the result (B, S, C), and the weights (B, heads, S, T) if `need_weights`, which takes the slower way
        of writing them out.
        """
        projected = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        result, weights = attend(*projected, self.num_heads, self.dropout if self.training else 0.0, need_weights)
        return self.o_proj(result), weights


class PackedAttention(nn.Module):
    """Multi-head attention to what each query sees, with the projections of queries, keys and values in one matrix: in
    this form Mask2Former's cross-attention is in every checkpoint."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj = nn.Linear(hidden_size, 3 * hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def init_weights(self):
        for projection in (self.in_proj, self.o_proj):
            init.xavier_uniform_(projection.weight)
            init.zeros_(projection.bias)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool,
        seen_BST: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As [`Attention`]. `seen_BST`: what each query attends to, bool, at least one cell each."""
        parts = zip((query, key, value), self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3), strict=True)
        q, k, v = (F.linear(states, weight, bias) for states, weight, bias in parts)
        dropout = self.dropout if self.training else 0.0
        result, weights = attend(q, k, v, self.num_heads, dropout, need_weights, seen_BST[:, None])
        return self.o_proj(result), weights


def attend(
    q_BSC: torch.Tensor,
    k_BTC: torch.Tensor,
    v_BTC: torch.Tensor,
    num_heads: int,
    dropout: float,
    need_weights: bool,
    seen: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Result (B, S, C) of attention in heads, and its weights (B, heads, S, T) if asked for.

    `seen`: false where nothing may be attended to, bool, broadcast to the weights.
    """
    q_BhSd, k_BhTd, v_BhTd = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q_BSC, k_BTC, v_BTC))
    weights_BhST = None
    if need_weights:
        logits_BhST = q_BhSd @ k_BhTd.transpose(-1, -2) * q_BhSd.shape[-1] ** -0.5
        if seen is not None:
            logits_BhST = logits_BhST.masked_fill(~seen, -torch.inf)
        weights_BhST = logits_BhST.softmax(-1)
        result_BhSd = F.dropout(weights_BhST, dropout) @ v_BhTd
    else:
        result_BhSd = F.scaled_dot_product_attention(q_BhSd, k_BhTd, v_BhTd, attn_mask=seen, dropout_p=dropout)
    return result_BhSd.transpose(1, 2).flatten(2), weights_BhST


class FeedForward(nn.Module):
    def __init__(self, hidden_size: int, ffn_dim: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def init_weights(self):
        init.xavier_uniform_(self.fc1.weight)
        init.xavier_uniform_(self.fc2.weight)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(F.relu(self.fc1(states))))


class TransformerEncoderLayer(GradientCheckpointingLayer):
    """DETR's encoder layer: positions are added to queries and keys, never to values."""

    def __init__(self, hidden_size: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = Attention(hidden_size, num_heads, dropout)
        self.self_attn_norm = nn.LayerNorm(hidden_size)
        self.ffn = FeedForward(hidden_size, ffn_dim, dropout)
        self.ffn_norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, states_BSC: torch.Tensor, position_BSC: torch.Tensor, need_weights: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        normed = self.self_attn_norm(states_BSC) if self.pre_norm else states_BSC
        positioned = normed + position_BSC
        update, weights = self.self_attn(positioned, positioned, normed, need_weights)
        states_BSC = states_BSC + self.dropout(update)
        if not self.pre_norm:
            states_BSC = self.self_attn_norm(states_BSC)
        normed = self.ffn_norm(states_BSC) if self.pre_norm else states_BSC
        states_BSC = states_BSC + self.dropout(self.ffn(normed))
        if not self.pre_norm:
            states_BSC = self.ffn_norm(states_BSC)
        return states_BSC, weights


class TransformerEncoder(nn.Module):
    """DETR's encoder. With `pre_norm` it ends in a LayerNorm, also when it has no layer at all, as in the original."""

    def __init__(self, num_layers: int, hidden_size: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(hidden_size, num_heads, ffn_dim, dropout, pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size) if pre_norm else nn.Identity()

    def forward(
        self, states_BSC: torch.Tensor, position_BSC: torch.Tensor, need_weights: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        attentions = []
        for layer in self.layers:
            states_BSC, weights = layer(states_BSC, position_BSC, need_weights)
            attentions.append(weights)
        return self.norm(states_BSC), tuple(attentions)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int, num_layers: int):
        super().__init__()
        widths = [in_features, *[hidden_features] * (num_layers - 1), out_features]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            states = F.relu(layer(states))
        return self.layers[-1](states)


def mask_logits(mask_embeddings_LBQC: torch.Tensor, pixel_embeddings_BChw: torch.Tensor) -> torch.Tensor:
    """(L, B, Q, h, w); with pixel embeddings of clips, (B, T, C, h, w), mask logits are (L, B, Q, T, h, w)."""
    return torch.einsum("lbqc,b...chw->lbq...hw", mask_embeddings_LBQC, pixel_embeddings_BChw)
