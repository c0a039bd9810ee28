"""`maskformer segment` with a checkpoint of photos."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..output_files import refuse_existing, save_picture, write_text
from .errors import error_line, quiet_transformers
from .output_paths import find_photos, picture_paths

if TYPE_CHECKING:
    from ..inference.prediction import Prediction
    from .segment import SegmentOptions


def segment_photos(options: "SegmentOptions") -> None:
    """Segments each photo, and ends with exit status 1 if some could not be segmented."""
    _refuse_videos(options)
    photos, several = find_photos(options.paths, options.output)
    pictures: list[Path | None] = [None] * len(photos)
    if options.output is not None or not options.as_json:
        pictures = [*picture_paths(photos, options.output, several)]
    tables = [picture.with_suffix(".json") for picture in pictures if picture and options.as_json and several]
    refuse_existing([*filter(None, pictures), *tables], options.overwrite)

    quiet_transformers()
    from tqdm import tqdm

    from ..inference.load import load
    from ..inference.plans import plan_names
    from ..models.panoptic import MERGINGS

    if options.merging is not None and options.merging not in MERGINGS:
        raise ValueError(f"--merging must be one of {list(MERGINGS)}, got {options.merging!r}")
    if options.plan is not None and options.plan not in plan_names():
        raise ValueError(f"--plan must be one of {list(plan_names())}, got {options.plan!r}")
    model, processor = load(options.checkpoint, options.device, options.dtype, **options.layers)
    task = options.task.value if options.task else model.config.task
    if options.merging is not None and task != "panoptic":
        raise ValueError(f"--merging is for panoptic results, and the task is {task}: add --task panoptic")
    records = []
    pairs = zip(photos, pictures, strict=True)
    for photo, picture in tqdm(pairs, "Segmenting", len(photos), unit="image", disable=not several):
        try:
            record = _segment_photo(model, processor, photo, picture, options)
            if picture is not None and options.as_json and several:
                write_text(picture.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
        except (ValueError, OSError) as error:
            tqdm.write(error_line(error, photo), file=sys.stderr)
            continue
        records.append(record)
        if not options.as_json:
            tqdm.write(_table(record), file=sys.stdout)
    if options.as_json:
        typer.echo(json.dumps(records, indent=2))
    if num_failed := len(photos) - len(records):
        typer.echo(f"maskformer: {num_failed} of {len(photos)} images could not be segmented", err=True)
        raise typer.Exit(1)


def _refuse_videos(options: "SegmentOptions") -> None:
    from ..inference.video_files import VIDEO_SUFFIXES

    for path in options.paths:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            raise ValueError(
                f"{str(path)!r} is a video, and checkpoint {options.checkpoint!r} segments photos: choose another "
                "checkpoint, or make a folder of frames of it"
            )


def _segment_photo(
    model: Any, processor: Any, photo: Path, picture: Path | None, options: "SegmentOptions"
) -> dict[str, Any]:
    """Segments one photo and draws it into `picture`. Returns its record."""
    from ..inference.images import read_image, reading_of
    from ..inference.predict import predict
    from ..visualize import draw_segmentation

    image = read_image(photo, str(photo), reading_of(processor, options.max_pixels))
    [prediction] = predict(
        model,
        processor,
        image,
        task=options.task.value if options.task else None,
        threshold=options.threshold,
        merging=options.merging,
        tile_size=options.tile_size,
        plan=options.plan,
        progress=True,
    )
    record = _record(photo, picture, prediction)
    if picture is not None:
        save_picture(draw_segmentation(image, prediction), picture)
    return record


def _record(photo: Path, picture: Path | None, prediction: "Prediction") -> dict[str, Any]:
    """The entry of one photo in the JSON."""
    from ..models.coco_rle import encode_coco_rle

    segments = [
        {**segment, "mask": encode_coco_rle(prediction.mask(segment)[None])[0]} for segment in prediction.segments
    ]
    height, width = prediction.size
    return {
        "image": str(photo),
        "picture": None if picture is None else str(picture),
        "task": prediction.task,
        "height": height,
        "width": width,
        "segments": segments,
    }


def _table(record: dict[str, Any]) -> str:
    """Label, score and area of each segment of a photo, as aligned text."""
    num_pixels = record["height"] * record["width"]
    written = f" -> {record['picture']}" if record["picture"] else ""
    lines = [f"{record['image']} ({record['height']} x {record['width']}, {record['task']}){written}"]
    if not record["segments"]:
        return "\n".join([*lines, "  nothing found"])
    width = max(5, *(len(segment["label"]) for segment in record["segments"]))
    lines.append(f"  {'label':{width}}  score  {'area':>11}   share")
    for segment in record["segments"]:
        area, share = segment["area"], segment["area"] / num_pixels
        lines.append(f"  {segment['label']:{width}}  {segment['score']:5.2f}  {area:>8,} px  {share:6.1%}")
    return "\n".join(lines)
