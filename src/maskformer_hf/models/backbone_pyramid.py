"""A feature pyramid of the maps of a plain vision transformer, which all have one stride.

ViTDet's simple feature pyramid (https://arxiv.org/abs/2203.16527, section 3): every level comes from the last map by
itself, without a way from coarse to fine.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from .interfaces import Facts
from .layers import ChannelNorm

# Finest map first.
PYRAMID_STRIDES = (4, 8, 16, 32)


class SimplePyramid(nn.Module):
    """Maps of strides 4, 8, 16 and 32 from one map, or level by level from four maps, the shallowest first.

    A level that is finer than its map by 2, 4 or 8 has as many transposed convolutions 2x2, each of which halves the
    channels; a coarser one has a max-pooling. Then a 1x1 and a 3x3 convolution follow, each with a LayerNorm.
    """

    def __init__(self, channels: Sequence[int], stride: int, width: int):
        """
        Args:
            channels: Of the maps.
            stride: Of all maps, a power of two.
            width: Channels of every level.
        """
        super().__init__()
        if len(channels) not in (1, len(PYRAMID_STRIDES)):
            raise ValueError(
                f"`backbone_pyramid='simple'` needs one map, or {len(PYRAMID_STRIDES)}, but the backbone gives "
                f"{len(channels)}: set `out_features` or `out_indices` of `backbone_config`."
            )
        widths = list(channels) * (len(PYRAMID_STRIDES) // len(channels))
        self.levels = nn.ModuleList(
            _level(channels, int(math.log2(stride / target)), width)
            for channels, target in zip(widths, PYRAMID_STRIDES, strict=True)
        )
        self.facts = Facts((width,) * len(PYRAMID_STRIDES), PYRAMID_STRIDES)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Levels (B, width, h, w), finest first, of one map or four, (B, C, h, w) each."""
        sources = list(maps) * (len(self.levels) // len(maps))
        return [level(source) for level, source in zip(self.levels, sources, strict=True)]


def _level(channels: int, doublings: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(doublings):
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
        if number + 1 < doublings:
            layers += [ChannelNorm(channels), nn.GELU()]
    if doublings < 0:
        # The last cell of an odd side counts as well.
        layers.append(nn.MaxPool2d(2**-doublings, ceil_mode=True))
    return nn.Sequential(
        *layers,
        nn.Conv2d(channels, width, 1, bias=False),
        ChannelNorm(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        ChannelNorm(width),
    )
