"""`maskformer segment`: pictures and tables of photos, or of videos if the checkpoint is one of videos."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .options import DeviceOption, DtypeOption, MergingOption, OverwriteOption, TaskChoice
from .segment_photos import segment_photos
from .segment_videos import segment_videos

EXAMPLES = """Examples:

  maskformer segment photo.jpg --output result.png

  maskformer segment photos/ more.jpg --output overlays --task panoptic

  maskformer segment photo.jpg --json > segments.json

  maskformer segment panorama.jpg --plan tiles --tile-size 640

  maskformer segment photo.jpg --checkpoint runs/mine/model --device cuda --dtype bfloat16

  maskformer segment clip.mp4 --checkpoint runs/video/model --output found.mp4

  maskformer segment frames/ --checkpoint runs/video/model --output overlays"""


@dataclass(frozen=True)
class SegmentOptions:
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATHS",
            help="Photos, or folders of photos. For a checkpoint of videos: video files, or folders of frames.",
        ),
    ]
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The picture to write, or for several photos the folder (result.png, or predictions/, if not given). "
            "For a checkpoint of videos: the video to write (result.mp4), or the folder of frames.",
        ),
    ] = None
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON instead of the table: label, score, area and mask (COCO RLE) of each segment. "
            "Pictures are then written only if --output is given; in a folder each has a .json beside it.",
        ),
    ] = False
    task: Annotated[
        TaskChoice | None, typer.Option("--task", help="The task the checkpoint was trained for if not given.")
    ] = None
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", "-c", help="A bundled name, a folder, or a name on the Hugging Face Hub.")
    ] = "street"
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0.0,
            max=1.0,
            help="The lowest score of an instance or a panoptic segment. The checkpoint's own if not given; 0.5 for "
            "videos.",
        ),
    ] = None
    merging: MergingOption = None
    tile_size: Annotated[
        int | None,
        typer.Option(
            "--tile-size",
            min=0,
            help="Cut larger photos into overlapping tiles with sides of this many pixels; 0 never cuts. The "
            "checkpoint's own if not given.",
        ),
    ] = None
    plan: Annotated[
        str | None,
        typer.Option(
            "--plan",
            help="How the model sees a photo: whole or tiles. If not given, tiles if there is a tile size.",
        ),
    ] = None
    max_pixels: Annotated[
        int | None,
        typer.Option(
            "--max-pixels",
            min=1,
            help="Open photos of up to this many pixels. 178,956,970 if not given, since a small file can stand for "
            "more than fits into memory.",
        ),
    ] = None
    inference_layers: Annotated[
        int | None,
        typer.Option(
            "--inference-layers",
            min=1,
            help="Run only so many layers of the transformer decoder: faster, less exact. As the checkpoint says if "
            "not given.",
        ),
    ] = None
    inference_encoder_layers: Annotated[
        int | None,
        typer.Option(
            "--inference-encoder-layers", min=1, help="The same for the encoder that a pixel decoder may have."
        ),
    ] = None
    device: DeviceOption = None
    dtype: DtypeOption = None
    overwrite: OverwriteOption = False

    @property
    def layers(self) -> dict[str, int | None]:
        """What `load` is told of the layers that run."""
        return {
            "inference_layers": self.inference_layers,
            "inference_encoder_layers": self.inference_encoder_layers,
        }


def segment(options: SegmentOptions) -> None:
    """Segment photos: write a coloured picture of each and print what was found. Or videos, with tracks.

    The tracks of a video, with their masks in every frame, go into a .json beside the coloured video.
    """
    if segments_videos(options.checkpoint):
        segment_videos(options)
    else:
        segment_photos(options)


def segments_videos(checkpoint: str) -> bool:
    """Whether the configuration of a checkpoint is one for videos.

    False if there is no such checkpoint, or a broken one: loading it will say what is wrong. The configuration is read
    here without torch, because it decides which arguments are valid.
    """
    bundled = Path(__file__).parent.parent / "checkpoints" / checkpoint / "config.json"
    path = bundled if bundled.is_file() else Path(checkpoint).expanduser() / "config.json"
    if not path.is_file():
        if checkpoint.count("/") != 1 or checkpoint.startswith((".", "~", "/")):
            return False
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(checkpoint, "config.json"))
        except (OSError, ValueError):
            return False
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("model_type") == "maskformer_hf_video"
    except ValueError:
        return False
