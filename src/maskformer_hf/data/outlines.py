"""Polygons in all the ways in which jsons nest them."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .fields import as_number, shown
from .problems import ProblemCounter

DEEPEST = 6


def polygons_of(outline: Any, where: str, notes: ProblemCounter) -> list[list[float]]:
    """The polygons of an object, each x, y, x, y, ...; all of them together are the object.

    A polygon may be a flat list, or a list of pairs or of {"x": ..., "y": ...}. It may be the only one or in a list
    of several, with further lists around them. All of it, or single numbers, may be text.

    Raises ValueError that says what is there instead, and for rings within rings, which may be holes.
    """
    if isinstance(outline, str):
        notes.add("outline that is text, and was taken for what it says", where)
        outline = _parsed(outline, where)
    return list(_polygons(outline, where, notes, 0))


def _polygons(value: Any, where: str, notes: ProblemCounter, depth: int) -> Iterator[list[float]]:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} has {shown(value)} in its outline; expected polygons, lists of x, y, x, y, ...")
    if depth > DEEPEST:
        raise ValueError(f"{where} has an outline of lists in lists, more than {DEEPEST} deep; expected polygons")
    if set(map(type, value)) <= {int, float}:
        yield list(value)
    elif points := _points(value):
        yield [_coordinate(number, where, notes) for point in points for number in point]
    elif not any(isinstance(item, list | tuple | np.ndarray) for item in value):
        yield [_coordinate(item, where, notes) for item in value]
    else:
        rings = [_points(item) for item in value]
        if all(rings) and any(_is_inside(ring[0], rings[0]) for ring in rings[1:]):
            raise ValueError(
                f"{where} has a polygon of {len(rings)} rings, one within another, which may be a hole or not; write "
                "run lengths, or an outline without holes"
            )
        for item in value:
            yield from _polygons(item, where, notes, depth + 1)


def _points(value: Any) -> list[Sequence[Any]]:
    """The points of a list of pairs or of {"x", "y"}; empty if it is none."""
    points: list[Sequence[Any]] = []
    for item in value if isinstance(value, list | tuple) else ():
        point = [item.get("x"), item.get("y")] if isinstance(item, dict) else item
        if not isinstance(point, list | tuple) or len(point) != 2:
            return []
        if not all(isinstance(number, float) or as_number(number) is not None for number in point):
            return []
        points.append(point)
    return points


def _coordinate(value: Any, where: str, notes: ProblemCounter) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    number = as_number(value)
    if number is None:
        raise ValueError(f"{where} has {shown(value)} in its outline, where a coordinate is expected")
    notes.add("coordinate that is text, and was taken for what it says", where)
    return number


def _is_inside(point: Sequence[Any], ring: list[Sequence[Any]]) -> bool:
    """Whether a point lies within a ring, by the number of its edges to the right."""
    x, y = map(as_number, point)
    corners = [(as_number(x), as_number(y)) for x, y in ring]
    if x is None or y is None or any(None in corner for corner in corners):
        return False
    crossed = 0
    edges: Any = zip(corners, corners[1:] + corners[:1], strict=True)
    for (left, top), (right, bottom) in edges:
        if (top > y) != (bottom > y):
            crossed += x < left + (y - top) / (bottom - top) * (right - left)
    return crossed % 2 == 1


def _parsed(text: str, where: str) -> Any:
    """What a text says: json, or numbers with spaces, commas or semicolons between."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = [as_number(item) for item in text.replace(",", " ").replace(";", " ").split()]
    if not isinstance(found, list) or None in found:
        raise ValueError(f"{where} has the text {shown(text)} as its outline, which is no list of polygons")
    return found
