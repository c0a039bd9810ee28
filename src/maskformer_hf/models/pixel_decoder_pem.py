"""PEM's pixel decoder: a narrow pyramid of deformable convolutions (https://arxiv.org/abs/2402.19422, section 3.3)."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .deformable_convolution import NUM_TAPS, deformable_convolution
from .interfaces import Ask, Facts, PixelDecoderOutput
from .layers import init_batch_norm
from .transformer_layers import check_no_encoder


class ConvBatchNorm(nn.Sequential):
    """1x1 convolution without bias, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
        )

    def init_weights(self):
        convolution: Any = self.get_submodule("0")
        init.kaiming_normal_(convolution.weight, a=1)


class Modulation(nn.Module):
    """Channels of a map, multiplied with what their means say: by 1.5 to 1.73, since the original takes the sigmoid
    twice and adds the map itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels // 2)
        self.expand = nn.Conv2d(channels // 2, channels, 1, bias=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        context = self.expand(F.relu(self.norm(self.reduce(maps.mean((2, 3), keepdim=True)))))
        return maps * (1 + context.sigmoid().sigmoid())


class DeformableConvolution(nn.Module):
    """A 3x3 convolution that learns where it looks and how much each place counts (https://arxiv.org/abs/1811.11168),
    without bias; BatchNorm, ReLU. It starts as a plain convolution of half the weight."""

    def __init__(self, channels: int):
        super().__init__()
        self.places = nn.Conv2d(channels, 3 * NUM_TAPS, 3, padding=1)
        # Only the weight is used.
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def init_weights(self):
        init.zeros_(self.places.weight)
        places: Any = self.places
        init.zeros_(places.bias)
        init.kaiming_normal_(self.convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        # Offsets of each tap, down and right in turn, and then how much each counts.
        offsets, counts = self.places(maps).split((2 * NUM_TAPS, NUM_TAPS), dim=1)
        result = deformable_convolution(maps, offsets, counts.sigmoid(), self.convolution.weight)
        return F.relu(self.norm(result))


class Upsampling(nn.Module):
    """A transposed convolution to twice the size, BatchNorm, ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.convolution = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    @torch.no_grad()
    def init_weights(self):
        """As the original: the first channel starts as the bilinearly upsampled sum of all, the others as PyTorch's."""
        weight = self.convolution.weight
        init.kaiming_uniform_(weight, a=math.sqrt(5))
        steps = torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=weight.dtype, device=weight.device)
        first = torch.cat((torch.outer(steps, steps).expand(len(weight), 1, -1, -1), weight[:, 1:]), dim=1)
        init.copy_(weight, first)

    def forward(self, maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Maps of this size, the next finer one's, which is twice as large or, where that one is odd, nearly so."""
        upsampled = F.relu(self.norm(self.convolution(maps)))
        if upsampled.shape[-2:] == size:
            return upsampled
        return F.interpolate(upsampled, size=size, mode="bilinear", align_corners=False)


class PEMPixelDecoder(nn.Module):
    """Levels of one width are modulated by their means; from coarse to fine each passes a deformable convolution, which
    the transformer decoder attends to, and is added to the next. The finest only takes a last 1x1 convolution.

    That one ends in a ReLU, so that pixel embeddings are never negative. The coarsest level also gets the mean of the
    backbone's map. Images need not be multiples of 32 pixels as in the original.
    """

    def __init__(self, facts: Facts, feature_size: int, mask_feature_size: int):
        super().__init__()
        coarsest_first = facts.channels[::-1]
        self.laterals = nn.ModuleList(ConvBatchNorm(channels, feature_size) for channels in coarsest_first)
        self.context = ConvBatchNorm(coarsest_first[0], feature_size)
        self.modulations = nn.ModuleList(Modulation(feature_size) for _ in coarsest_first)
        self.convolutions = nn.ModuleList(DeformableConvolution(feature_size) for _ in coarsest_first[1:])
        self.upsamplings = nn.ModuleList(Upsampling(feature_size) for _ in coarsest_first[1:])
        self.mask_projection = ConvBatchNorm(feature_size, mask_feature_size)
        strides = facts.strides[::-1][: len(self.convolutions)]
        self.memory = Facts((feature_size,) * len(strides), strides, facts.dims)

    @classmethod
    def from_config(cls, config: Any, facts: Facts) -> "PEMPixelDecoder":
        return cls(facts, config.feature_size, config.mask_feature_size)

    @staticmethod
    def check(config: Any):
        check_no_encoder(config)
        if config.feature_size % 2:
            raise ValueError(f"`pixel_decoder='pem'` needs an even `feature_size`, got {config.feature_size}.")

    def init_weights(self):
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                init_batch_norm(module)

    def forward(self, features: tuple[torch.Tensor, ...], ask: Ask) -> PixelDecoderOutput:
        """`features`: maps (B, C, h, w) of the backbone, finest first."""
        coarsest_first = features[::-1]
        if self.training and len(features[0]) == 1:
            raise ValueError(
                "`pixel_decoder='pem'` normalises the mean of a map over the batch: train with at least 2 images in "
                "each process, got 1."
            )
        added = self.context(coarsest_first[0].mean((2, 3), keepdim=True))
        *coarser, finest = [
            modulate(lateral(feature))
            for lateral, modulate, feature in zip(self.laterals, self.modulations, coarsest_first, strict=True)
        ]
        memory = []
        steps = zip(coarser, self.convolutions, self.upsamplings, coarsest_first[1:], strict=True)
        for maps, convolve, upsample, finer in steps:
            memory.append(convolve(maps + added))
            added = upsample(memory[-1], finer.shape[-2:])
        return PixelDecoderOutput(self.mask_projection(finest + added), memory=tuple(memory))
