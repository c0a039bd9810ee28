"""ADE20K: the 150 classes of ADEChallengeData2016, and the 847 of the full data as Detectron2's users prepare it.

Objects and panoptic segments are read from the downloads themselves; no json has to be prepared.
"""

from pathlib import Path

import numpy as np

from .file_finder import list_images, with_maps
from .files import read_id_map, read_image
from .id_maps import NOTHING, UNKNOWN, ClassMeaning, IdMaps, Meaning, class_list
from .sample import VOID, Task

SPLITS = {"train": "training", "val": "validation"}
OBJECT = 1000
"""In the combined map below, an object is 1000 + 256 * category + number; smaller ids are classes."""


def is_ade20k(root: Path, split: str) -> bool:
    """Whether the folders are there, and a name or file of ADE20K, as other data have folders of the same names."""
    split = SPLITS.get(split, split)
    if (root / "images_detectron2" / split).is_dir():
        return _annotations(root, split) is not None
    is_named = "ade" in root.resolve().name.lower() or (root / "objectInfo150.txt").is_file()
    return is_named and (root / "images" / split).is_dir() and _annotations(root, split) is not None


def ade20k(root: str | Path, split: str, task: Task | None = None) -> IdMaps:
    """ADE20K with its 150 classes, or with 847 if the folder is that of the full data.

    - semantic: `annotations/`, where 0 is void and 1 to 150 are the classes; or `annotations_detectron2/`, where 0 to
      149 are the classes and 255 is void. In the full data: `annotations_detectron2/*.tif` (16 bits) with
      `images_detectron2/`, where 0 to 846 are the classes and 65535 is void.
    - instance: the 100 things, from `annotations_instance/`, whose PNGs hold the category in red and the object's
      number in green. All other pixels are background.
    - panoptic: the 50 stuff classes from `annotations/`, and over them the objects from `annotations_instance/`. All
      other pixels are void, such as things that nobody outlined.

    Args:
        root: `ADEChallengeData2016/`, or `ADE20K_2021_17_01/`.
        split: "training" ("train" will do) or "validation" ("val").
        task: "semantic" if None.
    """
    task = task or "semantic"
    root, split = Path(root), SPLITS.get(split, split)
    is_full = (root / "images_detectron2" / split).is_dir()
    if is_full and task != "semantic":
        raise ValueError(f"{root} holds the 847 classes of the full ADE20K, which are semantic; the task is {task!r}")
    annotations = _annotations(root, split)
    if annotations is None:
        raise ValueError(f"{root} has neither annotations/{split} nor annotations_detectron2/{split}")
    photos = list_images(root / ("images_detectron2" if is_full else "images") / split)

    folders = {"semantic": [annotations], "instance": [], "panoptic": [annotations]}[task]
    if task != "semantic":
        folders.append(root / "annotations_instance" / split)
    pairs = [with_maps(photos, folder, (".png", ".tif")) for folder in folders]
    files = [(photo, *(path for _, path in found)) for photo, *found in zip(photos, *pairs, strict=True)]

    starts_at_one = annotations.parent.name == "annotations"
    classes = class_list("ade20k_full_847" if is_full else "ade20k_150")
    if task == "semantic":
        label_of_id = {label + starts_at_one: label for label in range(len(classes))}
        void = 65535 if is_full else 0 if starts_at_one else 255
        return IdMaps(
            files,
            ClassMeaning({**label_of_id, void: VOID}),
            task=task,
            classes=[(name, bool(is_thing)) for name, is_thing, _ in classes],
            known=f"one of the {len(classes)} classes {min(label_of_id)} to {max(label_of_id)}, nor void, {void}",
        )
    chosen = [item for item in classes if item[1] or task == "panoptic"]
    return IdMaps(
        files,
        _Meaning(task, starts_at_one),
        task=task,
        classes=[(name, bool(is_thing)) for name, is_thing, _ in chosen],
        known="one of the 150 classes, or an object of one of the 100 categories",
        read_ids=_read_objects if task == "instance" else _read_classes_and_objects,
    )


class _Meaning:
    """The meaning of the ids of a combined map.

    Category k of `annotations_instance/` is the k-th thing of the 150 classes.
    """

    def __init__(self, task: Task, starts_at_one: bool) -> None:
        classes = class_list("ade20k_150")
        things = [label for label, (_, is_thing, _) in enumerate(classes) if is_thing]
        self.label_of_category = np.array([UNKNOWN, *(range(len(things)) if task == "instance" else things)])
        if task == "instance":
            self.label_of_id = np.array([NOTHING])
        else:
            # A thing that has no outline in annotations_instance/ is void, as in Detectron2's preparation.
            labels = [VOID if is_thing else label for label, (_, is_thing, _) in enumerate(classes)]
            self.label_of_id = np.full(256, UNKNOWN)
            self.label_of_id[: len(labels) + starts_at_one] = [VOID] * starts_at_one + labels
            self.label_of_id[255] = VOID

    def __call__(self, values: np.ndarray) -> Meaning:
        is_object = values >= OBJECT
        category = np.where(is_object, (values - OBJECT) // 256, 0)
        is_known = category < len(self.label_of_category)
        labels = np.where(
            is_object,
            np.where(is_known, self.label_of_category[np.where(is_known, category, 0)], UNKNOWN),
            self.label_of_id[np.where(is_object, 0, values)],
        )
        return Meaning(labels, is_object, np.zeros(len(values), dtype=bool))


def _read_objects(path: str) -> np.ndarray:
    """Category and number of each object as one id (H, W) int32; 0 where there is none."""
    category_HW, number_HW, _ = np.asarray(read_image(path)).astype(np.int32)
    return np.where(number_HW > 0, OBJECT + 256 * category_HW + number_HW, 0)


def _read_classes_and_objects(classes_path: str, objects_path: str) -> np.ndarray:
    classes_HW, objects_HW = read_id_map(classes_path), _read_objects(objects_path)
    if classes_HW.shape != objects_HW.shape:
        raise ValueError(
            f"{classes_path} is {classes_HW.shape} (height, width), {objects_path} is {objects_HW.shape}, but both "
            "belong to one photo"
        )
    return np.where(objects_HW > 0, objects_HW, classes_HW)


def _annotations(root: Path, split: str) -> Path | None:
    names = ("annotations", "annotations_detectron2")
    return next((root / name / split for name in names if (root / name / split).is_dir()), None)
