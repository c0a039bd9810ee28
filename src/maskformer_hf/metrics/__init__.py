"""Streaming measures of segmentation quality: memory does not grow with the number of images."""

from .mean_iou import MeanIoU

__all__ = ["MeanIoU"]
