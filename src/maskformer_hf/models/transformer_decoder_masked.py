"""Mask2Former's query module: masked attention to several levels (https://arxiv.org/abs/2112.01527, section 3.2), of
images or, in space and time, of clips (Mask2Former-VIS, https://arxiv.org/abs/2112.10764, section 2.1)."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .layers import MLP, Attention, FeedForward, PackedAttention, init_convolutions
from .modeling_outputs import PixelDecoderOutput, TransformerDecoderOutput
from .position_encoding import clip_position_encoding, sine_position_encoding


class MaskedDecoderLayer(GradientCheckpointingLayer):
    """Masked cross-attention to the memory, self-attention of the queries, feed-forward network."""

    def __init__(self, hidden_size: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.pre_norm = pre_norm
        self.cross_attn = PackedAttention(hidden_size, num_heads, dropout)
        self.cross_attn_norm = nn.LayerNorm(hidden_size)
        self.self_attn = Attention(hidden_size, num_heads, dropout)
        self.self_attn_norm = nn.LayerNorm(hidden_size)
        self.ffn = FeedForward(hidden_size, ffn_dim, dropout)
        self.ffn_norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries_BQC: torch.Tensor,
        memory_BSC: torch.Tensor,
        memory_key_BSC: torch.Tensor,
        query_position_QC: torch.Tensor,
        seen_BQS: torch.Tensor,
        need_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """`seen_BQS`: which cells of the memory each query attends to, bool."""

        def before(states: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
            return norm(states) if self.pre_norm else states

        def add(states: torch.Tensor, update: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
            states = states + self.dropout(update)
            return states if self.pre_norm else norm(states)

        positioned = before(queries_BQC, self.cross_attn_norm) + query_position_QC
        update, cross_weights = self.cross_attn(positioned, memory_key_BSC, memory_BSC, need_weights, seen_BQS)
        queries_BQC = add(queries_BQC, update, self.cross_attn_norm)

        normed = before(queries_BQC, self.self_attn_norm)
        positioned = normed + query_position_QC
        update, self_weights = self.self_attn(positioned, positioned, normed, need_weights)
        queries_BQC = add(queries_BQC, update, self.self_attn_norm)

        update = self.ffn(before(queries_BQC, self.ffn_norm))
        return add(queries_BQC, update, self.ffn_norm), self_weights, cross_weights


class MaskedTransformerDecoder(nn.Module):
    """L layers that look at the levels of the memory in turn, each where the masks before it are.

    There are L + 1 sets of queries, the first of them learned: each gives a mask, so that already the first layer has
    one to attend within. The original counts L + 1 layers.
    """

    def __init__(
        self,
        memory_channels: Sequence[int],
        hidden_size: int,
        mask_feature_size: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        pre_norm: bool,
        enforce_input_projection: bool,
    ):
        super().__init__()
        self.input_projections = nn.ModuleList(
            nn.Conv2d(channels, hidden_size, 1)
            if enforce_input_projection or channels != hidden_size
            else nn.Identity()
            for channels in memory_channels
        )
        self.level_embedding = nn.Embedding(len(memory_channels), hidden_size)
        self.query_features = nn.Embedding(num_queries, hidden_size)
        self.query_position = nn.Embedding(num_queries, hidden_size)
        self.layers = nn.ModuleList(
            MaskedDecoderLayer(hidden_size, num_heads, ffn_dim, dropout, pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.mask_embedder = MLP(hidden_size, hidden_size, mask_feature_size, num_layers=3)

    def init_weights(self):
        init_convolutions(self)
        for embedding in (self.level_embedding, self.query_features, self.query_position):
            init.normal_(embedding.weight)

    def forward(
        self,
        pixels: PixelDecoderOutput,
        every_layer: bool,
        need_weights: bool = False,
        num_frames: int | None = None,
    ) -> TransformerDecoderOutput:
        """Query the memory of `pixels`, maps (B, C, h, w), within masks that its pixel embeddings make.

        Args:
            every_layer: Return the queries of all layers, the learned ones included, and not only those of the last.
            num_frames: T, if the maps are those of the frames of clips, (B T, C, h, w): a query then attends to all
                frames of its clip at once.
        """
        memory, positions, embeddings = [], [], []
        for level, (feature, project) in enumerate(zip(pixels.memory, self.input_projections, strict=True)):
            states = project(feature)
            _, channels, height, width = states.shape
            if num_frames is None:
                position = sine_position_encoding(height, width, channels, states.device, states.dtype)
            else:
                position = clip_position_encoding(num_frames, height, width, channels, states.device, states.dtype)
            memory.append(_cells(states, num_frames) + self.level_embedding.weight[level])
            positions.append(_cells(position, num_frames))
            embeddings.append(_cells(resize_embeddings(pixels.embeddings, (height, width)), num_frames).transpose(1, 2))
        return self.decode(memory, positions, embeddings, every_layer, need_weights)

    def decode(
        self,
        memory_BSC: Sequence[torch.Tensor],
        positions_BSC: Sequence[torch.Tensor],
        embeddings_BCS: Sequence[torch.Tensor],
        every_layer: bool,
        need_weights: bool,
    ) -> TransformerDecoderOutput:
        """The same for a memory whose cells lie in one row, be they of one image or of all frames of a clip.

        Args:
            memory_BSC: Each level's cells.
            positions_BSC: Their position encodings, (B or 1, S, C).
            embeddings_BCS: The pixel embeddings there.
        """
        memory_key_BSC = [states + position for states, position in zip(memory_BSC, positions_BSC, strict=True)]
        query_position_QC = self.query_position.weight
        queries_BQC = self.query_features.weight.expand(memory_BSC[0].shape[0], -1, -1)
        results, mask_embeddings, attentions, cross_attentions = [], [], [], []
        for number, layer in enumerate(self.layers):
            normed_BQC = self.norm(queries_BQC)
            embedded_BQC = self.mask_embedder(normed_BQC)
            if every_layer:
                results.append(normed_BQC)
                mask_embeddings.append(embedded_BQC)
            level = number % len(memory_BSC)
            queries_BQC, self_weights, cross_weights = layer(
                queries_BQC,
                memory_BSC[level],
                memory_key_BSC[level],
                query_position_QC,
                within_masks(embedded_BQC, embeddings_BCS[level]),
                need_weights,
            )
            attentions.append(self_weights)
            cross_attentions.append(cross_weights)
        results.append(self.norm(queries_BQC))
        mask_embeddings.append(self.mask_embedder(results[-1]))
        return TransformerDecoderOutput(
            tuple(results),
            tuple(attentions) if need_weights else None,
            tuple(cross_attentions) if need_weights else None,
            tuple(mask_embeddings),
        )


def _cells(maps_BChw: torch.Tensor, num_frames: int | None) -> torch.Tensor:
    """The cells of maps in one row, (B, h w, C); those of the T frames of a clip one after the other, (B, T h w, C)."""
    cells_BSC = maps_BChw.flatten(2).transpose(1, 2)
    return cells_BSC if num_frames is None else cells_BSC.unflatten(0, (-1, num_frames)).flatten(1, 2)


@torch.no_grad()
def resize_embeddings(embeddings_BChw: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Pixel embeddings at the size of a level, so that masks are made at that size and not resized to it: both steps
    are linear, and the result is the same."""
    return F.interpolate(embeddings_BChw.detach(), size=tuple(size), mode="bilinear", align_corners=False)


@torch.no_grad()
def within_masks(mask_embeddings_BQC: torch.Tensor, embeddings_BCS: torch.Tensor) -> torch.Tensor:
    """Which cells lie in the mask of each query, (B, Q, S) bool; all of them where a mask is empty.

    No gradient passes, and the mask of one query is that of all attention heads.
    """
    # A probability of at least 0.5.
    inside_BQS = mask_embeddings_BQC.detach() @ embeddings_BCS >= 0
    return inside_BQS | ~inside_BQS.any(-1, keepdim=True)
