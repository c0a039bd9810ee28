"""`maskformer export`."""

import warnings
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..output_files import refuse_existing
from .errors import quiet_transformers
from .options import CheckpointArgument, OverwriteOption

EXAMPLES = """Examples:

  maskformer export street --post-process --output street.onnx

  maskformer export runs/mine/model --format torch-export

  maskformer export street --int8 --calibration photos/ -o int8.onnx

  maskformer export runs/mine/model --static 512x1024"""


class FormatChoice(StrEnum):
    onnx = "onnx"
    torch_export = "torch-export"


@dataclass(frozen=True)
class ExportOptions:
    checkpoint: CheckpointArgument
    format: Annotated[FormatChoice, typer.Option("--format", help="The kind of file to write.")] = FormatChoice.onnx
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write (model.onnx or model.pt2 if not given).")
    ] = None
    post_process: Annotated[
        bool,
        typer.Option(
            "--post-process",
            help="Output the class of each pixel of the padded input, (batch, height, width) int64, instead of logits.",
        ),
    ] = False
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Quantise convolutions and matrix products: a quarter of the size. ONNX only; see --calibration.",
        ),
    ] = False
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="Photos that fix the ranges of int8 activations, which makes the file fast and not only small.",
        ),
    ] = None
    static: Annotated[
        str | None,
        typer.Option("--static", metavar="HEIGHTxWIDTH", help="One fixed input size, for backbones that need it."),
    ] = None
    overwrite: OverwriteOption = False


def export(options: ExportOptions) -> None:
    """Write a checkpoint as an ONNX file or a torch.export program, for any batch, height and width.

    The file describes its input and output: opset, classes, task, mean and standard deviation, divisor. It is compared
    with the model before it is written.
    """
    size = _parse_size(options.static) if options.static else None
    quiet_transformers()
    from ..export import FORMAT_SUFFIXES, export_checkpoint

    path = options.output or Path(f"model{FORMAT_SUFFIXES[options.format.value]}")
    refuse_existing([path], options.overwrite)
    try:
        with warnings.catch_warnings():
            # torch and onnxruntime announce deprecations that are not the user's to mend.
            warnings.simplefilter("ignore")
            result = export_checkpoint(
                options.checkpoint,
                path,
                options.format.value,
                post_process=options.post_process,
                int8=options.int8,
                calibration=options.calibration,
                static_size=size,
            )
    except ImportError as error:
        raise ValueError(str(error)) from error
    opset = f", opset {result.metadata['opset']}" if "opset" in result.metadata else ""
    typer.echo(f"Saved {path} ({options.format.value}{opset}, {path.stat().st_size / 1e6:.1f} MB)")
    typer.echo(f"  input   {result.metadata['input']}")
    typer.echo(f"  output  {result.metadata['output']}")
    if result.quantised:
        counts = " and ".join(f"{count} {name}" for name, count in result.quantised.items())
        typer.echo(f"  {result.metadata['quantisation']}: {counts}; measure it with benchmarks/int8.py")
    else:
        typer.echo(f"  checked against the model at unseen sizes: difference at most {result.largest_difference:.1g}")


def _parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels from a text such as 512x1024."""
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"--static {text!r} is no size: give HEIGHTxWIDTH in pixels, such as 512x1024") from None
    return height, width
