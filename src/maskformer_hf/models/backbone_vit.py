"""Plain vision transformers of transformers and timm as backbones: one stride for all their maps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoModel, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from .backbone_frozen import FreezableBackbone
from .backbone_pyramid import SimplePyramid

# Weights that no map passes: distributed training would wait for their gradients.
_WITHOUT_GRADIENT = {"beit": ("beit.layernorm",), "clip_vision_model": ("post_layernorm",)}


class PlainBackbone(FreezableBackbone):
    """A plain vision transformer below a pyramid.

    Images of any size are padded with zeros to whole patches, and the maps cut to the image again. Where a patch is no
    power of two, images are resized such that it covers the closest one: with DINOv2's patches of 14 pixels, to 14/16.
    Positions are interpolated, by the transformer itself.

    Attributes:
        facts: About the levels of the pyramid, finest first.
    """

    def __init__(self, config: PreTrainedConfig, pyramid_width: int):
        super().__init__()
        self.body: Any = _make_body(config)
        channels, self.patch = _channels_and_patch(self.body, config)
        self.stride = _power_of_two(self.patch)
        self.pyramid = SimplePyramid(channels, self.stride, pyramid_width)
        self.facts = self.pyramid.facts
        self.unused = _WITHOUT_GRADIENT.get(config.model_type, ())
        self.stop_gradients()

    def stop_gradients(self):
        super().stop_gradients()
        for name, parameter in self.body.named_parameters():
            # The token in place of masked patches belongs to pretraining.
            if name.endswith("mask_token") or name.startswith(self.unused):
                parameter.requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps (B, C, H/s, W/s), rounded up, at the strides s of `facts` for `pixel_values` (B, C, H, W)."""
        height, width = pixel_values.shape[-2:]
        rows, columns = (-(-size // self.stride) for size in (height, width))
        padding = (0, columns * self.stride - width, 0, rows * self.stride - height)
        pixel_values = F.pad(pixel_values, padding)
        if self.patch != self.stride:
            size = (rows * self.patch, columns * self.patch)
            pixel_values = F.interpolate(pixel_values, size=size, mode="bilinear", align_corners=False)
        levels = self.pyramid(self.run(pixel_values))
        # Contiguous, because a cut-off map would make the convolutions behind it copy it anyway.
        return tuple(
            level[..., : -(-height // stride), : -(-width // stride)].contiguous()
            for level, stride in zip(levels, self.facts.strides, strict=True)
        )

    def maps_of_body(self, pixel_values: torch.Tensor, **options: Any) -> Sequence[torch.Tensor]:
        if hasattr(self.body, "channels"):
            return self.body(pixel_values).feature_maps
        # A model without a backbone class: its tokens, of which the first may be none of the image.
        tokens = self.body(pixel_values, interpolate_pos_encoding=True).last_hidden_state
        rows, columns = (size // self.patch for size in pixel_values.shape[-2:])
        return [tokens[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))]


def _make_body(config: PreTrainedConfig) -> Any:
    if config.model_type == "timm_backbone":
        try:
            return AutoBackbone.from_config(config, dynamic_img_size=True)
        except TypeError:
            # Some know no other way: their features are of any size anyway, or of one size.
            return AutoBackbone.from_config(config)
    if config.model_type in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        return AutoBackbone.from_config(config)
    # A head makes one vector of all tokens.
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False
    body = AutoModel.from_config(config)
    if isinstance(getattr(body, "pooler", None), nn.Module):
        body.pooler = None
    return body


def _channels_and_patch(body: Any, config: PreTrainedConfig) -> tuple[list[int], int]:
    timm_model = getattr(body, "_backbone", None)
    if timm_model is None:
        patches = config.patch_size if isinstance(config.patch_size, list) else [config.patch_size]
        return list(getattr(body, "channels", [config.hidden_size])), patches[0]
    strides = timm_model.feature_info.reduction()
    if len(set(strides)) > 1:
        raise ValueError(
            f"`backbone_pyramid='simple'` is for backbones whose maps have one stride, but those of "
            f"{config.backbone!r} have {strides}: leave `backbone_pyramid` at None."
        )
    return list(body.channels), strides[0]


def _power_of_two(patch: int) -> int:
    """The power of two that is closest to the side of a patch, from 4 to 32."""
    return min((4, 8, 16, 32), key=lambda stride: max(stride / patch, patch / stride))
