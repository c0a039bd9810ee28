"""Data sets made of others: other classes, another task, several joined, kept in memory."""

import bisect
import difflib
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .sample import VOID, Sample, SegmentationDataset, Task

BACKGROUND = -2
"""In a label map: the segments of this class are left out, and their pixels are known to be no segment."""

Unlabelled = Literal["void", "background"]


class Relabelled(Dataset[Sample]):
    """Another data set with its classes renamed, merged or left out.

    Args:
        label_map: for each class of `dataset` the new one, or `VOID`, or `BACKGROUND`.
        label_ids_to_fuse: new classes whose segments become one segment an image. For "semantic" all do.
        unlabelled: what pixels of no segment become; None leaves them.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        label_map: Sequence[int],
        *,
        id2label: dict[int, str],
        label_ids_to_fuse: list[int],
        task: Task,
        unlabelled: Unlabelled | None = None,
    ) -> None:
        self.dataset = dataset
        self.label_map = torch.tensor(label_map)
        self.id2label = id2label
        self.label_ids_to_fuse = label_ids_to_fuse
        self.task: Task = task
        self.unlabelled = unlabelled
        self.fused = frozenset(id2label if task == "semantic" else label_ids_to_fuse)

    def __getattr__(self, name: str) -> object:
        # What only some readers know, such as `image_paths` and `problems`. Copying asks before there is a dataset.
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        planes_PHW = sample["planes"].as_subclass(torch.Tensor)
        new_labels_N = self.label_map[sample["labels"]].tolist()
        is_crowd_N = sample["is_crowd"].tolist()

        ids, labels, is_crowd = [], [], []
        id_of_fused: dict[int, int] = {}
        for label, crowd in zip(new_labels_N, is_crowd_N, strict=True):
            if label < 0:
                ids.append(VOID if label == VOID else 0)
                continue
            if label not in id_of_fused:
                labels.append(label)
                is_crowd.append(crowd and label not in self.fused)
                ids.append(len(labels))
                if label in self.fused:
                    id_of_fused[label] = len(labels)
            else:
                ids.append(id_of_fused[label])
        if len(labels) < sum(label >= 0 for label in new_labels_N) and len(planes_PHW) > 1:
            # Segments that become one may lie in several planes, and a segment lies in one.
            planes_PHW = _flat(planes_PHW)[None]
        # Entry 0 is no segment, the last one, which index -1 reaches, void.
        lookup = torch.tensor([0, *ids, VOID], dtype=torch.int32)
        planes_PHW = lookup[planes_PHW.long()]
        if VOID in ids and len(planes_PHW) > 1:
            void_HW = (planes_PHW == VOID).any(0) & ~(planes_PHW > 0).any(0)
            planes_PHW[planes_PHW == VOID] = 0
            planes_PHW[0][void_HW] = VOID
        if self.unlabelled == "void":
            planes_PHW[0][(planes_PHW == 0).all(0)] = VOID
        elif self.unlabelled == "background":
            planes_PHW[0][planes_PHW[0] == VOID] = 0
        return {
            "image": sample["image"],
            "planes": tv_tensors.Mask(planes_PHW),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "is_crowd": torch.tensor(is_crowd, dtype=torch.bool),
            "name": sample["name"],
        }


def _flat(planes_PHW: torch.Tensor) -> torch.Tensor:
    flat_HW = planes_PHW[0]
    for plane_HW in planes_PHW[1:]:
        flat_HW = torch.where(plane_HW > 0, plane_HW, flat_HW)
    return flat_HW


def as_task(
    dataset: SegmentationDataset, task: Task | None, unlabelled: Unlabelled | None = None
) -> SegmentationDataset:
    """The same annotations for another task: fewer distinctions are always possible, more are not.

    semantic: the segments of a class become one, crowds among them. instance from panoptic: stuff becomes background.
    panoptic from instance: as none of the stuff is annotated, unlabelled pixels become void unless told otherwise.
    """
    task = task or dataset.task
    if dataset.task == "semantic" != task:
        raise ValueError(
            f"task is {task!r}, but these annotations are semantic, which do not tell objects of a class apart; they "
            "can teach task 'semantic' only"
        )
    names = list(dataset.id2label.values())
    stuff = set(dataset.label_ids_to_fuse)
    if task == "panoptic" and dataset.task == "instance" and unlabelled is None:
        unlabelled = "void"
    if task == dataset.task and unlabelled is None:
        return dataset
    label_map = list(range(len(names)))
    if task == "instance":
        things = [label for label in range(len(names)) if label not in stuff]
        label_map = [BACKGROUND if label in stuff else things.index(label) for label in label_map]
        names = [names[label] for label in things]
        stuff = set()
    elif task == "semantic":
        stuff = set(label_map)
    return Relabelled(
        dataset,
        label_map,
        id2label=dict(enumerate(names)),
        label_ids_to_fuse=sorted(stuff),
        task=task,
        unlabelled=unlabelled,
    )


def regroup(
    dataset: SegmentationDataset,
    class_groups: Literal["supercategory"] | Mapping[str, Sequence[str]] | None,
    void_classes: Sequence[str] = (),
) -> SegmentationDataset:
    """Merges classes to groups, and makes classes void.

    Objects of a group of things stay apart, the stuff of a group becomes one segment.

    Args:
        class_groups: names of the classes of each group; a class in no group becomes void. "supercategory": as the json
            of COCO groups them. None merges nothing.
        void_classes: names of classes that become void.

    Raises ValueError for names that are no class, a class in two groups, and a group of both things and stuff.
    """
    names = list(dataset.id2label.values())
    if class_groups is None:
        groups = {name: [name] for name in names if name not in void_classes}
    elif class_groups == "supercategory":
        groups = {
            group: [name for name in members if name not in void_classes]
            for group, members in _supercategories(dataset).items()
        }
    else:
        groups = {group: list(members) for group, members in class_groups.items()}
    for name in itertools.chain(void_classes, *groups.values()):
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"the classes are {names}"
            raise ValueError(f"{name!r}, in class_groups or void_classes, is no class of the data; {remedy}")
    groups = {group: members for group, members in groups.items() if members}
    stuff = {dataset.id2label[label] for label in dataset.label_ids_to_fuse}
    label_map = [VOID] * len(names)
    fuse = []
    for number, (group, members) in enumerate(groups.items()):
        stuff_members = [name for name in members if name in stuff]
        if stuff_members and len(stuff_members) < len(members) and dataset.task != "semantic":
            things = [name for name in members if name not in stuff]
            raise ValueError(
                f"group {group!r} mixes things ({', '.join(things)}) and stuff ({', '.join(stuff_members)}); make two "
                "groups of them"
            )
        if stuff_members:
            fuse.append(number)
        for name in members:
            if label_map[names.index(name)] != VOID or name in void_classes:
                raise ValueError(f"class {name!r} of group {group!r} is in another group or in void_classes as well")
            label_map[names.index(name)] = number
    if label_map == list(range(len(names))) and list(groups) == names:
        return dataset
    return Relabelled(dataset, label_map, id2label=dict(enumerate(groups)), label_ids_to_fuse=fuse, task=dataset.task)


def _supercategories(dataset: SegmentationDataset) -> dict[str, list[str]]:
    known: dict[str, str] = getattr(dataset, "supercategories", {})
    groups: dict[str, list[str]] = {}
    for name in dataset.id2label.values():
        # "none" is what some exporters write where there is none.
        if known.get(name, "none") in ("", "none"):
            raise ValueError(
                f"class_groups is 'supercategory', but the data names none for class {name!r}; give groups as "
                "{group: [class names]}"
            )
        groups.setdefault(known[name], []).append(name)
    return groups


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
        self.problems = [problem for part in self.parts for problem in getattr(part, "problems", [])]

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

    A photo (the file, whatever the path to it) that an earlier part has is left out of later ones, so that panoptic
    annotations can be completed by instances of more photos. With panoptic parts, instance parts become panoptic: see
    `as_task`. Semantic parts join semantic ones, or with task="semantic" any.
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
    seen: set[str] = set()
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
        kept.append([index for index, file in enumerate(files) if file not in seen])
        seen.update(files)
    return Concatenated(united, kept)


class Cached(Dataset[Sample]):
    """Another data set whose samples are kept once decoded: 3 + 4 P bytes a pixel, in each process that reads it."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset
        self.id2label = dataset.id2label
        self.label_ids_to_fuse = dataset.label_ids_to_fuse
        self.task: Task = dataset.task
        self._samples: dict[int, Sample] = {}

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_samples": {}}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        if index not in self._samples:
            self._samples[index] = self.dataset[index]
        return self._samples[index]
