"""labelme's json files: one for each image, with the shapes that were drawn on it."""

import base64
import difflib
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import tv_tensors

from ..models.image_files import IMAGE_SUFFIXES, files_in
from ..models.image_opening import open_image
from .fields import Fields, shown
from .file_finder import Below, Folders, find, first_file, folders_in
from .files import decode_image
from .outlines import polygons_of
from .polygons import Polygons, draw, record
from .problems import ProblemCounter
from .run_lengths import FARTHEST
from .sample import VOID
from .text_files import read_json, read_lines, refuse_utf_16

logger = logging.getLogger(__name__)

VOID_LABELS = frozenset({"__ignore__", "void", "ignore", "ignored", "unlabelled", "unlabeled"})
BACKGROUND_LABELS = frozenset({"_background_", "background"})


def is_labelme(root: Path, split: str) -> bool:
    """Whether the first json is labelme's. Only its beginning is read, as a json of another format may be large."""
    folder = root / split
    for place in (folder, *(folders_in(folder) if folder.is_dir() else ())):
        for path in files_in(place, (".json",))[:1]:
            start = path.open("rb").read(4096)
            refuse_utf_16(path, start[:4])
            return b'"shapes"' in start
    return False


class Labelme(Polygons):
    """Outlines of labelme, whose json may hold the image too."""

    def read_image(self, record: dict[str, Any], size: tuple[int, int] | None) -> tv_tensors.Image:
        if record["image"] != record["file"]:
            return super().read_image(record, size)
        name = f"imageData of {record['file']}"
        try:
            content = base64.b64decode(read_json(record["file"])["imageData"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{name} cannot be read: {error}") from error
        return decode_image(content, size, upright=True, name=name)


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
    problems = ProblemCounter()
    found = _contents(root, problems)
    chosen = [path for path in found if path.is_relative_to(root / split)]
    if not chosen:
        raise ValueError(f"{root / split} holds no json of labelme, which has `shapes` and `imagePath`")
    source, names = _class_names(root, split, found)
    listings, below = Folders(), Below([root])
    records = []
    for path in chosen:
        photo = _photo(path, found[path], listings, below)
        records.append(_record(path, photo, found[path], names, source))
    photos = {Path(entry["image"]).name for entry in records}
    for folder in dict.fromkeys(path.parent for path in chosen):
        for path in files_in(folder, IMAGE_SUFFIXES):
            if path.name not in photos:
                problems.add("photo without a json", str(path))
    for what, count, examples in problems.problems():
        logger.warning("%d x %s, first %s", count, what, examples[0])
    return Labelme(records, names, problems=problems.problems())


def _contents(root: Path, problems: ProblemCounter) -> dict[Path, Fields]:
    """The jsons of labelme below a folder; all others are left out."""
    found = {}
    for path in files_in(root, (".json",), deep=True):
        content = read_json(path)
        if isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys():
            found[path] = Fields(content, str(path), problems)
    return found


def _shapes(content: Fields) -> list[Fields]:
    shapes = enumerate(content.items("shapes"))
    return [Fields(shape, f"{content.where}, shape {number}", content.notes) for number, shape in shapes]


def _record(path: Path, photo: Path, content: Fields, names: list[str], source: str) -> dict[str, Any]:
    height, width = (content.integer(f"image{side}", 1, FARTHEST, default=None) for side in ("Height", "Width"))
    size = (height, width) if height and width else None
    entry = record(str(photo), str(path), size)
    place_of_group: dict[tuple[str, object], int] = {}
    for shape in _shapes(content):
        where = shape.where
        label, kind = shape.text("label"), shape.text("shape_type", default="polygon")
        if label.lower() in BACKGROUND_LABELS:
            continue
        if label.lower() not in VOID_LABELS and label not in names:
            close = difflib.get_close_matches(label, names, n=1)
            raise ValueError(
                f"{where} is labelled {label!r}, which is not in {source}; "
                + (f"did you mean {close[0]!r}?" if close else "add a line with it there")
            )
        polygon, counts = _outline(kind, _corners(shape), shape.value, size, where)
        if polygon is None and not counts:
            content.notes.add(f"shape of type {kind}, which has no area", where)
            continue
        group = shape.identifier("group_id", default=None)
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


def _corners(shape: Fields) -> np.ndarray:
    """The points of a shape, (points, 2)."""
    points = shape.items("points")
    found = polygons_of(points, shape.where, shape.notes)
    if len(found) != 1 or len(found[0]) % 2:
        raise ValueError(f"{shape.where} has points that are no pairs x, y: {shown(points)}; draw it anew")
    # Whole numbers of json may be too large for an array.
    if not all(-FARTHEST < number < FARTHEST for number in found[0]):
        raise ValueError(f"{shape.where} has a point that is no number, or beyond {FARTHEST} pixels; draw it anew")
    return np.array(found[0], dtype=float).reshape(-1, 2)


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

    if size is None or not len(points):
        raise ValueError(f"{where} is a mask, but the json lacks imageHeight, imageWidth or its first point")
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


def _photo(path: Path, content: Fields, listings: Folders, below: Below) -> Path:
    """The image's path; the path of the json itself if the image is in it."""
    is_embedded = bool(content.text("imageData", default=""))
    name = content.text("imagePath", **({"default": ""} if is_embedded else {}))
    found = find(name, [path.parent], listings)
    if found is None and is_embedded:
        return path
    found = found or below.only(name)
    if found is None:
        raise ValueError(
            f"{path} is about {name}, which is neither a file there{below.why_not(name)} nor embedded as "
            "imageData; put the photo beside it"
        )
    return Path(found)


def _class_names(root: Path, split: str, found: dict[Path, Fields]) -> tuple[str, list[str]]:
    path = first_file((root / split, root), ["labels.txt", "classes.txt"])
    if path is not None:
        return str(path), _without_special(read_lines(path))
    labels = {shape.text("label") for content in found.values() for shape in _shapes(content)}
    return f"the labels below {root}", _without_special(sorted(labels))


def _without_special(labels: Any) -> list[str]:
    special = VOID_LABELS | BACKGROUND_LABELS
    return list(dict.fromkeys(label for label in labels if label.lower() not in special))
