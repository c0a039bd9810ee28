"""COCO's run lengths: made from polygons, checked, and decoded. They go through a mask column by column."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .fields import as_number, shown
from .outlines import polygons_of
from .problems import ProblemCounter

FARTHEST = 1_000_000
"""The largest coordinate of a polygon, in pixels. pycocotools walks along its edges pixel by pixel, and never ends if a
coordinate is NaN."""

Window = tuple[slice, slice]


def run_lengths_of(segmentation: Any, size: tuple[int, int], where: str, problems: ProblemCounter) -> bytes | None:
    """COCO's compressed run lengths of an annotation; None, with a problem noted, if it marks no pixel."""
    from pycocotools import mask as run_lengths

    if isinstance(segmentation, dict) and segmentation:
        counts = _checked(segmentation, size, where)
    else:
        is_empty = segmentation is None or (isinstance(segmentation, str | dict) and not segmentation)
        polygons = [] if is_empty else polygons_of(segmentation, where, problems)
        if not any(polygons):
            problems.add("annotation without segmentation", where)
            return None
        usable: Any = [polygon for polygon in polygons if _is_usable(polygon, where, problems)]
        if not usable:
            return None
        merged: Any = run_lengths.merge(run_lengths.frPyObjects(usable, *size))
        counts = merged["counts"]
    encoded: Any = {"size": size, "counts": counts}
    if not run_lengths.area(encoded):
        problems.add("annotation that covers no pixel of its image", where)
        return None
    return counts


def planes_from_run_lengths(counts: Sequence[bytes], size: tuple[int, int]) -> np.ndarray:
    """Planes (P, H, W) int32 of masks that may overlap, given as COCO's compressed run lengths; see `Sample`.

    Each mask goes to the first plane with room. Masks are decoded one at a time, so that memory does not grow with
    their number.
    """
    planes = [np.zeros(size, dtype=np.int32)]
    for number, (window, inside) in enumerate(decode_run_lengths(counts, size), start=1):
        for plane_HW in planes:
            if not plane_HW[window][inside].any():
                break
        else:
            plane_HW = np.zeros(size, dtype=np.int32)
            planes.append(plane_HW)
        plane_HW[window][inside] = number
    return np.stack(planes)


def decode_run_lengths(counts: Sequence[bytes], size: tuple[int, int]) -> Iterator[tuple[Window, np.ndarray]]:
    """The bounding box of each mask, and which pixels of that box belong to the mask, (h, w) bool."""
    from pycocotools import mask as run_lengths

    for item in counts:
        encoded: Any = {"size": size, "counts": item}
        x, y, width, height = run_lengths.toBbox(encoded).astype(int).tolist()
        window = (slice(y, y + height), slice(x, x + width))
        yield window, run_lengths.decode(encoded)[window].astype(bool)


def _is_usable(polygon: Sequence[float], where: str, problems: ProblemCounter) -> bool:
    if len(polygon) < 6 or len(polygon) % 2:
        problems.add("polygon of less than three points, or with an odd number of coordinates", where)
    # Whole numbers of json may be too large to be added to others. NaN is neither large nor small.
    elif not (min(polygon) > -FARTHEST and max(polygon) < FARTHEST and math.isfinite(sum(polygon))):
        problems.add(f"polygon with a coordinate that is no number, or beyond {FARTHEST}", where)
    else:
        return True
    return False


def _checked(segmentation: dict[str, Any], size: tuple[int, int], where: str) -> bytes:
    from pycocotools import mask as run_lengths

    if "counts" not in segmentation:
        keys = sorted(map(str, segmentation))
        raise ValueError(f"{where} has a segmentation without counts; its keys are {keys}")
    stated, counts = segmentation.get("size"), segmentation["counts"]
    numbers = tuple(map(as_number, stated)) if isinstance(stated, list | tuple) else ()
    if stated is not None and numbers != size:
        given = f"({', '.join(map(shown, stated))})" if isinstance(stated, list | tuple) else shown(stated)
        raise ValueError(f"{where} has run lengths for {given} (height, width), but its image is {size}")
    if isinstance(counts, str | bytes):
        compressed = counts.encode("utf-8", "replace") if isinstance(counts, str) else counts
        lengths = _decompressed(compressed) if compressed.isascii() else None
    elif isinstance(counts, list | tuple | np.ndarray):
        lengths, compressed = _as_lengths(counts), None
    else:
        raise ValueError(f"{where} has run lengths {shown(counts)}; expected text or a list of numbers")
    # pycocotools does not check this. For missing pixels it returns whatever is in memory.
    if lengths is None or (lengths < 0).any() or lengths.sum() != size[0] * size[1]:
        total = "no valid numbers" if lengths is None else f"a sum of {lengths.sum()}"
        raise ValueError(f"{where} has run lengths with {total}, but its image has {size[0]} x {size[1]} pixels")
    if compressed is None:
        encoded: Any = run_lengths.frPyObjects({"size": list(size), "counts": lengths.tolist()}, *size)
        return encoded["counts"]
    return compressed


def _as_lengths(counts: Iterable[Any]) -> np.ndarray | None:
    """Run lengths as whole numbers; None if one is none, or larger than any image."""
    numbers = [as_number(count) for count in counts]
    if any(number is None or number != int(number) or abs(number) >= 2**31 for number in numbers):
        return None
    return np.array(numbers, dtype=np.int64)


def _decompressed(compressed: bytes) -> np.ndarray | None:
    """Run lengths from COCO's text; None if the text is invalid.

    A character holds six bits, and "0" stands for zero. Five bits belong to a number, the sixth tells that more follow.
    From the fourth number on, each is the difference to the one two before it.
    """
    characters = np.frombuffer(compressed, dtype=np.uint8).astype(np.int64) - 48
    if not len(characters) or characters.min() < 0 or characters.max() > 63 or characters[-1] & 0x20:
        return None
    is_last = (characters & 0x20) == 0
    starts = np.concatenate(([0], np.flatnonzero(is_last)[:-1] + 1))
    lengths = np.diff(np.append(starts, len(characters)))
    if lengths.max() > 7:  # more than 35 bits
        return None
    places = np.arange(len(characters)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((characters & 0x1F) << (5 * places), starts)
    # The last character's highest bit is the sign.
    numbers -= ((characters[is_last] & 0x10) > 0).astype(np.int64) << (5 * lengths)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
