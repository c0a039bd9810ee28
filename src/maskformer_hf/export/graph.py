"""The model as a function of tensors alone, and torch's program of it.

Shapes: B images, Q queries, K classes, h w mask cells, H W pixels of the input.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .any_size import for_any_size

LOGITS = ["class_queries_logits", "masks_queries_logits"]
SEGMENTATION = ["segmentation"]
# Odd, different, and no multiples of a stride or a window: a size that fits by chance would be baked into the graph.
EXAMPLE_SIZE = (235, 197)


def semantic_class_scores(class_logits: torch.Tensor, mask_logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Score of each class at each pixel of the padded input: (B, Q, K + 1) and (B, Q, h, w) to (B, K, H, W).

    The plain form of semantic post-processing, whose short cuts depend on the values and cannot be exported.
    """
    masks_BQHW = F.interpolate(mask_logits, size=tuple(size), mode="bilinear", align_corners=False).sigmoid()
    return torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(-1)[..., :-1], masks_BQHW)


class Graph(nn.Module):
    """The model with tensors for inputs and outputs, and post-processing if asked for."""

    def __init__(self, model: nn.Module, post_process: bool):
        super().__init__()
        self.model = model
        self.post_process = post_process
        self.output_names = SEGMENTATION if post_process else LOGITS

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, C, H, W) to logits (B, Q, K + 1) and (B, Q, h, w), or to the class of each pixel (B, H, W)."""
        outputs = self.model(pixel_values)
        if not self.post_process:
            return outputs.class_queries_logits, outputs.masks_queries_logits
        return (self.class_scores(pixel_values, outputs).argmax(1),)

    def class_scores(self, pixel_values: torch.Tensor, outputs: Any) -> torch.Tensor:
        size = pixel_values.shape[-2:]
        return semantic_class_scores(outputs.class_queries_logits, outputs.masks_queries_logits, size)


def export_program(graph: Graph, static_size: tuple[int, int] | None) -> torch.export.ExportedProgram:
    """The graph for any batch, and for any size unless `static_size` (height, width) is given.

    Raises:
        ValueError: The backbone cannot be exported for any size.
    """
    model: Any = graph.model
    height, width = static_size or EXAMPLE_SIZE
    example = torch.zeros(2, model.config.num_channels, height, width)
    dynamic = [0] if static_size else [0, 2, 3]
    shapes = {"pixel_values": dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC)}
    try:
        with torch.no_grad(), for_any_size(model):
            return torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)
    # Most of torch.export's errors are private classes without a common base.
    except Exception as error:
        if static_size:
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"The backbone {model.config.backbone_config.model_type!r} cannot be exported for every height and width "
            f"({reason}): choose one with --static HEIGHTxWIDTH, or `static_size`."
        ) from error
