"""Images that run through a model together."""

from collections.abc import Sequence
from typing import Any

import torch

from ..models.post_processing import is_per_pixel
from .load import Model


def forward_batch(model: Model, inputs: Sequence[dict[str, torch.Tensor]]) -> Any:
    """Run images of one padded size: `pixel_values` (1, C, H, W) and `pixel_mask` (1, H, W) each."""
    pixel_values = torch.cat([item["pixel_values"] for item in inputs])
    return model(
        pixel_values=pixel_values.to(model.device, model.dtype, memory_format=torch.channels_last),
        pixel_mask=torch.cat([item["pixel_mask"] for item in inputs]).to(model.device),
    )


def slice_outputs(outputs: Any, index: int) -> Any:
    """One image's part of the outputs of a batch, still with a batch dimension."""
    names = ["logits"] if is_per_pixel(outputs) else ["class_queries_logits", "masks_queries_logits"]
    return type(outputs)(**{name: outputs[name][index, None] for name in [*names, "image_sizes", "padded_sizes"]})
