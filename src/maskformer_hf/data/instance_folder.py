"""A folder of photos with one PNG of object ids each: `images/`, `instances/`."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .files import list_images, read_id_map, read_photo
from .sample import Sample, Task


class InstanceFolder(Dataset[Sample]):
    """Photos of objects of one class, told apart by the ids in 8- or 16-bit PNGs; 0 is background.

    Args:
        root: folder with `images/` and `instances/` (same stems). The class is called as the only line of `classes.txt`
            says, there or one level up, so that splits can share it; "object" without that file.

    Ids need neither order nor be without gaps, and an object may consist of several regions.
    """

    task: Task = "instance"

    def __init__(self, root: str | Path) -> None:
        from datasets import Dataset as ArrowDataset

        self.root = Path(root)
        image_paths = list_images(self.root / "images")
        maps = {path.stem: path for path in (self.root / "instances").glob("*.png")}
        missing = [path.name for path in image_paths if path.stem not in maps]
        if missing:
            raise ValueError(
                f"{len(missing)} images in {self.root} have no PNG of the same name in instances/, first {missing[0]}; "
                "an image without objects has a PNG of zeros"
            )
        self.id2label: dict[int, str] = {0: _class_name(self.root)}
        self.label_ids_to_fuse: list[int] = []
        self.records = ArrowDataset.from_dict(
            {
                "image": [str(path) for path in image_paths],
                "instances": [str(maps[path.stem]) for path in image_paths],
            }
        )

    @property
    def image_paths(self) -> list[str]:
        return self.records["image"][:]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        ids_HW = read_id_map(record["instances"])
        image = read_photo(record["image"], size=ids_HW.shape)
        # Not numpy.unique, which sorts all pixels.
        present = np.flatnonzero(np.bincount(ids_HW.ravel()))
        present = present[present > 0]
        segment_of_id = np.zeros(int(ids_HW.max()) + 1, dtype=np.int32)
        segment_of_id[present] = np.arange(1, len(present) + 1)
        return {
            "image": image,
            "planes": tv_tensors.Mask(torch.from_numpy(segment_of_id[ids_HW])[None]),
            "labels": torch.zeros(len(present), dtype=torch.int64),
            "is_crowd": torch.zeros(len(present), dtype=torch.bool),
            "name": record["image"],
        }


def _class_name(root: Path) -> str:
    for folder in (root, root.resolve().parent):
        path = folder / "classes.txt"
        if path.is_file():
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            if len(names) != 1:
                raise ValueError(
                    f"{path} names {len(names)} classes, but ids of objects do not say which class they are of; write "
                    "one name, or use a COCO json for objects of several classes"
                )
            return names[0]
    return "object"
