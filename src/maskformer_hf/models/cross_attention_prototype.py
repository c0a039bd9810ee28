"""PEM's cross-attention: each query looks at one cell of its mask in every head (https://arxiv.org/abs/2402.19422)."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .layers import init_batch_norm
from .transformer_decoder_masked import MemoryLevel


class LocalProjection(nn.Module):
    """What cells are compared by: BatchNorm, a 3x3 convolution of each channel, a linear layer."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(hidden_size)
        self.local = nn.Conv2d(hidden_size, hidden_size, 3, padding=1, groups=hidden_size)
        self.linear = nn.Linear(hidden_size, hidden_size)

    def init_weights(self):
        init_batch_norm(self.norm)

    def forward(self, cells_BSC: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        """(B, S, C), from the cells of maps of this size; of clips, whose frames are maps of their own."""
        channels = cells_BSC.shape[-1]
        maps_NChw = cells_BSC.reshape(-1, *size[-2:], channels).permute(0, 3, 1, 2)
        local_NhwC = self.local(self.norm(maps_NChw)).permute(0, 2, 3, 1)
        return self.linear(local_NhwC.reshape(cells_BSC.shape))


class PrototypeCrossAttention(nn.Module):
    """The most similar cell of its mask becomes a query's prototype, and there is no softmax over cells.

    Cells and queries are scaled to length 1 over all channels, before they are split into heads. The prototype is the
    scaled vector of that cell, positions included. No gradient passes through the choice, only through what is chosen.

    Two habits of the original code:

    - The second scaling runs over the queries of an image, not over their channels: what one query becomes depends on
      all of them. Trained weights rely on it, so it is kept, and extra queries of a `query_source` are refused.
    - There, a query whose mask is empty takes the first cell in every head, unless all masks of its image are empty.
      Here it looks at all cells, as with every cross-attention. Such queries, and through the scaling a little of the
      others of their image, differ from the original.
    """

    # The norm in front of the query's projection takes the place of the decoder layer's own.
    has_query_norm = True

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.cell_proj = LocalProjection(hidden_size)
        self.query_norm = nn.LayerNorm(hidden_size)
        self.query_proj = nn.Linear(hidden_size, hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        self.scale = nn.Parameter(torch.ones(1, 1, hidden_size))

    @classmethod
    def from_config(cls, config: Any) -> "PrototypeCrossAttention":
        return cls(config.hidden_size, config.num_attention_heads)

    @staticmethod
    def check(config: Any):
        if config.transformer_decoder != "masked":
            raise ValueError(
                "`cross_attention='prototype'` needs masks to look within: choose `transformer_decoder='masked'`, got "
                f"{config.transformer_decoder!r}."
            )
        if config.query_source is not None:
            raise ValueError(
                "`cross_attention='prototype'` scales over all queries, so extra ones would change what the model "
                f"predicts: `query_source` must be None, got {config.query_source!r}."
            )

    def init_weights(self):
        init.ones_(self.scale)

    def forward(
        self, queries_BRC: torch.Tensor, level: MemoryLevel, attended_BRS: torch.Tensor, need_weights: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As [`MaskedCrossAttention`]. Weights are 1 at the prototype, (B, heads, R, S)."""
        cells_BSC = F.normalize(self.cell_proj(level.keys, level.size), dim=-1)
        queries_BRC = F.normalize(self.query_proj(self.query_norm(queries_BRC)), dim=-1)
        cells_BhSd, queries_BhRd = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (cells_BSC, queries_BRC)
        )
        with torch.no_grad():
            similarity_BhRS = queries_BhRd @ cells_BhSd.transpose(-1, -2)
            chosen_BhR = similarity_BhRS.masked_fill(~attended_BRS[:, None], -torch.inf).argmax(-1)
        index_BhRd = chosen_BhR[..., None].expand(-1, -1, -1, cells_BhSd.shape[-1])
        prototypes_BRC = cells_BhSd.gather(2, index_BhRd).transpose(1, 2).flatten(2)
        scaled_BRC = F.normalize(self.proj(prototypes_BRC * queries_BRC), dim=1) * self.scale
        weights = None
        if need_weights:
            weights = F.one_hot(chosen_BhR, level.keys.shape[1]).to(level.keys.dtype)
        return self.o_proj(scaled_BRC + prototypes_BRC), weights
