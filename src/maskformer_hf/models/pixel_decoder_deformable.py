"""Mask2Former's pixel decoder: deformable attention among several levels, and a pyramid from there to stride 4."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .deformable_attention import DeformableAttention, SamplingPlan, plan_sampling
from .interfaces import Ask, Facts, PixelDecoderOutput
from .layers import NUM_NORM_GROUPS, ConvNorm, check_norm_groups, init_convolutions
from .position_encoding import sine_position_encoding
from .transformer_layers import FeedForward, LayerSizes, check_width

# Points that every head of every cell looks at on every map.
NUM_POINTS = 4
# The transformer decoder attends to so many maps in turn, of strides 32, 16 and 8.
NUM_MEMORY_LEVELS = 3


class DeformableEncoderLayer(GradientCheckpointingLayer):
    """Deformable DETR's encoder layer, norms behind attention and feed-forward network."""

    def __init__(self, num_levels: int, sizes: LayerSizes):
        super().__init__()
        self.self_attn = DeformableAttention(sizes.hidden_size, sizes.num_heads, num_levels, NUM_POINTS)
        self.self_attn_norm = nn.LayerNorm(sizes.hidden_size)
        self.ffn = FeedForward(sizes.hidden_size, sizes.ffn_dim, sizes.dropout)
        self.ffn_norm = nn.LayerNorm(sizes.hidden_size)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(
        self, states_BSC: torch.Tensor, position_SC: torch.Tensor, plan: SamplingPlan, need_weights: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        update, weights = self.self_attn(states_BSC, position_SC, plan, need_weights)
        states_BSC = self.self_attn_norm(states_BSC + self.dropout(update))
        return self.ffn_norm(states_BSC + self.dropout(self.ffn(states_BSC))), weights


class DeformablePixelDecoder(nn.Module):
    """The coarsest `num_levels` maps see each other; the finer ones are joined from above, as in a feature pyramid.

    Unlike MaskFormer's pyramid it is upsampled bilinearly, and the last step is a 1x1 convolution.
    """

    def __init__(
        self,
        facts: Facts,
        feature_size: int,
        mask_feature_size: int,
        num_levels: int,
        num_layers: int,
        sizes: LayerSizes,
        exit_weights: Sequence[float] = (),
    ):
        """`exit_weights`: One for each layer but the last, or none: what the losses of earlier exits weigh in training,
        0 for no exit."""
        super().__init__()
        self.num_heads = sizes.num_heads
        self.exit_weights = tuple(exit_weights)
        coarsest_first = facts.channels[::-1]
        encoded, finer = coarsest_first[:num_levels], coarsest_first[num_levels:]
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, feature_size, 1), nn.GroupNorm(NUM_NORM_GROUPS, feature_size))
            for channels in encoded
        )
        # A bare parameter, as in the original, where those decay and embeddings do not.
        self.level_embedding = nn.Parameter(torch.zeros(num_levels, feature_size))
        self.layers = nn.ModuleList(DeformableEncoderLayer(num_levels, sizes) for _ in range(num_layers))
        self.laterals = nn.ModuleList(ConvNorm(channels, feature_size, 1, activation=False) for channels in finer)
        self.outputs = nn.ModuleList(ConvNorm(feature_size, feature_size, 3, activation=True) for _ in finer)
        self.mask_projection = nn.Conv2d(feature_size, mask_feature_size, 1)
        strides = facts.strides[::-1][:NUM_MEMORY_LEVELS]
        self.memory = Facts((feature_size,) * len(strides), strides, facts.dims)

    @classmethod
    def from_config(cls, config: Any, facts: Facts) -> "DeformablePixelDecoder":
        return cls(
            facts,
            config.feature_size,
            config.mask_feature_size,
            config.encoder_levels,
            config.encoder_layers,
            LayerSizes.of_encoder(config),
            config.encoder_exits or (),
        )

    @staticmethod
    def check(config: Any):
        check_width(config, "feature_size")
        check_norm_groups(config)
        exits = config.encoder_exits
        if exits is None:
            return
        if len(exits) != config.encoder_layers - 1 or min(exits, default=0) < 0 or not any(exits):
            raise ValueError(
                "`encoder_exits` must be a weight of at least 0 for each of the encoder layers but the last, "
                f"{config.encoder_layers - 1} with `encoder_layers={config.encoder_layers}`, and not all be 0, got "
                f"{exits}."
            )

    def init_weights(self):
        for part in (self.laterals, self.outputs, self.mask_projection):
            init_convolutions(part)
        for projection in self.input_projections:
            convolution: Any = projection.get_submodule("0")
            init.xavier_uniform_(convolution.weight)
            init.zeros_(convolution.bias)
        init.normal_(self.level_embedding)

    def forward(self, features: tuple[torch.Tensor, ...], ask: Ask) -> PixelDecoderOutput:
        """`features`: maps (B, C, h, w) of the backbone, finest first."""
        coarsest_first = features[::-1]
        num_levels = len(self.input_projections)
        *exits, encoded = self.encode(coarsest_first[:num_levels], ask)
        finer = coarsest_first[num_levels:]
        return self.join(encoded, finer)._replace(exits=tuple(self.join(early, finer) for early in exits))

    def join(self, encoded: "EncoderMaps", finer: Sequence[torch.Tensor]) -> PixelDecoderOutput:
        """The pyramid of the encoder's maps and the finer ones of the backbone, coarsest first."""
        maps = list(encoded.maps)
        for lateral, output, feature in zip(self.laterals, self.outputs, finer, strict=True):
            upsampled = F.interpolate(maps[-1], size=feature.shape[-2:], mode="bilinear", align_corners=False)
            maps.append(output(lateral(feature) + upsampled))
        memory = tuple(maps[:NUM_MEMORY_LEVELS])
        return PixelDecoderOutput(
            self.mask_projection(maps[-1]), memory, attentions=encoded.attentions, weight=encoded.weight
        )

    def encode(self, features: tuple[torch.Tensor, ...], ask: Ask) -> list["EncoderMaps"]:
        """What the layers make of `features` (B, C, h, w), coarsest first; in front of it, in training, what those made
        after which there is an exit."""
        maps = [project(feature) for project, feature in zip(self.input_projections, features, strict=True)]
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in maps]
        plan = plan_sampling(sizes, self.num_heads, NUM_POINTS, maps[0].device)
        states_BSC = torch.cat([feature.flatten(2).transpose(1, 2) for feature in maps], dim=1)
        positions = []
        for level, (height, width) in enumerate(sizes):
            channels, device, dtype = states_BSC.shape[-1], states_BSC.device, states_BSC.dtype
            position = sine_position_encoding(height, width, channels, device, dtype)
            positions.append(position[0].flatten(1).T + self.level_embedding[level])
        position_SC = torch.cat(positions)
        results: list[EncoderMaps] = []
        attentions = []
        exit_weights = [*self.exit_weights, 0.0] if self.training and self.exit_weights else [0.0] * len(self.layers)
        layers = list(zip(self.layers, exit_weights, strict=True))
        for layer, exit_weight in layers[: ask.num_encoder_layers]:
            if torch.is_grad_enabled() and states_BSC.requires_grad:
                # What these layers keep for the gradient is a third of the memory of a training step. Computing it
                # again costs about an eighth of the arithmetic of a step.
                states_BSC, weights = checkpoint(
                    layer, states_BSC, position_SC, plan, ask.need_weights, use_reentrant=False
                )
            else:
                states_BSC, weights = layer(states_BSC, position_SC, plan, ask.need_weights)
            attentions.append(weights)
            if exit_weight > 0:
                results.append(EncoderMaps(_maps(states_BSC, sizes), weight=exit_weight))
        return [*results, EncoderMaps(_maps(states_BSC, sizes), tuple(attentions) if ask.need_weights else None)]


class EncoderMaps(NamedTuple):
    """The maps (B, C, h, w) after a layer of the encoder, coarsest first; the attention weights of all layers if asked
    for; and what the loss of this exit is multiplied by."""

    maps: list[torch.Tensor]
    attentions: tuple[torch.Tensor, ...] | None = None
    weight: float = 1.0


def _maps(states_BSC: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """Maps (B, C, h, w) of the cells of all levels, in channels-last memory, which is how the cells lie."""
    levels = states_BSC.split([height * width for height, width in sizes], dim=1)
    return [cells.transpose(1, 2).unflatten(2, size) for cells, size in zip(levels, sizes, strict=True)]
