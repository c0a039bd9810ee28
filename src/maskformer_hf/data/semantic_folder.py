"""A folder of photos with one PNG of class ids each: `images/`, `labels/`, `classes.txt`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .sample import VOID, Sample, Task

VOID_IDS = (255, 65535)
"""In the files, besides the first id after the last class. Of more than 255 classes one has the id 255."""

VOID_NAMES = frozenset({"void", "unlabelled", "unlabeled", "ignore", "ignored"})
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_UNKNOWN = -2


class SemanticFolder(Dataset[Sample]):
    """Photos and their class-id PNGs, decoded when asked for. A sample has one segment a class, in order of the ids.

    Args:
        root: folder with `images/` and `labels/` (same stems). `classes.txt`, one name a line in the order of the ids,
            is looked for there and one level up, so that the splits of a data set can share it.
        void_classes: names in `classes.txt` that are no class. "void", "unlabelled", "unlabeled" and "ignore" never
            are. The other classes are renumbered without gaps, in order.
        cache: keep decoded photos in memory (7 bytes a pixel): pays where decoding competes with training.

    Besides void classes, ids 255, 65535 and `len(classes.txt)` are void; any other id that names no class is an error.
    """

    def __init__(self, root: str | Path, *, void_classes: Sequence[str] = (), cache: bool = False) -> None:
        self.root = Path(root)
        self.image_paths = sorted(
            path for path in _folder(self.root / "images").iterdir() if path.suffix.lower() in IMAGE_SUFFIXES
        )
        if not self.image_paths:
            raise ValueError(
                f"{self.root / 'images'} holds no image; expected files ending in {sorted(IMAGE_SUFFIXES)}"
            )
        labels = {path.stem: path for path in _folder(self.root / "labels").glob("*.png")}
        missing = [path.name for path in self.image_paths if path.stem not in labels]
        if missing:
            raise ValueError(
                f"{len(missing)} images in {self.root} have no PNG of the same name in labels/, first {missing[0]}"
            )
        self.label_paths = [labels[path.stem] for path in self.image_paths]

        names = _read_class_names(self.root)
        unknown = sorted(set(void_classes) - set(names))
        if unknown:
            raise ValueError(f"void_classes {unknown} are not in classes.txt, which has {names}")
        kept = [name for name in names if name not in void_classes and name.lower() not in VOID_NAMES]
        self.task: Task = "semantic"
        self.id2label: dict[int, str] = dict(enumerate(kept))
        self.label_ids_to_fuse: list[int] = list(self.id2label)
        # File id -> class id; `_UNKNOWN` marks ids that must not occur. 65536 entries: a PNG may be 16-bit.
        self._class_of_id = np.full(65536, _UNKNOWN, dtype=np.int32)
        self._class_of_id[[len(names), *VOID_IDS]] = VOID
        for file_id, name in enumerate(names):
            self._class_of_id[file_id] = kept.index(name) if name in kept else VOID
        self._cache: dict[int, Sample] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.image_paths)

    def __getitem__(self, index: int) -> Sample:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = self._decode(index)
        if self._cache is not None:
            self._cache[index] = sample
        return sample

    def _decode(self, index: int) -> Sample:
        with Image.open(self.image_paths[index]) as photo:
            image_HWC = np.array(photo.convert("RGB"))
        path = self.label_paths[index]
        with Image.open(path) as png:
            ids_HW = np.array(png)
        if ids_HW.ndim != 2:
            raise ValueError(f"{path} has shape {ids_HW.shape}; a map of class ids has one channel (mode L, P or I;16)")
        if ids_HW.shape != image_HWC.shape[:2]:
            raise ValueError(f"{path} is {ids_HW.shape} (height, width), its image is {image_HWC.shape[:2]}")
        classes_HW = self._class_of_id[ids_HW]
        if classes_HW.min() == _UNKNOWN:
            unknown = int(ids_HW[classes_HW == _UNKNOWN][0])
            raise ValueError(
                f"{path} holds id {unknown}, which is neither one of the {len(self.id2label)} classes of classes.txt "
                "nor void; add its name there, or write 255 where there is no class"
            )
        # Class c is segment number 1 + its place among the classes present; the last entry is that of `VOID`.
        present = np.bincount(classes_HW.ravel() + 1)[1:].nonzero()[0]
        segment_of_class = np.full(len(self.id2label) + 1, VOID, dtype=np.int32)
        segment_of_class[present] = np.arange(1, len(present) + 1)
        return {
            "image": tv_tensors.Image(torch.from_numpy(image_HWC).permute(2, 0, 1).contiguous()),
            "planes": tv_tensors.Mask(torch.from_numpy(segment_of_class[classes_HW])[None]),
            "labels": torch.from_numpy(present),
            "is_crowd": torch.zeros(len(present), dtype=torch.bool),
            "name": str(self.image_paths[index]),
        }


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"{path} is no folder; a semantic data set has images/ and labels/")
    return path


def _read_class_names(root: Path) -> list[str]:
    for folder in (root, root.resolve().parent):
        if (folder / "classes.txt").is_file():
            names = [
                line.strip()
                for line in (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
                if line.strip()
            ]
            if len(set(names)) != len(names):
                raise ValueError(f"{folder / 'classes.txt'} names a class twice")
            return names
    raise ValueError(f"no classes.txt in {root} or above it; write one class name a line, in the order of the ids")
