"""Panoptic targets from COCO's json of instances and semantic PNGs."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ..models.image_files import files_in
from .coco import CocoInstances, sample_of_numbers
from .file_finder import by_stem, first_file, named
from .files import read_id_map, read_image
from .reader import RecordReader
from .run_lengths import decode_run_lengths
from .sample import VOID, Sample
from .semantic_folder import VOID_IDS, VOID_NAMES
from .text_files import read_lines

_UNKNOWN = -2


class CocoInstancesAndStuff(RecordReader):
    """Panoptic targets from an instances json and semantic PNGs (of the images' stems), which is what people have.

    Things come from the json and lie on top. Where two overlap, the smaller one is on top; crowds lie below all
    others. Stuff comes from the PNGs. Pixels that a PNG gives to a class of things, and the json to no object, are
    void: something is there, but nobody told its instances apart.

    `classes.txt` in the folder of the PNGs, or one above, says what their ids mean (one name a line, from id 0; ids
    without a class are called void). Names that are categories of the json are things, the others stuff. Without that
    file ids are the json's category ids, whose `isthing` must then tell things from stuff. Ids 255 and 65535, the first
    id after the last line of `classes.txt`, and 0 without such a file are void, unless they name a class.

    Args:
        json_path, images: as in `CocoInstances`.
        semantic: folder of the PNGs, of 8 or 16 bits.

    Classes are the json's things, in the order of their ids, then the stuff.
    """

    def __init__(self, json_path: str | Path, semantic: str | Path, images: str | Path | None = None) -> None:
        instances = CocoInstances(json_path, images)
        self.path = instances.path
        self.semantic = Path(semantic)
        self._png_of_stem = by_stem(files_in(self.semantic, (".png",)))
        stems = [Path(path).stem for path in instances.image_paths]
        if missing := [self.semantic / f"{stem}.png" for stem in stems if stem not in self._png_of_stem]:
            raise ValueError(f"{len(missing)} images of {self.path} have no PNG, first {named(missing)}")
        categories = list(instances.id2label.values())
        names_of_ids = _png_class_names(self.semantic)
        void_ids = {*VOID_IDS, 0}
        if names_of_ids is not None:
            void_ids = {*VOID_IDS, len(names_of_ids)}
        elif None in instances.is_thing:
            raise ValueError(
                f"nothing says what the ids in {self.semantic} mean: write a classes.txt there, one name a line from "
                f"id 0, or give every category of {self.path} an isthing of 0 or 1"
            )
        else:
            pairs = zip(categories, instances.category_ids, strict=True)
            names_of_ids = {category_id: name for name, ids in pairs for category_id in ids}
            if odd := [item for item in names_of_ids if not isinstance(item, int) or not 0 <= item < 65536]:
                raise ValueError(f"{self.path} has category ids {odd[:3]}, which no PNG in {self.semantic} can hold")
        things = [name for name, thing in zip(categories, instances.is_thing, strict=True) if thing is not False]
        stuff = [
            name
            for name in dict.fromkeys([*names_of_ids.values(), *categories])
            if name not in things and name.lower() not in VOID_NAMES
        ]
        names = [*things, *stuff]
        super().__init__(
            instances.records,
            names,
            task="panoptic",
            stuff=range(len(things), len(names)),
            image_column=instances.image_column,
            image_folder=instances.image_folder,
            problems=instances.problems,
            supercategories=instances.supercategories,
        )
        self._label_of_category = [names.index(name) for name in categories]
        # Id in a PNG -> class of stuff. PNGs have up to 16 bits.
        self._stuff_of_id = np.full(65536, _UNKNOWN, dtype=np.int32)
        self._stuff_of_id[list(void_ids)] = VOID
        for png_id, name in names_of_ids.items():
            self._stuff_of_id[png_id] = names.index(name) if name in stuff else VOID

    def sample(self, record: dict[str, Any]) -> Sample:
        path = os.path.join(self.image_folder, record["file_name"])
        size = (record["height"], record["width"])
        stuff_HW = self._read_stuff(str(self._png_of_stem[Path(path).stem]), size)
        labels = np.flatnonzero(np.bincount(stuff_HW.ravel() + 1)[1:]).tolist()
        is_crowd = [False] * len(labels)
        number_of_label = np.full(
            len(self.id2label) + 1, VOID, dtype=np.int32
        )  # index `VOID` = -1 reaches the last entry
        number_of_label[labels] = np.arange(1, len(labels) + 1)
        numbers_HW = number_of_label[stuff_HW]

        masks = list(decode_run_lengths(record["counts"], size))
        fused = frozenset(self.label_ids_to_fuse)
        objects = zip(
            [self._label_of_category[label] for label in record["label"]], record["is_crowd"], masks, strict=True
        )
        # What is painted last lies on top. First comes the stuff of the json, then crowds, then things from large to
        # small.
        for label, crowd, (window, inside) in sorted(
            objects, key=lambda item: (item[0] not in fused, not item[1], -int(item[2][1].sum()))
        ):
            if label in fused and label in labels:
                numbers_HW[window][inside] = labels.index(label) + 1
                continue
            labels.append(label)
            is_crowd.append(crowd)
            numbers_HW[window][inside] = len(labels)
        return sample_of_numbers(read_image(path, size), numbers_HW, labels, is_crowd, path)

    def _read_stuff(self, png: str, size: tuple[int, int]) -> np.ndarray:
        """The class of stuff of each pixel, (H, W) int32; `VOID` where there is none."""
        ids_HW = read_id_map(png)
        if ids_HW.shape != size:
            raise ValueError(f"{png} is {ids_HW.shape} (height, width), but {self.path} says {size}")
        stuff_HW = self._stuff_of_id[ids_HW]
        if stuff_HW.min() == _UNKNOWN:
            raise ValueError(
                f"{png} has pixels of id {int(ids_HW[stuff_HW == _UNKNOWN][0])}, which is no class; name it in "
                "classes.txt, or write 255 where there is none"
            )
        return stuff_HW


def _png_class_names(folder: Path) -> dict[int, str] | None:
    """Name by id from classes.txt; None without such a file."""
    path = first_file((folder, folder.resolve().parent), ["classes.txt"])
    if path is None:
        return None
    names = read_lines(path)
    repeated = [name for name, count in Counter(names).items() if count > 1 and name.lower() not in VOID_NAMES]
    if repeated:
        raise ValueError(f"{path} names {repeated} more than once; only void may stand for several ids")
    return dict(enumerate(names))
