"""`open_dataset`: from a folder, in whatever format it is, to a data set to train on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from .instance_folder import InstanceFolder
from .sample import SegmentationDataset, Task
from .semantic_folder import SemanticFolder
from .views import Cached, Unlabelled, concatenate, regroup


class Format(NamedTuple):
    """One way in which data sets lie on disk.

    needs: what it looks for, as a message says it.
    fits: (root, split) -> whether the files are of this format; None for those that only their name chooses.
    open: (root, split, task) -> the data set. `task` is what was asked for, None if nothing was: for formats whose
        annotations are of several kinds.
    """

    needs: str
    fits: Callable[[Path, str], bool] | None
    open: Callable[[Path, str, Task | None], SegmentationDataset]


def _has_folders(*names: str) -> Callable[[Path, str], bool]:
    return lambda root, split: all((root / split / name).is_dir() for name in names)


FORMATS: dict[str, Format] = {
    "semantic_folder": Format(
        "SPLIT/images/ and SPLIT/labels/ (PNGs of class ids), classes.txt there or above",
        _has_folders("images", "labels"),
        lambda root, split, task: SemanticFolder(root / split),
    ),
    "instance_folder": Format(
        "SPLIT/images/ and SPLIT/instances/ (PNGs of object ids)",
        _has_folders("images", "instances"),
        lambda root, split, task: InstanceFolder(root / split),
    ),
}


def find_format(root: str | Path, split: str) -> str:
    """The name of the only format that fits. Raises ValueError, with what was looked for, if none or several do."""
    root = Path(root)
    fitting = [name for name, kind in FORMATS.items() if kind.fits is not None and kind.fits(root, split)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(f"{root} and split {split!r} fit several formats, {fitting}; choose one with format=")
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
    cache: bool = False,
) -> SegmentationDataset:
    """Opens a data set; photos and annotations are decoded when asked for.

    Args:
        root: folder of the data set.
        split: what of it, as its format says: mostly the name of a folder or of a json (without its suffix). A list
            joins several, also of several formats, as `concatenate` says.
        format: one of `FORMATS`; "auto" takes the one that fits the files.
        task: what to teach with the annotations, if not all they can; see `as_task`.
        class_groups, void_classes: see `regroup`.
        unlabelled: whether pixels of no segment are "void" (nothing is known about them) or "background" (known to be
            no segment). By default as the format means it: background in instance data, void elsewhere.
        cache: keep decoded samples in memory: pays where decoding competes with training.

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
    if not splits:
        raise ValueError(f"no split of {root} is named; name at least one")
    parts = []
    for name in splits:
        kind = FORMATS[find_format(root, name) if format == "auto" else format]
        parts.append(kind.open(root, name, task))
    dataset = regroup(concatenate(parts, task, unlabelled), class_groups, void_classes)
    return Cached(dataset) if cache else dataset
