"""Multi-head attention, in the two forms in which checkpoints have its weights."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init


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
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from `query` (B, S, C) to `key` and `value` (B, T, C).

        Returns the result (B, S, C), and the weights (B, heads, S, T) if `need_weights`, which takes the slower way
        of writing them out. `mask` is that of `attend`.
        """
        projected = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        dropout = self.dropout if self.training else 0.0
        result, weights = attend(*projected, self.num_heads, dropout, need_weights, mask)
        return self.o_proj(result), weights


class PackedAttention(nn.Module):
    """Multi-head attention with the projections of queries, keys and values in one matrix, which is the form of
    Mask2Former's cross-attention in every checkpoint."""

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
        need_weights: bool = False,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As [`Attention`]."""
        parts = zip((query, key, value), self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3), strict=True)
        q, k, v = (F.linear(states, weight, bias) for states, weight, bias in parts)
        dropout = self.dropout if self.training else 0.0
        result, weights = attend(q, k, v, self.num_heads, dropout, need_weights, mask)
        return self.o_proj(result), weights


def attend(
    q_BSC: torch.Tensor,
    k_BTC: torch.Tensor,
    v_BTC: torch.Tensor,
    num_heads: int,
    dropout: float,
    need_weights: bool,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Result (B, S, C) of attention in heads, and its weights (B, heads, S, T) if asked for.

    `mask` is broadcast to the weights: bool, false where nothing may be attended to, or a float that is added to their
    logits. As a bool it leaves each query something to attend to.
    """
    q_BhSd, k_BhTd, v_BhTd = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q_BSC, k_BTC, v_BTC))
    weights_BhST = None
    if need_weights:
        logits_BhST = q_BhSd @ k_BhTd.transpose(-1, -2) * q_BhSd.shape[-1] ** -0.5
        if mask is not None:
            is_bool = mask.dtype == torch.bool
            logits_BhST = logits_BhST.masked_fill(~mask, -torch.inf) if is_bool else logits_BhST + mask
        weights_BhST = logits_BhST.softmax(-1)
        result_BhSd = F.dropout(weights_BhST, dropout) @ v_BhTd
    else:
        result_BhSd = F.scaled_dot_product_attention(q_BhSd, k_BhTd, v_BhTd, attn_mask=mask, dropout_p=dropout)
    return result_BhSd.transpose(1, 2).flatten(2), weights_BhST
