"""DAVIS's folders of videos: one JPEG a frame, and one PNG of object ids.

Shapes: T frames of a clip, N objects, P planes, H W pixels.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .file_finder import folders_in, list_images, with_maps
from .files import read_id_map
from .sample import Problem
from .video import ClipSample, Objects, read_frames, stack_planes

DAVIS_VOID = 255


class DavisFolder:
    """DAVIS's folders: `JPEGImages/VIDEO/*.jpg`, and `Annotations/VIDEO/*.png` of the same names.

    A PNG's palette indices are the objects; 0 is none, and so is 255, DAVIS's void. All objects have one class,
    "object". There may be one folder of a resolution in between, such as `480p/`.

    Args:
        root: folder that holds both.
        names: the videos; all that are annotated if None.
    """

    def __init__(self, root: str | Path, names: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        images, annotations = (_davis_level(self.root / name) for name in ("JPEGImages", "Annotations"))
        chosen = [path.name for path in folders_in(annotations)] if names is None else list(names)
        if not chosen:
            raise ValueError(f"{annotations} holds no folder of a video")
        self.id2label = {0: "object"}
        self.problems: list[Problem] = []
        self.names = chosen
        self.frame_paths: list[list[str]] = []
        self.map_paths: list[list[str]] = []
        for name in chosen:
            files = with_maps(list_images(images / name), annotations / name)
            self.frame_paths.append([str(frame) for frame, _ in files])
            self.map_paths.append([str(path) for _, path in files])
        self._ids: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return os.path.dirname(self.frame_paths[index][0])

    def objects(self, index: int) -> Objects:
        from pycocotools import mask as run_lengths

        ids = self._object_ids(index)
        segmentations: list[list[Any]] = [[] for _ in ids]
        for path in self.map_paths[index]:
            map_HW = read_id_map(path)
            for number, object_id in enumerate(ids):
                mask_HW = map_HW == object_id
                rle = run_lengths.encode(np.asfortranarray(mask_HW.astype(np.uint8))) if mask_HW.any() else None
                segmentations[number].append(rle)
        return Objects([0] * len(ids), [False] * len(ids), segmentations)

    def clip(self, index: int, frames: Sequence[int]) -> ClipSample:
        ids = self._object_ids(index)
        # Ids have 8 bits.
        number_of_id = np.zeros(256, dtype=np.int32)
        number_of_id[ids] = np.arange(1, len(ids) + 1)
        planes = [number_of_id[read_id_map(self.map_paths[index][frame])][None] for frame in frames]
        video = read_frames([self.frame_paths[index][frame] for frame in frames], planes[0].shape[1:])
        return {
            "video": video,
            "planes": stack_planes(planes),
            "labels": torch.zeros(len(ids), dtype=torch.int64),
            "is_crowd": torch.zeros(len(ids), dtype=torch.bool),
            "name": self.name(index),
        }

    def _object_ids(self, index: int) -> list[int]:
        if index not in self._ids:
            found: set[int] = set()
            for path in self.map_paths[index]:
                map_HW = read_id_map(path)
                if map_HW.dtype != np.uint8:
                    raise ValueError(f"{path} has pixels of type {map_HW.dtype}; DAVIS's maps have 8 bits")
                found |= set(np.unique(map_HW).tolist())
            self._ids[index] = sorted(found - {0, DAVIS_VOID})
        return self._ids[index]


def _davis_level(folder: Path) -> Path:
    """The folder that holds the folders of the videos: `folder`, or its only child, which then names a resolution."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    children = folders_in(folder)
    if len(children) == 1 and folders_in(children[0]):
        return children[0]
    return folder
