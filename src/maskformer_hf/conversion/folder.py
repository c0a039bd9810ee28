"""A folder that is written as a whole or not at all. Needs no torch, so that a wrong --output is refused at once."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output(output: Path, force: bool):
    """Refuse a folder that is not empty, unless `force`, before any work is done for it."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{str(output)!r} is a file; give the name of a folder")
    if not force and output.is_dir() and any(output.iterdir()):
        raise ValueError(
            f"the folder {str(output)!r} is not empty; choose another, or overwrite files in it with --overwrite"
        )


@contextmanager
def whole_folder(output: Path, force: bool = False) -> Iterator[Path]:
    """A folder to write to. Nothing of it appears in `output` before all of it is written.

    Other files in `output` stay.
    """
    check_output(output, force)
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        if output.is_dir():
            # config.json comes last: a folder without it is not taken for a checkpoint.
            for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
                os.replace(file, output / file.name)
        else:
            partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
