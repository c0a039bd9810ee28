"""How well, and how steadily, the objects of a video are covered, frame by frame: DAVIS's J, and flicker.

Shapes: D detections, G reference objects, T frames, all of one video.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from .video_ap import compare_tubes


class RegionSimilarity:
    """Region similarity J of DAVIS (https://arxiv.org/abs/1905.00737, unsupervised), and flicker, of objects in videos.

    J of an object is the intersection over union of its mask with that of its detection, averaged over all frames. It
    is 1 in frames where neither has a pixel. Each object has at most one detection for the whole video. The matching is
    the one with the largest sum of J. Classes and scores do not matter, nor do detections without an object.

    Flicker of an object tells how much less its detection resembles itself from one frame to the next than the object
    does: max(0, IoU(object in t, object in t + 1) - IoU(detection in t, detection in t + 1)). It is averaged over the
    pairs of frames that both show the object and of which at least one shows the detection. 0 means as steady as the
    truth, or steadier. Objects without a detection have no flicker.

    Crowds are left out. Memory: two numbers for each object.
    """

    def __init__(self) -> None:
        self.objects: list[tuple[float, float]] = []  # J and flicker, NaN where there is none

    def update(self, prediction: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
        """Counts one video, with the arguments of `VideoAP.update`; scores and labels are not needed."""
        found, true = list(prediction["segmentations"]), list(reference["segmentations"])
        is_crowd = np.asarray(reference.get("is_crowd", np.zeros(len(true))), dtype=bool)
        true = [frames for frames, crowd in zip(true, is_crowd, strict=True) if not crowd]
        tubes = compare_tubes(found, true)
        union = tubes.areas[:, :, None] + tubes.true_areas[:, None] - tubes.intersections
        similarity_DG = np.divide(tubes.intersections, union, out=np.ones_like(union), where=union > 0).mean(0)
        rows, columns = linear_sum_assignment(-similarity_DG) if true else ((), ())
        detection_of = dict(zip(columns, rows, strict=True))
        for index, frames in enumerate(true):
            if index in detection_of:
                row = detection_of[index]
                self.objects.append((float(similarity_DG[row, index]), _flicker(found[row], frames)))
            else:
                # A detection without a pixel is right where the object is out of sight.
                self.objects.append((float((tubes.true_areas[:, index] == 0).mean()), float("nan")))

    def merge(self, other: "RegionSimilarity") -> None:
        self.objects += other.objects

    def reduce(self) -> None:
        """Joins the records of all processes; call once, on every process, before `compute`."""
        from accelerate.utils import gather_object

        self.objects = gather_object(self.objects)

    def reset(self) -> None:
        self.objects = []

    def compute(self, id2label: Mapping[int, str] | None = None) -> dict[str, Any]:
        """`j` and `flicker`, shares of 1, means over the `objects`; NaN without objects."""
        similarities, flickers = (np.array(column) for column in (list(zip(*self.objects, strict=True)) or [(), ()]))
        flickers = flickers[~np.isnan(flickers)]
        return {
            "j": float(similarities.mean()) if len(similarities) else float("nan"),
            "flicker": float(flickers.mean()) if len(flickers) else float("nan"),
            "objects": len(similarities),
        }


def _flicker(found: Sequence[Any], true: Sequence[Any]) -> float:
    drops = [
        max(0.0, _overlap(true[frame], true[frame + 1]) - _overlap(found[frame], found[frame + 1]))
        for frame in range(len(true) - 1)
        if true[frame] is not None
        and true[frame + 1] is not None
        and (found[frame] is not None or found[frame + 1] is not None)
    ]
    return float(np.mean(drops)) if drops else float("nan")


def _overlap(first: Any, second: Any) -> float:
    """Intersection over union of two masks, one of which has a pixel."""
    from pycocotools import mask as coco_mask

    if first is None or second is None:
        return 0.0
    return float(np.asarray(coco_mask.iou([first], [second], [0]))[0, 0])
