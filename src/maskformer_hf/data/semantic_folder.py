"""A folder of images with one PNG of class ids each: `images/`, `labels/`, `classes.txt`."""

from collections.abc import Sequence
from pathlib import Path

from .file_finder import first_file, list_images, with_maps
from .id_maps import ClassMeaning, IdMaps
from .sample import VOID
from .text_files import read_lines

VOID_IDS = (255, 65535)
"""Ids that are void in the files, unless they name a class, as with more than 255 classes. So is the first id after the
last class."""

VOID_NAMES = frozenset({"void", "unlabelled", "unlabeled", "ignore", "ignored"})


class SemanticFolder(IdMaps):
    """Images and their class-id PNGs, decoded when asked for. A sample has one segment a class, in order of the ids.

    Args:
        root: folder with `images/` and `labels/` (same stems). `classes.txt`, one name a line in the order of the ids,
            is looked for there and one level up, so that the splits of a data set can share it.
        void_classes: names in `classes.txt` that stand for void, besides those in `VOID_NAMES`. The other classes are
            renumbered without gaps, in order.

    Besides void classes, ids 255, 65535 and `len(classes.txt)` are void; any other id that names no class is an error.
    """

    def __init__(self, root: str | Path, *, void_classes: Sequence[str] = ()) -> None:
        root = Path(root)
        files = with_maps(list_images(root / "images"), root / "labels")
        names = _read_class_names(root)
        unknown = sorted(set(void_classes) - set(names))
        if unknown:
            raise ValueError(f"void_classes {unknown} are not in classes.txt, which has {names}")
        kept = [name for name in names if name not in void_classes and name.lower() not in VOID_NAMES]
        label_of_id = dict.fromkeys((len(names), *VOID_IDS), VOID)
        label_of_id |= {file_id: kept.index(name) if name in kept else VOID for file_id, name in enumerate(names)}
        super().__init__(
            files,
            ClassMeaning(label_of_id),
            task="semantic",
            classes=[(name, False) for name in kept],
            known=f"one of the {len(kept)} classes of classes.txt, nor void; add its name there, or write 255 for void",
        )


def _read_class_names(root: Path) -> list[str]:
    path = first_file((root, root.resolve().parent), ["classes.txt"])
    if path is None:
        raise ValueError(f"no classes.txt in {root} or above it; write one class name a line, in the order of the ids")
    names = read_lines(path)
    if len(set(names)) != len(names):
        raise ValueError(f"{path} names a class twice")
    return names
