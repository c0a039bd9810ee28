"""Any data set of the `datasets` library with photos and masks, read or streamed.

Shapes: N segments, H W pixels.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .id_maps import NOTHING, UNKNOWN, Meaning, UnknownIdError, sample_from_ids
from .polygons import sample_from_run_lengths
from .records import ProblemCounter
from .run_lengths import run_lengths_of
from .sample import VOID, Sample, SegmentationDataset, Task, planes_from_masks
from .views import as_task

if TYPE_CHECKING:
    import datasets
    from PIL import Image

Kind = Literal["ids", "objects", "masks"]
Row = dict[str, Any]

# Names by which a column is chosen where the types of several would do, and the keys of what is within columns.
IMAGE_NAMES = ("image", "img", "photo", "picture", "pixel_values")
LABEL_NAMES = (
    *("label", "labels", "annotation", "annotations", "mask", "masks", "segmentation", "segmentation_map"),
    *("semantic_segmentation", "seg_map", "label_map", "objects", "panoptic", "panoptic_map", "instances"),
)
SEGMENTATION_KEYS = ("segmentation", "segmentations", "polygon", "polygons", "rle")
CATEGORY_KEYS = ("category_id", "category", "category_ids", "categories", "class_id", "class", "label_id", "label")
CLASS_NAMES = ("segments_info", "labels", "classes", "class_labels", *CATEGORY_KEYS)
CROWD_KEYS = ("iscrowd", "is_crowd")


class Rows:
    """Turns rows into samples.

    columns: names of the columns of the photo, of the masks, and of the classes ("" if these are with the masks).
    names: class names; label_of_category: what the rows have for a class -> label.
    """

    def __init__(
        self,
        kind: Kind,
        columns: tuple[str, str, str],
        *,
        task: Task,
        id2label: Mapping[int, str],
        stuff: Sequence[str],
        void_ids: Sequence[int],
    ) -> None:
        self.kind: Kind = kind
        self.image_column, self.label_column, self.class_column = columns
        self.task: Task = task
        self.names = [id2label[category] for category in sorted(id2label)]
        self.label_of_category: dict[int, int] = {category: label for label, category in enumerate(sorted(id2label))}
        self.stuff = [label for label, name in enumerate(self.names) if name in stuff or task == "semantic"]
        self.void_ids = frozenset(void_ids) - set(id2label)

    def sample(self, row: Row, name: str) -> Sample:
        photo = _opened(row[self.image_column])
        if path := _path(row[self.image_column]):
            name = f"{name} ({path})"
        image_HWC = np.array(photo.convert("RGB"))
        image = tv_tensors.Image(torch.from_numpy(image_HWC).permute(2, 0, 1).contiguous())
        label = row[self.label_column]
        if self.kind == "objects":
            return self._from_objects(image, _list_of_dicts(label), name)
        if self.kind == "masks":
            return self._from_masks(image, label, row[self.class_column], name)
        return self._from_ids(image, _array(label), row.get(self.class_column), name)

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
            # As COCO's panoptic PNGs; and, without a list of segments, class and number of transformers' examples.
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
                found = self._of_segments(values, _list_of_dicts(segments), name)
            elif self.task == "semantic":
                found = self._of_classes(values, values, np.zeros(len(values), dtype=bool))
            elif ids.ndim == 3:
                found = self._of_classes(values, values // 256, values % 256 > 0)
            else:
                found = self._of_classes(values, np.full(len(values), min(self.label_of_category)), values > 0)
            found.labels[values == ignored] = VOID
            return found

        try:
            return sample_from_ids(image, ids_HW, meaning, name)
        except UnknownIdError as error:
            remedy = "segment of its row" if segments is not None else "key of id2label, nor in void_ids"
            raise ValueError(f"{name}: the map holds id {error.args[0]}, which is no {remedy}") from error

    def _of_segments(self, values: np.ndarray, segments: list[Row], name: str) -> Meaning:
        labels = np.full(len(values), UNKNOWN)
        labels[values == 0] = VOID if self.task == "panoptic" else NOTHING
        is_crowd = np.zeros(len(values), dtype=bool)
        place_of_id = {value: place for place, value in enumerate(values.tolist())}
        for segment in segments:
            place = place_of_id.get(segment["id"])
            if place is not None:
                labels[place] = self._label(_first(segment, CATEGORY_KEYS), name)
                is_crowd[place] = bool(_first(segment, CROWD_KEYS))
        is_object = ~np.isin(labels, self.stuff)
        return Meaning(labels, is_object, is_crowd & is_object)

    def _of_classes(self, values: np.ndarray, categories: np.ndarray, is_object: np.ndarray) -> Meaning:
        labels = np.array(
            [
                VOID if category in self.void_ids else self.label_of_category.get(category, UNKNOWN)
                for category in categories.tolist()
            ]
        )
        if self.task == "instance":
            # What no object covers, whatever class is written there.
            labels[~is_object] = NOTHING
        elif self.task == "panoptic":
            labels[~is_object & (labels >= 0) & ~np.isin(labels, self.stuff)] = VOID
        return Meaning(labels, is_object & (labels >= 0), np.zeros(len(values), dtype=bool))

    def _from_objects(self, image: tv_tensors.Image, objects: list[Row], name: str) -> Sample:
        size = (image.shape[-2], image.shape[-1])
        counts, labels, is_crowd = [], [], []
        for number, item in enumerate(objects):
            where = f"{name}, object {number}"
            encoded = run_lengths_of(_segmentation(_first(item, SEGMENTATION_KEYS)), size, where, ProblemCounter())
            if encoded is not None:  # of an object without a pixel
                counts.append(encoded)
                labels.append(self._label(_first(item, CATEGORY_KEYS), where))
                is_crowd.append(bool(_first(item, CROWD_KEYS)))
        return sample_from_run_lengths(image, counts, labels, is_crowd, name)

    def _from_masks(self, image: tv_tensors.Image, masks: Any, classes: Any, name: str) -> Sample:
        arrays = [_array(mask) for mask in masks]
        if len(arrays) != len(classes):
            raise ValueError(f"{name} has {len(arrays)} masks, but {len(classes)} classes in {self.class_column!r}")
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


class DatasetsReader(Dataset[Sample]):
    """The samples of a `datasets.Dataset`."""

    def __init__(self, table: "datasets.Dataset", rows: Rows) -> None:
        self.table = table
        self.rows = rows
        self.task: Task = rows.task
        self.id2label: dict[int, str] = dict(enumerate(rows.names))
        self.label_ids_to_fuse: list[int] = rows.stuff

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        return self.rows.sample(self.table[index], f"row {index}")


class StreamedReader(Dataset[Sample]):
    """The samples of a `datasets.IterableDataset`, which has neither length nor places; training reads it through
    `streamed_loader`. Indexed with (number, row) it makes the sample of a row of `table`."""

    def __init__(self, table: "datasets.IterableDataset", rows: Rows) -> None:
        self.table = table
        self.rows = rows
        self.task: Task = rows.task
        self.id2label: dict[int, str] = dict(enumerate(rows.names))
        self.label_ids_to_fuse: list[int] = rows.stuff

    def __len__(self) -> int:
        raise TypeError(
            "a stream has no length; to evaluate or check streamed data, take some of it: "
            "maskformer_hf.data.FirstRows(dataset, 100)"
        )

    def __getitem__(self, index: Any) -> Sample:
        number, row = index
        return self.rows.sample(row, f"streamed row {number}")

    def __iter__(self) -> Iterator[Sample]:
        return (self[item] for item in enumerate(self.table))


def from_datasets(
    dataset: "datasets.Dataset | datasets.IterableDataset",
    image_column: str = "auto",
    label_column: str = "auto",
    *,
    class_column: str = "auto",
    task: Task | None = None,
    id2label: Mapping[int, str] | None = None,
    stuff_classes: Sequence[str] = (),
    void_ids: Sequence[int] = (255,),
) -> SegmentationDataset:
    """Photos and masks of a `datasets.Dataset`, or of an `IterableDataset` (streamed), as samples.

    What the label column may hold:
    - a map of class ids (an image or an array): semantic;
    - a map of segment ids, with a column that lists the segments of each row ({id, category_id, iscrowd}, as COCO's
      `segments_info`): panoptic, or instance if asked for. A map of three channels is red + 256 green + 65536 blue; id
      0 is no segment;
    - a map whose red is the class and whose green numbers the objects from 1, as the examples of transformers have it:
      if task is "instance" or "panoptic" and no column lists segments;
    - COCO's annotations, a list of {segmentation, category_id, iscrowd}: instance;
    - a list of masks, with a column of their classes: instance.

    Args:
        image_column, label_column, class_column: found by their types, then by their names, unless given.
        task: as above if None. Another one is made of these as `as_task` says.
        id2label: names of the ids in the data, which may have gaps. None if the classes are of type `ClassLabel`.
        stuff_classes: names of the classes that are not counted, for panoptic data.
        void_ids: classes of which nothing is to be learned, unless they are in `id2label`. So are negative ids in maps.

    Raises ValueError that lists the columns if it is not clear which one is meant.
    """
    import datasets

    features = dataset.features
    if features is None:
        # A stream after `map` does not know them; a row tells.
        features = datasets.Dataset.from_list(cast("list[Row]", list(dataset.take(1)))).features
        dataset = dataset.cast(features)
    image_column = _image_column(features, image_column, label_column)
    label_column, kind = _label_column(features, image_column, label_column)
    class_column = _class_column(features, kind, label_column, class_column)
    natural: Task = "instance"
    if kind == "ids" and class_column:
        natural = "instance" if task == "instance" else "panoptic"
    elif kind == "ids":
        natural = task or "semantic"
    names = id2label if id2label is not None else _names_of(features, kind, label_column, class_column)
    absent = sorted(set(stuff_classes) - set(names.values()))
    if absent:
        raise ValueError(f"stuff_classes {absent} are not among the classes {sorted(names.values())}")
    rows = Rows(
        kind,
        (image_column, label_column, class_column),
        task=natural,
        id2label={int(category): name for category, name in names.items()},
        stuff=stuff_classes,
        void_ids=void_ids,
    )
    used = [column for column in (image_column, label_column, class_column) if column]
    table = dataset.select_columns(used)
    for column in used:
        table = table.cast_column(column, _undecoded(features[column]))
    if isinstance(dataset, datasets.IterableDataset):
        return as_task(StreamedReader(cast("datasets.IterableDataset", table), rows), task)
    return as_task(DatasetsReader(cast("datasets.Dataset", table), rows), task)


DATASETS_OPTIONS = ("image_column", "label_column", "class_column", "id2label", "stuff_classes", "void_ids")
"""Arguments of `from_datasets` that `open_datasets` hands on."""


def open_datasets(
    root: str | Path, split: str, task: Task | None = None, *, streaming: bool = False, **options: Any
) -> SegmentationDataset:
    """What `save_to_disk` wrote to a folder, or `load_dataset` finds under a name: of the Hub, or of a folder.

    Columns are found by their types. Class names that the columns do not have are read from `id2label.json`, next to
    the data or in the Hub's repository: {"0": "road", ...}.

    Args:
        options: See `from_datasets`; they are `DATASETS_OPTIONS`.
    """
    import datasets

    root = Path(root)
    is_saved = any((root / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if is_saved:
        loaded = datasets.load_from_disk(str(root))
        if isinstance(loaded, datasets.DatasetDict):
            if split not in loaded:
                raise ValueError(f"{root} has no split {split!r}; there are {list(loaded)}")
            loaded = loaded[split]
        if streaming:
            loaded = loaded.to_iterable_dataset()
    else:
        try:
            loaded = datasets.load_dataset(str(root), split=split, streaming=streaming)
        except (OSError, ValueError) as error:
            raise ValueError(f"the library datasets cannot open split {split!r} of {root}: {error}") from error
    if options.get("id2label") is None:
        options["id2label"] = _id2label_file(root)
    return from_datasets(loaded, task=task, **options)


def _id2label_file(root: Path) -> dict[int, str] | None:
    path = root / "id2label.json"
    if not root.is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            path = Path(hf_hub_download(str(root), path.name, repo_type="dataset"))
        except EntryNotFoundError:
            return None
    if not path.is_file():
        return None
    try:
        return {int(category): str(name) for category, name in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f'{path} is not of the form {{"0": "name", ...}}: {error}') from error


def _image_column(features: Mapping[str, Any], given: str, label_column: str) -> str:
    import datasets

    if given != "auto":
        return _existing(features, given)
    fitting = [name for name, kind in features.items() if isinstance(kind, datasets.Image) and name != label_column]
    return _only(features, fitting, IMAGE_NAMES, "photos", "image_column")


def _label_column(features: Mapping[str, Any], image_column: str, given: str) -> tuple[str, Kind]:
    if given != "auto":
        kind = _kind(features[_existing(features, given)], asked_for=True)
        if kind is None:
            raise ValueError(f"column {given!r} is {features[given]}, which is neither a map nor masks nor outlines")
        return given, kind
    kinds = {name: _kind(feature) for name, feature in features.items() if name != image_column}
    fitting = [name for name, kind in kinds.items() if kind is not None]
    name = _only(features, fitting, LABEL_NAMES, "masks", "label_column")
    kind = kinds[name]
    assert kind is not None, "only such columns fit"
    return name, kind


def _kind(feature: Any, asked_for: bool = False) -> Kind | None:
    import datasets

    if isinstance(feature, datasets.Image | datasets.Array2D):
        return "ids"
    if isinstance(feature, datasets.Array3D) or isinstance(_inner(feature), datasets.Image):
        return "masks"
    if any(key in SEGMENTATION_KEYS for key in _keys(feature)):
        return "objects"
    if asked_for and isinstance(_inner(_inner(feature)), datasets.Value):
        return "ids"  # lists of lists of numbers, which might as well be boxes
    return None


def _class_column(features: Mapping[str, Any], kind: Kind, label_column: str, given: str) -> str:
    import datasets

    if kind == "objects":
        return ""
    if given != "auto":
        return _existing(features, given) if given else ""
    others = {name: feature for name, feature in features.items() if name != label_column}
    if kind == "ids":
        fitting = [
            name for name, feature in others.items() if "id" in _keys(feature) and _category_key(feature) is not None
        ]
        return _only(features, fitting, CLASS_NAMES, "segments", "class_column") if fitting else ""
    fitting = [
        name for name, feature in others.items() if isinstance(_inner(feature), datasets.Value | datasets.ClassLabel)
    ]
    return _only(features, fitting, CLASS_NAMES, "the classes of masks", "class_column")


def _names_of(features: Mapping[str, Any], kind: Kind, label_column: str, class_column: str) -> dict[int, str]:
    import datasets

    feature = features[class_column or label_column]
    if _keys(feature):
        inner = feature if isinstance(feature, dict) else _inner(feature)
        key = _category_key(feature)
        if key is None:
            raise ValueError(f"column {label_column!r} has {_keys(feature)}, and none of {CATEGORY_KEYS} for the class")
        feature = inner[key]
    while _inner(feature) is not None:
        feature = _inner(feature)
    if isinstance(feature, datasets.ClassLabel):
        return dict(enumerate(feature.names))
    raise ValueError(
        f"nothing in the data says what the classes in column {class_column or label_column!r} are called; pass "
        "id2label={id: name}"
    )


def _only(features: Mapping[str, Any], fitting: list[str], known: Sequence[str], what: str, argument: str) -> str:
    if len(fitting) > 1:
        fitting = [name for name in fitting if name.lower() in known] or fitting
    if len(fitting) == 1:
        return fitting[0]
    listing = "\n".join(f"  {name}: {feature}" for name, feature in features.items())
    found = f"columns {fitting} may all be" if fitting else "no column seems to be"
    raise ValueError(
        f"{found} that of {what}; pass {argument}=..., in a recipe under data.options. The columns are\n{listing}"
    )


def _existing(features: Mapping[str, Any], name: str) -> str:
    if name not in features:
        raise ValueError(f"there is no column {name!r}; the columns are {list(features)}")
    return name


def _inner(feature: Any) -> Any:
    """What a list is of; None for what is no list."""
    return getattr(feature, "feature", None) if type(feature).__name__ in ("List", "LargeList", "Sequence") else None


def _keys(feature: Any) -> list[str]:
    """Of a struct, or of a list of them."""
    inner = feature if isinstance(feature, dict) else _inner(feature)
    return list(inner) if isinstance(inner, dict) else []


def _category_key(feature: Any) -> str | None:
    return next((key for key in CATEGORY_KEYS if key in _keys(feature)), None)


def _undecoded(feature: Any) -> Any:
    """The feature, with images as bytes: read at once, decoded where they are needed."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(mode=feature.mode, decode=False)
    if isinstance(feature, dict):
        return {key: _undecoded(value) for key, value in feature.items()}
    if _inner(feature) is not None:
        return replace(feature, feature=_undecoded(_inner(feature)))
    return feature


def _opened(value: Any) -> "Image.Image":
    import datasets
    from PIL import Image

    if isinstance(value, Image.Image):
        return value
    return datasets.Image().decode_example(value)


def _path(value: Any) -> str:
    path = value.get("path") if isinstance(value, dict) else None
    return str(path).replace("\\", "/").rsplit("/", 1)[-1] if path else ""


def _array(value: Any) -> np.ndarray:
    """(H, W), or (H, W, 3) for a map of colours."""
    if isinstance(value, dict) or hasattr(value, "convert"):
        value = _opened(value)
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


def _segmentation(value: Any) -> Any:
    """As in COCO's json: polygons as flat lists, whether they are stored so or as lists of points; or run lengths."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, list | np.ndarray) or not len(value) or np.isscalar(value[0]):
        return value
    if all(not np.isscalar(part) and len(part) == 2 and np.isscalar(part[0]) for part in value):
        return [np.ravel(value).tolist()]
    return [np.ravel(part).tolist() for part in value]
