"""Cityscapes (https://www.cityscapes-dataset.com): `leftImg8bit/` and `gtFine/` as they are unpacked.

Nothing has to be prepared: classes are read from `*_labelIds.png`, objects from `*_instanceIds.png`.
"""

from pathlib import Path

import numpy as np

from ..models.image_files import files_in
from .file_finder import Folders, named
from .id_maps import NOTHING, UNKNOWN, IdMaps, Meaning, class_list
from .sample import VOID, Task

NUM_IDS = 34
"""Ids 0 to 33 in the files. The 19 that are evaluated are in class_names.json, the others are void."""


def is_cityscapes(root: Path, split: str) -> bool:
    return (root / "leftImg8bit" / split).is_dir() and (root / "gtFine" / split).is_dir()


def cityscapes(root: str | Path, split: str, task: Task | None = None) -> IdMaps:
    """Cityscapes' 19 classes (8 of them things, which alone are the classes of `task="instance"`).

    In `*_instanceIds.png` an object is 1000 times its class plus a number. The class of a thing without a number is a
    group of objects that nobody told apart, which is a crowd. Ids that Cityscapes does not evaluate are void.

    Args:
        root: the folder that holds `leftImg8bit/` and `gtFine/`.
        split: "train", "val", or a city such as "val/munster".
        task: "semantic" if None.
    """
    task = task or "semantic"
    kind = "labelIds" if task == "semantic" else "instanceIds"
    root = Path(root)
    photos = files_in(root / "leftImg8bit" / split, ("_leftimg8bit.png",), deep=True)
    if not photos:
        raise ValueError(f"{root / 'leftImg8bit' / split} holds no *_leftImg8bit.png; splits are train, val and test")
    listings = Folders()
    files, missing = [], []
    for photo in photos:
        place = photo.relative_to(root / "leftImg8bit").with_name(photo.name[:-15] + f"gtFine_{kind}.png")
        expected = root / "gtFine" / place
        found = expected if listings.has(str(expected)) else listings.similar(expected)
        if found is None:
            missing.append(expected)
        else:
            files.append((photo, found))
    if missing:
        raise ValueError(f"{len(missing)} photos of {root} have no {kind}, first {named(missing)}; unpack gtFine there")
    classes = [item for item in class_list("cityscapes_19") if task != "instance" or item[1]]
    return IdMaps(
        files,
        _Meaning(task, classes),
        task=task,
        classes=[(name, bool(is_thing)) for name, is_thing, _ in classes],
        known="one of Cityscapes' ids 0 to 33, or 1000 times such an id plus a number",
    )


class _Meaning:
    """The meaning of the ids of a map."""

    def __init__(self, task: Task, classes: list[tuple[str, bool | None, int]]) -> None:
        self.label_of_id = np.full(NUM_IDS, VOID)
        self.is_thing = np.zeros(NUM_IDS, dtype=bool)
        if task == "instance":
            for _, is_thing, source in class_list("cityscapes_19"):
                self.label_of_id[source] = VOID if is_thing else NOTHING
        for label, (_, is_thing, source) in enumerate(classes):
            self.label_of_id[source] = label
            self.is_thing[source] = bool(is_thing) and task != "semantic"

    def __call__(self, values: np.ndarray) -> Meaning:
        is_numbered = values >= 1000
        ids = np.where(is_numbered, values // 1000, values)
        is_known = ids < NUM_IDS
        ids = np.minimum(ids, NUM_IDS - 1)
        labels = np.where(is_known, self.label_of_id[ids], UNKNOWN)
        # Some tools write 255 for the licence plate, whose id is -1.
        labels[values == 255] = VOID
        is_thing = self.is_thing[ids] & is_known
        return Meaning(labels, is_thing & is_numbered, is_thing & ~is_numbered)
