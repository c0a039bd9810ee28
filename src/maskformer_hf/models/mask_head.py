"""MaskFormer's mask head: an MLP that makes the embeddings whose products with the pixel embeddings are the masks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .interfaces import Ask, Facts, PixelDecoderOutput
from .layers import MLP
from .masks import ProductMasks


class ProductMaskHead(MLP):
    """Three linear layers from queries (..., C) to mask embeddings.

    A mask head is called with queries and returns what their masks are made of, which only it has to understand: here
    mask embeddings. `masks` makes masks of them, and `at_size` and `inside` say where they lie on a smaller map, for
    decoders whose layers attend within masks.
    """

    def __init__(self, hidden_size: int, mask_feature_size: int):
        super().__init__(hidden_size, hidden_size, mask_feature_size, num_layers=3)

    @classmethod
    def from_config(cls, config: Any, facts: Facts) -> "ProductMaskHead":
        return cls(config.hidden_size, config.mask_feature_size)

    def masks(self, embeddings_LBQC: torch.Tensor, pixels: PixelDecoderOutput, ask: Ask) -> ProductMasks:
        pixel_embeddings = pixels.embeddings
        if ask.num_frames is not None:
            pixel_embeddings = pixel_embeddings.unflatten(0, (-1, ask.num_frames))
        return ProductMasks(embeddings_LBQC, pixel_embeddings)

    @torch.no_grad()
    def at_size(self, pixels: PixelDecoderOutput, size: Sequence[int]) -> torch.Tensor:
        """What `inside` needs of the pixels for a map of this size, (B, C, h, w).

        Pixel embeddings are resized, so that masks are made at that size and not resized to it: both steps are linear,
        and the result is the same.
        """
        return F.interpolate(pixels.embeddings.detach(), size=tuple(size), mode="bilinear", align_corners=False)

    @torch.no_grad()
    def inside(self, embeddings_BQC: torch.Tensor, pixels_BCS: torch.Tensor) -> torch.Tensor:
        """Which cells lie in the mask of each query, (B, Q, S) bool: those with a probability of at least 0.5."""
        return embeddings_BQC.detach() @ pixels_BCS >= 0


class GeluMaskHead(ProductMaskHead):
    """EoMT's: the same with GELU between its layers."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            states = F.gelu(layer(states))
        return self.layers[-1](states)
