"""RT-DETR's hybrid encoder as a pixel decoder (https://arxiv.org/abs/2304.08069, section 4.2).

Attention is on the coarsest map alone; convolutions go from there down to stride 8 and up again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .interfaces import Ask, Facts, PixelDecoderOutput
from .layers import init_batch_norm
from .transformer_layers import LayerSizes, TransformerEncoder, check_no_exits, check_width

# Maps that the encoder sees, of strides 32, 16 and 8 as in RT-DETR. The finest is joined to its result.
NUM_LEVELS = 3
# Blocks of two branches in a row, in each fusion of two maps.
NUM_BLOCKS = 3
# The longest wave of the position encoding, in cells over 2 pi.
TEMPERATURE = 10_000


class ConvBatchNorm(nn.Module):
    """Convolution without bias, BatchNorm, and an activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, activation: Any = None):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.Identity() if activation is None else activation

    def init_weights(self):
        init_batch_norm(self.norm)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.conv(maps)))


class TwoBranches(nn.Module):
    """RepVGG's block: a 3x3 and a 1x1 convolution that are added up."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = ConvBatchNorm(channels, channels, 3)
        self.conv2 = ConvBatchNorm(channels, channels, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.silu(self.conv1(maps) + self.conv2(maps))


class Fusion(nn.Module):
    """Two maps of one size become one: half of the way through blocks, and half past them."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = ConvBatchNorm(2 * channels, channels, 1, activation=nn.SiLU())
        self.conv2 = ConvBatchNorm(2 * channels, channels, 1, activation=nn.SiLU())
        self.blocks = nn.Sequential(*(TwoBranches(channels) for _ in range(NUM_BLOCKS)))

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The size is that of `second`."""
        joined = torch.cat((resized(first, second.shape[-2:]), second), dim=1)
        return self.blocks(self.conv1(joined)) + self.conv2(joined)


class HybridPixelDecoder(nn.Module):
    """The memory is the hybrid encoder's result. Pixel embeddings are made of its finest map and the backbone's."""

    def __init__(self, facts: Facts, feature_size: int, mask_feature_size: int, num_layers: int, sizes: LayerSizes):
        super().__init__()
        *encoded, finest = facts.channels[::-1]
        self.input_projections = nn.ModuleList(ConvBatchNorm(channels, feature_size, 1) for channels in encoded)
        self.encoder = TransformerEncoder(num_layers, sizes._replace(activation=F.gelu))
        steps = range(NUM_LEVELS - 1)
        self.laterals = nn.ModuleList(ConvBatchNorm(feature_size, feature_size, 1, activation=nn.SiLU()) for _ in steps)
        self.down = nn.ModuleList(Fusion(feature_size) for _ in steps)
        self.strided = nn.ModuleList(
            ConvBatchNorm(feature_size, feature_size, 3, stride=2, activation=nn.SiLU()) for _ in steps
        )
        self.up = nn.ModuleList(Fusion(feature_size) for _ in steps)
        self.finest_lateral = ConvBatchNorm(finest, feature_size, 1)
        self.finest_output = ConvBatchNorm(feature_size, feature_size, 3, activation=nn.SiLU())
        self.mask_projection = nn.Conv2d(feature_size, mask_feature_size, 1)
        self.memory = Facts((feature_size,) * NUM_LEVELS, facts.strides[::-1][:NUM_LEVELS], facts.dims)

    @classmethod
    def from_config(cls, config: Any, facts: Facts) -> "HybridPixelDecoder":
        sizes = LayerSizes.of_encoder(config)
        return cls(facts, config.feature_size, config.mask_feature_size, config.encoder_layers, sizes)

    @staticmethod
    def check(config: Any):
        check_width(config, "feature_size")
        check_no_exits(config)

    def forward(self, features: tuple[torch.Tensor, ...], ask: Ask) -> PixelDecoderOutput:
        """`features`: maps (B, C, h, w) of the backbone, finest first."""
        finest, *encoded = features
        projected = [
            project(feature) for project, feature in zip(self.input_projections, reversed(encoded), strict=True)
        ]
        memory, attentions = self.encode(projected, ask)
        joined = self.finest_lateral(finest) + resized(memory[-1], finest.shape[-2:])
        return PixelDecoderOutput(
            self.mask_projection(self.finest_output(joined)),
            memory=tuple(memory),
            attentions=attentions if ask.need_weights else None,
        )

    def encode(self, maps: Sequence[torch.Tensor], ask: Ask) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
        """Maps (B, C, h, w) of strides 32, 16 and 8, coarsest first, after they have seen each other; and the attention
        weights of the coarsest."""
        coarsest, *finer = maps
        channels, height, width = coarsest.shape[1:]
        position_SC = position_encoding(height, width, channels, coarsest.device, coarsest.dtype)
        cells_BSC = coarsest.flatten(2).transpose(1, 2)
        cells_BSC, attentions = self.encoder(
            cells_BSC, position_SC.expand_as(cells_BSC), ask.need_weights, ask.num_encoder_layers
        )
        pyramid = [cells_BSC.transpose(1, 2).unflatten(2, (height, width))]
        for lateral, fuse, feature in zip(self.laterals, self.down, finer, strict=True):
            pyramid[-1] = lateral(pyramid[-1])
            pyramid.append(fuse(pyramid[-1], feature))
        result = [pyramid.pop()]
        for stride, fuse in zip(self.strided, self.up, strict=True):
            result.append(fuse(stride(result[-1]), pyramid.pop()))
        return result[::-1], attentions


def resized(maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Maps of this size, by the nearest cell."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size=size, mode="nearest")


def position_encoding(height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(h w, C): a quarter of the channels each for sine and cosine of the row and of the column, counted in cells."""
    quarter = channels // 4
    rates = TEMPERATURE ** -(torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    angles = [torch.arange(count, device=device, dtype=torch.float32)[:, None] * rates for count in (height, width)]
    rows, columns = (torch.cat((angle.sin(), angle.cos()), dim=1) for angle in angles)
    grid = torch.cat((rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)), dim=-1)
    return grid.flatten(0, 1).to(dtype)
