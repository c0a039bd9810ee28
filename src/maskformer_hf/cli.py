"""The `maskformer` command. Nothing heavy is imported before a command knows its arguments are good."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inference.video_files import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from .inference.prediction import Prediction
    from .inference.video import VideoPrediction

# What a folder is searched for; a file that is named is opened whatever it is called.
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
DEFAULT_PICTURE = Path("result.png")
DEFAULT_FOLDER = Path("predictions")
DEFAULT_VIDEO = Path("result.mp4")

SEGMENT_EPILOG = """Examples:

  maskformer segment photo.jpg --output result.png

  maskformer segment photos/ more.jpg --output overlays --task panoptic

  maskformer segment photo.jpg --json > segments.json

  maskformer segment panorama.jpg --tile-size 640

  maskformer segment photo.jpg --checkpoint runs/mine/model --device cuda --dtype bfloat16

  maskformer segment clip.mp4 --checkpoint runs/video/model --output found.mp4

  maskformer segment frames/ --checkpoint runs/video/model --output overlays"""

TRAIN_EPILOG = """Examples:

  maskformer train recipes/camvid/street.yaml --output runs/street

  maskformer train recipes/camvid/street.yaml --output runs/street --resume

  maskformer train recipe.yaml --set data.root=photos --set optimization.learning_rate=2e-4

  accelerate launch --num_processes 2 -m maskformer_hf train recipe.yaml"""

CHECK_DATA_EPILOG = """Examples:

  maskformer check-data photos

  maskformer check-data coco --split train2017 --split val2017 --sheet coco.png

  maskformer check-data --recipe recipe.yaml --json data.json"""

EVALUATE_EPILOG = """Examples:

  maskformer evaluate street camvid/val

  maskformer evaluate runs/mine/model camvid/val --json --output scores.json

  maskformer evaluate runs/mine/model coco/panoptic_val.json --worst 8 --picture worst.png

  maskformer evaluate runs/mine/model nuclei --split val --task instance --max-detections 400"""

EXPORT_EPILOG = """Examples:

  maskformer export street --post-process --output street.onnx

  maskformer export runs/mine/model --format torch-export

  maskformer export street --int8 --calibration photos/ -o int8.onnx

  maskformer export runs/mine/model --static 512x1024"""

PUSH_EPILOG = """Examples:

  maskformer push runs/mine/model me/my-maskformer

  maskformer push street me/street --private --message 'Street scenes'"""

CONVERT_EPILOG = """Examples:

  maskformer convert model_final_d8dbeb.pkl --output maskformer-r50-ade

  maskformer convert output/model_final.pth --config output/config.yaml --output mine

  maskformer convert runs/mine/model --to transformers --output mine-for-transformers"""


class LayoutChoice(StrEnum):
    maskformer_hf = "maskformer_hf"
    transformers = "transformers"


class TaskChoice(StrEnum):
    semantic = "semantic"
    instance = "instance"
    panoptic = "panoptic"


class FormatChoice(StrEnum):
    onnx = "onnx"
    torch_export = "torch-export"


app = typer.Typer(
    name="maskformer",
    help="Semantic, instance and panoptic segmentation with the MaskFormer family.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps, ... (a GPU where there is one).")
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32 (if not given), bfloat16 or float16.")]


def main() -> None:
    """The entry point of the `maskformer` script and of `python -m maskformer_hf`."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"maskformer-hf {version('maskformer-hf')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command(epilog=SEGMENT_EPILOG)
def segment(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATHS",
            help="Photos, or folders of photos. For a checkpoint of videos: video files, or folders of frames.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The picture to write, or for several photos the folder (result.png, or predictions/, if not given). "
            "The video to write (result.mp4), or the folder of frames.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON in place of the table: label, score, area and mask (COCO RLE) of each segment. "
            "Pictures are then written only where --output says so, in a folder with a .json beside each.",
        ),
    ] = False,
    task: Annotated[
        TaskChoice | None, typer.Option("--task", help="What the checkpoint was trained for if not given.")
    ] = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", "-c", help="A bundled name, a folder, or a name on the Hugging Face Hub.")
    ] = "street",
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0.0,
            max=1.0,
            help="Least score of an instance or a panoptic segment. As the checkpoint says if not given; 0.5 for "
            "videos.",
        ),
    ] = None,
    tile_size: Annotated[
        int | None,
        typer.Option(
            "--tile-size",
            min=0,
            help="Cut larger photos into overlapping tiles of so many pixels a side; 0 never cuts. As the checkpoint "
            "says if not given.",
        ),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Segment photos: write a coloured picture of each and print what was found. Or videos, with tracks.

    The tracks of a video, with their masks in every frame, go into a .json beside the coloured video.
    """
    with _one_line_errors():
        if _segments_videos(checkpoint):
            if task is not None or tile_size is not None:
                raise ValueError(f"--task and --tile-size are for photos; {checkpoint!r} segments videos")
            _segment_videos(paths, output, as_json, checkpoint, threshold, device, dtype)
            return
        for path in paths:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                raise ValueError(
                    f"{str(path)!r} is a video, and checkpoint {checkpoint!r} segments photos: choose another "
                    "checkpoint, or make a folder of frames of it"
                )
        photos, several = _find_photos(paths, output)
        pictures = _picture_paths(photos, output, several, write=not as_json or output is not None)

    with _one_line_errors():
        _quiet_transformers()
        from tqdm import tqdm

        from .inference.images import read_image
        from .inference.load import load
        from .inference.predict import predict
        from .visualize import draw_segmentation

        model, processor = load(checkpoint, device, dtype)
        records, num_failed = [], 0
        for photo, picture in tqdm(
            zip(photos, pictures, strict=True), total=len(photos), unit="image", desc="Segmenting", disable=not several
        ):
            try:
                image = read_image(photo)
                [prediction] = predict(
                    model,
                    processor,
                    image,
                    task=task.value if task else None,
                    threshold=threshold,
                    tile_size=tile_size,
                    progress=True,
                )
                record = _record(photo, picture, prediction)
                if picture is not None:
                    drawing = draw_segmentation(image, prediction)
                    picture.parent.mkdir(parents=True, exist_ok=True)
                    drawing.save(picture)
                    if as_json and several:
                        picture.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            except (ValueError, OSError) as error:
                num_failed += 1
                tqdm.write(_error_line(error, photo), file=sys.stderr)
                continue
            records.append(record)
            if not as_json:
                tqdm.write(_table(record), file=sys.stdout)
        if as_json:
            typer.echo(json.dumps(records, indent=2))
    if num_failed:
        typer.echo(f"maskformer: {num_failed} of {len(photos)} images could not be segmented", err=True)
        raise typer.Exit(1)


@app.command(epilog=TRAIN_EPILOG)
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, such as those in recipes/.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; may be given several times."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run, in place of the recipe's output_dir.")
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option("--report-to", metavar="TRACKER", help="Also log to tensorboard, wandb, ...; may be repeated."),
    ] = None,
) -> None:
    """Train a model by a recipe; the result is a folder that `--checkpoint` and `from_pretrained` take."""
    with _one_line_errors():
        if not recipe.is_file():
            raise ValueError(f"there is no recipe {str(recipe)!r}: give the path of a YAML file")
        _quiet_transformers()
        from .training import train as run_training

        folder = run_training(recipe, overrides, resume, output, report_to or ())
        # With several processes each of them comes here.
        if os.environ.get("RANK", "0") == "0":
            typer.echo(f"Saved {folder}")


@app.command("check-data", epilog=CHECK_DATA_EPILOG)
def check_data(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A data set: a folder of any format that train reads, or a COCO json. The recipe's if not given."
        ),
    ] = None,
    splits: Annotated[
        list[str] | None,
        typer.Option(
            "--split", help="What of the folder to check; may be given several times (train and val, if not given)."
        ),
    ] = None,
    format: Annotated[str, typer.Option("--format", help="How the data lie on disk; found out if not given.")] = "auto",
    class_groups: Annotated[
        str | None,
        typer.Option(
            "--class-groups", metavar="supercategory", help="Merge the classes of a COCO json to its super-categories."
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", help="Check as this recipe reads the data, and for the sizes and queries it trains with."
        ),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a picture: photos with their labels drawn.")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write all that was found as JSON.")] = None,
    max_images: Annotated[
        int | None, typer.Option("--max-images", min=1, help="Look at so many of each split (all if not given).")
    ] = None,
) -> None:
    """Say what a data set holds, what gets lost in training, and what is wrong with it, with file and id.

    The exit status is 1 if there is anything that training would stumble over.
    """
    with _one_line_errors():
        if data is None and recipe is None:
            raise ValueError("give a folder, or a recipe with --recipe")
        if data is not None and not data.exists():
            raise ValueError(f"there is no folder or file {str(data)!r}")
        if sheet is not None:
            _check_picture(sheet, "--sheet")
        _quiet_transformers()
        from .data.report import format_report
        from .training.arguments import read_recipe
        from .training.data_check import check_data as check_splits
        from .training.data_check import open_splits, queries_of

        read = None if recipe is None else read_recipe(recipe)
        reports = check_splits(
            open_splits(data, splits or (), read, format=format, class_groups=class_groups),  # pyrefly: ignore
            augmentation=None if read is None else read.augmentation,
            num_queries=None if read is None else queries_of(read.model),
            max_images=max_images,
            sheet=sheet,
            json=json_path,
        )
        typer.echo("\n\n".join(format_report(report) for report in reports))
    if any(report.errors for report in reports):
        raise typer.Exit(1)


@app.command(epilog=EVALUATE_EPILOG)
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A bundled name, a folder, or a name on the Hugging Face Hub.")],
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder of any format that train reads, a COCO json, or a name on the Hub with --format datasets."
        ),
    ],
    split: Annotated[
        str | None, typer.Option("--split", help="What of the folder to measure on (the folder itself if not given).")
    ] = None,
    task: Annotated[
        TaskChoice | None,
        typer.Option("--task", help="What to measure (what checkpoint and annotations share if not given)."),
    ] = None,
    format: Annotated[str, typer.Option("--format", help="How the data lie on disk; found out if not given.")] = "auto",
    class_groups: Annotated[
        str | None,
        typer.Option(
            "--class-groups",
            metavar="supercategory",
            help="Merge the classes of a COCO json to its super-categories (as in the checkpoint's training if not "
            "given).",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0,
            max=1,
            help="Least score of what is found (if not given, 0 for objects and the checkpoint's own for panoptic "
            "segments).",
        ),
    ] = None,
    max_detections: Annotated[
        int, typer.Option("--max-detections", min=1, help="Instances of an image that count, the best ones.")
    ] = 100,
    boundary: Annotated[
        bool, typer.Option("--boundary", help="Also boundary IoU (semantic) or boundary AP (instance).")
    ] = False,
    worst: Annotated[int, typer.Option("--worst", min=0, help="Draw so many images, those of the lowest score.")] = 0,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="The file for --worst (worst.png if not given).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the JSON to this file.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images that run together.")] = 1,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Measure a checkpoint on annotated photos: mean IoU, mask AP or panoptic quality, and the same of each class."""
    with _one_line_errors():
        if not data.exists() and format != "datasets":
            raise ValueError(f"there is no folder or file {str(data)!r}")
        if picture is not None:
            _check_picture(picture, "--picture")
            if not worst:
                raise ValueError("--picture is for the worst images: say how many with --worst")
        _quiet_transformers()
        from .training import evaluate_checkpoint, format_table

        picture = picture or Path("worst.png")
        result = evaluate_checkpoint(
            checkpoint,
            data,
            task=task.value if task else None,
            device=device,
            dtype=dtype,
            json_path=output,
            batch_size=batch_size,
            split=split,
            format=format,
            class_groups=class_groups,  # pyrefly: ignore  # `open_dataset` says what it may be
            threshold=threshold,
            max_detections=max_detections,
            boundary=boundary,
            worst=worst,
            picture=picture,
        )
        typer.echo(_to_json(result) if as_json else format_table(result))
        if worst and not as_json:
            typer.echo(f"Saved {picture}")


@app.command(epilog=EXPORT_EPILOG)
def export(
    checkpoint: Annotated[str, typer.Argument(help="A bundled name, a folder, or a name on the Hugging Face Hub.")],
    format: Annotated[FormatChoice, typer.Option("--format", help="What to write.")] = FormatChoice.onnx,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write (model.onnx or model.pt2 if not given).")
    ] = None,
    post_process: Annotated[
        bool,
        typer.Option(
            "--post-process",
            help="Give the class of each pixel of the padded input, (batch, height, width) int64, and not logits.",
        ),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Quantise convolutions and matrix products: a quarter of the size. ONNX only; see --calibration.",
        ),
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="Photos that fix the ranges of int8 activations, which makes the file fast and not only small.",
        ),
    ] = None,
    static: Annotated[
        str | None,
        typer.Option("--static", metavar="HEIGHTxWIDTH", help="One input size, where a backbone allows no other way."),
    ] = None,
) -> None:
    """Write a checkpoint as an ONNX file or a torch.export program, for any batch, height and width.

    The file says of itself what it wants and gives: opset, classes, task, mean and standard deviation, divisor. It is
    compared with the model before it is written.
    """
    with _one_line_errors():
        size = _parse_size(static) if static else None
        _quiet_transformers()
        import warnings

        from .export import FORMAT_SUFFIXES, export_checkpoint

        path = output or Path(f"model{FORMAT_SUFFIXES[format.value]}")
        try:
            with warnings.catch_warnings():
                # torch and onnxruntime warn of their own future.
                warnings.simplefilter("ignore")
                result = export_checkpoint(
                    checkpoint,
                    path,
                    format.value,
                    post_process=post_process,
                    int8=int8,
                    calibration=calibration,
                    static_size=size,
                )
        except ImportError as error:
            raise ValueError(str(error)) from error
        opset = f", opset {result.metadata['opset']}" if "opset" in result.metadata else ""
        typer.echo(f"Saved {path} ({format.value}{opset}, {path.stat().st_size / 1e6:.1f} MB)")
        typer.echo(f"  input   {result.metadata['input']}")
        typer.echo(f"  output  {result.metadata['output']}")
        if result.quantised:
            counts = " and ".join(f"{count} {name}" for name, count in result.quantised.items())
            typer.echo(f"  {result.metadata['quantisation']}: {counts}; measure it with benchmarks/int8.py")
        else:
            typer.echo(
                f"  checked against the model at unseen sizes: difference at most {result.largest_difference:.1g}"
            )


def _parse_size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"--static {text!r} is no size: give HEIGHTxWIDTH in pixels, such as 512x1024") from None
    return height, width


@app.command(epilog=PUSH_EPILOG)
def push(
    checkpoint: Annotated[str, typer.Argument(help="A bundled name, a folder, or a name on the Hugging Face Hub.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="USER/NAME on the Hub; made if there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
) -> None:
    """Upload a checkpoint to the Hub: weights, model card, sample picture, and the code to use it without this package.

    The token is that of `hf auth login`, or HF_TOKEN.
    """
    with _one_line_errors():
        _quiet_transformers()
        from huggingface_hub.utils import enable_progress_bars

        from .hub import push as push_checkpoint

        # An upload takes as long as the line is slow.
        enable_progress_bars()
        typer.echo(f"Pushed to {push_checkpoint(checkpoint, repo_id, private=private or None, message=message)}")


@app.command(epilog=CONVERT_EPILOG)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A file of the original MaskFormer or Mask2Former (.pkl, .pth, .safetensors), or a checkpoint: a "
            "bundled name, a folder, or a name on the Hugging Face Hub."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    to: Annotated[LayoutChoice, typer.Option("--to", help="Whose checkpoint it becomes.")] = LayoutChoice.maskformer_hf,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="What a file holds, such as maskformer_resnet50_ade20k; found out if not given."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="The config.yaml (or JSON) that Detectron2 dumped for a file; taken if it lies beside it."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Convert a checkpoint: the original's files to folders of this package, and these to transformers' own."""
    with _one_line_errors():
        from .conversion.folder import check_output, whole_folder

        path = Path(source)
        is_file = path.is_file() or path.suffix in (".pkl", ".pth", ".safetensors")
        if is_file and not path.is_file():
            raise ValueError(f"there is no file {source!r}")
        if not is_file and (preset or config):
            raise ValueError("--preset and --config say what a file of the original holds; a folder says it itself")
        check_output(output, force)
        if path.is_dir() and output.is_dir() and path.samefile(output):
            raise ValueError(f"--output {str(output)!r} is the checkpoint itself; choose another folder")
        _quiet_transformers()
        from .conversion.convert import convert_detectron2, summary

        lines = []
        if is_file:
            converted = convert_detectron2(path, preset, config)
            model: Any = converted.model
            processor = converted.processor
            lines += [("ignored", f"{name} ({count}): {reason}") for name, count, reason in converted.ignored]
            lines += [("note", remark) for remark in converted.remarks]
        else:
            from .inference.load import load

            model, processor = load(source, device="cpu")
        lines = [*summary(model), *lines]
        if to is LayoutChoice.transformers:
            from .conversion.to_transformers import describe_changes, to_transformers, transformers_processor

            theirs, difference = to_transformers(model)
            lines += [("note", change) for change in describe_changes(model, processor, difference)]
            written = theirs, transformers_processor(processor, model.config)
        else:
            written = model, processor
        with whole_folder(output, force) as folder:
            for part in written:
                part.save_pretrained(folder)
        width = max(len(name) for name, _ in lines)
        typer.echo("\n".join(f"  {name:{width}}  {text}" for name, text in lines))
        typer.echo(f"Saved {output}")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """End with one line and status 1 where the user can mend what is wrong; other errors keep their traceback."""
    try:
        yield
    except BrokenPipeError:
        # The reader of our output, `head` for instance, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except (ValueError, OSError) as error:
        typer.echo(_error_line(error), err=True)
        raise typer.Exit(1) from None


def _error_line(error: Exception, photo: Path | None = None) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # What ends in a colon is a heading, and says nothing without its list.
    text = "\n".join(lines) if lines[0].endswith(":") else lines[0]
    if photo is not None and str(photo) not in text:
        text = f"{photo}: {text}"
    return f"maskformer: {text}"


def _quiet_transformers() -> None:
    """Leave the terminal to what was asked for: no bar while weights load, no advice to programmers."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _find_photos(paths: Sequence[Path], output: Path | None) -> tuple[list[Path], bool]:
    """All photos that were named or lie in (or below) a named folder, and whether that means several.

    What lies in the output folder is a result of ours, not a photo.
    """
    photos, has_folder = [], False
    written = (output or DEFAULT_FOLDER).resolve()
    for path in paths:
        if not path.is_dir():
            photos.append(path)
            continue
        has_folder = True
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and written not in file.resolve().parents
        )
        if not found:
            raise ValueError(f"the folder {str(path)!r} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
        photos += found
    photos = list(dict.fromkeys(photos))
    if len(photos) == 1 and not photos[0].is_file():
        raise ValueError(f"there is no file {str(photos[0])!r}")
    return photos, has_folder or len(photos) > 1


def _picture_paths(photos: list[Path], output: Path | None, several: bool, write: bool) -> list[Path | None]:
    """Where the picture of each photo goes; no two to the same place, and none onto a photo."""
    if not write:
        return [None] * len(photos)
    target = output or (DEFAULT_FOLDER if several else DEFAULT_PICTURE)
    if several or target.is_dir() or not target.suffix:
        if target.is_file() or target.suffix.lower() in IMAGE_SUFFIXES:
            raise ValueError(f"--output {str(target)!r} is a file; the pictures of several photos need a folder")
        pictures: list[Path] = []
        taken: set[str] = set()
        for photo in photos:
            stem, number = photo.stem, 2
            while stem in taken:
                stem, number = f"{photo.stem}_{number}", number + 1
            taken.add(stem)
            pictures.append(target / f"{stem}.png")
    else:
        _check_picture(target, "--output")
        pictures = [target]
    originals = {photo.resolve() for photo in photos}
    for picture in pictures:
        if picture.resolve() in originals:
            raise ValueError(f"{str(picture)!r} is one of the photos and would be overwritten: choose another --output")
    return list(pictures)


def _segments_videos(checkpoint: str) -> bool:
    """Whether a checkpoint is one of videos, by its configuration; what is no checkpoint is none."""
    bundled = Path(__file__).parent / "checkpoints" / checkpoint / "config.json"
    path = bundled if bundled.is_file() else Path(checkpoint).expanduser() / "config.json"
    if not path.is_file():
        if checkpoint.count("/") != 1 or checkpoint.startswith((".", "~", "/")):
            return False
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(checkpoint, "config.json"))
        except (OSError, ValueError):
            # Loading will say what is wrong with it.
            return False
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("model_type") == "maskformer_hf_video"
    except ValueError:
        return False


def _segment_videos(
    paths: Sequence[Path],
    output: Path | None,
    as_json: bool,
    checkpoint: str,
    threshold: float | None,
    device: str | None,
    dtype: str | None,
) -> None:
    """`segment` for a checkpoint of videos."""
    for path in paths:
        if not path.exists():
            raise ValueError(f"there is no file or folder {str(path)!r}")
    targets: Sequence[Path | None] = [None] * len(paths)
    if not as_json or output is not None:
        targets = _video_targets(paths, output)
    _quiet_transformers()
    from .inference.load import load
    from .inference.video import predict_video

    loaded: Any = load(checkpoint, device, dtype)
    model, processor = loaded
    options: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
    records = []
    for path, target in zip(paths, targets, strict=True):
        prediction = predict_video(model, processor, path, progress=True, **options)
        record = _video_record(path, target, prediction)
        records.append(record)
        if target is not None:
            _draw_video(path, target, prediction)
            tracks = target.with_suffix(".json") if target.suffix else target / "tracks.json"
            tracks.write_text(json.dumps(record) + "\n", encoding="utf-8")
        if not as_json:
            typer.echo(_video_table(record))
    if as_json:
        typer.echo(json.dumps(records, indent=2))


def _video_targets(paths: Sequence[Path], output: Path | None) -> list[Path]:
    """Where each video's overlay goes: files as video files and folders as folders, unless `output` says otherwise."""
    if len(paths) == 1:
        [path] = paths
        targets = [output or (DEFAULT_FOLDER if path.is_dir() else DEFAULT_VIDEO)]
    else:
        folder = output or DEFAULT_FOLDER
        if folder.suffix.lower() in VIDEO_SUFFIXES:
            raise ValueError(f"--output {str(folder)!r} is a video; what becomes of several needs a folder")
        targets = [folder / (path.name if path.is_dir() else f"{path.stem}.mp4") for path in paths]
    if len(set(targets)) < len(targets):
        raise ValueError(f"two of the videos have one name, so that both would go to {str(max(targets))!r}: rename one")
    for path, target in zip(paths, targets, strict=True):
        if target.suffix and target.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"--output {str(target)!r}: {target.suffix} is no video format; use .mp4, or a folder")
        if target.resolve() == path.resolve():
            raise ValueError(f"{str(target)!r} is the video itself and would be overwritten: choose another --output")
        if not target.suffix and target.is_file():
            raise ValueError(f"--output {str(target)!r} is a file, and a folder for the frames is needed")
    return targets


def _draw_video(path: Path, target: Path, prediction: "VideoPrediction") -> None:
    """Writes the frames under their tracks: as a video file if `target` has a suffix, else as PNGs into the folder."""
    from tqdm import tqdm

    from .inference.video_files import FRAMES_PER_SECOND, VideoFile, write_video
    from .models.video_processing_maskformer import frames_of
    from .visualize import draw_tracks

    video: Any = frames_of(path) if path.is_dir() else VideoFile(path)
    frames = tqdm(video, "Drawing", prediction.num_frames, unit="frame")
    pictures = (draw_tracks(frame, prediction, number) for number, frame in enumerate(frames))
    if target.suffix:
        write_video(target, pictures, getattr(video, "frames_per_second", FRAMES_PER_SECOND))
        return
    target.mkdir(parents=True, exist_ok=True)
    names = [frame.stem for frame in video] if path.is_dir() else [f"{i:05}" for i in range(prediction.num_frames)]
    for name, picture in zip(names, pictures, strict=True):
        picture.save(target / f"{name}.png")


def _video_record(path: Path, target: Path | None, prediction: "VideoPrediction") -> dict[str, Any]:
    """What the json says of one video."""
    height, width = prediction.size
    return {
        "video": str(path),
        "overlay": None if target is None else str(target),
        "height": height,
        "width": width,
        "num_frames": prediction.num_frames,
        "tracks": prediction.tracks,
    }


def _video_table(record: dict[str, Any]) -> str:
    """Id, label, score and frames of each track of a video, as aligned text."""
    written = f" -> {record['overlay']}" if record["overlay"] else ""
    lines = [f"{record['video']} ({record['num_frames']} frames, {record['height']} x {record['width']}){written}"]
    if not record["tracks"]:
        return "\n".join([*lines, "  nothing found"])
    width = max(5, *(len(track["label"]) for track in record["tracks"]))
    lines.append(f"  {'id':>4}  {'label':{width}}  score  frames")
    for track in record["tracks"]:
        seen = sum(mask is not None for mask in track["segmentations"])
        lines.append(f"  {track['id']:>4}  {track['label']:{width}}  {track['score']:5.2f}  {seen:>6}")
    return "\n".join(lines)


def _check_picture(path: Path, option: str) -> None:
    """A ValueError unless a picture can be written to a file of this name."""
    from PIL import Image

    Image.init()
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{option} {str(path)!r}: {path.suffix} is no image format; use .png or .jpg")


def _record(photo: Path, picture: Path | None, prediction: "Prediction") -> dict[str, Any]:
    """What `--json` says of one photo."""
    from .models.post_processing import encode_coco_rle

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


def _to_json(result: dict[str, Any]) -> str:
    """JSON has no NaN: a figure that does not exist is null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and value != value else value

    return json.dumps(clean(result), indent=2)
