"""Options that several commands share, and commands whose options are a dataclass."""

import inspect
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from .errors import one_line_errors


class TaskChoice(StrEnum):
    semantic = "semantic"
    instance = "instance"
    panoptic = "panoptic"


CheckpointArgument = Annotated[str, typer.Argument(help="A bundled name, a folder, or a name on the Hugging Face Hub.")]
DataFormatOption = Annotated[
    str, typer.Option("--format", help="The layout of the data on disk; detected if not given.")
]
MergingOption = Annotated[
    str | None,
    typer.Option(
        "--merging",
        help="How panoptic segments share the pixels: argmax (the best query of each pixel) or mask_wise (whole masks, "
        "the best first). The checkpoint's own if not given.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps, ... (a GPU if there is one).")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Write over files that are there already; otherwise they are an error.")
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32 (if not given), bfloat16 or float16.")]


def takes_options(run: Callable[[Any], None]) -> Callable[..., None]:
    """A command for typer from a function of one dataclass, whose fields are the arguments and options in order.

    typer reads the signature of a function, and a command with 15 options would need 15 parameters. What the function
    raises for a mistake of the user ends in one line.
    """
    [options_class] = [kind for name, kind in get_type_hints(run).items() if name != "return"]

    @wraps(run)
    def command(**values: Any) -> None:
        with one_line_errors():
            run(options_class(**values))

    command.__signature__ = inspect.signature(options_class)  # pyrefly: ignore
    command.__annotations__ = get_type_hints(options_class, include_extras=True)
    return command
