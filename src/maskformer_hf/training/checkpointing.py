"""Folders that are either whole or absent, even if the process is killed while it writes them."""

import os
import shutil
from pathlib import Path

INCOMPLETE = ".incomplete-"


def begin_folder(folder: Path) -> Path:
    """Makes an empty hidden folder beside `folder`, to write into. `finish_folder(folder)` then gives it its name."""
    unfinished = folder.parent / f"{INCOMPLETE}{folder.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def finish_folder(folder: Path) -> None:
    """Renames what `begin_folder` has made to `folder`. A folder of that name is moved away just before."""
    unfinished = folder.parent / f"{INCOMPLETE}{folder.name}"
    for path in unfinished.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # the contents must reach the disk before the name does
    if folder.exists():
        _remove(folder)
    unfinished.rename(folder)


def numbered_folders(parent: Path, prefix: str) -> list[Path]:
    """Whole folders `<prefix><step>` in order of their step."""
    folders = [path for path in parent.glob(f"{prefix}*") if path.is_dir() and path.name.removeprefix(prefix).isdigit()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix(prefix)))


def keep_last(parent: Path, prefix: str, count: int) -> None:
    for path in numbered_folders(parent, prefix)[:-count]:
        _remove(path)


def remove_unfinished(parent: Path) -> None:
    """Deletes what a killed process left behind."""
    for path in parent.glob(f"{INCOMPLETE}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove(folder: Path) -> None:
    # Renamed first, so that a folder that is half deleted is never taken for a whole one.
    doomed = folder.parent / f"{INCOMPLETE}old-{folder.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)
