"""MaskFormer's query module: DETR's transformer decoder (https://arxiv.org/abs/2005.12872)."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .layers import Attention, FeedForward, TransformerEncoder, init_convolutions, keep_rows
from .modeling_outputs import PixelDecoderOutput, TransformerDecoderOutput
from .position_encoding import sine_position_encoding


class DetrDecoderLayer(GradientCheckpointingLayer):
    """Self-attention of the queries, cross-attention to the memory, feed-forward network."""

    def __init__(self, hidden_size: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = Attention(hidden_size, num_heads, dropout)
        self.self_attn_norm = nn.LayerNorm(hidden_size)
        self.cross_attn = Attention(hidden_size, num_heads, dropout)
        self.cross_attn_norm = nn.LayerNorm(hidden_size)
        self.ffn = FeedForward(hidden_size, ffn_dim, dropout)
        self.ffn_norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries_BQC: torch.Tensor,
        memory_BSC: torch.Tensor,
        memory_key_BSC: torch.Tensor,
        query_position_QC: torch.Tensor,
        need_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        def before(states: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
            return norm(states) if self.pre_norm else states

        def add(states: torch.Tensor, update: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
            states = states + self.dropout(update)
            return states if self.pre_norm else norm(states)

        normed = before(queries_BQC, self.self_attn_norm)
        positioned = normed + query_position_QC
        update, self_weights = self.self_attn(positioned, positioned, normed, need_weights)
        queries_BQC = add(queries_BQC, update, self.self_attn_norm)

        positioned = before(queries_BQC, self.cross_attn_norm) + query_position_QC
        update, cross_weights = self.cross_attn(positioned, memory_key_BSC, memory_BSC, need_weights)
        queries_BQC = add(queries_BQC, update, self.cross_attn_norm)

        update = self.ffn(before(queries_BQC, self.ffn_norm))
        return add(queries_BQC, update, self.ffn_norm), self_weights, cross_weights


class DetrTransformerDecoder(nn.Module):
    """Queries start as zeros and learn only their position; every layer's result passes the same final LayerNorm."""

    def __init__(
        self,
        memory_channels: int,
        hidden_size: int,
        num_queries: int,
        num_layers: int,
        num_encoder_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        pre_norm: bool,
        enforce_input_projection: bool,
    ):
        super().__init__()
        project = enforce_input_projection or memory_channels != hidden_size
        self.input_projection = nn.Conv2d(memory_channels, hidden_size, 1) if project else nn.Identity()
        self.encoder = TransformerEncoder(num_encoder_layers, hidden_size, num_heads, ffn_dim, dropout, pre_norm)
        self.query_position = nn.Embedding(num_queries, hidden_size)
        self.layers = nn.ModuleList(
            DetrDecoderLayer(hidden_size, num_heads, ffn_dim, dropout, pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def init_weights(self):
        init_convolutions(self)
        # N(0, 1). With the N(0, 0.02) of many ports all queries start alike and training never parts them.
        init.normal_(self.query_position.weight)

    def change_queries(self, rows: Sequence[int | None]):
        """Replace the queries: query i is the former query `rows[i]`, or a new one."""
        old = self.query_position
        weight = old.weight
        new = nn.Embedding(len(rows), old.embedding_dim, device=weight.device, dtype=weight.dtype)
        self.query_position = keep_rows(new, old, rows)

    def forward(
        self, pixels: PixelDecoderOutput, every_layer: bool, need_weights: bool = False
    ) -> TransformerDecoderOutput:
        """Query the first level of the memory of `pixels`, (B, C, h, w).

        `every_layer`: return the queries of all layers and not only those of the last.
        """
        states = self.input_projection(pixels.memory[0])
        batch_size, channels, height, width = states.shape
        position = sine_position_encoding(height, width, channels, states.device, states.dtype)
        position_BSC = position.flatten(2).transpose(1, 2)
        memory_BSC, _ = self.encoder(states.flatten(2).transpose(1, 2), position_BSC)
        memory_key_BSC = memory_BSC + position_BSC

        query_position_QC = self.query_position.weight
        queries_BQC = torch.zeros_like(query_position_QC).expand(batch_size, -1, -1)
        results, attentions, cross_attentions = [], [], []
        for layer in self.layers:
            queries_BQC, self_weights, cross_weights = layer(
                queries_BQC, memory_BSC, memory_key_BSC, query_position_QC, need_weights
            )
            attentions.append(self_weights)
            cross_attentions.append(cross_weights)
            if every_layer:
                results.append(self.norm(queries_BQC))
        if not every_layer:
            results.append(self.norm(queries_BQC))
        return TransformerDecoderOutput(
            tuple(results),
            tuple(attentions) if need_weights else None,
            tuple(cross_attentions) if need_weights else None,
        )
