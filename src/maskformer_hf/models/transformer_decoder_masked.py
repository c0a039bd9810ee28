"""Mask2Former's query module: masked attention to several levels (https://arxiv.org/abs/2112.01527, section 3.2), of
images or, in space and time, of clips (Mask2Former-VIS, https://arxiv.org/abs/2112.10764, section 2.1)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .apart import apart, join_attention, self_attention, split_apart
from .attention import Attention, PackedAttention
from .interfaces import Ask, Attended, ExtraQueries, Facts, PixelDecoderOutput, TransformerDecoderOutput, join_queries
from .layers import init_convolutions, input_projection
from .position_encoding import clip_position_encoding, sine_position_encoding
from .transformer_layers import FeedForward, LayerSizes, TransformerLayer, check_width


class MemoryLevel(NamedTuple):
    """One map that queries attend to, with its S cells in one row; those of the T frames of a clip one after the other.

    states: (B, S, C).
    keys: The same with their positions, (B, S, C).
    size: (h, w), or (T, h, w).
    """

    states: torch.Tensor
    keys: torch.Tensor
    size: tuple[int, ...]


class MaskedCrossAttention(PackedAttention):
    """Multi-head attention of each query to the cells of its mask.

    A cross-attention takes positioned queries (B, R, C), a `MemoryLevel` and which cells each query may attend to,
    (B, R, S) or, head by head, (B, heads, R, S) bool with at least one cell each. It returns the update of the queries,
    and weights if asked for. One that normalises the queries itself says so by `has_query_norm`: the layer then has no
    norm there.
    """

    has_query_norm = False

    @classmethod
    def from_config(cls, config: Any) -> "MaskedCrossAttention":
        return cls(config.hidden_size, config.num_attention_heads, config.dropout)

    def forward(  # pyrefly: ignore[bad-override]
        self, queries_BRC: torch.Tensor, level: MemoryLevel, attended_BRS: torch.Tensor, need_weights: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended = attended_BRS[:, None] if attended_BRS.dim() == 3 else attended_BRS
        return super().forward(queries_BRC, level.keys, level.states, need_weights, attended)


class MaskedDecoderLayer(TransformerLayer):
    """Masked cross-attention to the memory, self-attention of the queries, feed-forward network."""

    def __init__(self, sizes: LayerSizes, cross_attention: nn.Module):
        super().__init__(sizes)
        self.cross_attn = cross_attention
        has_own_norm = getattr(cross_attention, "has_query_norm", False)
        self.cross_attn_norm = nn.Identity() if has_own_norm else nn.LayerNorm(sizes.hidden_size)
        self.self_attn = Attention(sizes.hidden_size, sizes.num_heads, sizes.dropout)
        self.self_attn_norm = nn.LayerNorm(sizes.hidden_size)
        self.ffn = FeedForward(sizes.hidden_size, sizes.ffn_dim, sizes.dropout)
        self.ffn_norm = nn.LayerNorm(sizes.hidden_size)

    def forward(
        self,
        queries_BRC: torch.Tensor,
        memory_BSC: torch.Tensor,
        memory_key_BSC: torch.Tensor,
        memory_size: tuple[int, ...],
        query_position: torch.Tensor,
        attended_BRS: torch.Tensor,
        need_weights: bool = False,
        attended: Attended | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Queries, and the weights of self- and cross-attention.

        `attended_BRS`: which cells of the memory each query attends to. `attended`: the mask of self-attention. The
        tensors of the memory come one by one, because reentrant checkpointing finds no gradient inside of a tuple.
        """
        level = MemoryLevel(memory_BSC, memory_key_BSC, memory_size)
        num_apart = 0 if attended is None else attended.num_apart
        positioned = self.before(queries_BRC, self.cross_attn_norm) + query_position
        parts = zip(split_apart(positioned, num_apart), split_apart(attended_BRS, num_apart), strict=True)
        update, cross_weights = join_attention(
            [self.cross_attn(part, level, cells, need_weights) for part, cells in parts]
        )
        queries_BRC = self.add(queries_BRC, update, self.cross_attn_norm)

        normed = self.before(queries_BRC, self.self_attn_norm)
        positioned = normed + query_position
        update, self_weights = self_attention(self.self_attn, positioned, normed, need_weights, attended)
        queries_BRC = self.add(queries_BRC, update, self.self_attn_norm)

        update = apart(self.ffn, num_apart, self.before(queries_BRC, self.ffn_norm))
        return self.add(queries_BRC, update, self.ffn_norm), self_weights, cross_weights


class MaskedTransformerDecoder(nn.Module):
    """L layers that look at the levels of the memory in turn, each where the masks before it are.

    There are L + 1 sets of queries, the first of them learned: each gives a mask, so that already the first layer has
    one to attend within. The original counts L + 1 layers.
    """

    # Its layers need masks, and the head takes those.
    has_mask_head = True

    def __init__(
        self,
        config: Any,
        memory: Facts,
        mask_head: nn.Module,
        cross_attentions: Sequence[nn.Module],
        relations: nn.Module | None = None,
    ):
        """
        Args:
            cross_attentions: One a layer.
            relations: What makes a bias of self-attention of the masks before each layer; see `query_relations.py`.
        """
        super().__init__()
        sizes = LayerSizes.of_decoder(config)
        self.input_projections = nn.ModuleList(input_projection(channels, config) for channels in memory.channels)
        self.level_embedding = nn.Embedding(len(memory.channels), config.hidden_size)
        self.query_features = nn.Embedding(config.num_queries, config.hidden_size)
        self.query_position = nn.Embedding(config.num_queries, config.hidden_size) if config.query_position else None
        self.layers = nn.ModuleList(MaskedDecoderLayer(sizes, attention) for attention in cross_attentions)
        self.norm = nn.LayerNorm(config.hidden_size)
        # The name that its weights have in every checkpoint.
        self.mask_embedder: Any = mask_head
        self.relations: Any = relations

    @staticmethod
    def check(config: Any):
        if config.is_per_pixel:
            raise ValueError(
                "`transformer_decoder='masked'` attends within masks of queries, which a per-pixel model does not "
                "have: choose 'detr', or None."
            )
        check_width(config, "hidden_size")
        if config.decoder_encoder_layers:
            raise ValueError(
                "`transformer_decoder='masked'` has no encoder in front: `decoder_encoder_layers` must be 0, got "
                f"{config.decoder_encoder_layers}."
            )

    def init_weights(self):
        init_convolutions(self.input_projections)
        for embedding in (self.level_embedding, self.query_features, self.query_position):
            if embedding is not None:
                init.normal_(embedding.weight)

    def forward(
        self, pixels: PixelDecoderOutput, ask: Ask, extra: ExtraQueries | None = None
    ) -> TransformerDecoderOutput:
        """Query the memory of `pixels`, maps (B, C, h, w), within masks that its pixel embeddings make.

        For clips the maps are those of their frames, (B T, C, h, w): a query then attends to all frames of its clip at
        once.
        """
        levels = self._levels(pixels, ask)
        pixels_BCS = [
            _cells(self.mask_embedder.at_size(pixels, level.size[-2:]), ask).transpose(1, 2) for level in levels
        ]
        own_BQC = self.query_features.weight.expand(levels[0].states.shape[0], -1, -1)
        features = self.query_features.weight
        own_position = torch.zeros_like(features) if self.query_position is None else self.query_position.weight
        queries_BRC, query_position, attended = join_queries(own_BQC, own_position, extra)
        num_apart = 0 if attended is None else attended.num_apart
        results, mask_embeddings, attentions, cross_attentions = [], [], [], []
        for number, layer in enumerate(self.layers[: ask.num_decoder_layers]):
            normed_BRC = self.norm(queries_BRC)
            embedded_BRC = apart(self.mask_embedder, num_apart, normed_BRC)
            if ask.queries_of_every_layer:
                results.append(normed_BRC)
                mask_embeddings.append(embedded_BRC)
            index = number % len(levels)
            inside = partial(self.mask_embedder.inside, pixels_BCS=pixels_BCS[index])
            inside_BRS = apart(inside, num_apart, embedded_BRC)
            related = attended
            if self.relations is not None:
                # At the finest level, where small objects still are.
                inside = partial(self.mask_embedder.inside, pixels_BCS=pixels_BCS[-1])
                finest_BRS = attended_cells(apart(inside, num_apart, embedded_BRC))
                related = self.relations(finest_BRS, levels[-1].size, attended)
            queries_BRC, self_weights, cross_weights = layer(
                queries_BRC,
                *levels[index],
                query_position,
                attended_cells(inside_BRS, _forced(extra, number, levels[index].size)),
                ask.need_weights,
                related,
            )
            attentions.append(self_weights)
            cross_attentions.append(cross_weights)
        results.append(self.norm(queries_BRC))
        mask_embeddings.append(apart(self.mask_embedder, num_apart, results[-1]))
        return TransformerDecoderOutput(
            tuple(results),
            tuple(attentions) if ask.need_weights else None,
            tuple(cross_attentions) if ask.need_weights else None,
            self.mask_embedder.masks(torch.stack(mask_embeddings), pixels, ask),
        )

    def _levels(self, pixels: PixelDecoderOutput, ask: Ask) -> list[MemoryLevel]:
        levels = []
        for number, (feature, project) in enumerate(zip(pixels.memory, self.input_projections, strict=True)):
            maps = project(feature)
            channels, height, width = maps.shape[1:]
            size: tuple[int, ...] = (height, width)
            if ask.num_frames is None:
                position = sine_position_encoding(height, width, channels, maps.device, maps.dtype)
            else:
                size = (ask.num_frames, *size)
                position = clip_position_encoding(ask.num_frames, height, width, channels, maps.device, maps.dtype)
            states = _cells(maps, ask) + self.level_embedding.weight[number]
            levels.append(MemoryLevel(states, states + _cells(position, ask), size))
        return levels


def _cells(maps_BChw: torch.Tensor, ask: Ask) -> torch.Tensor:
    """The cells of maps in one row, (B, h w, C); those of the T frames of a clip one after the other, (B, T h w, C)."""
    cells_BSC = maps_BChw.flatten(2).transpose(1, 2)
    return cells_BSC if ask.num_frames is None else cells_BSC.unflatten(0, (-1, ask.num_frames)).flatten(1, 2)


@torch.no_grad()
def attended_cells(inside_BRS: torch.Tensor, forced: torch.Tensor | None = None) -> torch.Tensor:
    """Which cells each query attends to, (B, R, S) bool: those inside its mask, or all of them where a mask is empty.

    `forced`, (B, E, S), takes the place of the masks of the first E queries. No gradient passes, and the mask of one
    query is that of all attention heads, unless `forced` is (B, heads, E, S); then so is the result.
    """
    if forced is not None:
        if forced.dim() == 4:
            inside_BRS = inside_BRS[:, None].expand(-1, forced.shape[1], -1, -1)
        inside_BRS = torch.cat((forced, inside_BRS[..., forced.shape[-2] :, :]), dim=-2)
    return inside_BRS | ~inside_BRS.any(-1, keepdim=True)


def _forced(extra: ExtraQueries | None, layer: int, size: Sequence[int]) -> torch.Tensor | None:
    """The cells of a layer's level that extra queries attend to, (B, E, S) or (B, heads, E, S)."""
    if extra is None or extra.masks is None:
        return None
    return extra.masks(layer, size) if callable(extra.masks) else touched_cells(extra.masks, size)


@torch.no_grad()
def touched_cells(masks_BEHW: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The cells of a map of this size that masks touch, (B, E, S) bool."""
    share = F.interpolate(masks_BEHW.float(), size=tuple(size), mode="area")
    return (share > 1e-8).flatten(2)
