"""Run-length encoding of masks, as COCO's files and pycocotools have it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def encode_coco_rle(masks_NHW: Tensor) -> list[dict[str, Any]]:
    """Run-length encodes bool masks as pycocotools does: {"size": [H, W], "counts": str}, ready for JSON."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError("Run-length encoding needs pycocotools: pip install pycocotools") from error
    encoded = []
    for mask in masks_NHW:
        rle = coco_mask.encode(np.asfortranarray(mask.to(torch.uint8).numpy(force=True)))
        counts = rle["counts"]  # bytes, though its type stub says str
        encoded.append({"size": list(rle["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts})
    return encoded


def encode_seen(masks_NHW: Tensor) -> list[dict[str, Any] | None]:
    """pycocotools' RLE of each mask, None where a mask has no pixel."""
    seen = masks_NHW.flatten(1).any(1).tolist()
    return [rle if has_pixels else None for rle, has_pixels in zip(encode_coco_rle(masks_NHW), seen, strict=True)]
