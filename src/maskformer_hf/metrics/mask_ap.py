"""Mask average precision as COCO defines it (`pycocotools.cocoeval`), image by image.

Shapes: D detections, G reference objects, both of one image and class; A size ranges, T thresholds, K classes, H W
pixels. Masks are compared as pycocotools' run lengths ("RLE"), and dropped with their image.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .run_lengths import as_rles

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0, 1, 101)
# In pixels of the image's own size.
SIZE_RANGES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


class _Detections(NamedTuple):
    """What is kept of one image, D detections of all classes: 30 bytes each."""

    image_id: int
    labels: np.ndarray  # (D,) int32
    ranks: np.ndarray  # (D,) int32, from 0 among those of the image and class
    scores: np.ndarray  # (D,) float64
    matched: np.ndarray  # (D, A * T / 8) uint8, packed bits
    ignored: np.ndarray  # the same


class MaskAP:
    """Average precision and recall of instance masks over COCO's ten IoU thresholds and three sizes.

    Definition: that of COCOeval with `iouType="segm"`. For each image and class the detections, best score first, take
    the reference object that they overlap most among those not taken yet. Objects outside of a size range and crowds do
    not count, nor do detections that match them. A crowd can be matched any number of times, and the overlap with it is
    the share of the detection that lies in it. Precision is interpolated at 101 values of recall.

    Memory: a few bytes for each detection, none for pixels.

    Args:
        num_labels: K, the number of classes.
        max_detections: Most detections of an image and class, the best ones, that count. COCO has 100. If images have
            more objects of one class, as in microscopy, recall stays incomplete with that.
    """

    def __init__(self, num_labels: int, *, max_detections: int = 100) -> None:
        if num_labels < 1 or max_detections < 1:
            raise ValueError(f"num_labels is {num_labels}, max_detections {max_detections}; both must be at least 1")
        self.num_labels = num_labels
        self.max_detections = max_detections
        self.num_objects = np.zeros((num_labels, len(SIZE_RANGES)), np.int64)
        self.detections: list[_Detections] = []
        self._next_id = 0

    def update(self, prediction: Mapping[str, Any], reference: Mapping[str, Any], image_id: int | None = None) -> None:
        """Counts one image.

        Args:
            prediction: `masks`, `scores` (D,), `labels` (D,).
            reference: `masks`, `labels` (G,); optional `is_crowd` (G,), and `areas` (G,) in pixels, which decide the
                size of an object. COCO's files have the areas of the polygons; by default they are those of the masks.
            image_id: Detections of equal score come in the order of their image's id, by default a running number. Give
                it if several processes share the images, to get the same figures as from one.

        Masks are (N, H, W) bool, or a list of N pycocotools RLE dictionaries.
        """
        image_id = self._next_id if image_id is None else image_id
        self._next_id = image_id + 1
        scores, labels = as_numbers(prediction["scores"], float), as_numbers(prediction["labels"], np.int64)
        true_labels = as_numbers(reference["labels"], np.int64)
        rles, true_rles = as_rles(prediction["masks"]), as_rles(reference["masks"])
        is_crowd = as_numbers(reference.get("is_crowd", np.zeros(len(true_labels))), bool)
        self._check(len(rles), scores, labels, len(true_rles), true_labels)
        sizes = {tuple(rle["size"]) for rle in (*rles, *true_rles)}
        if len(sizes) > 1:
            raise ValueError(
                f"masks of one image have the sizes {sorted(sizes)}; pass the references' sizes as target_sizes when "
                "post-processing"
            )
        areas, true_areas = _areas(rles), as_numbers(reference.get("areas", _areas(true_rles)), float)

        def overlaps(found: np.ndarray, true: np.ndarray) -> np.ndarray:
            return self._iou([rles[i] for i in found], [true_rles[i] for i in true], is_crowd[true])

        self._count(image_id, scores, labels, areas, true_labels, true_areas, is_crowd, overlaps)

    def _count(
        self,
        image_id: int,
        scores: np.ndarray,
        labels: np.ndarray,
        areas: np.ndarray,
        true_labels: np.ndarray,
        true_areas: np.ndarray,
        is_crowd: np.ndarray,
        overlaps: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        """Counts D detections and G objects; `overlaps(detections, objects)` gives the IoU matrix of some of them."""
        low, high = np.array(list(SIZE_RANGES.values())).T[:, :, None]
        true_outside = (true_areas < low) | (true_areas > high)  # (A, G)
        outside = (areas < low) | (areas > high)  # (A, D)
        np.add.at(self.num_objects, true_labels[~is_crowd], ~true_outside[:, ~is_crowd].T)
        parts = []
        for label in np.unique(labels):
            found = np.flatnonzero(labels == label)
            found = found[np.argsort(-scores[found], kind="stable")][: self.max_detections]
            true = np.flatnonzero(true_labels == label)
            iou_DG = np.zeros((len(found), 0))
            if len(true):
                iou_DG = overlaps(found, true)
            matched, ignored = _match(iou_DG, true_outside[:, true] | is_crowd[true], is_crowd[true])
            ignored |= ~matched & outside[:, found].T[:, :, None]
            parts.append(
                (
                    np.full(len(found), label, np.int32),
                    np.arange(len(found), dtype=np.int32),
                    scores[found],
                    np.packbits(matched.reshape(len(found), -1), axis=1),
                    np.packbits(ignored.reshape(len(found), -1), axis=1),
                )
            )
        if parts:
            self.detections.append(
                _Detections(image_id, *(np.concatenate(column) for column in zip(*parts, strict=True)))
            )

    def _check(
        self, num_found: int, scores: np.ndarray, labels: np.ndarray, num_true: int, true_labels: np.ndarray
    ) -> None:
        if not num_found == len(scores) == len(labels) or num_true != len(true_labels):
            raise ValueError(
                f"there are {num_found} predicted masks, {len(scores)} scores and {len(labels)} labels, and "
                f"{num_true} reference masks and {len(true_labels)} labels; give one of each for an object"
            )
        if np.isnan(scores).any():
            raise ValueError("a score is NaN; check the weights")
        for whose, values in (("predicted", labels), ("reference", true_labels)):
            if len(values) and (values.min() < 0 or values.max() >= self.num_labels):
                raise ValueError(f"{whose} labels are {np.unique(values).tolist()}; num_labels is {self.num_labels}")

    def _iou(self, rles: list[Any], true_rles: list[Any], is_crowd: np.ndarray) -> np.ndarray:
        """(D, G); for a crowd the share of the detection that lies in it."""
        from pycocotools import mask as coco_mask

        return np.asarray(coco_mask.iou(rles, true_rles, is_crowd.astype(np.uint8).tolist()))

    def merge(self, other: "MaskAP") -> None:
        """Adds the counts of another one, whose images must have other ids."""
        self.num_objects += other.num_objects
        self.detections += other.detections
        self._next_id = max(self._next_id, other._next_id)

    def reduce(self) -> None:
        """Joins the records of all processes; call once, on every process, before `compute`."""
        from accelerate.utils import gather_object

        parts = gather_object([(self.num_objects, self.detections)])
        self.num_objects = np.sum([num_objects for num_objects, _ in parts], axis=0)
        self.detections = [record for _, detections in parts for record in detections]

    def reset(self) -> None:
        self.num_objects[:] = 0
        self.detections, self._next_id = [], 0

    def compute(self, id2label: Mapping[int, str] | None = None) -> dict[str, Any]:
        """Returns plain floats, each a share of 1: what is published as AP 34.0 is 0.34 here.

        `ap`, `ap50`, `ap75`, `ap_small` (objects below 32 x 32 pixels), `ap_medium`, `ap_large` (from 96 x 96);
        average recall with the 1, the 10 and all `max_detections` best of an image and class, `ar_1`, `ar_10` and
        `ar`, and `ar_small`, `ar_medium`, `ar_large`; `max_detections`; `per_class`: one dict a class with `label`,
        `ap`, `ap50`, `ar` and `objects`, how many there were. The figure of objects that do not occur is NaN, and
        means leave it out.
        """
        precision, recall = self._curves(self.max_detections)
        limited = {limit: self._curves(min(limit, self.max_detections))[1] for limit in (1, 10)}
        sizes = list(SIZE_RANGES)
        names = id2label or {}
        result: dict[str, Any] = {
            "ap": _mean(precision[:, 0]),
            "ap50": _mean(precision[:, 0, 0]),
            "ap75": _mean(precision[:, 0, 5]),
            **{f"ap_{size}": _mean(precision[:, sizes.index(size)]) for size in sizes[1:]},
            **{f"ar_{limit}": _mean(values[:, 0]) for limit, values in limited.items()},
            "ar": _mean(recall[:, 0]),
            **{f"ar_{size}": _mean(recall[:, sizes.index(size)]) for size in sizes[1:]},
            "max_detections": self.max_detections,
        }
        result["per_class"] = [
            {
                "label": names.get(index, str(index)),
                "ap": _mean(precision[index, 0]),
                "ap50": _mean(precision[index, 0, 0]),
                "ar": _mean(recall[index, 0]),
                "objects": int(self.num_objects[index, 0]),
            }
            for index in range(self.num_labels)
        ]
        return result

    def _curves(self, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Precision at the points of recall (K, A, T, 101) and the largest recall (K, A, T), NaN without objects.

        limit: How many detections of an image and class count.
        """
        shape = (self.num_labels, len(SIZE_RANGES), len(IOU_THRESHOLDS))
        precision, recall = np.full((*shape, len(RECALL_POINTS)), np.nan), np.full(shape, np.nan)
        has_objects = self.num_objects > 0
        precision[has_objects], recall[has_objects] = 0, 0
        records = sorted(self.detections, key=lambda record: record.image_id)
        if not records:
            return precision, recall
        labels, ranks, scores, matched, ignored = (
            np.concatenate(part) for part in list(zip(*records, strict=True))[1:]
        )
        # By class, then by score; equal scores by image, then by rank.
        order = np.lexsort((-scores, labels))
        order = order[ranks[order] < limit]
        labels = labels[order]
        starts = np.searchsorted(labels, np.arange(self.num_labels + 1))
        for label in np.unique(labels):
            rows = order[starts[label] : starts[label + 1]]
            is_match, is_ignored = (
                np.unpackbits(part[rows], axis=1, count=shape[1] * shape[2]).astype(bool).reshape(-1, *shape[1:])
                for part in (matched, ignored)
            )
            true = np.cumsum(is_match & ~is_ignored, axis=0, dtype=np.float64)
            false = np.cumsum(~is_match & ~is_ignored, axis=0, dtype=np.float64)
            # The largest precision at this recall or any higher one. As in COCOeval, eps keeps 0 / 0 away.
            best = np.maximum.accumulate((true / (true + false + np.spacing(1)))[::-1])[::-1]
            for size in np.flatnonzero(has_objects[label]):
                reached = true[:, size] / self.num_objects[label, size]
                recall[label, size] = reached[-1]
                for threshold in range(shape[2]):
                    position = np.searchsorted(reached[:, threshold], RECALL_POINTS)
                    exists = position < len(rows)
                    precision[label, size, threshold, exists] = best[position[exists], size, threshold]
        return precision, recall


def _match(iou_DG: np.ndarray, is_ignored_AG: np.ndarray, is_crowd_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which detections, best first, find an object, and whether that one is ignored: both (D, A, T) bool.

    An object that counts goes before one that is ignored, then the larger overlap, then the later one.
    """
    num_sizes, num_objects = is_ignored_AG.shape
    matched = np.zeros((len(iou_DG), num_sizes, len(IOU_THRESHOLDS)), bool)
    ignored = matched.copy()
    free = np.ones((num_sizes, len(IOU_THRESHOLDS), num_objects), bool)
    sizes, thresholds = np.indices(free.shape[:2])
    for row, iou in enumerate(iou_DG):
        # In reverse order, as `argmax` takes the first of equal values and COCO the last.
        near = np.flatnonzero(iou >= IOU_THRESHOLDS[0])[::-1]
        if not len(near):
            continue
        possible = free[:, :, near] & (iou[near] >= IOU_THRESHOLDS[:, None])
        counts = possible & ~is_ignored_AG[:, None, near]
        possible = np.where(counts.any(2, keepdims=True), counts, possible)
        best = np.where(possible, iou[near], -1.0).argmax(2)
        matched[row] = found = possible.any(2)
        best = near[best]
        ignored[row] = found & is_ignored_AG[sizes, best]
        free[sizes[found], thresholds[found], best[found]] = False
        free[:, :, is_crowd_G] = True
    return matched, ignored


def as_numbers(values: Any, kind: Any) -> np.ndarray:
    """A vector (list, array, or tensor on any device) as an array."""
    if isinstance(values, torch.Tensor):
        values = values.numpy(force=True)
    return np.asarray(values, dtype=kind).reshape(-1)


def _areas(rles: Sequence[Any]) -> np.ndarray:
    from pycocotools import mask as coco_mask

    # One by one, as pycocotools 2.0.11 raises OverflowError with numpy 2 for a list of more than 255.
    return np.array([float(coco_mask.area(rle)) for rle in rles])


def _mean(values: np.ndarray) -> float:
    return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else float("nan")
