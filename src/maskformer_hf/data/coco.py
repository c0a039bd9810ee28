"""COCO's jsons of instances, its panoptic jsons with PNGs, and panoptic targets from instances and semantic PNGs.

Sizes and coordinates are those of the stored pixels, as COCO's are, whatever the orientation that EXIF tells; see
`read_photo` for photos that were annotated turned.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .coco_json import parse_instances, parse_panoptic
from .files import missing_files, names_file, read_id_map, read_photo
from .records import arrow_records
from .run_lengths import decode_run_lengths, planes_from_run_lengths
from .sample import VOID, Problem, Sample, Task
from .semantic_folder import VOID_IDS, VOID_NAMES

_UNKNOWN = -2


class CocoInstances(Dataset[Sample]):
    """The instances json of COCO: polygons or run lengths, compressed or not.

    Args:
        json_path: the json. Its categories, in the order of their ids, are the classes; categories of one name are one.
        images: folder that the json's file names count from. If None, found: `images/` next to the json, the json's
            own folder, there a folder called as the end of the json's name, as `train2017/` is for
            `instances_train2017.json`, that below `images/`; or the same one folder above.

    Attributes:
        records: the Arrow table, one row an image: file_name, height, width, and of each annotation its id, label,
            is_crowd and counts (COCO's compressed run lengths).
        problems: annotations left out because they mark no pixel: without segmentation, polygons of less than three
            points or no area, all outside the image, of an image that the json does not list.

    Images without annotations are samples with no segment. Masks are exactly those of pycocotools.
    """

    task: Task = "instance"

    def __init__(self, json_path: str | Path, images: str | Path | None = None) -> None:
        self.path = _json_file(json_path)
        self.records, facts = arrow_records(self.path, "coco_instances", parse_instances)
        self.id2label: dict[int, str] = dict(enumerate(facts["names"]))
        self.label_ids_to_fuse: list[int] = []
        self.supercategories: dict[str, str] = facts["supercategories"]
        self.problems = [Problem(*problem) for problem in facts["problems"]]
        self.category_ids: list[list[int]] = facts["category_ids"]
        self.is_thing: list[bool | None] = facts["is_thing"]
        self.image_folder = _image_folder(self.path, self.records["file_name"][:], images)

    @property
    def image_paths(self) -> list[str]:
        return [os.path.join(self.image_folder, name) for name in self.records["file_name"]]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        path = os.path.join(self.image_folder, record["file_name"])
        size = (record["height"], record["width"])
        return {
            "image": read_photo(path, size),
            "planes": tv_tensors.Mask(torch.from_numpy(planes_from_run_lengths(record["counts"], size))),
            "labels": torch.tensor(record["label"], dtype=torch.int64),
            "is_crowd": torch.tensor(record["is_crowd"], dtype=torch.bool),
            "name": path,
        }


class CocoPanoptic(Dataset[Sample]):
    """COCO's panoptic json with one PNG an image, whose pixels are ids of segments: R + 256 G + 65536 B.

    PNGs of one channel (8 or 16 bits) hold the ids as they are. Id 0 is void unless the json lists it as a segment.
    Several segments of one class of stuff become one.

    Args:
        json_path: the json; the categories' `isthing` tells things from stuff.
        images: as in `CocoInstances`.
        pngs: folder of the PNGs; if None the one next to the json and called as it is, without its suffix.

    Attributes:
        records: the Arrow table, one row an image: file_name, height, width, png, and of each segment its id, label
            and is_crowd.
        problems: images for which the json has no annotation; they are left out, since nothing is known about them.
    """

    task: Task = "panoptic"

    def __init__(self, json_path: str | Path, images: str | Path | None = None, pngs: str | Path | None = None) -> None:
        self.path = _json_file(json_path)
        self.records, facts = arrow_records(self.path, "coco_panoptic", parse_panoptic)
        self.id2label: dict[int, str] = dict(enumerate(facts["names"]))
        self.label_ids_to_fuse: list[int] = [label for label, thing in enumerate(facts["is_thing"]) if not thing]
        self.supercategories: dict[str, str] = facts["supercategories"]
        self.problems = [Problem(*problem) for problem in facts["problems"]]
        self.png_folder = self.path.with_suffix("") if pngs is None else Path(pngs)
        missing = missing_files(os.path.join(self.png_folder, name) for name in self.records["png"])
        if missing:
            raise ValueError(
                f"{len(missing)} of the {len(self.records)} PNGs that {self.path} names are missing, first {missing[0]}"
            )
        self.image_folder = _image_folder(self.path, self.records["file_name"][:], images)

    @property
    def image_paths(self) -> list[str]:
        return [os.path.join(self.image_folder, name) for name in self.records["file_name"]]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        path = os.path.join(self.image_folder, record["file_name"])
        size = (record["height"], record["width"])
        png = os.path.join(self.png_folder, record["png"])
        ids_HW = _segment_ids(png)
        if ids_HW.shape != size:
            raise ValueError(f"{png} is {ids_HW.shape} (height, width), but {self.path} says {size}")
        fused = frozenset(self.label_ids_to_fuse)
        first_of_label: dict[int, int] = {}
        numbers = []
        for position, label in enumerate(record["label"], start=1):
            numbers.append(first_of_label.setdefault(label, position) if label in fused else position)
        # The ids' pages alone are touched, so that this costs no more than a dictionary, and no search a pixel.
        number_of_id = np.zeros(max(int(ids_HW.max()), *record["segment_id"], 0) + 1, dtype=np.int32)
        number_of_id[0] = VOID
        number_of_id[record["segment_id"]] = numbers
        numbers_HW = number_of_id[ids_HW]
        if not numbers_HW.all():
            unknown = int(ids_HW[numbers_HW == 0][0])
            raise ValueError(f"{png} has pixels of id {unknown}, which is no segment of this image in {self.path}")
        return _sample(read_photo(path, size), numbers_HW, record["label"], record["is_crowd"], path)


class CocoInstancesAndStuff(Dataset[Sample]):
    """Panoptic targets from an instances json and semantic PNGs (of the photos' stems), which is what people have.

    Things come from the json and lie on top; of two that overlap, the smaller; crowds below all others. Stuff comes
    from the PNGs. Pixels that a PNG gives to a class of things, and the json to no object, are void: something is
    there, but nobody told its instances apart.

    What an id in the PNGs means is said by `classes.txt` in their folder or one above (one name a line, from id 0; ids
    without a class are called void): names that are categories of the json are things, the others stuff. Without that
    file ids are the json's category ids, whose `isthing` must then tell things from stuff. Ids 255 and 65535, the first
    id after the last line of `classes.txt`, and 0 without such a file are void, unless they name a class.

    Args:
        json_path, images: as in `CocoInstances`.
        semantic: folder of the PNGs, of 8 or 16 bits.

    Classes are the json's things, in the order of their ids, then the stuff.
    """

    task: Task = "panoptic"

    def __init__(self, json_path: str | Path, semantic: str | Path, images: str | Path | None = None) -> None:
        self.instances = CocoInstances(json_path, images)
        self.records = self.instances.records
        self.problems = self.instances.problems
        self.supercategories = self.instances.supercategories
        self.semantic = Path(semantic)
        stems = (os.path.splitext(os.path.basename(path))[0] for path in self.image_paths)
        self.png_paths = [os.path.join(self.semantic, f"{stem}.png") for stem in stems]
        missing = missing_files(self.png_paths)
        if missing:
            raise ValueError(f"{len(missing)} images of {self.instances.path} have no PNG, first {missing[0]}")

        categories = list(self.instances.id2label.values())
        is_thing = self.instances.is_thing
        names_of_ids = _png_class_names(self.semantic)
        void_ids = {*VOID_IDS, 0}
        if names_of_ids is not None:
            void_ids = {*VOID_IDS, len(names_of_ids)}
        elif None in is_thing:
            raise ValueError(
                f"nothing says what the ids in {self.semantic} mean: write a classes.txt there, one name a line from "
                f"id 0, or give every category of {self.instances.path} an isthing of 0 or 1"
            )
        else:
            pairs = zip(categories, self.instances.category_ids, strict=True)
            names_of_ids = {category_id: name for name, ids in pairs for category_id in ids}
        things = [name for name, thing in zip(categories, is_thing, strict=True) if thing is not False]
        stuff = [
            name
            for name in dict.fromkeys([*names_of_ids.values(), *categories])
            if name not in things and name.lower() not in VOID_NAMES
        ]
        names = [*things, *stuff]
        self.id2label: dict[int, str] = dict(enumerate(names))
        self.label_ids_to_fuse: list[int] = list(range(len(things), len(names)))
        self._label_of_category = [names.index(name) for name in categories]
        # Id in a PNG -> class of stuff; 65536 entries: 16 bits.
        self._stuff_of_id = np.full(65536, _UNKNOWN, dtype=np.int32)
        self._stuff_of_id[list(void_ids)] = VOID
        for png_id, name in names_of_ids.items():
            self._stuff_of_id[png_id] = names.index(name) if name in stuff else VOID

    @property
    def image_paths(self) -> list[str]:
        return self.instances.image_paths

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        path = os.path.join(self.instances.image_folder, record["file_name"])
        size = (record["height"], record["width"])
        ids_HW = read_id_map(self.png_paths[index])
        if ids_HW.shape != size:
            raise ValueError(
                f"{self.png_paths[index]} is {ids_HW.shape} (height, width), but {self.instances.path} says {size}"
            )
        stuff_HW = self._stuff_of_id[ids_HW]
        if stuff_HW.min() == _UNKNOWN:
            raise ValueError(
                f"{self.png_paths[index]} has pixels of id {int(ids_HW[stuff_HW == _UNKNOWN][0])}, which is no class; "
                "name it in classes.txt, or write 255 where there is none"
            )
        labels = np.flatnonzero(np.bincount(stuff_HW.ravel() + 1)[1:]).tolist()
        is_crowd = [False] * len(labels)
        number_of_label = np.full(len(self.id2label) + 1, VOID, dtype=np.int32)  # the last entry is that of `VOID`
        number_of_label[labels] = np.arange(1, len(labels) + 1)
        numbers_HW = number_of_label[stuff_HW]

        masks = list(decode_run_lengths(record["counts"], size))
        fused = frozenset(self.label_ids_to_fuse)
        objects = zip(
            [self._label_of_category[label] for label in record["label"]], record["is_crowd"], masks, strict=True
        )
        # Stuff that the json itself has, then crowds, then things from large to small: the last one painted is on top.
        for label, crowd, (window, inside) in sorted(
            objects, key=lambda item: (item[0] not in fused, not item[1], -int(item[2][1].sum()))
        ):
            if label in fused and label in labels:
                numbers_HW[window][inside] = labels.index(label) + 1
                continue
            labels.append(label)
            is_crowd.append(crowd)
            numbers_HW[window][inside] = len(labels)
        return _sample(read_photo(path, size), numbers_HW, labels, is_crowd, path)


def _sample(
    image: tv_tensors.Image, numbers_HW: np.ndarray, labels: Sequence[int], is_crowd: Sequence[bool], name: str
) -> Sample:
    """The sample of segments that do not overlap: those without a pixel are dropped, the others numbered anew."""
    present = np.flatnonzero(np.bincount(numbers_HW.ravel() - VOID)[1 - VOID :])
    new_numbers = np.full(len(labels) + 2, VOID, dtype=np.int32)  # the last entry is that of `VOID`
    new_numbers[0] = 0
    new_numbers[present + 1] = np.arange(1, len(present) + 1)
    return {
        "image": image,
        "planes": tv_tensors.Mask(torch.from_numpy(new_numbers[numbers_HW])[None]),
        "labels": torch.tensor([labels[position] for position in present.tolist()], dtype=torch.int64),
        "is_crowd": torch.tensor([is_crowd[position] for position in present.tolist()], dtype=torch.bool),
        "name": name,
    }


def _segment_ids(path: str) -> np.ndarray:
    """(H, W) ids of a panoptic PNG."""
    with names_file(path), Image.open(path) as png:
        pixels = np.array(png.convert("RGB") if png.mode in ("P", "RGBA") else png)
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        pixels = pixels.astype(np.int32)
        return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    if pixels.ndim != 2:
        raise ValueError(f"{path} has shape {pixels.shape}; a panoptic PNG has channels R, G, B, or one of ids")
    return pixels


def _json_file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no json at {path}")
    return path


def _image_folder(json_path: Path, names: list[str], images: str | Path | None) -> str:
    """The folder that the json's file names count from. Raises ValueError naming the photos that are not there."""
    # instances_train2017.json -> train2017
    end = json_path.stem.split("_", 1)[-1]
    candidates = [
        base / below
        for base in (json_path.parent, json_path.parent.parent)
        for below in ("images", "", end, f"images/{end}")
    ]
    if images is not None:
        candidates = [Path(images)]
    first = names[:20]
    best = max(candidates, key=lambda folder: sum((folder / name).is_file() for name in first))
    missing = missing_files(os.path.join(best, name) for name in names)
    if missing:
        places = ", ".join(str(folder) for folder in candidates)
        raise ValueError(
            f"{len(missing)} of the {len(names)} photos that {json_path} names are missing, first {missing[0]} (looked "
            f"in {places}); put them there, or take them out of the json"
        )
    return str(best)


def _png_class_names(folder: Path) -> dict[int, str] | None:
    for path in (folder / "classes.txt", folder.resolve().parent / "classes.txt"):
        if path.is_file():
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            names = [line for line in lines if line]
            doubles = [name for name, count in Counter(names).items() if count > 1 and name.lower() not in VOID_NAMES]
            if doubles:
                raise ValueError(f"{path} names {doubles} more than once; only void may stand for several ids")
            return dict(enumerate(names))
    return None
