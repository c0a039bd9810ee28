"""Mapillary Vistas (https://www.mapillary.com/dataset/vistas), v1.2 and v2.0, as it is unpacked."""

from pathlib import Path

import numpy as np

from .fields import Fields
from .file_finder import list_images, with_maps
from .id_maps import NOTHING, UNKNOWN, IdMaps, Meaning
from .problems import ProblemCounter
from .sample import VOID, Task
from .text_files import read_json

SPLITS = {"train": "training", "val": "validation"}
VERSIONS = ("v1.2", "v2.0")  # that of the paper comes first


def is_mapillary(root: Path, split: str) -> bool:
    return any((root / name).is_file() for name in _config_names("")) and _annotations(root, split) is not None


def mapillary(root: str | Path, split: str, task: Task | None = None) -> IdMaps:
    """The classes that `config.json` marks as evaluated (v1.2: 65); the others are void.

    Args:
        root: the folder that holds `config.json`, or `config_v1.2.json`, and `training/`, `validation/`.
        split: "training" ("train" will do) or "validation" ("val"). Where a split has both versions of the
            annotations, v1.2 is read, unless the split is called "training/v2.0".
        task: "semantic" if None. Otherwise objects are told apart as in `instances/`, where an object is 256 times its
            class plus a number.
    """
    task = task or "semantic"
    root = Path(root)
    annotations = _annotations(root, split)
    if annotations is None:
        raise ValueError(
            f"{root} has no labels/ for split {split!r}; expected {root / SPLITS.get(split, split) / 'labels'}, or in "
            "v1.2/ or v2.0/ there"
        )
    photos = list_images(root / SPLITS.get(split, split).split("/")[0] / "images")
    folder = annotations / ("labels" if task == "semantic" else "instances")
    config = next(
        (root / name for name in _config_names(annotations.name) if (root / name).is_file()), root / "config.json"
    )
    problems = ProblemCounter()
    described = list(Fields(read_json(config), str(config), problems).objects("labels", "class", "name"))
    if not described:
        raise ValueError(f"{config} lists no classes")
    names = [item.text("readable") for item in described]
    is_evaluated = [item.truth("evaluate") for item in described]
    is_thing = [item.truth("instances") for item in described]
    chosen = [i for i in range(len(names)) if is_evaluated[i] and (is_thing[i] or task != "instance")]
    labels = np.full(len(names), VOID)
    if task == "instance":
        labels[is_evaluated] = NOTHING
    labels[chosen] = np.arange(len(chosen))
    return IdMaps(
        with_maps(photos, folder),
        _Meaning(task, labels, np.array(is_thing)),
        task=task,
        classes=[(names[i], is_thing[i]) for i in chosen],
        known=f"one of the {len(names)} classes of {config.name}",
    )


class _Meaning:
    """The meaning of the ids of a map."""

    def __init__(self, task: Task, labels: np.ndarray, is_thing: np.ndarray) -> None:
        self.labels = labels
        self.is_thing = is_thing
        self.ids_a_class = 1 if task == "semantic" else 256

    def __call__(self, values: np.ndarray) -> Meaning:
        ids = values // self.ids_a_class
        is_known = ids < len(self.labels)
        ids = np.minimum(ids, len(self.labels) - 1)
        is_object = self.is_thing[ids] & (self.ids_a_class > 1)
        return Meaning(np.where(is_known, self.labels[ids], UNKNOWN), is_object, np.zeros(len(values), dtype=bool))


def _annotations(root: Path, split: str) -> Path | None:
    folder = root / SPLITS.get(split, split)
    return next((path for path in (folder, *(folder / name for name in VERSIONS)) if (path / "labels").is_dir()), None)


def _config_names(version: str) -> list[str]:
    return [f"config_{name}.json" for name in VERSIONS if name == version or version not in VERSIONS] + ["config.json"]
