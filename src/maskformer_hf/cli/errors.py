"""What the user can mend is one line on stderr and exit status 1."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns ValueError and OSError into one line and exit status 1; other errors keep their traceback."""
    try:
        yield
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except (ValueError, OSError) as error:
        typer.echo(error_line(error), err=True)
        raise typer.Exit(1) from None


def error_line(error: Exception, photo: Path | None = None) -> str:
    """The first line of an error, preceded by the photo if the error does not name it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # A first line that ends in a colon is the heading of a list, and says nothing without it.
    text = "\n".join(lines) if lines[0].endswith(":") else lines[0]
    if photo is not None and str(photo) not in text:
        text = f"{photo}: {text}"
    return f"maskformer: {text}"


def quiet_transformers() -> None:
    """Keeps transformers' progress bars and its advice to programmers off the terminal."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
