"""MaskFormer's query module: DETR's transformer decoder (https://arxiv.org/abs/2005.12872)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .apart import apart, join_attention, self_attention, split_apart
from .attention import Attention
from .interfaces import Ask, Attended, ExtraQueries, Facts, PixelDecoderOutput, TransformerDecoderOutput, join_queries
from .layers import init_convolutions, input_projection, keep_rows
from .position_encoding import sine_position_encoding
from .transformer_layers import FeedForward, LayerSizes, TransformerEncoder, TransformerLayer, check_width


class DetrDecoderLayer(TransformerLayer):
    """Self-attention of the queries, cross-attention to the memory, feed-forward network."""

    def __init__(self, sizes: LayerSizes):
        super().__init__(sizes)
        self.self_attn = Attention(sizes.hidden_size, sizes.num_heads, sizes.dropout)
        self.self_attn_norm = nn.LayerNorm(sizes.hidden_size)
        self.cross_attn = Attention(sizes.hidden_size, sizes.num_heads, sizes.dropout)
        self.cross_attn_norm = nn.LayerNorm(sizes.hidden_size)
        self.ffn = FeedForward(sizes.hidden_size, sizes.ffn_dim, sizes.dropout)
        self.ffn_norm = nn.LayerNorm(sizes.hidden_size)

    def forward(
        self,
        queries_BRC: torch.Tensor,
        memory_BSC: torch.Tensor,
        memory_key_BSC: torch.Tensor,
        query_position: torch.Tensor,
        need_weights: bool = False,
        attended: Attended | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Queries, and the weights of self- and cross-attention. `attended` is the mask of self-attention."""
        num_apart = 0 if attended is None else attended.num_apart
        normed = self.before(queries_BRC, self.self_attn_norm)
        positioned = normed + query_position
        update, self_weights = self_attention(self.self_attn, positioned, normed, need_weights, attended)
        queries_BRC = self.add(queries_BRC, update, self.self_attn_norm)

        positioned = self.before(queries_BRC, self.cross_attn_norm) + query_position
        parts = split_apart(positioned, num_apart)
        update, cross_weights = join_attention(
            [self.cross_attn(part, memory_key_BSC, memory_BSC, need_weights) for part in parts]
        )
        queries_BRC = self.add(queries_BRC, update, self.cross_attn_norm)

        update = apart(self.ffn, num_apart, self.before(queries_BRC, self.ffn_norm))
        return self.add(queries_BRC, update, self.ffn_norm), self_weights, cross_weights


class DetrTransformerDecoder(nn.Module):
    """Queries start as zeros and learn only their position; every layer's result passes the same final LayerNorm.

    A transformer decoder turns a `PixelDecoderOutput` into a `TransformerDecoderOutput`, with the queries of the layers
    that `Ask` asks for and of extra queries, if it is given any, in front of its own.
    """

    # The head makes the masks.
    has_mask_head = False

    def __init__(self, config: Any, memory: Facts):
        super().__init__()
        sizes = LayerSizes.of_decoder(config)
        self.input_projection = input_projection(memory.channels[0], config)
        self.encoder = TransformerEncoder(config.decoder_encoder_layers, sizes)
        self.query_position = nn.Embedding(config.num_queries, config.hidden_size)
        self.layers = nn.ModuleList(DetrDecoderLayer(sizes) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    @classmethod
    def from_config(
        cls, config: Any, facts: Facts, memory: Facts, make_mask_head: Callable[[], nn.Module]
    ) -> "DetrTransformerDecoder":
        """
        Args:
            facts: The backbone's maps.
            memory: The maps that the pixel decoder hands over.
            make_mask_head: For decoders whose layers need masks; their `has_mask_head` is true.
        """
        return cls(config, memory)

    @staticmethod
    def check(config: Any):
        if config.kind == "clip":
            raise ValueError(
                "`transformer_decoder='detr'` attends to one image at a time: choose 'masked' for a model of clips."
            )
        check_width(config, "hidden_size")

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
        self, pixels: PixelDecoderOutput, ask: Ask, extra: ExtraQueries | None = None
    ) -> TransformerDecoderOutput:
        """Query the first level of the memory of `pixels`, (B, C, h, w)."""
        if extra is not None and extra.masks is not None:
            raise ValueError("Extra queries with masks need a decoder that attends within masks, such as 'masked'.")
        states = self.input_projection(pixels.memory[0])
        batch_size, channels, height, width = states.shape
        position = sine_position_encoding(height, width, channels, states.device, states.dtype)
        position_BSC = position.flatten(2).transpose(1, 2)
        memory_BSC, _ = self.encoder(states.flatten(2).transpose(1, 2), position_BSC)
        memory_key_BSC = memory_BSC + position_BSC

        query_position = self.query_position.weight
        start_BQC = torch.zeros_like(query_position).expand(batch_size, -1, -1)
        queries_BRC, query_position, attended = join_queries(start_BQC, query_position, extra)
        results, attentions, cross_attentions = [], [], []
        layers = self.layers[: ask.num_decoder_layers]
        for number, layer in enumerate(layers, start=1):
            queries_BRC, self_weights, cross_weights = layer(
                queries_BRC, memory_BSC, memory_key_BSC, query_position, ask.need_weights, attended
            )
            attentions.append(self_weights)
            cross_attentions.append(cross_weights)
            if ask.queries_of_every_layer or number == len(layers):
                results.append(self.norm(queries_BRC))
        return TransformerDecoderOutput(
            tuple(results),
            tuple(attentions) if ask.need_weights else None,
            tuple(cross_attentions) if ask.need_weights else None,
        )
