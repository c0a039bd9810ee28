"""Rows of the `datasets` library as samples: maps of ids, lists of objects, or lists of masks.

Shapes: N segments, H W pixels.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision import tv_tensors

from ..models.image_opening import open_image
from .dataset_columns import CATEGORY_KEYS, CROWD_KEYS, SEGMENTATION_KEYS, Columns
from .fields import Fields
from .files import decode_image
from .id_maps import NOTHING, UNKNOWN, Meaning, UnknownIdError, sample_from_ids
from .polygons import sample_from_run_lengths
from .problems import ProblemCounter
from .run_lengths import run_lengths_of
from .sample import VOID, Sample, Task, planes_from_masks

if TYPE_CHECKING:
    from PIL import Image

Row = dict[str, Any]


class Rows:
    """Turns rows into samples.

    Args:
        columns: which columns hold what.
        id2label: the class names by the ids that the rows have, which may have gaps.
        stuff: names of the classes that are stuff.
        void_ids: ids that stand for void, unless they are in `id2label`.

    Attributes:
        names: class names in the order of the labels.
        label_of_category: id of a class in the rows -> label.
    """

    def __init__(
        self,
        columns: Columns,
        *,
        task: Task,
        id2label: Mapping[int, str],
        stuff: Sequence[str],
        void_ids: Sequence[int],
    ) -> None:
        self.columns = columns
        self.task: Task = task
        self.names = [id2label[category] for category in sorted(id2label)]
        self.label_of_category: dict[int, int] = {category: label for label, category in enumerate(sorted(id2label))}
        self.stuff = [label for label, name in enumerate(self.names) if name in stuff or task == "semantic"]
        self.void_ids = frozenset(void_ids) - set(id2label)

    def sample(self, row: Row, name: str) -> Sample:
        """The sample of a row; `name` is what messages call the row."""
        if path := _path(row[self.columns.image]):
            name = f"{name} ({path})"
        image = decode_image(_opened(row[self.columns.image], name), upright=True, name=name)
        label = row[self.columns.label]
        if self.columns.kind == "objects":
            return self._from_objects(image, _list_of_dicts(label), name)
        if self.columns.kind == "masks":
            return self._from_masks(image, label, row[self.columns.classes], name)
        return self._from_ids(image, _array(label, name), row.get(self.columns.classes), name)

    def _label(self, category: int | str | None, name: str) -> int:
        if category in self.void_ids:
            return VOID
        if isinstance(category, str) and category in self.names:
            return self.names.index(category)
        if category not in self.label_of_category:
            raise ValueError(
                f"{name} has class {category!r}, which is neither one of the {len(self.names)} in id2label nor in "
                "void_ids"
            )
        return self.label_of_category[category]

    def _from_ids(self, image: tv_tensors.Image, ids: np.ndarray, segments: Any, name: str) -> Sample:
        if ids.shape[:2] != image.shape[-2:]:
            raise ValueError(f"{name}: the map is {ids.shape[:2]} (height, width), the photo {tuple(image.shape[-2:])}")
        if ids.ndim == 3:
            if segments is None and self.task == "semantic":
                raise ValueError(
                    f"{name}: the map has {ids.shape[2]} channels; a map of class ids has one. If its colours are "
                    "classes, write PNGs and read them with format 'color_folder'"
                )
            red_HW, green_HW, blue_HW = ids.astype(np.int32).transpose(2, 0, 1)
            # With a list of segments the colours are COCO's ids. Without one, red is the class and green numbers the
            # objects, as in the examples of transformers.
            ids_HW = red_HW + 256 * green_HW + 65536 * blue_HW if segments is not None else 256 * red_HW + green_HW
        else:
            if segments is None and self.task != "semantic" and len(self.names) > 1:
                raise ValueError(
                    f"{name}: the map has ids of objects, but no column says of which of the {len(self.names)} "
                    "classes; name one that lists the segments with class_column, or pass an id2label of one class"
                )
            ids_HW = ids
        # Negative ids, such as -100 and -1, are common for what to ignore.
        ignored = int(ids_HW.max(initial=0)) + 1
        if ids_HW.min(initial=0) < 0:
            ids_HW = np.where(ids_HW < 0, ignored, ids_HW)

        def meaning(values: np.ndarray) -> Meaning:
            if segments is not None:
                found = self._meaning_by_segments(values, _list_of_dicts(segments), name)
            elif self.task == "semantic":
                found = self._meaning_by_classes(values, values, np.zeros(len(values), dtype=bool))
            elif ids.ndim == 3:
                found = self._meaning_by_classes(values, values // 256, values % 256 > 0)
            else:
                found = self._meaning_by_classes(values, np.full(len(values), min(self.label_of_category)), values > 0)
            found.labels[values == ignored] = VOID
            return found

        try:
            return sample_from_ids(image, ids_HW, meaning, name)
        except UnknownIdError as error:
            remedy = "segment of its row" if segments is not None else "key of id2label, nor in void_ids"
            raise ValueError(f"{name}: the map holds id {error.args[0]}, which is no {remedy}") from error

    def _meaning_by_segments(self, values: np.ndarray, segments: list[Row], name: str) -> Meaning:
        labels = np.full(len(values), UNKNOWN)
        labels[values == 0] = VOID if self.task == "panoptic" else NOTHING
        is_crowd = np.zeros(len(values), dtype=bool)
        place_of_id = {value: place for place, value in enumerate(values.tolist())}
        for segment in segments:
            place = place_of_id.get(Fields(segment, f"a segment of {name}", ProblemCounter()).integer("id"))
            if place is not None:
                labels[place] = self._label(_first(segment, CATEGORY_KEYS), name)
                is_crowd[place] = _is_crowd(segment, name)
        is_object = ~np.isin(labels, self.stuff)
        return Meaning(labels, is_object, is_crowd & is_object)

    def _meaning_by_classes(self, values: np.ndarray, categories: np.ndarray, is_object: np.ndarray) -> Meaning:
        labels = np.array(
            [
                VOID if category in self.void_ids else self.label_of_category.get(category, UNKNOWN)
                for category in categories.tolist()
            ]
        )
        if self.task == "instance":
            # Pixels of no object are background, whatever class is written there.
            labels[~is_object] = NOTHING
        elif self.task == "panoptic":
            labels[~is_object & (labels >= 0) & ~np.isin(labels, self.stuff)] = VOID
        return Meaning(labels, is_object & (labels >= 0), np.zeros(len(values), dtype=bool))

    def _from_objects(self, image: tv_tensors.Image, objects: list[Row], name: str) -> Sample:
        size = (image.shape[-2], image.shape[-1])
        counts, labels, is_crowd = [], [], []
        for number, item in enumerate(objects):
            where = f"{name}, object {number}"
            encoded = run_lengths_of(_first(item, SEGMENTATION_KEYS), size, where, ProblemCounter())
            if encoded is not None:  # None: the object has no pixel
                counts.append(encoded)
                labels.append(self._label(_first(item, CATEGORY_KEYS), where))
                is_crowd.append(_is_crowd(item, where))
        return sample_from_run_lengths(image, counts, labels, is_crowd, name)

    def _from_masks(self, image: tv_tensors.Image, masks: Any, classes: Any, name: str) -> Sample:
        arrays = [_array(mask, name) for mask in masks]
        if len(arrays) != len(classes):
            raise ValueError(f"{name} has {len(arrays)} masks, but {len(classes)} classes in {self.columns.classes!r}")
        masks_NHW = torch.zeros(len(arrays), *image.shape[-2:], dtype=torch.bool)
        for number, array in enumerate(arrays):
            mask_HW = torch.from_numpy((array if array.ndim == 2 else array.any(2)) > 0)
            if mask_HW.shape != image.shape[-2:]:
                raise ValueError(
                    f"{name}, mask {number} is {tuple(mask_HW.shape)} (height, width), the photo "
                    f"{tuple(image.shape[-2:])}"
                )
            masks_NHW[number] = mask_HW
        labels_N = torch.tensor([self._label(category, name) for category in classes], dtype=torch.int64)
        kept = labels_N != VOID
        planes_PHW = planes_from_masks(masks_NHW[kept])
        planes_PHW[0][masks_NHW[~kept].any(0) & (planes_PHW == 0).all(0)] = VOID
        return {
            "image": image,
            "planes": tv_tensors.Mask(planes_PHW),
            "labels": labels_N[kept],
            "is_crowd": torch.zeros(int(kept.sum()), dtype=torch.bool),
            "name": name,
        }


def _opened(value: Any, name: str) -> "Image.Image":
    """An image as a column of the `datasets` library holds it, decoded or not, upright."""
    import datasets

    if isinstance(value, dict):
        path = value.get("path") or ""
        if value.get("bytes") is not None:
            value = value["bytes"]
        else:  # what is not here, such as a file within an archive, the library has to find
            value = path if os.path.isfile(path) else datasets.Image().decode_example(value)
    return open_image(value, name)


def _path(value: Any) -> str:
    path = value.get("path") if isinstance(value, dict) else None
    return str(path).replace("\\", "/").rsplit("/", 1)[-1] if path else ""


def _array(value: Any, name: str) -> np.ndarray:
    """(H, W), or (H, W, 3) for a map of colours."""
    if isinstance(value, dict) or hasattr(value, "convert"):
        value = _opened(value, name)
        is_colored = len(value.getbands()) > 1
        return np.array(value.convert("RGB") if is_colored else value)
    return np.asarray(value)


def _list_of_dicts(value: Any) -> list[Row]:
    """A list of structs, which may be stored as a struct of lists."""
    if isinstance(value, dict):
        return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    return list(value or [])


def _first(item: Row, keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _is_crowd(item: Row, where: str) -> bool:
    return Fields({"iscrowd": _first(item, CROWD_KEYS)}, where, ProblemCounter()).truth("iscrowd", default=False)
