"""What a pipeline finds in a photo, in a form that two processes can compare."""

import base64
import zlib
from typing import Any

import numpy as np


def summarize(segmenter: Any, photo: str) -> dict[str, list]:
    """Label, score (panoptic only: the stock pipeline has none for semantic) and mask of each segment, sorted."""
    panoptic = {"threshold": 0.5, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.8}
    summary = {}
    for subtask, options in (("semantic", {}), ("panoptic", panoptic)):
        summary[subtask] = sorted(
            [
                segment["label"],
                round(segment["score"], 4) if subtask == "panoptic" else None,
                list(segment["mask"].size),
                base64.b64encode(zlib.compress(np.packbits(np.asarray(segment["mask"]) > 0).tobytes())).decode(),
            ]
            for segment in segmenter(photo, subtask=subtask, **options)
        )
    return summary


def unpack_mask(packed: str) -> np.ndarray:
    """The pixels of a mask in a summary, in one row."""
    return np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8))
