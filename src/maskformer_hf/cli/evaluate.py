"""`maskformer evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..output_files import refuse_existing
from .errors import quiet_transformers
from .options import (
    CheckpointArgument,
    DataFormatOption,
    DeviceOption,
    DtypeOption,
    MergingOption,
    OverwriteOption,
    TaskChoice,
)
from .output_paths import check_picture

EXAMPLES = """Examples:

  maskformer evaluate street camvid/val

  maskformer evaluate runs/mine/model camvid/val --json --output scores.json

  maskformer evaluate runs/mine/model coco/panoptic_val.json --worst 8 --picture worst.png

  maskformer evaluate runs/mine/model nuclei --split val --task instance --max-detections 400"""
DEFAULT_PICTURE = Path("worst.png")


@dataclass(frozen=True)
class EvaluateOptions:
    checkpoint: CheckpointArgument
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder of any format that train reads, a COCO json, or a name on the Hub with --format datasets."
        ),
    ]
    split: Annotated[
        str | None,
        typer.Option("--split", help="The split of the folder to measure on (the folder itself if not given)."),
    ] = None
    task: Annotated[
        TaskChoice | None,
        typer.Option("--task", help="The task to measure (one that checkpoint and annotations share if not given)."),
    ] = None
    format: DataFormatOption = "auto"
    class_groups: Annotated[
        str | None,
        typer.Option(
            "--class-groups",
            metavar="supercategory",
            help="Merge the classes of a COCO json into its super-categories (as in the checkpoint's training if not "
            "given).",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0,
            max=1,
            help="The lowest score that counts (if not given, 0 for objects and the checkpoint's own for panoptic "
            "segments).",
        ),
    ] = None
    merging: MergingOption = None
    max_detections: Annotated[
        int, typer.Option("--max-detections", min=1, help="How many instances of an image count, the best ones.")
    ] = 100
    boundary: Annotated[
        bool, typer.Option("--boundary", help="Also measure boundary IoU (semantic) or boundary AP (instance).")
    ] = False
    worst: Annotated[
        int, typer.Option("--worst", min=0, help="Draw this many images, those with the lowest score.")
    ] = 0
    picture: Annotated[
        Path | None, typer.Option("--picture", help="The file for --worst (worst.png if not given).")
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the JSON to this file.")] = None
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="How many images run together.")] = 1
    device: DeviceOption = None
    dtype: DtypeOption = None
    overwrite: OverwriteOption = False


def evaluate(options: EvaluateOptions) -> None:
    """Measure a checkpoint on annotated photos: mean IoU, mask AP or panoptic quality, and the same of each class."""
    if not options.data.exists() and options.format != "datasets":
        raise ValueError(f"there is no folder or file {str(options.data)!r}")
    if options.picture is not None:
        check_picture(options.picture, "--picture")
        if not options.worst:
            raise ValueError("--picture is for the worst images: say how many with --worst")
    picture = options.picture or DEFAULT_PICTURE
    if options.output is not None:
        refuse_existing([options.output], options.overwrite)
    if options.worst:
        refuse_existing([picture], options.overwrite, "--picture")
    quiet_transformers()
    from ..training import evaluate_checkpoint, format_table
    from ..training.json_files import to_json

    result = evaluate_checkpoint(
        options.checkpoint,
        options.data,
        task=options.task.value if options.task else None,
        device=options.device,
        dtype=options.dtype,
        json_path=options.output,
        batch_size=options.batch_size,
        split=options.split,
        format=options.format,
        class_groups=options.class_groups,  # pyrefly: ignore  # `open_dataset` checks the value
        threshold=options.threshold,
        merging=options.merging,
        max_detections=options.max_detections,
        boundary=options.boundary,
        worst=options.worst,
        picture=picture,
    )
    typer.echo(to_json(result) if options.as_json else format_table(result))
    if options.worst and not options.as_json:
        typer.echo(f"Saved {picture}")
