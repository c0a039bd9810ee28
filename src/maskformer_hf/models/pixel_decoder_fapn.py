"""FaPN's pixel decoder: a feature pyramid whose upsampled maps are aligned by deformable convolution
(https://arxiv.org/abs/2108.07058)."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .deformable_convolution import NUM_TAPS, deformable_convolution
from .interfaces import Ask, Facts, PixelDecoderOutput
from .layers import NUM_NORM_GROUPS, ConvNorm, check_norm_groups, init_convolutions
from .transformer_layers import check_no_encoder

# Groups of channels with offsets of their own.
NUM_GROUPS = 8
# Levels of the memory where the pyramid gives it.
NUM_MEMORY_LEVELS = 3


class Form(NamedTuple):
    """What the two decoders of FaPN's authors differ in.

    selection: Lateral maps are weighed by channel, and have no norm. Else they are 1x1 convolutions with one.
    norm: GroupNorm behind the other convolutions.
    """

    selection: bool
    norm: bool


FORMS = {"maskformer": Form(False, True), "detection": Form(True, False), "detection_norm": Form(True, True)}


class FeatureSelection(nn.Module):
    """Weigh the channels of a map by what is in the whole of it, add them to themselves, and bring them to one width.

    There is no bias and no norm.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.attention = nn.Conv2d(in_channels, in_channels, 1, bias=False)
        self.projection = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, maps_BChw: torch.Tensor) -> torch.Tensor:
        weights_BC11 = self.attention(maps_BChw.mean((-2, -1), keepdim=True)).sigmoid()
        return self.projection(maps_BChw + maps_BChw * weights_BC11)


class FeatureAlignment(nn.Module):
    """Bring the coarser map to the size of the finer one and move its values to where the finer one has its outlines.

    The offsets start at zero.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.offset_features = nn.Conv2d(2 * channels, channels, 1, bias=False)
        # Down and right of each tap, and how much it counts.
        self.offsets = nn.Conv2d(channels, 3 * NUM_GROUPS * NUM_TAPS, 3, padding=1)
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def init_weights(self):
        init.zeros_(self.offsets.weight)
        init.zeros_(self.offsets.bias)
        init.zeros_(self.convolution.bias)

    def forward(self, lateral_BChw: torch.Tensor, coarser: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """`norm`: that of the features that offsets are made of."""
        if coarser.shape[-2:] != lateral_BChw.shape[-2:]:
            coarser = F.interpolate(coarser, size=lateral_BChw.shape[-2:], mode="bilinear", align_corners=False)
        features = norm(self.offset_features(torch.cat((lateral_BChw, 2 * coarser), dim=1)))
        steps, weights = self.offsets(features).split((2 * NUM_GROUPS * NUM_TAPS, NUM_GROUPS * NUM_TAPS), dim=1)
        kernel, bias = self.convolution.weight, self.convolution.bias
        aligned = deformable_convolution(coarser, steps, weights.sigmoid(), kernel, bias)
        return F.relu(aligned) + lateral_BChw


class FaPNPixelDecoder(nn.Module):
    """A pyramid of aligned maps, in one of three forms.

    `"maskformer"` is the one of FaPN's MaskFormer: no selection, and the norm of the offsets' features is that of the
    level's output convolution, the same weights. The memory is the backbone's coarsest map. `"detection"` is the one of
    the paper, whose authors publish it without norms, and `"detection_norm"` the same with them; there the memory are
    the coarsest three maps of the pyramid.
    """

    def __init__(self, facts: Facts, feature_size: int, mask_feature_size: int, form: Form):
        super().__init__()
        *finer, coarsest = facts.channels
        self.selects = form.selection
        # From coarse to fine, the order in which they are used.
        self.alignments = nn.ModuleList(FeatureAlignment(feature_size) for _ in finer)
        if not form.selection:
            self.stem: nn.Module = ConvNorm(coarsest, feature_size, 3, activation=True)
            self.laterals = nn.ModuleList(ConvNorm(c, feature_size, 1, activation=False) for c in reversed(finer))
            self.outputs = nn.ModuleList(ConvNorm(feature_size, feature_size, 3, activation=True) for _ in finer)
            self.memory = Facts((coarsest,), facts.strides[-1:], facts.dims)
        else:
            self.stem = _convolution(coarsest, feature_size, 1, form.norm)
            self.laterals = nn.ModuleList(FeatureSelection(c, feature_size) for c in reversed(finer))
            self.outputs = nn.ModuleList(_convolution(feature_size, feature_size, 3, form.norm) for _ in finer)
            self.offset_norms = nn.ModuleList(
                nn.GroupNorm(NUM_NORM_GROUPS, feature_size) if form.norm else nn.Identity() for _ in finer
            )
            strides = facts.strides[::-1][:NUM_MEMORY_LEVELS]
            self.memory = Facts((feature_size,) * len(strides), strides, facts.dims)
        self.mask_projection = nn.Conv2d(feature_size, mask_feature_size, 3, padding=1)

    @classmethod
    def from_config(cls, config: Any, facts: Facts) -> "FaPNPixelDecoder":
        return cls(facts, config.feature_size, config.mask_feature_size, FORMS[config.fapn_form])

    @staticmethod
    def check(config: Any):
        check_no_encoder(config)
        check_norm_groups(config)
        if config.fapn_form not in FORMS:
            raise ValueError(f"`fapn_form` must be one of {list(FORMS)}, got {config.fapn_form!r}.")
        reads_one_level = config.transformer_decoder in ("detr", None) or config.decoder_layers < NUM_MEMORY_LEVELS
        if FORMS[config.fapn_form].selection and reads_one_level:
            raise ValueError(
                f"`fapn_form`={config.fapn_form!r} has a memory of {NUM_MEMORY_LEVELS} levels, of which "
                f"`transformer_decoder`={config.transformer_decoder!r} with {config.decoder_layers} layers leaves some "
                "unread: choose 'masked' with as many layers, or `fapn_form='maskformer'`."
            )

    def init_weights(self):
        init_convolutions(self)
        for alignment in self.alignments:
            alignment.init_weights()  # pyrefly: ignore[not-callable]

    def forward(self, features: tuple[torch.Tensor, ...], ask: Ask) -> PixelDecoderOutput:
        """`features`: maps (B, C, h, w) of the backbone, finest first."""
        maps = self.pyramid(features)
        memory = tuple(maps[:NUM_MEMORY_LEVELS]) if self.selects else (features[-1],)
        return PixelDecoderOutput(self.mask_projection(maps[-1]), memory)

    def pyramid(self, features: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """The maps of all levels, (B, C, h, w) each, coarsest first."""
        coarser = self.stem(features[-1])
        maps = [coarser]
        for level, feature in enumerate(reversed(features[:-1])):
            output: Any = self.outputs[level]
            norm = self.offset_norms[level] if self.selects else output.get_submodule("1")
            aligned = self.alignments[level](self.laterals[level](feature), coarser, norm)
            maps.append(output(aligned))
            # Without selection the next level sees the output, as in a MaskFormer, else what the output is made of.
            coarser = aligned if self.selects else maps[-1]
        return maps


def _convolution(in_channels: int, out_channels: int, kernel_size: int, norm: bool) -> nn.Module:
    if norm:
        return ConvNorm(in_channels, out_channels, kernel_size, activation=False)
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
