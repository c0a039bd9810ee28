"""YOLO's segmentation labels: one txt an image, one object a line: class x y x y ... in shares of width and height."""

import math
import os
import re
from pathlib import Path
from typing import Any

from ..models.image_files import IMAGE_SUFFIXES, files_in, is_image_file, natural_order
from .fields import Fields, as_number
from .file_finder import Folders, first_file, locate, spellings
from .polygons import Polygons, record
from .problems import ProblemCounter
from .text_files import numbered_lines, read_lines, read_yaml

SPLITS = {"val": "valid", "valid": "val"}
"""Roboflow's data.yaml calls the validation split "val" and its folder "valid"."""


def is_yolo(root: Path, split: str) -> bool:
    """Whether there is a YAML file with names, or a folder of txt labels."""
    if _description(root)[1] is not None:
        return True
    folders = (root / split / "labels", root / "labels" / split)
    return any(files_in(folder, (".txt",)) for folder in folders)


def yolo(root: str | Path, split: str) -> Polygons:
    """A data set in Ultralytics' layout, with masks.

    The classes are `names` of data.yaml (a list, or a mapping of ids to names) or the lines of `classes.txt`. Labels
    lie in `labels/` as their images do in `images/`, or beside them. An image without a txt, or with an empty one, has
    no object. A class that is not named, a line with a box and no outline, and coordinates beyond the image are errors.

    Args:
        root: folder with data.yaml, or with `images/` and `labels/`.
        split: a key of data.yaml ("train", "val"), or a folder: `images/SPLIT` or `SPLIT/images`.
    """
    root = Path(root)
    path, description = _description(root)
    problems = ProblemCounter()
    names = _class_names(root, path, description, problems)
    photos: list[Path] = []
    for place in _places(root, path, description, split):
        photos += files_in(place, IMAGE_SUFFIXES, deep=True) if place.is_dir() else _listed(place, path.parent)
    photos.sort(key=natural_order)
    if not photos:
        raise ValueError(f"split {split!r} of {root} holds no image; expected files ending in {sorted(IMAGE_SUFFIXES)}")
    numbers = {file_id: label for label, file_id in enumerate(names)}
    records, found, listings = [], 0, Folders()
    for photo in photos:
        expected = _labels_path(photo)
        labels = expected if listings.has(str(expected)) else listings.similar(expected)
        entry = record(str(photo), str(labels or expected))
        if labels is not None:
            found += 1
            for number, line in numbered_lines(labels):
                _read_line(line.split(), entry, numbers, f"{labels}, line {number}")
        records.append(entry)
    if not found:
        raise ValueError(
            f"none of the {len(photos)} images of split {split!r} has labels, such as {_labels_path(photos[0])}; "
            "labels/ must lie beside images/"
        )
    return Polygons(records, list(names.values()), shares=True, problems=problems.problems())


def _read_line(fields: list[str], entry: dict[str, Any], numbers: dict[int, int], where: str) -> None:
    try:
        file_id, coordinates = int(fields[0]), [float(field) for field in fields[1:]]
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected class x y x y ... in shares of width and height") from error
    if file_id not in numbers:
        raise ValueError(
            f"{where} has class {file_id}; the classes are {sorted(numbers)}. Add its name, or drop the line"
        )
    if len(coordinates) == 4:
        raise ValueError(
            f"{where} is a box: detection labels have no masks. Export the data for segmentation, where outlines have "
            "three points or more"
        )
    if len(coordinates) < 6 or len(coordinates) % 2:
        raise ValueError(
            f"{where} has {len(coordinates)} coordinates; an outline has an x and a y of three points or more"
        )
    # Coordinates a little beyond the edge are rounded, or of an object that goes on there.
    if min(coordinates) < -0.1 or max(coordinates) > 1.1 or math.isnan(sum(coordinates)):
        value = next(value for value in coordinates if not -0.1 <= value <= 1.1)
        remedy = "" if math.isnan(value) else ": divide x by the width of the photo and y by its height"
        raise ValueError(f"{where} has coordinate {value}; they are shares between 0 and 1{remedy}")
    entry["labels"].append(numbers[file_id])
    entry["polygons"].append([coordinates])
    entry["masks"].append("")


def _labels_path(photo: Path) -> Path:
    """`labels/` in place of the last `images` of the path."""
    parts = list(photo.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _description(root: Path) -> tuple[Path, dict[str, Any] | None]:
    """Path and content of the YAML file that names the classes; None where there is none."""
    paths = [root]
    if not root.is_file():
        paths = sorted(files_in(root, (".yaml", ".yml")), key=lambda path: path.stem != "data")
    for path in paths:
        content = read_yaml(path)
        if isinstance(content, dict) and isinstance(content.get("names"), dict | list):
            return path, content
    return root, None


def _class_names(
    root: Path, path: Path, description: dict[str, Any] | None, problems: ProblemCounter
) -> dict[int, str]:
    """Id in the files -> name, in the order of the ids, which may have gaps."""
    if description is None:
        listed = first_file([root], ["classes.txt"])
        if listed is None:
            raise ValueError(f"{root} has neither a YAML file with `names` nor classes.txt, one class name a line")
        path = listed
    names = read_lines(path) if description is None else description["names"]
    found: dict[int, str] = {}
    for key, name in names.items() if isinstance(names, dict) else enumerate(names):
        number = as_number(key)
        if number is None or number != int(number):
            raise ValueError(f"names in {path} has the key {key!r}; keys are the ids in the labels")
        found[int(number)] = Fields({"name": name}, f"class {key} of {path}", problems).text("name")
    if len(set(found.values())) != len(names):
        raise ValueError(f"{path} names a class twice: {list(found.values())}")
    return dict(sorted(found.items()))


def _places(root: Path, path: Path, description: dict[str, Any] | None, split: str) -> list[Path]:
    """Folders of images, or txt files that list images."""
    if description is not None and split not in description and SPLITS.get(split) in description:
        split = SPLITS[split]
    if description is not None and isinstance(description.get(split), str | list):
        entries = description[split]
        folder = path.parent
        # `path` is often a path of another computer.
        bases = [folder / str(description["path"])] if description.get("path") else []
        places = []
        for entry in [entries] if isinstance(entries, str) else map(str, entries):
            looked = [base / name for base in (*bases, folder) for name in _names_of_place(entry)]
            # Unlike `Path.exists`, it takes any text.
            place = next((place for place in looked if os.path.exists(place)), None)
            if place is None:
                name = entry if entry.isprintable() else repr(entry)
                raise ValueError(f"{path}: {split} is {name}, but there is none of {[str(place) for place in looked]}")
            places.append(place)
        return places
    looked = [root / "images" / split, root / split / "images", root / split]
    for place in looked:
        if place.is_dir():
            return [place]
    keys = [] if description is None else [key for key, value in description.items() if isinstance(value, str | list)]
    raise ValueError(f"{root} has no split {split!r}: looked for {[str(place) for place in looked]} and keys {keys}")


def _names_of_place(entry: str) -> list[str]:
    """What a folder may be called here. Only a path of another computer is cut to its end."""
    slashed = entry.replace("\\", "/")
    if slashed.startswith("/") or re.match("[A-Za-z]:", slashed):
        return list(dict.fromkeys(name for name in spellings(entry) if name))
    # Roboflow writes ../train/images for the folder train/ beside data.yaml.
    return list(dict.fromkeys((slashed, slashed.removeprefix("../"))))


def _listed(path: Path, root: Path) -> list[Path]:
    names = [line for line in read_lines(path) if is_image_file(Path(line.replace("\\", "/")))]
    return [Path(found) for found in locate(names, [path.parent, root], path)] if names else []
