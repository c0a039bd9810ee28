"""Large photos in overlapping tiles: where the tiles lie, and how what was found in them becomes one result.

A pixel that several tiles see is decided by the tile whose centre is nearest. Objects are joined across tiles: a model
is worst at the border of what it sees, so the part of an object that lies there yields to a tile that sees all of it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

# Of the pixels that two objects of different tiles could share, the part they must share to be one.
SAME_OBJECT = 0.5
# An object this close to the border of its tile, in parts of the tile's side, is taken to go on beyond it: 4 pixels in
# a tile of 256, which is a cell of the masks before they are resized.
BORDER = 1 / 64


class Window(NamedTuple):
    """Rows top..bottom and columns left..right of a photo, the ends excluded."""

    top: int
    left: int
    bottom: int
    right: int


def tile_windows(size: tuple[int, int], tile_size: int, overlap: int) -> list[Window]:
    """Windows that cover a photo of `size` (height, width), row by row, all of one size; neighbours share at least
    `overlap` pixels. A side that is not longer than `tile_size` stays whole."""
    tops, lefts = (_starts(length, tile_size, overlap) for length in size)
    height, width = min(size[0], tile_size), min(size[1], tile_size)
    return [Window(top, left, top + height, left + width) for top in tops for left in lefts]


def _starts(length: int, tile_size: int, overlap: int) -> list[int]:
    if length <= tile_size:
        return [0]
    count = -(-(length - overlap) // (tile_size - overlap))
    return [round(index * (length - tile_size) / (count - 1)) for index in range(count)]


def scale_windows(windows: Sequence[Window], size: tuple[int, int], target: tuple[int, int]) -> list[Window]:
    """The same windows in a photo that is resized from `size` to `target`, rounded to whole pixels."""
    down, across = target[0] / size[0], target[1] / size[1]
    return [
        Window(round(top * down), round(left * across), round(bottom * down), round(right * across))
        for top, left, bottom, right in windows
    ]


def nearest_parts(windows: Sequence[Window]) -> list[Window]:
    """The part of each window where its centre is nearer than others' are: together they cover the photo once."""
    rows = _nearest_intervals({(window.top, window.bottom) for window in windows})
    columns = _nearest_intervals({(window.left, window.right) for window in windows})
    return [
        Window(rows[top, bottom][0], columns[left, right][0], rows[top, bottom][1], columns[left, right][1])
        for top, left, bottom, right in windows
    ]


def _nearest_intervals(intervals: Collection[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """Cuts overlapping intervals in the middle between the centres of neighbours."""
    ordered = sorted(intervals)
    cuts = [(first[0] + first[1] + second[0] + second[1]) // 4 for first, second in pairwise(ordered)]
    starts, stops = [ordered[0][0], *cuts], [*cuts, ordered[-1][1]]
    return dict(zip(ordered, zip(starts, stops, strict=True), strict=True))


@dataclass
class TileObject:
    """An object as its tile saw it. `box` is in pixels of the photo, `bits` those of its mask in the box, packed.

    Packed not only for an eighth of the memory: small arrays that stay, made between the large ones of each tile that
    do not, leave the allocator holes into which the next tile's arrays no longer fit.
    """

    tile: int
    label_id: int
    label: str
    score: float
    area: int
    box: Window
    bits: bytes

    @property
    def mask(self) -> np.ndarray:
        """(box height, box width) bool."""
        height, width = self.box.bottom - self.box.top, self.box.right - self.box.left
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=height * width)
        return bits.view(bool).reshape(height, width)


class TileMerger:
    """Collects the results of a photo's tiles. Holds one map of the photo and the objects as crops, but no tiles.

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
        # Class ids, and of each class its label and the sum of its scores over its pixels. -1 is no class.
        self.class_map = None if task == "instance" else torch.full(self.size, -1, dtype=torch.int64)
        self.classes: dict[int, tuple[str, float]] = {}

    def add(
        self,
        tile: int,
        segments: Sequence[dict[str, Any]],
        segmentation: torch.Tensor | None,
        masks: torch.Tensor | None,
    ) -> None:
        """Takes what was found in `windows[tile]`; the arguments are those parts of a `Prediction`."""
        if self.class_map is None:
            assert masks is not None
            for segment, mask in zip(segments, masks, strict=True):
                self._add_object(tile, segment, mask)
            return
        assert segmentation is not None
        window, part = self.windows[tile], self.parts[tile]
        nearest = segmentation[_slices(part, window)]
        target = self.class_map[part.top : part.bottom, part.left : part.right]
        for segment in segments:
            if self.task == "panoptic" and segment["label_id"] not in self.stuff:
                self._add_object(tile, segment, segmentation == segment["id"])
                continue
            pixels = nearest == segment["id"]
            target[pixels] = segment["label_id"]
            _, score = self.classes.get(segment["label_id"], ("", 0.0))
            score += segment["score"] * int(pixels.sum())
            self.classes[segment["label_id"]] = segment["label"], score

    def _add_object(self, tile: int, segment: dict[str, Any], mask_HW: torch.Tensor) -> None:
        rows, columns = mask_HW.any(1).nonzero()[:, 0], mask_HW.any(0).nonzero()[:, 0]
        if not len(rows):
            return
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        window = self.windows[tile]
        self.objects.append(
            TileObject(
                tile,
                segment["label_id"],
                segment["label"],
                segment["score"],
                segment["area"],
                Window(top + window.top, left + window.left, bottom + window.top, right + window.left),
                np.packbits(mask_HW[top:bottom, left:right].numpy()).tobytes(),
            )
        )

    def result(self) -> tuple[list[dict[str, Any]], torch.Tensor | None, list[torch.Tensor] | None]:
        """Segments, segmentation and crops of the whole photo, as a `Prediction` holds them.

        The score of a class, or of an object in several tiles, is the mean over its pixels in the tiles.
        """
        objects = join_objects(self.objects, self.windows)
        if self.class_map is None:
            objects.sort(key=lambda item: -item.score)
            segments = [
                _record(number, item.label_id, item.label, item.score, item.area)
                | {"box": [float(side) for side in (item.box.left, item.box.top, item.box.right, item.box.bottom)]}
                for number, item in enumerate(objects, start=1)
            ]
            return segments, None, [torch.from_numpy(item.mask) for item in objects]

        areas = {label_id: int((self.class_map == label_id).sum()) for label_id in self.classes}
        scores = {label_id: score / max(1, areas[label_id]) for label_id, (_, score) in self.classes.items()}
        segmentation = self.class_map
        owners = [(label_id, self.classes[label_id][0], scores[label_id]) for label_id in self.classes]
        if self.task == "semantic":
            segments = [_record(label_id, label_id, label, score, areas[label_id]) for label_id, label, score in owners]
        else:
            # One number each: stuff as it lies, things on top of it, the best of them last.
            objects.sort(key=lambda item: item.score)
            numbers = {label_id: number for number, (label_id, _, _) in enumerate(owners, start=1)}
            table = torch.zeros(max(numbers, default=0) + 2, dtype=torch.int32)
            for label_id, number in numbers.items():
                table[label_id] = number
            segmentation = table[self.class_map]  # -1 is the last entry, 0
            for item in objects:
                owners.append((item.label_id, item.label, item.score))
                window = segmentation[item.box.top : item.box.bottom, item.box.left : item.box.right]
                window[torch.from_numpy(item.mask)] = len(owners)
            visible = torch.bincount(segmentation.flatten(), minlength=len(owners) + 1).tolist()
            segments = [
                _record(number, label_id, label, score, visible[number])
                for number, (label_id, label, score) in enumerate(owners, start=1)
            ]
        segments = [segment for segment in segments if segment["area"]]
        segments.sort(key=lambda segment: -segment["area"])
        return segments, segmentation, None


def _record(number: int, label_id: int, label: str, score: float, area: int) -> dict[str, Any]:
    return {"id": number, "label_id": label_id, "label": label, "score": score, "area": area}


def join_objects(objects: Sequence[TileObject], windows: Sequence[Window]) -> list[TileObject]:
    """Makes one object of those that are the same in several tiles; the others stay as they are.

    Two objects of one class and different tiles are compared where both tiles see. If the intersection is `SAME_OBJECT`
    of their union and no tile cuts them, the better score stays. Other pairs count only if neither score is less than
    half of the other, so that what hardly was found changes nothing that was. An object that its tile cuts, of which
    the other tile sees every pixel, and of whose pixels `SAME_OBJECT` lie in the other object, is its fragment and
    goes. Others whose intersection is `SAME_OBJECT` of their union are united, the surest first; but never two that one
    tile tells apart.
    """
    by_tile: list[list[int]] = [[] for _ in windows]
    for index, item in enumerate(objects):
        by_tile[item.tile].append(index)
    cut = [_is_cut(item, windows) for item in objects]
    gone = [False] * len(objects)
    unions: list[tuple[float, float, int, int]] = []
    for first, second in _neighbours(windows, [tile for tile, indices in enumerate(by_tile) if indices]):
        shared = _intersection(windows[first], windows[second])
        ones, ones_inside = _meeting(objects, by_tile[first], shared)
        others, others_inside = _meeting(objects, by_tile[second], shared)
        both = _count_common(ones_inside, others_inside)
        one_pixels, other_pixels = ones_inside.sum(1)[:, None], others_inside.sum(1)[None]
        iou = both / np.maximum(1, one_pixels + other_pixels - both)
        related = (both >= SAME_OBJECT * np.minimum(one_pixels, other_pixels)) & (both > 0)
        for row, column in zip(*(places.tolist() for places in related.nonzero()), strict=True):
            pair = ones[row], others[column]
            one, other = objects[pair[0]], objects[pair[1]]
            if one.label_id != other.label_id or gone[pair[0]] or gone[pair[1]]:
                continue
            same = iou[row, column] >= SAME_OBJECT
            if same and not cut[pair[0]] and not cut[pair[1]]:
                gone[pair[0] if one.score < other.score else pair[1]] = True
                continue
            if 2 * min(one.score, other.score) < max(one.score, other.score):
                continue
            fragment = [
                cut[index] and inside == objects[index].area and both[row, column] >= SAME_OBJECT * inside
                for index, inside in zip(pair, (one_pixels[row, 0], other_pixels[0, column]), strict=True)
            ]
            if fragment[0] != fragment[1]:
                gone[pair[0] if fragment[0] else pair[1]] = True
            elif same:
                unions.append((min(one.score, other.score), float(iou[row, column]), *pair))

    group_of: dict[int, list[int]] = {index: [index] for index in range(len(objects)) if not gone[index]}
    for _, _, one, other in sorted(unions, reverse=True):
        if gone[one] or gone[other] or group_of[one] is group_of[other]:
            continue
        united = group_of[one] + group_of[other]
        if len({objects[index].tile for index in united}) == len(united):
            group_of |= dict.fromkeys(united, united)
    groups = {id(group): group for group in group_of.values()}
    return [_unite([objects[index] for index in group]) for group in groups.values()]


def _neighbours(windows: Sequence[Window], tiles: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of those tiles that share pixels."""
    pairs = []
    edges = np.array([windows[tile] for tile in tiles]).reshape(-1, 4)
    for place, tile in enumerate(tiles):
        rest = edges[place + 1 :]
        top, left, bottom, right = edges[place]
        overlap = (rest[:, 0] < bottom) & (rest[:, 2] > top) & (rest[:, 1] < right) & (rest[:, 3] > left)
        pairs += [(tile, tiles[place + 1 + other]) for other in overlap.nonzero()[0].tolist()]
    return pairs


def _meeting(objects: Sequence[TileObject], indices: Sequence[int], window: Window) -> tuple[list[int], np.ndarray]:
    """Those objects whose boxes meet a window, and their masks in it, (n, pixels of the window) bool."""
    meeting = []
    for index in indices:
        part = _intersection(objects[index].box, window)
        if part.top < part.bottom and part.left < part.right:
            meeting.append((index, part))
    masks = np.zeros((len(meeting), window.bottom - window.top, window.right - window.left), bool)
    for mask, (index, part) in zip(masks, meeting, strict=True):
        mask[_slices(part, window)] = objects[index].mask[_slices(part, objects[index].box)]
    return [index for index, _ in meeting], masks.reshape(len(meeting), masks.shape[1] * masks.shape[2])


def _count_common(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pixels that each of n masks shares with each of m: (n, pixels) and (m, pixels) bool to (n, m)."""
    counts = np.zeros((len(ones), len(others)))
    # As products of float32, exact up to 2^24; some pixels at a time, since they take four bytes here.
    for start in range(0, ones.shape[1], 2**16):
        part = slice(start, start + 2**16)
        counts += ones[:, part].astype(np.float32) @ others[:, part].astype(np.float32).T
    return counts


def _is_cut(item: TileObject, windows: Sequence[Window]) -> bool:
    """Whether an object reaches a border of its tile that is not the border of the photo."""
    window, box = windows[item.tile], item.box
    margin_y, margin_x = (
        max(1, int(side * BORDER)) for side in (window.bottom - window.top, window.right - window.left)
    )
    height, width = windows[-1].bottom, windows[-1].right
    return (
        (window.top > 0 and box.top < window.top + margin_y)
        or (window.left > 0 and box.left < window.left + margin_x)
        or (window.bottom < height and box.bottom > window.bottom - margin_y)
        or (window.right < width and box.right > window.right - margin_x)
    )


def _intersection(one: Window, other: Window) -> Window:
    return Window(
        max(one.top, other.top), max(one.left, other.left), min(one.bottom, other.bottom), min(one.right, other.right)
    )


def _slices(part: Window, whole: Window) -> tuple[slice, slice]:
    """Where a part of a window lies in it."""
    return (
        slice(part.top - whole.top, part.bottom - whole.top),
        slice(part.left - whole.left, part.right - whole.left),
    )


def _unite(items: Sequence[TileObject]) -> TileObject:
    """One object that covers what any of them does; its score is the mean over their pixels."""
    if len(items) == 1:
        return items[0]
    box = Window(
        min(item.box.top for item in items),
        min(item.box.left for item in items),
        max(item.box.bottom for item in items),
        max(item.box.right for item in items),
    )
    mask = np.zeros((box.bottom - box.top, box.right - box.left), bool)
    for item in items:
        mask[_slices(item.box, box)] |= item.mask
    pixels = sum(item.area for item in items)
    score = sum(item.score * item.area for item in items) / pixels
    return TileObject(
        items[0].tile, items[0].label_id, items[0].label, score, int(mask.sum()), box, np.packbits(mask).tobytes()
    )
