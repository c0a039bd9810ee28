"""Windows of a photo that overlap: where they lie, and which part of the photo each of them decides."""

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, NamedTuple


class Window(NamedTuple):
    """Rows top..bottom and columns left..right of a photo, the ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def intersection(self, other: "Window") -> "Window":
        """What both windows cover; where that is nothing, its end lies before its beginning."""
        return Window(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def slices(self, whole: "Window") -> tuple[slice, slice]:
        """Rows and columns of this window in a larger one that covers it."""
        return (
            slice(self.top - whole.top, self.bottom - whole.top),
            slice(self.left - whole.left, self.right - whole.left),
        )


class Tiling(NamedTuple):
    """Side of a tile, and the least overlap of neighbours, in pixels of the photo. Size 0 is no tiles."""

    size: int = 0
    overlap: int = 0

    @classmethod
    def of(cls, processor: Any, tile_size: int | None = None, tile_overlap: int | None = None) -> "Tiling":
        """What is None comes from the processor. A size that is given has an overlap of its own: a quarter of it.

        Raises:
            ValueError: A size below 0, or an overlap below 0 or above half of the size.
        """
        if tile_size is None:
            tile_size = getattr(processor, "tile_size", None) or 0
            tile_overlap = getattr(processor, "tile_overlap", None) if tile_overlap is None else tile_overlap
        if tile_size < 0:
            raise ValueError(f"`tile_size` is {tile_size}: give the side of a tile in pixels, or 0 for no tiles.")
        if tile_overlap is None:
            tile_overlap = tile_size // 4
        if tile_size and not 0 <= 2 * tile_overlap <= tile_size:
            raise ValueError(
                f"`tile_overlap` is {tile_overlap}: it must be 0 to {tile_size // 2}, half of `tile_size`."
            )
        return cls(tile_size, tile_overlap)


def tile_windows(size: tuple[int, int], tile_size: int, overlap: int) -> list[Window]:
    """Windows that cover a photo of `size` (height, width), row by row, all of one size; neighbours share at least
    `overlap` pixels. A side that is not longer than `tile_size` stays whole."""
    tops, lefts = (_starts(length, tile_size, overlap) for length in size)
    height, width = min(size[0], tile_size), min(size[1], tile_size)
    return [Window(top, left, top + height, left + width) for top in tops for left in lefts]


def _starts(length: int, tile_size: int, overlap: int) -> list[int]:
    if length <= tile_size:
        return [0]
    # Each tile after the first covers `tile_size - overlap` pixels more, or fewer, as they are spread evenly.
    count = math.ceil((length - overlap) / (tile_size - overlap))
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
