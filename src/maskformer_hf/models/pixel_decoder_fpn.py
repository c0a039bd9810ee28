"""MaskFormer's pixel decoders: a feature pyramid, optionally with a transformer encoder on its coarsest level."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .interfaces import Ask, Facts, PixelDecoderOutput
from .layers import ConvNorm, check_norm_groups, init_convolutions
from .position_encoding import sine_position_encoding
from .transformer_layers import LayerSizes, TransformerEncoder, check_no_encoder, check_no_exits, check_width


class FPNPixelDecoder(nn.Module):
    """Top-down feature pyramid (section 3.2 of https://arxiv.org/abs/2107.06278).

    Its last step is a 3x3 convolution with bias; the paper says 1x1, the original code does not. The transformer
    decoder's memory is the backbone's own coarsest map.

    A pixel decoder turns the backbone's maps into a `PixelDecoderOutput`. `memory` says what the maps of its memory are
    like, coarsest first.
    """

    def __init__(self, facts: Facts, feature_size: int, mask_feature_size: int):
        super().__init__()
        *finer, coarsest = facts.channels
        self.stem = ConvNorm(coarsest, feature_size, 3, activation=True)
        # From coarse to fine, the order in which they are used.
        self.laterals = nn.ModuleList(ConvNorm(c, feature_size, 1, activation=False) for c in reversed(finer))
        self.outputs = nn.ModuleList(ConvNorm(feature_size, feature_size, 3, activation=True) for _ in finer)
        self.mask_projection = nn.Conv2d(feature_size, mask_feature_size, 3, padding=1)
        self.memory = Facts((coarsest,), facts.strides[-1:], facts.dims)

    @classmethod
    def from_config(cls, config: Any, facts: Facts) -> "FPNPixelDecoder":
        return cls(facts, config.feature_size, config.mask_feature_size)

    @staticmethod
    def check(config: Any):
        check_no_encoder(config)
        check_norm_groups(config)

    def init_weights(self):
        init_convolutions(self)

    def forward(self, features: tuple[torch.Tensor, ...], ask: Ask) -> PixelDecoderOutput:
        """`features`: maps (B, C, h, w) of the backbone, finest first."""
        return PixelDecoderOutput(self.decode(features[-1], features[:-1]), memory=(features[-1],))

    def decode(self, coarsest: torch.Tensor, finer: tuple[torch.Tensor, ...]) -> torch.Tensor:
        pyramid = self.stem(coarsest)
        for lateral, output, feature in zip(self.laterals, self.outputs, reversed(finer), strict=True):
            upsampled = F.interpolate(pyramid, size=feature.shape[-2:], mode="nearest")
            pyramid = output(lateral(feature) + upsampled)
        return self.mask_projection(pyramid)


class TransformerFPNPixelDecoder(FPNPixelDecoder):
    """The pyramid of the R50 and R101 panoptic models ("+6 Enc"): the encoder's result is both the start of the pyramid
    and the memory of the transformer decoder."""

    def __init__(self, facts: Facts, feature_size: int, mask_feature_size: int, num_layers: int, sizes: LayerSizes):
        encoded = facts._replace(channels=(*facts.channels[:-1], feature_size))
        super().__init__(encoded, feature_size, mask_feature_size)
        self.input_projection = nn.Conv2d(facts.channels[-1], feature_size, 1)
        self.encoder = TransformerEncoder(num_layers, sizes)

    @classmethod
    def from_config(cls, config: Any, facts: Facts) -> "TransformerFPNPixelDecoder":
        sizes = LayerSizes.of_encoder(config)
        return cls(facts, config.feature_size, config.mask_feature_size, config.encoder_layers, sizes)

    @staticmethod
    def check(config: Any):
        check_width(config, "feature_size")
        check_norm_groups(config)
        check_no_exits(config)

    def forward(self, features: tuple[torch.Tensor, ...], ask: Ask) -> PixelDecoderOutput:
        projected = self.input_projection(features[-1])
        _, channels, height, width = projected.shape
        position = sine_position_encoding(height, width, channels, projected.device, projected.dtype)
        encoded, attentions = self.encoder(
            projected.flatten(2).transpose(1, 2),
            position.flatten(2).transpose(1, 2),
            ask.need_weights,
            ask.num_encoder_layers,
        )
        memory = encoded.transpose(1, 2).unflatten(2, (height, width))
        embeddings = self.decode(memory, features[:-1])
        return PixelDecoderOutput(embeddings, (memory,), attentions if ask.need_weights else None)
