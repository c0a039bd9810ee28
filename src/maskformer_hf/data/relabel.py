"""Data sets with other classes or for another task than their annotations have."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .sample import VOID, Sample, SegmentationDataset, Task, flat_map

BACKGROUND = -2
"""In a label map: the segments of this class are left out, and their pixels are known to be no segment."""

Unlabelled = Literal["void", "background"]


class Relabelled(Dataset[Sample]):
    """Another data set with its classes renamed, merged or left out.

    Args:
        label_map: for each class of `dataset` the new one, or `VOID`, or `BACKGROUND`.
        label_ids_to_fuse: new classes whose segments become one segment in each image. For "semantic" all classes do.
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
        # What only some readers have, such as `image_paths`. Unpickling asks before there is a `dataset`.
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
            # The segments that become one may lie in several planes, but a segment must lie in one.
            planes_PHW = flat_map(planes_PHW)[None]
        # Entry 0 stands for no segment. The last one, which index -1 reaches, stands for void.
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


def as_task(
    dataset: SegmentationDataset, task: Task | None, unlabelled: Unlabelled | None = None
) -> SegmentationDataset:
    """The same annotations for another task, which may make fewer distinctions but not more.

    - semantic: the segments of a class become one, crowds included.
    - instance from panoptic: stuff becomes background.
    - panoptic from instance: unlabelled pixels become void by default, as none of the stuff is annotated.

    Raises ValueError for a task that semantic annotations cannot teach.
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
    """Merges classes into groups, and makes classes void.

    Objects of a group of things stay apart; the stuff of a group becomes one segment.

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
        # Some exporters write "none" for no supercategory.
        if known.get(name, "none") in ("", "none"):
            raise ValueError(
                f"class_groups is 'supercategory', but the data names none for class {name!r}; give groups as "
                "{group: [class names]}"
            )
        groups.setdefault(known[name], []).append(name)
    return groups
