"""What commands write: never over what somebody else has written, and whole or not at all. Needs no torch."""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def refuse_existing(paths: Iterable[Path], overwrite: bool, option: str = "--output") -> None:
    """Raises ValueError if one of the files that are to be written is there already, unless `overwrite`.

    A command calls it before it begins to work, so that nothing that it finds then is its own.

    Args:
        option: what chooses other files.
    """
    # What is no file, such as /dev/null, has nothing to lose.
    found = [] if overwrite else [path for path in paths if path.is_file()]
    if found:
        more = f" and {len(found) - 1} other files are" if len(found) > 1 else " is"
        raise ValueError(
            f"{found[0]}{more} there already, and would be overwritten: choose another {option}, or pass --overwrite"
        )


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A name to write to, in the folder of `path`, which the file gives up for `path` when it is whole.

    If the block raises, `path` stays what it was.
    """
    # What a link points to is replaced, and the link stays.
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Writers look at the suffix.
    unfinished = path.with_name(f".incomplete-{uuid.uuid4().hex}{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text as UTF-8."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def save_picture(picture: Any, path: str | Path) -> None:
    """Writes a PIL image in the format of the suffix."""
    with whole_file(path) as unfinished:
        picture.save(unfinished)
