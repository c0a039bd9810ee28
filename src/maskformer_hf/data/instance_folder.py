"""A folder of images with one PNG of object ids each: `images/`, `instances/`."""

from pathlib import Path

import numpy as np

from .file_finder import first_file, list_images, with_maps
from .id_maps import NOTHING, IdMaps, Meaning
from .text_files import read_lines


class InstanceFolder(IdMaps):
    """Images of objects of one class, told apart by the ids in 8- or 16-bit PNGs; 0 is background.

    Args:
        root: folder with `images/` and `instances/` (same stems). The only line of `classes.txt`, there or one level up
            so that splits can share it, is the name of the class. Without that file it is "object".

    Ids may have any order and gaps, and an object may consist of several regions.
    """

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        super().__init__(
            with_maps(list_images(root / "images"), root / "instances"),
            _objects,
            task="instance",
            classes=[(_class_name(root), True)],
            known="an object",
        )


def _objects(ids: np.ndarray) -> Meaning:
    return Meaning(np.where(ids == 0, NOTHING, 0), np.ones(len(ids), dtype=bool), np.zeros(len(ids), dtype=bool))


def _class_name(root: Path) -> str:
    path = first_file((root, root.resolve().parent), ["classes.txt"])
    names = ["object"] if path is None else read_lines(path)
    if len(names) != 1:
        raise ValueError(
            f"{path} names {len(names)} classes, but ids of objects do not say which class they are of; write one "
            "name, or use a COCO json for objects of several classes"
        )
    return names[0]
