"""Images with one map of ids each, for the sources that differ only in what an id means.

Shapes: V different ids in a map, H W pixels.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision import tv_tensors

from .files import read_id_map, read_image
from .reader import RecordReader
from .sample import VOID, Sample, Task

NOTHING = -2
"""The label of an id that is known to be no segment, such as the background of objects."""
UNKNOWN = -3
"""The label of an id that has no meaning, which is an error."""


class Meaning(NamedTuple):
    """The meaning of V ids.

    labels: (V,) int: a class, or `VOID`, `NOTHING`, `UNKNOWN`.
    is_object: (V,) bool: the id is one object. All other ids of a class are one segment together.
    is_crowd: (V,) bool.
    """

    labels: np.ndarray
    is_object: np.ndarray
    is_crowd: np.ndarray


class IdMaps(RecordReader):
    """Images and maps of ids, decoded when asked for. Segments come in order of class, then id.

    Args:
        files: the paths of each image and of its map, or maps.
        meaning: gives for the ids of one map, ascending (V,), what they stand for.
        classes: (name, whether a thing) in the order of the labels.
        read_ids: gives for the path of each map of an image the ids (H, W).
        known: what an id may be, for the message about any other.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, ...]],
        meaning: Callable[[np.ndarray], Meaning],
        *,
        task: Task,
        classes: Sequence[tuple[str, bool]],
        known: str,
        read_ids: Callable[..., np.ndarray] = read_id_map,
    ) -> None:
        from datasets import Dataset as ArrowDataset

        super().__init__(
            ArrowDataset.from_dict(
                {
                    "image": [str(image) for image, *_ in files],
                    "maps": [[str(path) for path in maps] for _, *maps in files],
                }
            ),
            [name for name, _ in classes],
            task=task,
            stuff=[label for label, (_, is_thing) in enumerate(classes) if task == "semantic" or not is_thing],
        )
        self._meaning = meaning
        self._read_ids = read_ids
        self._known = known

    def sample(self, record: dict[str, Any]) -> Sample:
        ids_HW = self._read_ids(*record["maps"])
        image = read_image(record["image"], size=ids_HW.shape)
        try:
            return sample_from_ids(image, ids_HW, self._meaning, record["image"])
        except UnknownIdError as error:
            raise ValueError(f"{record['maps'][0]} holds id {error.args[0]}, which is not {self._known}") from error


class UnknownIdError(ValueError):
    """A map holds an id without a meaning; args[0] is the id."""


def sample_from_ids(
    image: tv_tensors.Image, ids_HW: np.ndarray, meaning: Callable[[np.ndarray], Meaning], name: str
) -> Sample:
    """The sample of a map in which every segment has ids of its own, none below 0."""
    values, positions_HW = _present_ids(ids_HW)
    labels, is_object, is_crowd = meaning(values)
    if (labels == UNKNOWN).any():
        raise UnknownIdError(int(values[labels == UNKNOWN][0]))
    kept = labels >= 0
    # By class, then by id; ids have at most 32 bits.
    keys = (labels[kept].astype(np.int64) << 32) + np.where(is_object[kept], values[kept].astype(np.int64) + 1, 0)
    _, first, segment_of_kept = np.unique(keys, return_index=True, return_inverse=True)
    segment_of_value = np.zeros(len(values), dtype=np.int32)
    segment_of_value[labels == VOID] = VOID
    segment_of_value[kept] = segment_of_kept + 1
    return {
        "image": image,
        "planes": tv_tensors.Mask(torch.from_numpy(segment_of_value[positions_HW])[None]),
        "labels": torch.from_numpy(labels[kept][first].astype(np.int64)),
        "is_crowd": torch.from_numpy(is_crowd[kept][first].astype(bool)),
        "name": name,
    }


class ClassMeaning:
    """The meaning of ids in semantic maps: one segment for each class. Ids that are not in `label_of_id` are `UNKNOWN`.

    Like the other meanings it is a class and no closure, because worker processes can only be sent what can be pickled.
    """

    def __init__(self, label_of_id: dict[int, int]) -> None:
        # The last entry stands for all larger ids.
        self.table = np.full(max(label_of_id) + 2, UNKNOWN)
        self.table[list(label_of_id)] = list(label_of_id.values())

    def __call__(self, values: np.ndarray) -> Meaning:
        none = np.zeros(len(values), dtype=bool)
        return Meaning(self.table[np.minimum(values, len(self.table) - 1)], none, none)


@cache
def class_list(dataset: str) -> tuple[tuple[str, bool | None, int], ...]:
    """Name, whether a thing (None: unknown) and the data set's own id of each class, from class_names.json."""
    lists = json.loads(Path(__file__).parent.with_name("class_names.json").read_text(encoding="utf-8"))
    return tuple((name, None if thing is None else bool(thing), source) for name, thing, source in lists[dataset])


def _present_ids(ids_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids that occur, ascending (V,), and the place of each pixel's among them (H, W)."""
    # There are far fewer runs of equal ids than pixels, which would take long to sort.
    ids = ids_HW.ravel()
    starts = np.flatnonzero(np.concatenate((np.ones(min(1, len(ids)), dtype=bool), ids[1:] != ids[:-1])))
    values, positions = np.unique(ids[starts], return_inverse=True)
    return values.astype(np.int64), np.repeat(positions, np.diff(starts, append=len(ids))).reshape(ids_HW.shape)
