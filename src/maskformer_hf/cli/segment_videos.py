"""`maskformer segment` with a checkpoint of videos."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..output_files import refuse_existing, save_picture, write_text
from .errors import quiet_transformers
from .output_paths import DEFAULT_FOLDER

if TYPE_CHECKING:
    from ..inference.video_prediction import VideoPrediction
    from .segment import SegmentOptions

DEFAULT_VIDEO = Path("result.mp4")


def segment_videos(options: "SegmentOptions") -> None:
    """Finds the tracks of each video, and writes them and the coloured frames."""
    for name in ("task", "merging", "tile_size", "plan"):
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is for photos, and checkpoint {options.checkpoint!r} segments videos")
    for path in options.paths:
        if not path.exists():
            raise ValueError(f"there is no file or folder {str(path)!r}")
    targets: Sequence[Path | None] = [None] * len(options.paths)
    if not options.as_json or options.output is not None:
        targets = _targets(options.paths, options.output)
    for path, target in zip(options.paths, targets, strict=True):
        refuse_existing(() if target is None else _written(path, target), options.overwrite)

    quiet_transformers()
    from ..inference.load import load
    from ..inference.video import predict_video

    loaded: Any = load(options.checkpoint, options.device, options.dtype, **options.layers)
    model, processor = loaded
    given = {name: getattr(options, name) for name in ("threshold", "max_pixels")}
    given = {name: value for name, value in given.items() if value is not None}
    records = []
    for path, target in zip(options.paths, targets, strict=True):
        prediction = predict_video(model, processor, path, progress=True, **given)
        record = _record(path, target, prediction)
        records.append(record)
        if target is not None:
            _draw(path, target, prediction)
            write_text(_tracks_path(target), json.dumps(record) + "\n")
        if not options.as_json:
            typer.echo(_table(record))
    if options.as_json:
        typer.echo(json.dumps(records, indent=2))


def _targets(paths: Sequence[Path], output: Path | None) -> list[Path]:
    """Where the coloured frames of each video go: of a file to a video file, of a folder to a folder.

    `output` may choose the other kind for a single video; a target with a suffix is a video file.

    Raises:
        ValueError: `output` is no place for these videos.
    """
    from ..inference.video_files import VIDEO_SUFFIXES

    if len(paths) == 1:
        [path] = paths
        targets = [output or (DEFAULT_FOLDER if path.is_dir() else DEFAULT_VIDEO)]
    else:
        folder = output or DEFAULT_FOLDER
        if folder.suffix.lower() in VIDEO_SUFFIXES:
            raise ValueError(f"--output {str(folder)!r} is a video; more than one video needs a folder")
        targets = [folder / (path.name if path.is_dir() else f"{path.stem}.mp4") for path in paths]
    if len(set(targets)) < len(targets):
        raise ValueError(f"two videos have one name, and both would be written to {str(max(targets))!r}: rename one")
    for path, target in zip(paths, targets, strict=True):
        if target.suffix and target.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"--output {str(target)!r}: {target.suffix} is no video format; use .mp4, or a folder")
        if target.resolve() == path.resolve():
            raise ValueError(f"{str(target)!r} is the video itself and would be overwritten: choose another --output")
        if not target.suffix and target.is_file():
            raise ValueError(f"--output {str(target)!r} is a file, and the frames need a folder")
    return targets


def _tracks_path(target: Path) -> Path:
    return target.with_suffix(".json") if target.suffix else target / "tracks.json"


def _written(path: Path, target: Path) -> list[Path]:
    """The files that a video may be written to. How many frames a file has is not known before it is decoded."""
    if target.suffix:
        return [target, _tracks_path(target)]
    from ..models.image_files import IMAGE_SUFFIXES, files_in

    if path.is_dir():
        return [_tracks_path(target), *(target / f"{frame.stem}.png" for frame in files_in(path, IMAGE_SUFFIXES))]
    return [_tracks_path(target), *(frame for frame in files_in(target, (".png",)) if frame.stem.isdecimal())]


def _draw(path: Path, target: Path, prediction: "VideoPrediction") -> None:
    """Writes the frames under their tracks: as a video file if `target` has a suffix, else as PNGs into the folder."""
    from tqdm import tqdm

    from ..inference.video_files import FRAMES_PER_SECOND, VideoFile, write_video
    from ..models.video_processing_maskformer import frames_of
    from ..visualize import draw_tracks

    video: Any = frames_of(path) if path.is_dir() else VideoFile(path)
    frames = tqdm(video, "Drawing", prediction.num_frames, unit="frame")
    pictures = (draw_tracks(frame, prediction, number) for number, frame in enumerate(frames))
    if target.suffix:
        write_video(target, pictures, getattr(video, "frames_per_second", FRAMES_PER_SECOND))
        return
    names = [frame.stem for frame in video] if path.is_dir() else [f"{i:05}" for i in range(prediction.num_frames)]
    for name, picture in zip(names, pictures, strict=True):
        save_picture(picture, target / f"{name}.png")


def _record(path: Path, target: Path | None, prediction: "VideoPrediction") -> dict[str, Any]:
    """The entry of one video in the JSON."""
    height, width = prediction.size
    return {
        "video": str(path),
        "overlay": None if target is None else str(target),
        "height": height,
        "width": width,
        "num_frames": prediction.num_frames,
        "tracks": prediction.tracks,
    }


def _table(record: dict[str, Any]) -> str:
    """Id, label, score and number of frames of each track of a video, as aligned text."""
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
