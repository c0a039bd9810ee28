"""labelme's json files: one for each image, with the shapes that were drawn on it."""

import base64
import difflib
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import tv_tensors

from ..models.image_opening import open_image
from .files import decode_image
from .polygons import Polygons, draw, record
from .problems import ProblemCounter
from .run_lengths import FARTHEST
from .sample import VOID

logger = logging.getLogger(__name__)

VOID_LABELS = frozenset({"__ignore__", "void", "ignore", "ignored", "unlabelled", "unlabeled"})
BACKGROUND_LABELS = frozenset({"_background_", "background"})


def is_labelme(root: Path, split: str) -> bool:
    """Whether the first json is labelme's. Only its beginning is read, as a json of another format may be large."""
    for pattern in ("*.json", "*/*.json"):
        if path := next((root / split).glob(pattern), None):
            with path.open(encoding="utf-8", errors="replace") as file:
                return '"shapes"' in file.read(4096)
    return False


class Labelme(Polygons):
    """Outlines of labelme, whose json may hold the image too."""

    def read_image(self, record: dict[str, Any], size: tuple[int, int] | None) -> tv_tensors.Image:
        if record["image"] != record["file"]:
            return super().read_image(record, size)
        content = _read(Path(record["file"]))
        assert content is not None, "it was read before"
        name = f"imageData of {record['file']}"
        return decode_image(base64.b64decode(content["imageData"]), size, upright=True, name=name)


def labelme(root: str | Path, split: str) -> Labelme:
    """The objects in all json files below `root / split`.

    Polygons, rectangles, circles and masks are objects; shapes of one label and one `group_id` are one object. Points
    and lines have no area, and are left out with a warning. So are images without a json, as nobody has looked at them.
    Shapes with the label `__ignore__` (or `void`) are void where no object is; `_background_` is no segment.

    The classes are the lines of `labels.txt` or `classes.txt`, in the split's folder or in root. Without such a file
    they are all labels in all json files below root, sorted, so that splits agree.

    Args:
        root: folder of the splits.
        split: "." if there are none.
    """
    root = Path(root)
    contents = {path: _read(path) for path in sorted(root.rglob("*.json"))}
    found = {path: content for path, content in contents.items() if content is not None}
    chosen = [path for path in found if path.is_relative_to(root / split)]
    if not chosen:
        raise ValueError(f"{root / split} holds no json of labelme, which has `shapes` and `imagePath`")
    source, names = _class_names(root, split, found)
    problems = ProblemCounter()
    records = [_record(path, found[path], names, source, problems) for path in chosen]
    photos = {Path(entry["image"]).name for entry in records}
    for folder in sorted({path.parent for path in chosen}):
        for path in sorted((*folder.glob("*.jpg"), *folder.glob("*.jpeg"), *folder.glob("*.png"))):
            if path.name not in photos:
                problems.add("photo without a json", str(path))
    for what, count, examples in problems.problems():
        logger.warning("left out %d of: %s, first %s", count, what, examples[0])
    return Labelme(records, names, problems=problems.problems())


def _record(
    path: Path, content: dict[str, Any], names: list[str], source: str, problems: ProblemCounter
) -> dict[str, Any]:
    size = None
    if content.get("imageHeight") and content.get("imageWidth"):
        size = (int(content["imageHeight"]), int(content["imageWidth"]))
    image = _photo(path, content)
    entry = record(str(image), str(path), size)
    place_of_group: dict[tuple[str, object], int] = {}
    for number, shape in enumerate(content["shapes"]):
        where = f"{path}, shape {number}"
        try:
            label, kind, points = shape["label"], shape.get("shape_type") or "polygon", shape["points"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{where} is no shape of labelme: {error!r} is missing") from error
        if label.lower() in BACKGROUND_LABELS:
            continue
        if label.lower() not in VOID_LABELS and label not in names:
            close = difflib.get_close_matches(label, names, n=1)
            raise ValueError(
                f"{where} is labelled {label!r}, which is not in {source}; "
                + (f"did you mean {close[0]!r}?" if close else "add a line with it there")
            )
        corners = np.array(points, dtype=float).reshape(-1, 2)
        if not (np.abs(corners) < FARTHEST).all():
            raise ValueError(f"{where} has a point that is no number, or beyond {FARTHEST} pixels; draw it anew")
        polygon, counts = _outline(kind, corners, shape, size, where)
        if polygon is None and not counts:
            problems.add(f"shape of type {kind}, which has no area", where)
            continue
        group = shape.get("group_id")
        place = None if group is None else place_of_group.get((label, group))
        if place is None:
            place_of_group[label, group] = place = len(entry["labels"])
            entry["labels"].append(VOID if label.lower() in VOID_LABELS else names.index(label))
            entry["polygons"].append([])
            entry["masks"].append("")
        if polygon is not None:
            entry["polygons"][place].append(polygon.ravel().tolist())
        if counts and size:
            first = [entry["masks"][place]] if entry["masks"][place] else []
            entry["masks"][place] = draw([], [*first, counts], size).decode("ascii")
    return entry


def _outline(
    kind: str, points: np.ndarray, shape: dict[str, Any], size: tuple[int, int] | None, where: str
) -> tuple[np.ndarray | None, str]:
    """The polygon (points, 2) or the run lengths of a shape; None and "" if it has no area."""
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]]), ""
    if kind == "circle" and len(points) == 2:
        radius = float(np.hypot(*(points[1] - points[0])))
        # The polygon is nowhere more than a tenth of a pixel off the circle.
        corners = max(16, math.ceil(math.pi * math.sqrt(radius / 0.2)))
        angles = np.arange(corners) * (2 * math.pi / corners)
        return points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1), ""
    if kind == "mask":
        return None, _run_lengths(points, shape, size, where)
    if kind in ("polygon", "rectangle", "oriented_rectangle") and len(points) >= 3:
        return points, ""
    return None, ""


def _run_lengths(points: np.ndarray, shape: dict[str, Any], size: tuple[int, int] | None, where: str) -> str:
    """The run lengths of a mask, given as a PNG of its bounding box, whose top left corner is the first point."""
    from pycocotools import mask

    if size is None:
        raise ValueError(f"{where} is a mask, but the json lacks imageHeight and imageWidth")
    try:
        png = open_image(base64.b64decode(shape["mask"]), "its mask", upright=False)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is a mask, but holds no PNG of it: {error}") from error
    inside = np.array(png.convert("L")) > 0
    left, top = (round(value) for value in points[0])
    whole = np.zeros(size, dtype=np.uint8, order="F")
    whole[max(top, 0) : top + inside.shape[0], max(left, 0) : left + inside.shape[1]] = inside[
        max(-top, 0) : max(size[0] - top, 0), max(-left, 0) : max(size[1] - left, 0)
    ]
    return str(mask.encode(whole)["counts"], "ascii")  # pyrefly: ignore[bad-argument-type]


def _photo(path: Path, content: dict[str, Any]) -> Path:
    """The image's path; the path of the json itself if the image is in it."""
    # Paths that were written on Windows have backslashes.
    name = str(content["imagePath"]).replace("\\", "/")
    for photo in (path.parent / name, path.parent / Path(name).name):
        if photo.is_file():
            return photo
    if content.get("imageData"):
        return path
    raise ValueError(
        f"{path} is about {name}, which is neither a file there nor embedded as imageData; put the photo beside it"
    )


def _class_names(root: Path, split: str, found: dict[Path, dict[str, Any]]) -> tuple[str, list[str]]:
    for folder in (root / split, root):
        for name in ("labels.txt", "classes.txt"):
            if (folder / name).is_file():
                lines = (line.strip() for line in (folder / name).read_text(encoding="utf-8").splitlines())
                return str(folder / name), _without_special(line for line in lines if line)
    labels = {str(shape.get("label")) for content in found.values() for shape in content["shapes"]}
    return f"the labels below {root}", _without_special(sorted(labels))


def _without_special(labels: Any) -> list[str]:
    special = VOID_LABELS | BACKGROUND_LABELS
    return list(dict.fromkeys(label for label in labels if label.lower() not in special))


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a json of labelme; None for any other."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid json: {error}") from error
    return content if isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys() else None
