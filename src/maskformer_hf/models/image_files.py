"""Which files are images, and in which order they follow each other."""

import re
from pathlib import Path
from typing import Any

# What a folder is searched for; a file that is named is opened whatever it is called.
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def is_image_file(path: Path) -> bool:
    """Whether the name of a file ends like that of an image, in upper or lower case."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def natural_order(path: Path) -> tuple[Any, ...]:
    """Key that sorts files by the numbers in their names: 10.jpg comes after 9.jpg."""
    # Text and numbers alternate, beginning with text, so that only like is compared with like.
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name))
