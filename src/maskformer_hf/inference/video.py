"""From a video to tracks: `predict_video`.

A video of any length is cut into windows of frames that overlap. The model finds the objects of a window with their
masks in all its frames; objects of two windows are one where their masks agree in the frames that both saw. Only run
lengths are kept of a frame, so memory grows with the length of the video by no more than these.

Shapes: T frames, N objects, H W pixels of the video.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from tqdm import tqdm

from ..models.coco_rle import encode_seen
from ..models.image_geometry import image_geometries
from ..models.image_values import as_8_bits
from ..models.instances import best_tracks, tube_masks
from ..models.modeling_video import MaskFormerHfForVideoSegmentation
from ..models.video_processing_maskformer import MaskFormerHfVideoProcessor, frames_of
from .images import ImageInput, image_size, preprocess, read_image, reading_of
from .tracks import RunLengths, Track, WindowObject, link_objects
from .video_files import VideoFile
from .video_prediction import VideoPrediction
from .views_of_models import in_evaluation_mode

VideoInput = str | Path | np.ndarray | torch.Tensor | Iterable[ImageInput]


class VideoOptions(TypedDict, total=False):
    """What is an object, and when two are one.

    threshold: Least score, which is the class probability, of an object in a window; 0.5.
    mask_threshold: Probability from which on a pixel belongs to a mask; 0.5.
    link_threshold: Objects of two windows are one if their masks, in all shared frames together, have at least this
        intersection over union; 0.5.
    max_objects: Most objects of a window; 10.
    max_pixels: Most pixels of a frame that is opened. Pillow's limit, which is 178,956,970.
    """

    threshold: float
    mask_threshold: float
    link_threshold: float
    max_objects: int
    max_pixels: int | None


@dataclass(frozen=True)
class _Options:
    threshold: float = 0.5
    mask_threshold: float = 0.5
    link_threshold: float = 0.5
    max_objects: int = 10


class _Frame(NamedTuple):
    inputs: dict[str, torch.Tensor]
    size: tuple[int, int]


class _Window(NamedTuple):
    """Consecutive frames that the model sees together.

    start: Number of the first frame in the video.
    is_last: Whether no other window follows.
    """

    start: int
    is_last: bool
    frames: list[_Frame]


@torch.inference_mode()
def predict_video(
    model: MaskFormerHfForVideoSegmentation,
    processor: MaskFormerHfVideoProcessor,
    video: VideoInput,
    *,
    window: int = 16,
    overlap: int = 4,
    progress: bool = False,
    **options: Unpack[VideoOptions],
) -> VideoPrediction:
    """Find the objects of a video, each with its mask in every frame.

    The first half of the frames that two windows share is taken from the earlier window, the rest from the later one.
    An object that is out of sight in all of them counts as another when it comes back. The label of an object is the
    one with the largest sum of scores over the frames of its windows, and its score is this sum divided by their
    number.

    Args:
        video: A folder of frames, a video file, an array (T, H, W, C) or (T, C, H, W), or frames as `predict` takes
            images, all of one size. Folders, files and iterators are read as they are needed: no more than a window is
            in memory.
        window: Frames that the model sees together. Memory grows with it, and time faster than linearly.
        overlap: Frames that a window shares with the next, fewer than `window` and at least 1.
        progress: Show a progress bar of the frames.
        options: See [`VideoOptions`].

    Raises:
        ValueError: A model of images; no frames, or frames of different sizes; a frame that cannot be read; window and
            overlap that do not fit together; an unknown option.
    """
    if model.config.kind != "clip":
        raise ValueError("This is a model of images, which knows no videos: use `predict`, frame by frame.")
    if not 1 <= overlap < window:
        raise ValueError(f"`overlap` is {overlap}: it must be at least 1 and less than `window`, {window}.")
    names = VideoOptions.__annotations__
    for name in options:
        if name not in names:
            raise ValueError(f"`predict_video` has no option {name!r}: there are {', '.join(names)}.")
    given: dict[str, Any] = {**options}
    max_pixels = given.pop("max_pixels", None)
    frames, total = _open_frames(video, reading_of(processor).is_8_bit)
    bar = tqdm(frames, "Segmenting", total, unit="frame", disable=not progress)
    model = in_evaluation_mode(model)
    windows = _windows(_read_frames(processor, bar, max_pixels), window, overlap)
    return _follow(model, windows, overlap, _Options(**given))


def _open_frames(video: VideoInput, is_8_bit: bool) -> tuple[Any, int | None]:
    """What gives the frames, and how many there are where that is known."""
    frames: Any = video
    if isinstance(video, str | Path) and Path(video).is_file():
        frames = VideoFile(video)
    elif isinstance(video, str | Path | np.ndarray | torch.Tensor | list | tuple):
        frames = frames_of(video)
    if is_8_bit and isinstance(frames, np.ndarray | torch.Tensor):
        # What the numbers mean is decided for all frames together.
        frames = as_8_bits(frames, "The video")
    return frames, len(frames) if hasattr(frames, "__len__") else getattr(frames, "stated_frames", 0) or None


def _follow(
    model: MaskFormerHfForVideoSegmentation, windows: Iterable[_Window], overlap: int, options: _Options
) -> VideoPrediction:
    """Finds the objects of each window and links them to those of the window before."""
    tracks: list[Track] = []
    # The objects of the window before: the track of each, and its masks in the shared frames.
    earlier: list[tuple[Track, list[RunLengths]]] = []
    size, num_frames = (0, 0), 0
    for start, is_last, frames in windows:
        size, num_frames = frames[0].size, start + len(frames)
        found = _find_objects(model, frames, options)
        links = link_objects(
            [masks for _, masks in earlier], [item.masks[:overlap] for item in found], options.link_threshold
        )
        # The frames whose masks are taken from this window, counted within it.
        first = overlap // 2 if start else 0
        last = len(frames) if is_last else len(frames) - (overlap - overlap // 2)
        kept = []
        for item, link in zip(found, links, strict=True):
            track = earlier[link][0] if link is not None else Track()
            track.add(item, range(start + first, start + last), item.masks[first:last])
            if link is None:
                tracks.append(track)
            kept.append((track, item.masks[-overlap:]))
        earlier = kept
    if num_frames == 0:
        raise ValueError("A video has no frames; give at least one.")
    id2label = {int(label_id): label for label_id, label in (model.config.id2label or {}).items()}
    seen = [track for track in tracks if track.masks]
    return VideoPrediction(
        size, num_frames, [track.record(number, num_frames, id2label) for number, track in enumerate(seen, start=1)]
    )


def _read_frames(
    processor: MaskFormerHfVideoProcessor, frames: Iterable[ImageInput], max_pixels: int | None
) -> Iterator[_Frame]:
    reading = reading_of(processor, max_pixels)
    first_size = None
    for index, source in enumerate(frames):
        image = read_image(source, f"Frame {index}", reading)
        size = image_size(image)
        first_size = first_size or size
        if size != first_size:
            raise ValueError(
                f"Frame {index} has the size {size} (height, width), and the first {first_size}: a video has one."
            )
        yield _Frame(dict(preprocess(processor, image)), size)


def _windows(frames: Iterator[_Frame], window: int, overlap: int) -> Iterator[_Window]:
    start, seen = 0, list(islice(frames, window))
    following: deque[_Frame] = deque()
    while seen:
        following.extend(islice(frames, window - overlap))
        yield _Window(start, not following, seen)
        if not following:
            return
        start += len(seen) - overlap
        seen = [*seen[-overlap:], *following]
        following.clear()


def _find_objects(
    model: MaskFormerHfForVideoSegmentation,
    seen: list[_Frame],
    options: _Options,
) -> list[WindowObject]:
    pixel_values = torch.cat([frame.inputs["pixel_values"] for frame in seen], dim=1)
    # Convolutions of the CPU and of tensor cores run fastest on channels-last memory.
    frames = pixel_values[0].to(model.device, model.dtype, memory_format=torch.channels_last)
    pixel_mask = seen[0].inputs["pixel_mask"].expand(-1, len(seen), -1, -1)
    outputs: Any = model(pixel_values=frames[None], pixel_mask=pixel_mask.to(model.device), lazy_masks=True)
    tracks = best_tracks(outputs.class_queries_logits[0], threshold=options.threshold, top_k=options.max_objects)
    [geometry] = image_geometries(outputs, [seen[0].size])
    queries, positions = torch.unique(tracks.queries, return_inverse=True)
    tubes = [
        encode_seen(masks)
        for masks in tube_masks(outputs.masks[0][queries], positions, geometry, mask_threshold=options.mask_threshold)
    ]
    return [
        WindowObject(label_id, score, [frame[index] for frame in tubes])
        for index, (label_id, score) in enumerate(zip(tracks.labels.tolist(), tracks.scores.tolist(), strict=True))
    ]
