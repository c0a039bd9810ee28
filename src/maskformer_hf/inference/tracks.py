"""Objects followed through a video: those of two windows of frames are one where their masks agree."""

from collections.abc import Sequence
from typing import Any, NamedTuple

# pycocotools' run lengths of a mask, a dictionary; None where the mask has no pixel.
RunLengths = Any


class WindowObject(NamedTuple):
    """An object that was found in a window of frames, with a mask for each frame."""

    label_id: int
    score: float
    masks: list[RunLengths]


class Track:
    """An object through several windows."""

    def __init__(self) -> None:
        self.masks: dict[int, dict[str, Any]] = {}  # by frame
        self.scores: dict[int, float] = {}  # by label, summed over frames
        self.num_scored = 0

    def add(self, item: WindowObject, frames: range, masks: list[RunLengths]) -> None:
        self.scores[item.label_id] = self.scores.get(item.label_id, 0.0) + item.score * len(frames)
        self.num_scored += len(frames)
        self.masks |= {frame: mask for frame, mask in zip(frames, masks, strict=True) if mask is not None}

    def record(self, number: int, num_frames: int, id2label: dict[int, str]) -> dict[str, Any]:
        label_id = max(self.scores, key=lambda label: self.scores[label])
        return {
            "id": number,
            "label_id": label_id,
            "label": id2label[label_id],
            "score": self.scores[label_id] / self.num_scored,
            "segmentations": [self.masks.get(frame) for frame in range(num_frames)],
        }


def link_objects(
    earlier: Sequence[Sequence[RunLengths]], later: Sequence[Sequence[RunLengths]], threshold: float
) -> list[int | None]:
    """For each object of the later window, which object of the earlier one it is, or None.

    Two objects can be one if their masks, in all shared frames together, have at least an intersection over union of
    `threshold`. The pair with the largest goes first, and no object is in two pairs.
    """
    pairs = [
        (overlap, -after, -before)
        for after, later_masks in enumerate(later)
        for before, earlier_masks in enumerate(earlier)
        if (overlap := tube_overlap(earlier_masks, later_masks)) >= threshold and overlap > 0
    ]
    links: list[int | None] = [None] * len(later)
    taken: set[int] = set()
    for _, negative_after, negative_before in sorted(pairs, reverse=True):
        after, before = -negative_after, -negative_before
        if links[after] is None and before not in taken:
            links[after] = before
            taken.add(before)
    return links


def tube_overlap(first: Sequence[RunLengths], second: Sequence[RunLengths]) -> float:
    """Intersection over union of two objects in the same frames; 0 if neither has a pixel."""
    from pycocotools import mask as coco_mask

    intersection = union = 0
    for a, b in zip(first, second, strict=True):
        if a is not None and b is not None:
            intersection += int(coco_mask.area(coco_mask.merge([a, b], intersect=True)))
        union += sum(int(coco_mask.area(mask)) for mask in (a, b) if mask is not None)
    union -= intersection
    return intersection / union if union else 0.0
