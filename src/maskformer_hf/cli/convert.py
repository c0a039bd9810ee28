"""`maskformer convert`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import quiet_transformers

EXAMPLES = """Examples:

  maskformer convert model_final_d8dbeb.pkl --output maskformer-r50-ade

  maskformer convert output/model_final.pth --config output/config.yaml --output mine

  maskformer convert runs/mine/model --to transformers --output mine-for-transformers"""
WEIGHT_SUFFIXES = (".pkl", ".pth", ".safetensors")


class LayoutChoice(StrEnum):
    maskformer_hf = "maskformer_hf"
    transformers = "transformers"


@dataclass(frozen=True)
class ConvertOptions:
    source: Annotated[
        str,
        typer.Argument(
            help="A file of the original MaskFormer or Mask2Former (.pkl, .pth, .safetensors), or a checkpoint: a "
            "bundled name, a folder, or a name on the Hugging Face Hub."
        ),
    ]
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")]
    to: Annotated[LayoutChoice, typer.Option("--to", help="The library that the result is a checkpoint of.")] = (
        LayoutChoice.maskformer_hf
    )
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", help="The model in a file, such as maskformer_resnet50_ade20k; detected if not given."
        ),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="The config.yaml (or JSON) that Detectron2 dumped for a file; one beside the file is taken if not "
            "given.",
        ),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--force", help="Write into a folder that is not empty.")
    ] = False


def convert(options: ConvertOptions) -> None:
    """Convert a checkpoint: the original's files to folders of this package, and these to transformers' own."""
    from ..conversion.folder import check_output, whole_folder

    is_file = _check_source(options)
    check_output(options.output, options.overwrite)
    quiet_transformers()
    model, processor, lines = _read_file(options) if is_file else _read_checkpoint(options.source)
    if options.to is LayoutChoice.transformers:
        from ..conversion.to_transformers import describe_changes, to_transformers, transformers_processor

        theirs, difference = to_transformers(model)
        lines += [("note", change) for change in describe_changes(model, processor, difference)]
        written = theirs, transformers_processor(processor, model.config)
    else:
        written = model, processor
    with whole_folder(options.output, options.overwrite) as folder:
        for part in written:
            part.save_pretrained(folder)
    width = max(len(name) for name, _ in lines)
    typer.echo("\n".join(f"  {name:{width}}  {text}" for name, text in lines))
    typer.echo(f"Saved {options.output}")


def _check_source(options: ConvertOptions) -> bool:
    """Whether the source is a file of weights rather than a checkpoint. Raises ValueError if options do not fit it."""
    path = Path(options.source)
    is_file = path.is_file() or path.suffix in WEIGHT_SUFFIXES
    if is_file and not path.is_file():
        raise ValueError(f"there is no file {options.source!r}")
    if not is_file and (options.preset or options.config):
        raise ValueError("--preset and --config say what a file of the original holds; a folder says it itself")
    if path.is_dir() and options.output.is_dir() and path.samefile(options.output):
        raise ValueError(f"--output {str(options.output)!r} is the checkpoint itself; choose another folder")
    return is_file


def _read_file(options: ConvertOptions) -> tuple[Any, Any, list[tuple[str, str]]]:
    """Model and processor from a file of the original, and the lines that tell what was found in it."""
    from ..conversion.convert import convert_detectron2
    from ..conversion.summary import summary

    converted = convert_detectron2(Path(options.source), options.preset, options.config)
    lines = summary(converted.model)
    lines += [("ignored", f"{name} ({count}): {reason}") for name, count, reason in converted.ignored]
    lines += [("note", remark) for remark in converted.remarks]
    return converted.model, converted.processor, lines


def _read_checkpoint(name: str) -> tuple[Any, Any, list[tuple[str, str]]]:
    """Model and processor of a checkpoint, and the lines that describe them."""
    from ..conversion.summary import summary
    from ..inference.load import load

    model, processor = load(name, device="cpu")
    return model, processor, summary(model)
