"""A checkpoint as one file that runs without this package: an ONNX model, or a program of `torch.export`.

The graph takes `pixel_values` (batch, C, height, width) float32, scaled, normalised and padded as the image processor
does it, and gives

- `class_queries_logits` (batch, Q, K + 1) and `masks_queries_logits` (batch, Q, h, w), or
- with post-processing `segmentation` (batch, height, width) int64: the class of every pixel of the input, padding
  included. An image that fills the upper left corner is `segmentation[i, :image_height, :image_width]`; this equals the
  image processor's `post_process_semantic_segmentation` without `target_sizes`.
"""

from .checkpoint import FORMAT_SUFFIXES, ExportFormat, ExportResult, export_checkpoint
from .graph import LOGITS, SEGMENTATION, semantic_class_scores
from .onnx_file import OPSET, onnx_session, run_session

__all__ = [
    "FORMAT_SUFFIXES",
    "LOGITS",
    "OPSET",
    "SEGMENTATION",
    "ExportFormat",
    "ExportResult",
    "export_checkpoint",
    "onnx_session",
    "run_session",
    "semantic_class_scores",
]
