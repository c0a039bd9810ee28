"""Masks as COCO's run lengths, in pycocotools' dictionaries ("RLE"), without going through whole masks.

Shapes: N masks, H W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def as_rles(masks: Any) -> list[Any]:
    """Masks (N, H, W) as N RLE dictionaries of pycocotools. Such dictionaries are returned as they are."""
    from pycocotools import mask as coco_mask

    if not isinstance(masks, torch.Tensor | np.ndarray):
        masks = list(masks)
        if all(isinstance(mask, Mapping) for mask in masks):
            return [
                coco_mask.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask
                for mask in masks
            ]
        masks = np.stack([np.asarray(mask) for mask in masks])
    if masks.ndim != 3:
        raise ValueError(f"masks have shape {tuple(masks.shape)}; give (N, H, W), or a list of RLE dictionaries")
    masks = torch.as_tensor(masks)
    return [coco_mask.encode(np.asfortranarray(mask.to(torch.uint8).numpy(force=True))) for mask in masks]


def rles_of_map(segmentation: torch.Tensor, num_segments: int) -> list[Any]:
    """One RLE for each of the segments 1..`num_segments` of a map (H, W), at the cost of one pass over the map."""
    from pycocotools import mask as coco_mask

    height, width = segmentation.shape
    # Run lengths go down the columns, so that a run may end in the next one.
    pixels = segmentation.T.reshape(-1).numpy(force=True)
    starts = np.flatnonzero(np.diff(pixels, prepend=pixels[0] + 1))
    ends = np.append(starts[1:], pixels.size)
    ids = pixels[starts]
    order = np.argsort(ids, kind="stable")
    first = np.searchsorted(ids[order], np.arange(1, num_segments + 2))
    rles: list[Any] = []
    for index in range(num_segments):
        runs = order[first[index] : first[index + 1]]
        edges = np.stack((starts[runs], ends[runs]), axis=1).ravel()
        rles.append({"size": [height, width], "counts": _run_lengths(edges, pixels.size)})
    return coco_mask.frPyObjects(rles, height, width) if rles else []


def rles_of_crops(crops: Sequence[np.ndarray], corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> list[Any]:
    """One RLE for each mask, at the cost of its crop.

    Args:
        crops: The part (h, w) bool of each mask that has pixels.
        corners: Where each crop lies, (top, left).
        size: (H, W) of the whole masks.
    """
    from pycocotools import mask as coco_mask

    height, width = size
    rles: list[Any] = []
    for crop, (top, left) in zip(crops, corners, strict=True):
        # Run lengths go down the columns. Each column gets an empty pixel above and below, so that its runs have ends.
        padded = np.zeros((crop.shape[1], crop.shape[0] + 2), bool)
        padded[:, 1:-1] = crop.T
        columns, rows = np.nonzero(padded[:, 1:] != padded[:, :-1])
        edges = (left + columns) * height + top + rows
        # Starts and ends alternate. A run to the foot of a column joins one that begins at the head of the next.
        joined = edges[1:-1:2] == edges[2::2]
        edges = np.delete(edges, np.concatenate((2 * np.flatnonzero(joined) + 1, 2 * np.flatnonzero(joined) + 2)))
        rles.append({"size": [height, width], "counts": _run_lengths(edges, height * width)})
    return coco_mask.frPyObjects(rles, height, width) if rles else []


def _run_lengths(edges: np.ndarray, num_pixels: int) -> list[int]:
    """Run lengths from the positions where runs start and end, which alternate. There is no last run of no pixels."""
    tail = [num_pixels] if not len(edges) or edges[-1] < num_pixels else []
    return np.diff(np.concatenate(([0], edges, tail)).astype(np.int64)).tolist()
