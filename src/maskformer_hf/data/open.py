"""`open_dataset`: from a folder, in whatever format it is, to a data set to train on."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ..models.image_files import files_in
from .ade20k import ade20k, is_ade20k
from .cityscapes import cityscapes, is_cityscapes
from .coco import CocoInstances, CocoPanoptic
from .coco_json import json_kind
from .coco_stuff import CocoInstancesAndStuff
from .color_folder import color_folder, is_color_folder
from .concatenate import concatenate
from .davis import DavisFolder
from .file_finder import existing_file
from .from_datasets import DATASETS_OPTIONS, open_datasets
from .instance_folder import InstanceFolder
from .labelme import is_labelme, labelme
from .mapillary import is_mapillary, mapillary
from .relabel import Unlabelled, regroup
from .sample import SegmentationDataset, Task
from .semantic_folder import SemanticFolder
from .video import VideoFrames
from .yolo import is_yolo, yolo
from .youtube_vis import YoutubeVis


class Format(NamedTuple):
    """One way in which data sets lie on disk.

    needs: what files it looks for, in words for a message.
    fits: (root, split) -> whether the files are of this format; None for formats that must be asked for by name.
    open: (root, split, task) -> the data set. `task` is the one that was asked for, or None. It tells which annotations
        to read where a format has several.
    options: Names of further arguments of `open`.
    """

    needs: str
    fits: Callable[[Path, str], bool] | None
    open: Callable[..., SegmentationDataset]
    options: tuple[str, ...] = ()


def _has_folders(*names: str) -> Callable[[Path, str], bool]:
    return lambda root, split: all((root / split / name).is_dir() for name in names)


def _is_semantic_folder(root: Path, split: str) -> bool:
    # Folders of the same names hold YOLO's txt files, or maps of colours.
    labels = root / split / "labels"
    return (
        (root / split / "images").is_dir()
        and labels.is_dir()
        and bool(files_in(labels, (".png",)))
        and not is_color_folder(root, split)
        and not is_mapillary(root, split)
    )


def _json_places(root: Path, split: str, kind: str) -> list[Path]:
    folders = (root, root / "annotations")
    name = "instances" if kind == "video" else kind  # YouTube-VIS calls them as COCO does
    names = (split, f"{split}.json", f"{name}_{split}.json", f"{split}/_annotations.coco.json", f"{split}/{name}.json")
    return [folder / name for folder in folders for name in names]


def _json(root: Path, split: str, kind: str) -> Path:
    places = _json_places(root, split, kind)
    found = [path for path in map(existing_file, places) if path and json_kind(path) == kind]
    if not found:
        looked_for = ", ".join(str(path) for path in places)
        raise ValueError(
            f"no COCO {kind} json for split {split!r}: looked for {looked_for}; {root} holds {_listing(root)}"
        )
    return found[0]


def _has_json(kind: str) -> Callable[[Path, str], bool]:
    return lambda root, split: any(
        path is not None and json_kind(path) == kind for path in map(existing_file, _json_places(root, split, kind))
    )


def _is_davis(root: Path, split: str) -> bool:
    # Where there is a json of YouTube-VIS too, it says more than the PNGs.
    return _has_folders("JPEGImages", "Annotations")(root, split) and not _has_json("video")(root, split)


def _open_instances_and_stuff(root: Path, split: str, task: Task | None) -> SegmentationDataset:
    path = _json(root, split, "instances")
    # instances_train2017.json -> train2017
    end = path.stem.split("_", 1)[-1]
    names = (f"semantic_{end}", f"semantic/{end}", f"stuffthingmaps/{end}", "semantic")
    places = [folder / name for folder in (path.parent, root) for name in names]
    found = [folder for folder in places if files_in(folder, (".png",))]
    if not found:
        looked_for = ", ".join(str(folder) for folder in dict.fromkeys(places))
        raise ValueError(f"no folder of semantic PNGs for {path}: looked for {looked_for}")
    return CocoInstancesAndStuff(path, found[0])


FORMATS: dict[str, Format] = {
    "semantic_folder": Format(
        "SPLIT/images/ and SPLIT/labels/ (PNGs of class ids), classes.txt there or above",
        _is_semantic_folder,
        lambda root, split, task: SemanticFolder(root / split),
    ),
    "instance_folder": Format(
        "SPLIT/images/ and SPLIT/instances/ (PNGs of object ids)",
        lambda root, split: not is_mapillary(root, split) and _has_folders("images", "instances")(root, split),
        lambda root, split, task: InstanceFolder(root / split),
    ),
    "coco_instances": Format(
        "SPLIT.json or instances_SPLIT.json with images, annotations and categories, in the folder or annotations/; "
        "SPLIT/_annotations.coco.json",
        _has_json("instances"),
        lambda root, split, task: CocoInstances(_json(root, split, "instances")),
    ),
    "coco_panoptic": Format(
        "SPLIT.json or panoptic_SPLIT.json with segments_info, in the folder or annotations/, PNGs next to it in a "
        "folder of its name",
        _has_json("panoptic"),
        lambda root, split, task: CocoPanoptic(_json(root, split, "panoptic")),
    ),
    "coco_instances_and_stuff": Format(
        "only if asked for: a json as for coco_instances, semantic PNGs in semantic_SPLIT/, semantic/SPLIT/, "
        "stuffthingmaps/SPLIT/ or semantic/",
        None,
        _open_instances_and_stuff,
    ),
    "color_folder": Format(
        "SPLIT/images/ and SPLIT/labels/ (PNGs of colours), or SPLIT/ and SPLIT_labels/, and class_dict.csv or "
        "classes.txt with a colour a class",
        is_color_folder,
        lambda root, split, task: color_folder(root, split),
    ),
    "ade20k": Format("images/SPLIT/, annotations/SPLIT/ and objectInfo150.txt", is_ade20k, ade20k),
    "cityscapes": Format("leftImg8bit/SPLIT/ and gtFine/SPLIT/", is_cityscapes, cityscapes),
    "mapillary": Format("config.json, SPLIT/images/ and SPLIT/labels/", is_mapillary, mapillary),
    "yolo": Format(
        "a YAML file with names, or txt files in SPLIT/labels/ or labels/SPLIT/",
        is_yolo,
        lambda root, split, task: yolo(root, split),
    ),
    "labelme": Format(
        "json files with shapes and imagePath in SPLIT/", is_labelme, lambda root, split, task: labelme(root, split)
    ),
    "youtube_vis": Format(
        "SPLIT.json, instances_SPLIT.json or SPLIT/instances.json with videos, in the folder or annotations/",
        _has_json("video"),
        lambda root, split, task: VideoFrames(YoutubeVis(_json(root, split, "video"))),
    ),
    "davis": Format(
        "SPLIT/JPEGImages/ and SPLIT/Annotations/, with a folder a video",
        _is_davis,
        lambda root, split, task: VideoFrames(DavisFolder(root / split)),
    ),
    "datasets": Format(
        "dataset_dict.json or state.json, as save_to_disk writes them; if asked for, whatever load_dataset opens",
        lambda root, split: any((root / name).is_file() for name in ("dataset_dict.json", "state.json")),
        open_datasets,
        DATASETS_OPTIONS,
    ),
    "datasets_streaming": Format(
        "only if asked for: as datasets, but streamed: neither downloaded whole nor kept",
        None,
        partial(open_datasets, streaming=True),
        DATASETS_OPTIONS,
    ),
}


def find_format(root: str | Path, split: str) -> str:
    """The name of the only format that fits. Raises ValueError, with what was looked for, if none or several do."""
    root = Path(root)
    if not root.exists():
        raise ValueError(f"there is no folder {str(root)!r}")
    fitting = [name for name, kind in FORMATS.items() if kind.fits is not None and kind.fits(root, split)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(
            f"{root} and split {split!r} fit several formats, {fitting}; write the whole name, or choose with format="
        )
    looked_for = "\n".join(f"  {name}: {kind.needs}" for name, kind in FORMATS.items())
    raise ValueError(
        f"{root} with split {split!r} fits no format. Looked for:\n{looked_for}\n{root} holds {_listing(root)}; "
        f"{root / split} holds {_listing(root / split)}"
    )


def _listing(path: Path, limit: int = 12) -> str:
    if not path.exists():
        return "nothing: it does not exist"
    if path.is_file():
        return "a file"
    names = sorted(child.name + "/" * child.is_dir() for child in path.iterdir())
    return (", ".join(names[:limit]) or "nothing") + (f" and {len(names) - limit} more" if len(names) > limit else "")


def open_dataset(
    root: str | Path,
    split: str | Sequence[str],
    *,
    format: str = "auto",
    task: Task | None = None,
    class_groups: Literal["supercategory"] | Mapping[str, Sequence[str]] | None = None,
    void_classes: Sequence[str] = (),
    unlabelled: Unlabelled | None = None,
    options: Mapping[str, Any] | None = None,
) -> SegmentationDataset:
    """Opens a data set; images and annotations are decoded at each access.

    Args:
        root: folder of the data set.
        split: the part of it, as its format says: mostly the name of a folder or of a json (without its suffix). A list
            joins several, also of several formats, as `concatenate` says.
        format: one of `FORMATS`; "auto" takes the one that fits the files.
        task: what to teach with the annotations, if not all they can; see `as_task`.
        class_groups, void_classes: see `regroup`.
        unlabelled: whether pixels of no segment are "void" (nothing is known about them) or "background" (known to be
            no segment). By default what the format means: background in instance data, void elsewhere.
        options: what the format cannot find out: for the `datasets` library the arguments of `from_datasets`, such as
            `label_column`.

    Raises ValueError with the file's name for what does not fit together.
    """
    if format != "auto" and format not in FORMATS:
        raise ValueError(f"format is {format!r}; choose one of {['auto', *FORMATS]}")
    if task is not None and task not in get_args(Task):
        raise ValueError(f"task is {task!r}; choose one of {list(get_args(Task))}")
    if unlabelled is not None and unlabelled not in get_args(Unlabelled):
        raise ValueError(f"unlabelled is {unlabelled!r}; choose one of {list(get_args(Unlabelled))}")
    if isinstance(class_groups, str) and class_groups != "supercategory":
        raise ValueError(f"class_groups is {class_groups!r}; write 'supercategory' or {{group: [class names]}}")
    root = Path(root)
    splits = [split] if isinstance(split, str) else list(split)
    if format == "datasets_streaming" and len(splits) > 1:
        raise ValueError(f"a stream cannot be joined to others (splits are {splits}); use format 'datasets'")
    if not splits:
        raise ValueError(f"no split of {root} is named; name at least one")
    parts = []
    for name in splits:
        found = find_format(root, name) if format == "auto" else format
        kind = FORMATS[found]
        _check_options(options or {}, kind.options, found)
        parts.append(kind.open(root, name, task, **(options or {})))
    return regroup(concatenate(parts, task, unlabelled), class_groups, void_classes)


def _check_options(options: Mapping[str, Any], known: tuple[str, ...], format: str) -> None:
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"format {format!r} has no option {name!r}; {remedy}")


def find_data(path: Path, split: str | None, format: str = "auto") -> tuple[Path, str]:
    """The root and the split for `open_dataset`, for a path that may be a folder, a file, or a name on the Hub.

    Raises ValueError where there is no such path, or it does not go with `split`.
    """
    if format == "datasets" and not path.exists():
        if split is None:
            raise ValueError(f"{path} is no folder, so it is taken for a name on the Hub; say which split of it")
        return path, split
    if path.is_file():
        if split is not None:
            raise ValueError(f"{path} is a file, which has no split {split!r}; give its folder, or no split")
        return path.parent, path.name
    if not path.is_dir():
        raise ValueError(f"there is no folder or file {str(path)!r}")
    return path, "." if split is None else split
