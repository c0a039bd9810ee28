"""Convolutions for outlines, on the finest map of any pixel decoder."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .layers import NUM_NORM_GROUPS, ConvNorm


class BoundaryBlock(nn.Module):
    """A residual branch of two 3x3 convolutions, each with GroupNorm, and a ReLU between them.

    The gain of the last norm starts at zero, so that the block starts as the identity. A ReLU behind that norm would
    pass no gradient, and one behind the sum would change maps that are not positive: there is none.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.first = ConvNorm(channels, channels, 3, activation=False)
        self.second = ConvNorm(channels, channels, 3, activation=False)

    def init_weights(self):
        norm: Any = self.second.get_submodule("1")
        init.zeros_(norm.weight)

    def forward(self, maps_BChw: torch.Tensor) -> torch.Tensor:
        return maps_BChw + self.second(F.relu(self.first(maps_BChw)))


class RefinedProjection(nn.Conv2d):
    """The last convolution of a pixel decoder, with blocks in front. Its own weights keep their names."""

    def __init__(self, projection: nn.Conv2d, num_blocks: int):
        sizes: Any = projection.kernel_size, projection.stride, projection.padding
        super().__init__(projection.in_channels, projection.out_channels, *sizes)
        self.blocks = nn.Sequential(*(BoundaryBlock(projection.in_channels) for _ in range(num_blocks)))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(self.blocks(input))


def add_boundary_blocks(pixel_decoder: Any, num_blocks: int):
    """Put blocks in front of `pixel_decoder.mask_projection`.

    Raises:
        ValueError: If the pixel decoder does not end in a convolution of that name, or its width does not fit.
    """
    projection = getattr(pixel_decoder, "mask_projection", None)
    if not isinstance(projection, nn.Conv2d):
        raise ValueError(
            f"`boundary_blocks`={num_blocks} stand before the last convolution of a pixel decoder, `mask_projection`, "
            f"which {type(pixel_decoder).__name__} lacks: give it one, or leave `boundary_blocks` at 0."
        )
    if projection.in_channels % NUM_NORM_GROUPS:
        raise ValueError(
            f"`boundary_blocks`={num_blocks} need maps of a multiple of {NUM_NORM_GROUPS} channels (GroupNorm groups), "
            f"{type(pixel_decoder).__name__} has {projection.in_channels}: change `feature_size`."
        )
    pixel_decoder.mask_projection = RefinedProjection(projection, num_blocks)
