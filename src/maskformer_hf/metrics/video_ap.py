"""Average precision of objects in videos, as YouTube-VIS defines it (https://arxiv.org/abs/1905.04804).

Shapes: D detections, G reference objects, T frames, all of one video.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .mask_ap import MaskAP, as_numbers

FIGURES = ("ap", "ap50", "ap75", "ar_1", "ar_10", "ar", "max_detections")
CLASS_FIGURES = ("label", "ap", "ap50", "ar", "objects")


class VideoAP(MaskAP):
    """`MaskAP` of videos in place of images, where an object has a mask in each frame.

    Intersection and union of two objects are sums over all frames, so an object must be found in the right places, in
    the right frames, and as one object. There are no figures of sizes.

    Args:
        num_labels: K, the number of classes.
        max_detections: Most detections of a video and class, the best ones, that count.
    """

    def update(self, prediction: Mapping[str, Any], reference: Mapping[str, Any], image_id: int | None = None) -> None:
        """Counts one video.

        Args:
            prediction: `segmentations`, `scores` (D,), `labels` (D,).
            reference: `segmentations`, `labels` (G,); optional `is_crowd` (G,).
            image_id: Id of the video; see `MaskAP.update`.

        `segmentations` has one list an object: pycocotools' RLE of each frame, None where the object is out of sight.
        """
        image_id = self._next_id if image_id is None else image_id
        self._next_id = image_id + 1
        scores, labels = as_numbers(prediction["scores"], float), as_numbers(prediction["labels"], np.int64)
        true_labels = as_numbers(reference["labels"], np.int64)
        is_crowd = as_numbers(reference.get("is_crowd", np.zeros(len(true_labels))), bool)
        found, true = prediction["segmentations"], reference["segmentations"]
        self._check(len(found), scores, labels, len(true), true_labels)
        tubes = compare_tubes(found, true)
        areas, true_areas = tubes.areas.sum(0), tubes.true_areas.sum(0)
        intersections = tubes.intersections.sum(0)

        def overlaps(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            shared = intersections[np.ix_(rows, columns)]
            # For a crowd it is the share of the detection that lies in it.
            union = areas[rows, None] + np.where(is_crowd[columns], 0, true_areas[columns] - shared)
            return np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)

        self._count(image_id, scores, labels, areas, true_labels, true_areas, is_crowd, overlaps)

    def compute(self, id2label: Mapping[int, str] | None = None) -> dict[str, Any]:
        """The figures of `MaskAP.compute`, without those of sizes."""
        result = super().compute(id2label)
        rows = [{name: row[name] for name in CLASS_FIGURES} for row in result["per_class"]]
        return {**{name: result[name] for name in FIGURES}, "per_class": rows}


class Tubes(NamedTuple):
    """Pixels that detections and objects have, and share, in each frame; float64, whole numbers."""

    areas: np.ndarray  # (T, D)
    true_areas: np.ndarray  # (T, G)
    intersections: np.ndarray  # (T, D, G)


def compare_tubes(found: Sequence[Sequence[Any]], true: Sequence[Sequence[Any]]) -> Tubes:
    """Compares the masks of D detections with those of G objects, frame by frame.

    Each is a list of pycocotools' RLEs, None where there is no pixel. Raises ValueError unless all have as many frames
    and masks of one size.
    """
    from pycocotools import mask as coco_mask

    lengths = sorted({len(frames) for frames in (*found, *true)})
    sizes = sorted({tuple(rle["size"]) for frames in (*found, *true) for rle in frames if rle is not None})
    if len(lengths) > 1 or len(sizes) > 1:
        raise ValueError(
            f"objects of one video have {' or '.join(map(str, lengths))} frames, and masks of the sizes {sizes}; give "
            "one entry a frame of the video, and masks of the video's size"
        )
    num_frames = lengths[0] if lengths else 0
    areas, true_areas = (
        np.array([[0.0 if rle is None else float(coco_mask.area(rle)) for rle in frames] for frames in objects])
        .reshape(len(objects), num_frames)
        .T
        for objects in (found, true)
    )
    intersections = np.zeros((num_frames, len(found), len(true)))
    for frame in range(num_frames):
        rows, columns = (np.flatnonzero(part[frame]).tolist() for part in (areas, true_areas))
        if not rows or not columns:
            continue
        iou = np.asarray(
            coco_mask.iou([found[i][frame] for i in rows], [true[i][frame] for i in columns], [0] * len(columns))
        )
        # iou = shared / (sum - shared)
        both = areas[frame, rows][:, None] + true_areas[frame, columns]
        intersections[frame][np.ix_(rows, columns)] = np.round(iou * both / (1 + iou))
    return Tubes(areas, true_areas, intersections)
