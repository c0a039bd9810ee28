"""Panoptic quality (Kirillov et al. 2019, "Panoptic Segmentation"), as panopticapi's `evaluation.py` computes it.

Shapes: K classes, N reference segments, M predicted segments, H W pixels.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .joint_counts import as_integers


class PanopticQuality:
    """Panoptic, segmentation and recognition quality. Only the counts of each class are kept.

    Definition, per class and over all images: a predicted and a reference segment of the same class match if their
    intersection over union is more than 0.5, where the union leaves out the reference's void. With true positives TP
    (matches), false positives FP and false negatives FN,
    SQ = sum of matched IoU / TP, RQ = TP / (TP + FP / 2 + FN / 2), PQ = SQ * RQ.
    Crowd segments are no targets. A predicted segment without a match is no FP if more than half of it lies in void or
    in crowd of its own class. The means go over classes with TP + FP + FN > 0; there SQ is 0 where TP is 0.
    Where one class has several crowd segments, panopticapi looks at the last one only; here all of them count together.

    Args:
        num_labels: K, the number of classes.
        label_ids_to_fuse: The classes that are stuff; the others are things.
    """

    def __init__(self, num_labels: int, label_ids_to_fuse: Collection[int] = ()) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}; a mean needs at least one class")
        self.num_labels = num_labels
        self.is_thing = [index not in label_ids_to_fuse for index in range(num_labels)]
        # Rows: sum of matched IoU, true positives, false positives, false negatives.
        self.counts = torch.zeros(4, num_labels, dtype=torch.float64)

    def update(self, prediction: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
        """Counts one image.

        Both have the form that `post_process_panoptic_segmentation` returns: `segmentation`, an integer map (H, W) of
        segment ids, and `segments_info`, a list of `id` (from 1), `label_id` and, in references, `iscrowd`. Id 0 is
        void: nothing is predicted, or nothing is known. In a reference -1 is known to be no segment, so that segments
        predicted there are wrong. In a prediction -1 is void.

        Raises ValueError for maps of different sizes, ids that only the map or only the list has, and unknown classes.
        """
        predicted, true = torch.as_tensor(prediction["segmentation"]), torch.as_tensor(reference["segmentation"])
        if predicted.shape != true.shape or predicted.ndim != 2:
            raise ValueError(
                f"the predicted map has shape {tuple(predicted.shape)} and the reference map {tuple(true.shape)}; "
                "pass the references' sizes as target_sizes when post-processing"
            )
        predicted_ids, predicted_labels, _ = self._read(prediction["segments_info"], "predicted")
        true_ids, true_labels, is_crowd = self._read(reference["segments_info"], "reference")
        # The rows are -1, 0 and the reference segments; the columns are -1, 0 and the predicted segments.
        table = _pixel_table(true, true_ids, predicted, predicted_ids)
        intersection_NM = table[2:, 2:]
        true_area, predicted_area = table[2:].sum(1), table[:, 2:].sum(0)
        if (predicted_area == 0).any():
            missing = predicted_ids[predicted_area == 0]
            raise ValueError(f"predicted segments {missing.tolist()} are in segments_info and not in the segmentation")
        void_area = table[1, 2:]
        union_NM = true_area[:, None] + predicted_area - intersection_NM - void_area
        iou_NM = intersection_NM / np.maximum(union_NM, 1)
        same_label_NM = true_labels[:, None] == predicted_labels
        # A segment has one match at most, as two that hold more than half of it would overlap.
        match_NM = (iou_NM > 0.5) & same_label_NM & ~is_crowd[:, None]
        ignored_area = void_area + (intersection_NM * (same_label_NM & is_crowd[:, None])).sum(0)
        false_positive = ~match_NM.any(0) & (ignored_area <= 0.5 * predicted_area)
        false_negative = ~match_NM.any(1) & ~is_crowd
        rows, columns = match_NM.nonzero()
        counts = self.counts.numpy()
        np.add.at(counts[0], true_labels[rows], iou_NM[rows, columns])
        for row, labels in enumerate(
            (true_labels[rows], predicted_labels[false_positive], true_labels[false_negative]), start=1
        ):
            np.add.at(counts[row], labels, 1)

    def _read(self, segments: Sequence[Mapping[str, Any]], whose: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, label ids and is-crowd of a list of segments, by rising id."""
        rows = sorted((int(item["id"]), int(item["label_id"]), bool(item.get("iscrowd", False))) for item in segments)
        ids, labels, is_crowd = (np.array([row[i] for row in rows], kind) for i, kind in enumerate((int, int, bool)))
        if (np.diff(ids) == 0).any() or (ids < 1).any():
            raise ValueError(f"{whose} segments have ids {ids.tolist()}; give each its own, from 1")
        if ((labels < 0) | (labels >= self.num_labels)).any():
            raise ValueError(
                f"{whose} segments have labels {sorted(set(labels.tolist()))}; num_labels is {self.num_labels}"
            )
        return ids, labels, is_crowd

    def merge(self, other: "PanopticQuality") -> None:
        """Adds the counts of another one."""
        self.counts += other.counts

    def reduce(self) -> None:
        """Adds up the counts of all processes; call once, on every process, before `compute`."""
        from accelerate import PartialState
        from accelerate.utils import reduce

        total: Any = reduce(self.counts.to(PartialState().device), reduction="sum")
        self.counts = total.cpu()

    def reset(self) -> None:
        self.counts.zero_()

    def compute(self, id2label: Mapping[int, str] | None = None) -> dict[str, Any]:
        """Returns plain floats, each a share of 1: what is published as PQ 46.5 is 0.465 here.

        `pq`, `sq`, `rq`, and each with `_things` and `_stuff`; `per_class`: one dict a class with `label`, `is_thing`,
        `pq`, `sq`, `rq`, `true_positives`, `false_positives` and `false_negatives`. Figures of
        classes that do not occur are NaN.
        """
        iou, true_positives, false_positives, false_negatives = self.counts.numpy()
        names = id2label or {}
        per_class = []
        with np.errstate(invalid="ignore", divide="ignore"):
            size = true_positives + 0.5 * false_positives + 0.5 * false_negatives
            occurs = size > 0
            pq, rq = iou / size, true_positives / size
            sq = np.where(occurs, iou / np.maximum(true_positives, 1), np.nan)
        for index in range(self.num_labels):
            per_class.append(
                {
                    "label": names.get(index, str(index)),
                    "is_thing": self.is_thing[index],
                    "pq": float(pq[index]),
                    "sq": float(sq[index]),
                    "rq": float(rq[index]),
                    "true_positives": int(true_positives[index]),
                    "false_positives": int(false_positives[index]),
                    "false_negatives": int(false_negatives[index]),
                }
            )
        result: dict[str, Any] = {}
        is_thing = np.array(self.is_thing)
        for suffix, members in (("", occurs), ("_things", occurs & is_thing), ("_stuff", occurs & ~is_thing)):
            for name, values in (("pq", pq), ("sq", sq), ("rq", rq)):
                result[name + suffix] = float(values[members].mean()) if members.any() else float("nan")
        return {**result, "per_class": per_class}


def _pixel_table(
    true: torch.Tensor, true_ids: np.ndarray, predicted: torch.Tensor, predicted_ids: np.ndarray
) -> np.ndarray:
    """Pixels of each pair of ids, (2 + N, 2 + M) int64; the first two rows and columns are the ids -1 and 0."""
    maps = [as_integers(part, predicted.device).flatten() for part in (true, predicted)]
    # Segments make long runs of one pair of ids. There are few runs, so ids may have any size.
    ends = torch.zeros_like(maps[0], dtype=torch.bool)
    ends[-1:] = True
    for part in maps:
        ends[:-1] |= part[1:] != part[:-1]
    positions = np.flatnonzero(ends.cpu().numpy())
    lengths = np.diff(positions, prepend=-1)
    places = []
    for whose, part, ids in (("reference", maps[0], true_ids), ("predicted", maps[1], predicted_ids)):
        known, values = (
            np.concatenate(([-1, 0], ids)),
            part[torch.from_numpy(positions).to(part.device)].long().cpu().numpy(),
        )
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
        if (known[place] != values).any():
            raise ValueError(
                f"the {whose} segmentation holds id {values[known[place] != values][0]}, which is not in its "
                "segments_info; void is 0"
            )
        places.append(place)
    height, width = 2 + len(true_ids), 2 + len(predicted_ids)
    counts = np.bincount(places[0] * width + places[1], lengths, height * width)
    return counts.reshape(height, width).astype(np.int64)
