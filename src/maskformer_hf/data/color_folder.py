"""Images and maps in which colours stand for classes, as CamVid and many drawing tools distribute them."""

import csv
import re
from pathlib import Path

import numpy as np

from .file_finder import existing_file, list_images, with_maps
from .files import read_image
from .id_maps import UNKNOWN, IdMaps, Meaning
from .sample import VOID
from .semantic_folder import VOID_NAMES
from .text_files import read_lines

TABLES = ("class_dict.csv", "classes.txt", "label_colors.txt")


def is_color_folder(root: Path, split: str) -> bool:
    return _color_table(root, split) is not None and _folders(root, split) is not None


def color_folder(root: str | Path, split: str) -> IdMaps:
    """Semantic maps of colours (RGB, or with a palette). A file tells what the colours mean.

    `class_dict.csv` has the columns name, r, g, b. `classes.txt` and `label_colors.txt` have lines "name r g b" or
    "r g b name". The file is looked for in the split's folder and in root. Classes called "void", "unlabelled",
    "unlabeled", "ignore" or "ignored" are void. A colour that is not in the file is an error.

    Args:
        root: folder of the splits.
        split: folder with `images/` and `labels/`; or folder of images beside a folder SPLIT_labels, as in CamVid. Maps
            are called as the images are, with or without "_L" at the end.
    """
    root = Path(root)
    table = _color_table(root, split)
    if table is None:
        raise ValueError(f"{root} has none of {TABLES} with a colour a class, such as a line: road 128 64 128")
    folders = _folders(root, split)
    if folders is None:
        raise ValueError(f"{root / split} has no images/ and labels/, nor is there {root / f'{split}_labels'}")
    path, colors = table
    kept = [name for name in colors if name.lower() not in VOID_NAMES]
    label_of_color = {
        red << 16 | green << 8 | blue: kept.index(name) if name in kept else VOID
        for name, (red, green, blue) in colors.items()
    }
    if len(label_of_color) < len(colors):
        raise ValueError(f"{path} gives one colour to two classes")
    return IdMaps(
        with_maps(list_images(folders[0]), folders[1], ending="_L"),
        _Meaning(label_of_color),
        task="semantic",
        classes=[(name, False) for name in kept],
        known=(
            f"the colour (65536 * red + 256 * green + blue) of a class of {path.name}. Maps that were resized smoothly "
            "or were JPEG once have colours in between, and must be made anew"
        ),
        read_ids=_read_colors,
    )


class _Meaning:
    """The meaning of the colours of a map."""

    def __init__(self, label_of_color: dict[int, int]) -> None:
        self.colors = np.array(sorted(label_of_color))
        self.labels = np.array([label_of_color[color] for color in self.colors])

    def __call__(self, values: np.ndarray) -> Meaning:
        places = np.minimum(np.searchsorted(self.colors, values), len(self.colors) - 1)
        none = np.zeros(len(values), dtype=bool)
        return Meaning(np.where(self.colors[places] == values, self.labels[places], UNKNOWN), none, none)


def _read_colors(path: str) -> np.ndarray:
    red_HW, green_HW, blue_HW = np.asarray(read_image(path)).astype(np.int32)
    return red_HW << 16 | green_HW << 8 | blue_HW


def _folders(root: Path, split: str) -> tuple[Path, Path] | None:
    choices = ((root / split / "images", root / split / "labels"), (root / split, root / f"{split}_labels"))
    return next((pair for pair in choices if all(folder.is_dir() for folder in pair)), None)


def _color_table(root: Path, split: str) -> tuple[Path, dict[str, tuple[int, int, int]]] | None:
    """The file, and name -> colour; None where no file gives colours."""
    for folder in (root / split, root):
        for path in (existing_file(folder / name) for name in TABLES):
            if path is not None and (colors := _read_table(path)):
                return path, colors
    return None


def _read_table(path: Path) -> dict[str, tuple[int, int, int]]:
    colors: dict[str, tuple[int, int, int]] = {}
    lines = read_lines(path)
    if path.suffix.lower() == ".csv":
        rows = list(csv.reader(lines, skipinitialspace=True))[1:]
    else:
        rows = []
        for line in lines:
            if last := re.fullmatch(r"(\S.*?)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\d+)", line):
                rows.append(list(last.groups()))
            elif first := re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S.*?)", line):
                rows.append([first[4], first[1], first[2], first[3]])
            else:
                return {}  # a line without a colour: the table is for maps of ids
    for number, row in enumerate(rows, start=1):
        try:
            name, color = row[0].strip(), (int(row[1]), int(row[2]), int(row[3]))
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}, class {number} is {row}; expected a name and a colour: name, r, g, b") from error
        if not name or not 0 <= min(color) <= max(color) <= 255 or name in colors:
            raise ValueError(f"{path}, class {number} is {row}: names must differ, and colours be of 0 to 255")
        colors[name] = color
    return colors
