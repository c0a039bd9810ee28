"""Which columns of a table of the `datasets` library hold the images, the masks and the classes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

Kind = Literal["ids", "objects", "masks"]

# Names by which a column is chosen where several have a type that would do.
IMAGE_NAMES = ("image", "img", "photo", "picture", "pixel_values")
LABEL_NAMES = (
    *("label", "labels", "annotation", "annotations", "mask", "masks", "segmentation", "segmentation_map"),
    *("semantic_segmentation", "seg_map", "label_map", "objects", "panoptic", "panoptic_map", "instances"),
)
# Keys of the structs within columns.
SEGMENTATION_KEYS = ("segmentation", "segmentations", "polygon", "polygons", "rle")
CATEGORY_KEYS = ("category_id", "category", "category_ids", "categories", "class_id", "class", "label_id", "label")
CLASS_NAMES = ("segments_info", "labels", "classes", "class_labels", *CATEGORY_KEYS)
CROWD_KEYS = ("iscrowd", "is_crowd")


class Columns(NamedTuple):
    """The names of the columns that are read.

    kind: what the label column holds: a map of "ids", a list of "objects" with outlines, or a list of "masks".
    classes: the column of the classes or of the list of segments; "" where the label column has them.
    """

    kind: Kind
    image: str
    label: str
    classes: str


def find_columns(features: Mapping[str, Any], image: str, label: str, classes: str) -> Columns:
    """The columns by their types, then by their names; "auto" stands for a name that is not given.

    Raises ValueError that lists the columns if it is not clear which one is meant.
    """
    image = _image_column(features, image, label)
    label, kind = _label_column(features, image, label)
    return Columns(kind, image, label, _class_column(features, kind, label, classes))


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


def names_of_classes(features: Mapping[str, Any], columns: Columns) -> dict[int, str]:
    """Names by id of classes of type `ClassLabel`. Raises ValueError for any other type."""
    import datasets

    column = columns.classes or columns.label
    feature = features[column]
    if _keys(feature):
        inner = feature if isinstance(feature, dict) else _inner(feature)
        key = _category_key(feature)
        if key is None:
            keys = _keys(feature)
            raise ValueError(f"column {columns.label!r} has {keys}, and none of {CATEGORY_KEYS} for the class")
        feature = inner[key]
    while _inner(feature) is not None:
        feature = _inner(feature)
    if isinstance(feature, datasets.ClassLabel):
        return dict(enumerate(feature.names))
    raise ValueError(
        f"nothing in the data says what the classes in column {column!r} are called; pass id2label={{id: name}}"
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
    """The type of a list's items; None unless `feature` is a list."""
    return getattr(feature, "feature", None) if type(feature).__name__ in ("List", "LargeList", "Sequence") else None


def _keys(feature: Any) -> list[str]:
    """The keys of a struct or of a list of structs; empty for other types."""
    inner = feature if isinstance(feature, dict) else _inner(feature)
    return list(inner) if isinstance(inner, dict) else []


def _category_key(feature: Any) -> str | None:
    return next((key for key in CATEGORY_KEYS if key in _keys(feature)), None)


def undecoded(feature: Any) -> Any:
    """The same type with images left encoded, so that only images that are needed get decoded."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(mode=feature.mode, decode=False)
    if isinstance(feature, dict):
        return {key: undecoded(value) for key, value in feature.items()}
    if _inner(feature) is not None:
        return replace(feature, feature=undecoded(_inner(feature)))
    return feature
