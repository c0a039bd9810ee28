"""COCO's jsons of instances, and its panoptic jsons with PNGs.

Sizes and coordinates are those of the stored pixels, as in COCO, whatever orientation EXIF tells. `read_image` says
what becomes of images that were annotated turned.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from ..models.image_opening import open_image
from .arrow_cache import arrow_records
from .coco_json import parse_instances, parse_panoptic
from .file_finder import existing_file, located
from .files import read_image
from .reader import RecordReader
from .run_lengths import planes_from_run_lengths
from .sample import VOID, Problem, Sample


class CocoInstances(RecordReader):
    """The instances json of COCO: polygons or run lengths, compressed or not.

    Args:
        json_path: the json. Its categories, in the order of their ids, are the classes; categories of one name are one.
        images: folder that the json's file names count from. If None it is looked for: `images/` next to the json, the
            json's own folder, in both a folder called as the end of the json's name (`train2017/` for
            `instances_train2017.json`), or the same one folder above.

    Attributes:
        records: the Arrow table, one row an image: file_name, height, width, and for each annotation its id, label,
            is_crowd and counts (COCO's compressed run lengths).
        problems: annotations that were left out: they have no segmentation, polygons of less than three points or
            without area, or lie outside the image, or the json does not list their image.

    Images without annotations are samples with no segment. Masks are exactly those of pycocotools.
    """

    def __init__(self, json_path: str | Path, images: str | Path | None = None) -> None:
        self.path = _json_file(json_path)
        records, facts = arrow_records(self.path, "coco_instances", parse_instances)
        records, image_folder = located(records, "file_name", _image_folders(self.path, images), self.path)
        super().__init__(
            records,
            facts["names"],
            task="instance",
            image_column="file_name",
            image_folder=image_folder,
            problems=[Problem(*problem) for problem in facts["problems"]],
            supercategories=facts["supercategories"],
        )
        self.category_ids: list[list[int]] = facts["category_ids"]
        self.is_thing: list[bool | None] = facts["is_thing"]

    def sample(self, record: dict[str, Any]) -> Sample:
        path = os.path.join(self.image_folder, record["file_name"])
        size = (record["height"], record["width"])
        return {
            "image": read_image(path, size),
            "planes": tv_tensors.Mask(torch.from_numpy(planes_from_run_lengths(record["counts"], size))),
            "labels": torch.tensor(record["label"], dtype=torch.int64),
            "is_crowd": torch.tensor(record["is_crowd"], dtype=torch.bool),
            "name": path,
        }


class CocoPanoptic(RecordReader):
    """COCO's panoptic json with one PNG an image, whose pixels are ids of segments: R + 256 G + 65536 B.

    PNGs of one channel (8 or 16 bits) hold the ids as they are. Id 0 is void unless the json lists it as a segment.
    Several segments of one class of stuff become one.

    Args:
        json_path: the json; the categories' `isthing` tells things from stuff.
        images: as in `CocoInstances`.
        pngs: folder of the PNGs; if None the one next to the json that has its name without the suffix.

    Attributes:
        records: the Arrow table, one row an image: file_name, height, width, png, and for each segment its id,
            label and is_crowd.
        problems: images that were left out, as the json has no annotation for them.
    """

    def __init__(self, json_path: str | Path, images: str | Path | None = None, pngs: str | Path | None = None) -> None:
        self.path = _json_file(json_path)
        self.png_folder = self.path.with_suffix("") if pngs is None else Path(pngs)
        records, facts = arrow_records(self.path, "coco_panoptic", parse_panoptic)
        records, png_folder = located(records, "png", [self.png_folder], self.path, "PNGs")
        records, image_folder = located(records, "file_name", _image_folders(self.path, images), self.path)
        self.png_folder = Path(png_folder)
        super().__init__(
            records,
            facts["names"],
            task="panoptic",
            stuff=[label for label, is_thing in enumerate(facts["is_thing"]) if not is_thing],
            image_column="file_name",
            image_folder=image_folder,
            problems=[Problem(*problem) for problem in facts["problems"]],
            supercategories=facts["supercategories"],
        )

    def sample(self, record: dict[str, Any]) -> Sample:
        path = os.path.join(self.image_folder, record["file_name"])
        size = (record["height"], record["width"])
        png = os.path.join(self.png_folder, record["png"])
        ids_HW = _segment_ids(png)
        if ids_HW.shape != size:
            raise ValueError(f"{png} is {ids_HW.shape} (height, width), but {self.path} says {size}")
        # A table of up to 2^24 entries, in which pixels are looked up without a search. The system only makes those of
        # its pages that are touched.
        place_of_id = np.zeros(max(int(ids_HW.max()), *record["segment_id"], 0) + 1, dtype=np.int32)
        place_of_id[0] = VOID
        place_of_id[record["segment_id"]] = np.arange(1, len(record["label"]) + 1)
        places_HW = place_of_id[ids_HW]
        if not places_HW.all():
            unknown = int(ids_HW[places_HW == 0][0])
            raise ValueError(f"{png} has pixels of id {unknown}, which is no segment of this image in {self.path}")
        areas = np.bincount(places_HW.ravel() - VOID, minlength=len(record["label"]) + 2)[2:]
        for place in np.flatnonzero(areas == 0).tolist():
            self.noted.add_once(
                "segment that the json lists and the PNG lacks", f"{png}: id {record['segment_id'][place]}"
            )
        fused = frozenset(self.label_ids_to_fuse)
        first_of_label: dict[int, int] = {}
        # Index `VOID` = -1 reaches the last entry.
        numbers = [0]
        for place, label in enumerate(record["label"], start=1):
            numbers.append(first_of_label.setdefault(label, place) if label in fused else place)
        numbers_HW = np.array([*numbers, VOID], dtype=np.int32)[places_HW]
        return sample_of_numbers(read_image(path, size), numbers_HW, record["label"], record["is_crowd"], path)


def sample_of_numbers(
    image: tv_tensors.Image, numbers_HW: np.ndarray, labels: Sequence[int], is_crowd: Sequence[bool], name: str
) -> Sample:
    """The sample of segments that do not overlap. Drops segments without a pixel and numbers the others anew."""
    present = np.flatnonzero(np.bincount(numbers_HW.ravel() - VOID)[1 - VOID :])
    new_numbers = np.full(len(labels) + 2, VOID, dtype=np.int32)  # index `VOID` = -1 reaches the last entry
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
    png = open_image(path, upright=False)
    pixels = np.array(png.convert("RGB") if png.mode in ("P", "RGBA") else png)
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        pixels = pixels.astype(np.int32)
        return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    if pixels.ndim != 2:
        raise ValueError(f"{path} has shape {pixels.shape}; a panoptic PNG has channels R, G, B, or one of ids")
    return pixels


def _json_file(path: str | Path) -> Path:
    found = existing_file(Path(path))
    if found is None:
        raise ValueError(f"there is no json at {path}")
    return found


def _image_folders(json_path: Path, images: str | Path | None) -> list[Path]:
    """The folders that the json's file names may count from."""
    if images is not None:
        return [Path(images)]
    # instances_train2017.json -> train2017
    end = json_path.stem.split("_", 1)[-1]
    return [
        base / below
        for base in (json_path.parent, json_path.parent.parent)
        for below in ("images", "", end, f"images/{end}")
    ]
