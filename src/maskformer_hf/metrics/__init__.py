"""Streaming measures of segmentation quality. They keep counts and no images, and know nothing about data or models."""

from .boundary import BoundaryAP, BoundaryIoU, boundary_iou
from .mask_ap import MaskAP
from .mean_iou import MeanIoU
from .panoptic_quality import PanopticQuality
from .region_similarity import RegionSimilarity
from .video_ap import VideoAP

__all__ = [
    "BoundaryAP",
    "BoundaryIoU",
    "MaskAP",
    "MeanIoU",
    "PanopticQuality",
    "RegionSimilarity",
    "VideoAP",
    "boundary_iou",
]
