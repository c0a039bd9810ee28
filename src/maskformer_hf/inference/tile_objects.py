"""Objects that several tiles see, joined to one.

A model is worst at the border of what it sees, so the part of an object that lies there yields to a tile that sees all
of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .windows import Window

# Two objects of different tiles are one if they share at least this part of the pixels that they could share.
SAME_OBJECT = 0.5
# An object this close to the border of its tile, in parts of the tile's side, is taken to go on beyond it: 4 pixels in
# a tile of 256, which is a cell of the masks before they are resized.
BORDER = 1 / 64


@dataclass
class TileObject:
    """An object as its tile saw it. `box` is in pixels of the photo; `bits` is its mask in this box, packed.

    Packed bits take an eighth of the memory, and they keep it in one piece: small arrays that stay, made between the
    large ones of a tile that are freed, leave the allocator holes that are too small for the arrays of the next tile.
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
        height, width = self.box.size
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=height * width)
        return bits.view(bool).reshape(height, width)

    @property
    def record(self) -> dict[str, Any]:
        """What a segment says of it, without a number."""
        return {"label_id": self.label_id, "label": self.label, "score": self.score, "area": self.area}


def make_tile_object(tile: int, window: Window, segment: dict[str, Any], mask_HW: torch.Tensor) -> TileObject:
    """The object that a segment of a tile shows. Its mask, of the size of the tile's window, must not be empty."""
    rows, columns = mask_HW.any(1).nonzero()[:, 0], mask_HW.any(0).nonzero()[:, 0]
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return TileObject(
        tile,
        segment["label_id"],
        segment["label"],
        segment["score"],
        segment["area"],
        Window(top + window.top, left + window.left, bottom + window.top, right + window.left),
        np.packbits(mask_HW[top:bottom, left:right].numpy()).tobytes(),
    )


def join_objects(objects: Sequence[TileObject], windows: Sequence[Window]) -> list[TileObject]:
    """Makes one object of those that are the same in several tiles; the others stay as they are.

    Two objects of one class and of different tiles are compared where both tiles see. They are the same if their
    intersection over union there is at least `SAME_OBJECT`.
    - The same, and no tile cuts them: the one with the better score stays.
    - One score is less than half of the other: both stay, so that what was hardly found changes nothing else.
    - A fragment goes: an object that its tile cuts, while the other tile sees every pixel of it, and at least
      `SAME_OBJECT` of these pixels lie in the other object.
    - The same otherwise: they are united, those with the best scores first, but never two that one tile tells apart.
    """
    by_tile: list[list[int]] = [[] for _ in windows]
    for index, item in enumerate(objects):
        by_tile[item.tile].append(index)
    cut = [_is_cut(item, windows) for item in objects]
    gone = [False] * len(objects)
    unions: list[tuple[float, float, int, int]] = []
    for first, second in _neighbours(windows, [tile for tile, indices in enumerate(by_tile) if indices]):
        shared = windows[first].intersection(windows[second])
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
    """Pairs of `tiles` that share pixels."""
    pairs = []
    edges = np.array([windows[tile] for tile in tiles]).reshape(-1, 4)
    for place, tile in enumerate(tiles):
        rest = edges[place + 1 :]
        top, left, bottom, right = edges[place]
        overlap = (rest[:, 0] < bottom) & (rest[:, 2] > top) & (rest[:, 1] < right) & (rest[:, 3] > left)
        pairs += [(tile, tiles[place + 1 + other]) for other in overlap.nonzero()[0].tolist()]
    return pairs


def _meeting(objects: Sequence[TileObject], indices: Sequence[int], window: Window) -> tuple[list[int], np.ndarray]:
    """Which of the objects have boxes that meet a window, and their masks in it, (n, pixels of the window) bool."""
    meeting = []
    for index in indices:
        part = objects[index].box.intersection(window)
        if part.top < part.bottom and part.left < part.right:
            meeting.append((index, part))
    masks = np.zeros((len(meeting), *window.size), bool)
    for mask, (index, part) in zip(masks, meeting, strict=True):
        mask[part.slices(window)] = objects[index].mask[part.slices(objects[index].box)]
    return [index for index, _ in meeting], masks.reshape(len(meeting), masks.shape[1] * masks.shape[2])


def _count_common(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pixels that each of n masks shares with each of m: (n, pixels) and (m, pixels) bool to (n, m)."""
    counts = np.zeros((len(ones), len(others)))
    # Products of float32 are exact up to 2^24. A pixel takes four bytes here, so it is some pixels at a time.
    for start in range(0, ones.shape[1], 2**16):
        part = slice(start, start + 2**16)
        counts += ones[:, part].astype(np.float32) @ others[:, part].astype(np.float32).T
    return counts


def _is_cut(item: TileObject, windows: Sequence[Window]) -> bool:
    """Whether an object reaches a border of its tile that is not the border of the photo."""
    window, box = windows[item.tile], item.box
    margin_y, margin_x = (max(1, int(side * BORDER)) for side in window.size)
    height, width = windows[-1].bottom, windows[-1].right
    return (
        (window.top > 0 and box.top < window.top + margin_y)
        or (window.left > 0 and box.left < window.left + margin_x)
        or (window.bottom < height and box.bottom > window.bottom - margin_y)
        or (window.right < width and box.right > window.right - margin_x)
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
    mask = np.zeros(box.size, bool)
    for item in items:
        mask[item.box.slices(box)] |= item.mask
    pixels = sum(item.area for item in items)
    score = sum(item.score * item.area for item in items) / pixels
    return TileObject(
        items[0].tile, items[0].label_id, items[0].label, score, int(mask.sum()), box, np.packbits(mask).tobytes()
    )
