"""Backbones that stay as they are while the rest is trained."""

from typing import Any

import torch
from torch import nn

from .interfaces import Facts


class FreezableBackbone(nn.Module):
    """A backbone with a `body` of transformers or timm, which may be frozen.

    A frozen body is in evaluation mode whatever the model is in, its weights are no business of an optimizer, nothing
    is kept for its gradients, and it may have fewer bits than the rest: `model.backbone.body.to(torch.bfloat16)`.
    """

    body: Any
    facts: Facts
    is_frozen = False

    def freeze(self):
        self.is_frozen = True
        self.stop_gradients()
        self.body.eval()

    def stop_gradients(self):
        """Leave weights out that are not trained; once more after loading, as transformers makes new parameters."""
        if self.is_frozen:
            self.body.requires_grad_(False)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if self.is_frozen:
            trainable = [name for name, parameter in self.body.named_parameters() if parameter.requires_grad]
            if trainable and mode:
                raise ValueError(
                    f"The backbone is frozen (`freeze_backbone=True`), so {trainable[0]!r} and {len(trainable) - 1} "
                    "others of its weights cannot be trained: leave `requires_grad` of the body off, or build the "
                    "model with `freeze_backbone=False`."
                )
            self.body.eval()
        return self

    def run(self, pixel_values: torch.Tensor, **options: Any) -> list[torch.Tensor]:
        """The maps of the body, (B, C, h, w) or (B, h, w, C) as it gives them, in the type of `pixel_values`."""
        if not self.is_frozen:
            return list(self.maps_of_body(pixel_values, **options))
        with torch.no_grad():
            maps = self.maps_of_body(pixel_values.to(next(self.body.parameters()).dtype), **options)
        return [feature.to(pixel_values.dtype) for feature in maps]

    def maps_of_body(self, pixel_values: torch.Tensor, **options: Any) -> Any:
        return self.body(pixel_values, **options).feature_maps
