"""What was found in the tiles of a photo, put together to one result of the photo.

A pixel that several tiles see is decided by the tile whose centre is nearest. Objects are joined across tiles
(`tile_objects.py`).
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch

from .prediction import Prediction
from .tile_objects import TileObject, join_objects, make_tile_object
from .windows import Window, nearest_parts


class TileMerger:
    """Collects the results of the tiles of a photo. It holds one map of the photo and a crop of each object, no tiles.

    Args:
        task: "semantic", "instance" or "panoptic".
        windows: The tiles in pixels of the result.
        stuff: Label ids that are no objects, for "panoptic".
    """

    def __init__(self, task: str, windows: Sequence[Window], stuff: Collection[int] = ()) -> None:
        self.task = task
        self.windows = windows
        self.size = (max(window.bottom for window in windows), max(window.right for window in windows))
        self.parts = nearest_parts(windows)
        self.stuff = frozenset(stuff)
        self.objects: list[TileObject] = []
        # Class ids, where -1 is no class; for each class, its label and the sum of its scores over its pixels.
        self.class_map = None if task == "instance" else torch.full(self.size, -1, dtype=torch.int64)
        self.classes: dict[int, tuple[str, float]] = {}

    def add(self, tile: int, found: Prediction) -> None:
        """Takes what was found in `windows[tile]`, of the size of this window."""
        if self.class_map is None:
            assert found.masks is not None
            for segment, mask in zip(found.segments, found.masks, strict=True):
                self._add_object(tile, segment, mask)
            return
        assert found.segmentation is not None
        part = self.parts[tile]
        nearest = found.segmentation[part.slices(self.windows[tile])]
        target = self.class_map[part.top : part.bottom, part.left : part.right]
        for segment in found.segments:
            if self.task == "panoptic" and segment["label_id"] not in self.stuff:
                self._add_object(tile, segment, found.mask(segment))
                continue
            pixels = nearest == segment["id"]
            target[pixels] = segment["label_id"]
            _, score = self.classes.get(segment["label_id"], ("", 0.0))
            score += segment["score"] * int(pixels.sum())
            self.classes[segment["label_id"]] = segment["label"], score

    def _add_object(self, tile: int, segment: dict[str, Any], mask_HW: torch.Tensor) -> None:
        if bool(mask_HW.any()):
            self.objects.append(make_tile_object(tile, self.windows[tile], segment, mask_HW))

    def result(self) -> Prediction:
        """What there is in the whole photo.

        The score of a class, or of an object in several tiles, is the mean over its pixels in the tiles.
        """
        objects = join_objects(self.objects, self.windows)
        if self.class_map is None:
            return self._instances(objects)
        areas = {label_id: int((self.class_map == label_id).sum()) for label_id in self.classes}
        classes: list[dict[str, Any]] = [
            {"label_id": label_id, "label": label, "score": score / max(1, areas[label_id]), "area": areas[label_id]}
            for label_id, (label, score) in self.classes.items()
        ]
        if self.task == "semantic":
            segmentation, segments = self.class_map, [{"id": item["label_id"], **item} for item in classes]
        else:
            segmentation, segments = _draw(self.class_map, classes, objects)
        segments = [segment for segment in segments if segment["area"]]
        segments.sort(key=lambda segment: -segment["area"])
        return Prediction(self.task, self.size, segments, segmentation)

    def _instances(self, objects: list[TileObject]) -> Prediction:
        objects.sort(key=lambda item: -item.score)
        segments = [
            {
                "id": number,
                **item.record,
                "box": [float(side) for side in (item.box.left, item.box.top, item.box.right, item.box.bottom)],
            }
            for number, item in enumerate(objects, start=1)
        ]
        return Prediction("instance", self.size, segments, crops=[torch.from_numpy(item.mask) for item in objects])


def _draw(
    class_map_HW: torch.Tensor, stuff: list[dict[str, Any]], things: list[TileObject]
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """A panoptic map, (H, W) int32, and its segments: stuff as it lies, things on top of it, the best of them last."""
    # An entry for each class id that the map may hold; -1, which is no class, takes the last one: void.
    table = torch.zeros(max((item["label_id"] for item in stuff), default=0) + 2, dtype=torch.int32)
    for number, item in enumerate(stuff, start=1):
        table[item["label_id"]] = number
    segmentation = table[class_map_HW]
    things = sorted(things, key=lambda item: item.score)
    for number, item in enumerate(things, start=len(stuff) + 1):
        box = item.box
        segmentation[box.top : box.bottom, box.left : box.right][torch.from_numpy(item.mask)] = number
    records = [*stuff, *(item.record for item in things)]
    visible = torch.bincount(segmentation.flatten(), minlength=len(records) + 1).tolist()
    segments = [{"id": number, **record, "area": visible[number]} for number, record in enumerate(records, start=1)]
    return segmentation, segments
