"""Deformable DETR's encoder without a pyramid (https://arxiv.org/abs/2010.04159), as Panoptic SegFormer has it
(https://arxiv.org/abs/2109.03814, section 3.1): four maps of strides 8 to 64 see each other."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .deformable_attention import SamplingPlan, plan_for_padding, plan_sampling
from .interfaces import Ask, Facts, PixelDecoderOutput
from .layers import ConvNorm
from .pixel_decoder_deformable import NUM_POINTS, DeformableEncoderLayer
from .transformer_layers import LayerSizes, check_width

# Maps of the backbone, the coarsest ones; one more is made of the last.
NUM_BACKBONE_MAPS = 3
NUM_LEVELS = 4


class EncodedMaps(nn.Module):
    """Maps of one width, encoded. The memory is all of them; the finest stands for pixel embeddings.

    Padding is masked: cells of it have no value, and places are shares of the image without it.
    """

    def __init__(self, facts: Facts, num_layers: int, sizes: LayerSizes, num_groups: int):
        super().__init__()
        self.num_heads = sizes.num_heads
        channels, width = facts.channels[-NUM_BACKBONE_MAPS:], sizes.hidden_size
        self.input_projections = nn.ModuleList(
            ConvNorm(number, width, 1, activation=False, num_groups=num_groups) for number in channels
        )
        self.input_projections.append(
            ConvNorm(channels[-1], width, 3, activation=False, num_groups=num_groups, stride=2)
        )
        self.level_embedding = nn.Parameter(torch.zeros(NUM_LEVELS, width))
        self.layers = nn.ModuleList(DeformableEncoderLayer(NUM_LEVELS, sizes) for _ in range(num_layers))
        strides = facts.strides[-NUM_BACKBONE_MAPS:]
        self.memory = Facts((width,) * NUM_LEVELS, (2 * strides[-1], *strides[::-1]), facts.dims)

    @classmethod
    def from_config(cls, config: Any, facts: Facts) -> "EncodedMaps":
        return cls(facts, config.encoder_layers, LayerSizes.of_encoder(config), config.encoder_norm_groups)

    @staticmethod
    def check(config: Any):
        check_width(config, "feature_size")
        if config.kind == "clip":
            raise ValueError("`pixel_decoder='encoder'` is for images: choose 'deformable' for a model of clips.")
        if config.transformer_decoder != "panoptic_segformer":
            raise ValueError(
                "`pixel_decoder='encoder'` makes no map of stride 4: it needs "
                f"`transformer_decoder='panoptic_segformer'`, got {config.transformer_decoder!r}."
            )
        if config.feature_size % config.encoder_norm_groups:
            raise ValueError(
                f"`feature_size` must be a multiple of `encoder_norm_groups`, got {config.feature_size} and "
                f"{config.encoder_norm_groups}."
            )

    def init_weights(self):
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                init.xavier_uniform_(layer.weight)
        init.normal_(self.level_embedding)

    def forward(self, features: tuple[torch.Tensor, ...], ask: Ask) -> PixelDecoderOutput:
        """`features`: maps (B, C, h, w) of the backbone, finest first."""
        features = (*features[-NUM_BACKBONE_MAPS:], features[-1])
        maps = [project(feature) for project, feature in zip(self.input_projections, features, strict=True)]
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in maps]
        padding = padding_of_levels(sizes, ask)
        plan = plan_levels(sizes, padding, self.num_heads, maps[0].device)
        positions = []
        for level, size in enumerate(sizes):
            masked = maps[0].new_zeros((1, *size), dtype=torch.bool) if padding is None else padding[level]
            position_BSC = position_encoding(masked, maps[0].shape[1]).to(maps[0].dtype)
            positions.append(position_BSC + self.level_embedding[level])
        position_BSC = torch.cat(positions, dim=1)
        states_BSC = torch.cat([feature.flatten(2).transpose(1, 2) for feature in maps], dim=1)
        attentions = []
        for layer in self.layers[: ask.num_encoder_layers]:
            states_BSC, weights = layer(states_BSC, position_BSC, plan, ask.need_weights)
            attentions.append(weights)
        cells = states_BSC.split([height * width for height, width in sizes], dim=1)
        encoded = [part.transpose(1, 2).unflatten(2, size) for part, size in zip(cells, sizes, strict=True)]
        return PixelDecoderOutput(encoded[0], tuple(encoded[::-1]), tuple(attentions) if ask.need_weights else None)


def padding_of_levels(sizes: Sequence[tuple[int, int]], ask: Ask) -> list[torch.Tensor] | None:
    """Which cells of each map are padding, (B, h, w) bool: what the nearest pixel says."""
    if ask.padding is None:
        return None
    return [F.interpolate(ask.padding[:, None].float(), size=size, mode="nearest")[:, 0].bool() for size in sizes]


def plan_levels(
    sizes: Sequence[tuple[int, int]], padding: list[torch.Tensor] | None, num_heads: int, device: torch.device
) -> SamplingPlan:
    plan = plan_sampling(sizes, num_heads, NUM_POINTS, device)
    return plan if padding is None else plan_for_padding(plan, padding)


def position_encoding(padding_Bhw: torch.Tensor, channels: int, temperature: float = 10000.0) -> torch.Tensor:
    """DETR's sine encoding of the centres of cells, (B, h w, channels) float32: y in the first half, then x.

    Both are normalised to (0, 2 pi) over the cells that are not padding.
    """
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=padding_Bhw.device)
    frequency = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / half)
    codes = []
    for axis in (1, 2):
        count = (~padding_Bhw).cumsum(axis, dtype=torch.float32)
        last = count.narrow(axis, -1, 1)
        phase = ((count - 0.5) / (last + 1e-6) * (2 * math.pi))[..., None] / frequency
        codes.append(torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), dim=-1).flatten(-2))
    return torch.cat(codes, dim=-1).flatten(1, 2)
