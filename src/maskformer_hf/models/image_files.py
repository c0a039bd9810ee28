"""Which files are images, where they are found, and in which order they follow each other."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What a folder is searched for; a file that is named is opened whatever it is called.
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# What systems leave in folders besides names that begin with a point.
SYSTEM_NAMES = frozenset({"$recycle.bin", "@eadir", "__macosx", "desktop.ini", "icon\r", "thumbs.db"})


def is_hidden(name: str) -> bool:
    """Whether a file or folder is nobody's data: hidden, as macOS' `._a.jpg`, or one that a system has put there."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_image_file(path: Path) -> bool:
    """Whether the name of a file is that of an image, in upper or lower case, and not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path.name)


def natural_order(path: Path) -> tuple[Any, ...]:
    """Key that sorts files by the numbers in their names and folders: 10.jpg comes after 9.jpg."""
    # Text and numbers alternate, beginning with text, so that only like is compared with like.
    parts = [tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)) for name in path.parts]
    return (*parts, (str(path),))


def files_in(folder: Path, suffixes: Sequence[str], deep: bool = False) -> list[Path]:
    """The files that end in one of the suffixes, in any case, in natural order. Hidden and system files are left out.

    Args:
        deep: in folders within, too.
    """
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if deep and not is_hidden(name)]
        found += [Path(place, name) for name in names if name.lower().endswith(tuple(suffixes)) and not is_hidden(name)]
    return sorted(found, key=natural_order)
