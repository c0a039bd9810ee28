"""Several data sets joined to one."""

import bisect
import itertools
import os
from collections.abc import Sequence

from torch.utils.data import Dataset

from .relabel import Relabelled, Unlabelled, as_task
from .sample import Problem, Sample, SegmentationDataset, Task


class Concatenated(Dataset[Sample]):
    """Several data sets one after the other; see `concatenate`."""

    def __init__(self, parts: Sequence[SegmentationDataset], kept: Sequence[range | list[int]]) -> None:
        self.parts = list(parts)
        self.kept = list(kept)
        self.ends = list(itertools.accumulate(len(indices) for indices in kept))
        self.id2label = parts[0].id2label
        self.label_ids_to_fuse = parts[0].label_ids_to_fuse
        self.task: Task = parts[0].task
        self.supercategories: dict[str, str] = {}
        for part in reversed(self.parts):
            self.supercategories |= getattr(part, "supercategories", {})

    @property
    def problems(self) -> list[Problem]:
        return [problem for part in self.parts for problem in getattr(part, "problems", [])]

    @property
    def image_paths(self) -> list[str]:
        paths = []
        for part, indices in zip(self.parts, self.kept, strict=True):
            part_paths = getattr(part, "image_paths", None)
            if part_paths is None:
                raise AttributeError("image_paths")
            paths += [part_paths[index] for index in indices]
        return paths

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self.ends, index)
        indices = self.kept[number]
        return self.parts[number][indices[index - self.ends[number] + len(indices)]]


def concatenate(
    parts: Sequence[SegmentationDataset], task: Task | None = None, unlabelled: Unlabelled | None = None
) -> SegmentationDataset:
    """One data set after the other, with the union of their classes, by name, in the order in which they come.

    An image file that an earlier part has, by whatever path, is left out of later parts. So panoptic annotations can
    be completed by instances of more images. With panoptic parts, instance parts become panoptic: see `as_task`.
    Semantic parts join semantic ones, or any with task="semantic".
    """
    if task is None:
        tasks = {part.task for part in parts}
        if "semantic" in tasks and len(tasks) > 1:
            raise ValueError(f"the parts are for tasks {sorted(tasks)}; pass task='semantic' to join them all")
        task = "panoptic" if "panoptic" in tasks else parts[0].task
    parts = [as_task(part, task, unlabelled) for part in parts]
    if len(parts) == 1:
        return parts[0]

    names: list[str] = list(dict.fromkeys(name for part in parts for name in part.id2label.values()))
    stuff = {part.id2label[label] for part in parts for label in part.label_ids_to_fuse}
    things = {name for part in parts for label, name in part.id2label.items() if label not in part.label_ids_to_fuse}
    if task != "semantic" and stuff & things:
        raise ValueError(f"classes {sorted(stuff & things)} are things in one part and stuff in another; rename them")
    id2label = dict(enumerate(names))
    fuse = [label for label, name in id2label.items() if name in stuff]

    united: list[SegmentationDataset] = []
    kept: list[range | list[int]] = []
    earlier_files: set[str] = set()
    for part in parts:
        united.append(
            part
            if part.id2label == id2label and list(part.label_ids_to_fuse) == fuse
            else Relabelled(
                part,
                [names.index(name) for name in part.id2label.values()],
                id2label=id2label,
                label_ids_to_fuse=fuse,
                task=task,
            )
        )
        paths = getattr(part, "image_paths", None)
        if paths is None:
            kept.append(range(len(part)))
            continue
        files = [os.path.realpath(path) for path in paths]
        kept.append([index for index, file in enumerate(files) if file not in earlier_files])
        earlier_files.update(files)
    return Concatenated(united, kept)
