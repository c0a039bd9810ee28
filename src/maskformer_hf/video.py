"""From a video to tracks: `predict_video`.

A video of any length is cut into windows of frames that overlap. The model finds the objects of a window with their
masks in all its frames; those of two windows are one object where their masks agree in the frames that both saw. What
is kept of a frame are run lengths, so memory does not grow with the length of the video by more than these.

Shapes: T frames, N objects, H W pixels of the video.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from .inference import ImageInput, Prediction, image_size, read_image
from .models.coco_rle import encode_seen
from .models.configuration_video import MaskFormerHfVideoConfig
from .models.image_geometry import image_geometries
from .models.instances import best_tracks, tube_masks
from .models.modeling_video import MaskFormerHfForVideoSegmentation
from .models.video_processing_maskformer import MaskFormerHfVideoProcessor, frames_of
from .video_files import VideoFile

VideoInput = str | Path | np.ndarray | torch.Tensor | Iterable[ImageInput]
# pycocotools' run lengths of a mask, a dictionary; None where it has no pixel.
RunLengths = Any


class VideoPrediction:
    """What was found in a video of T frames of H x W pixels.

    Attributes:
        size: (H, W).
        num_frames: T.
        tracks: One dictionary an object: `id` from 1 in the order of appearance, `label_id`, `label`, `score` (0 to 1),
            and `segmentations`, as in YouTube-VIS's files: pycocotools' RLE of each frame, None where the object is out
            of sight.
    """

    def __init__(self, size: tuple[int, int], num_frames: int, tracks: list[dict[str, Any]]) -> None:
        self.size = size
        self.num_frames = num_frames
        self.tracks = tracks

    def __repr__(self) -> str:
        return f"VideoPrediction({self.size}, {self.num_frames} frames, {len(self.tracks)} tracks)"

    def mask(self, track: dict[str, Any], frame: int) -> torch.Tensor:
        """The pixels of one of `tracks` in a frame: (H, W) bool."""
        from pycocotools import mask as coco_mask

        run_lengths = track["segmentations"][frame]
        if run_lengths is None:
            return torch.zeros(self.size, dtype=torch.bool)
        return torch.from_numpy(np.asarray(coco_mask.decode(run_lengths), dtype=bool))

    def frame(self, number: int) -> Prediction:
        """What one frame shows, as `predict` gives the instances of a photo; the scores are those of the tracks."""
        tracks = [track for track in self.tracks if track["segmentations"][number] is not None]
        tracks.sort(key=lambda track: -track["score"])
        masks = [self.mask(track, number) for track in tracks]
        segments = [
            {
                "id": index,
                "label_id": track["label_id"],
                "label": track["label"],
                "score": track["score"],
                "area": int(mask.sum()),
                "box": _box(track["segmentations"][number]),
                "track": track["id"],
            }
            for index, (track, mask) in enumerate(zip(tracks, masks, strict=True), start=1)
        ]
        empty = torch.zeros((0, *self.size), dtype=torch.bool)
        return Prediction("instance", self.size, segments, masks=torch.stack(masks) if masks else empty)


def _box(run_lengths: RunLengths) -> list[float]:
    """(left, top, right, bottom), of right and bottom the pixel behind the last."""
    from pycocotools import mask as coco_mask

    left, top, width, height = coco_mask.toBbox(run_lengths).tolist()
    return [left, top, left + width, top + height]


class _Frame(NamedTuple):
    inputs: dict[str, torch.Tensor]
    size: tuple[int, int]


class _Found(NamedTuple):
    """An object in a window, or what is known of it before the next."""

    label_id: int
    score: float
    masks: list[RunLengths]


@torch.inference_mode()
def predict_video(
    model: MaskFormerHfForVideoSegmentation,
    processor: MaskFormerHfVideoProcessor,
    video: VideoInput,
    *,
    window: int = 16,
    overlap: int = 4,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    link_threshold: float = 0.5,
    max_objects: int = 10,
    progress: bool = False,
) -> VideoPrediction:
    """Find the objects of a video, each with its mask in every frame.

    Of the frames that two windows share, the first half is taken from the earlier window and the rest from the later
    one. An object that is out of sight in all of them counts as another when it comes back. The label of an object is
    that with the largest sum of scores over the frames of its windows, and its score is this sum divided by their
    number.

    Args:
        video: A folder of frames, a video file, an array (T, H, W, C) or (T, C, H, W), or frames as `predict` takes
            images, all of one size. Of folders and files, and of whatever is iterated over, no more than a window is in
            memory.
        window: Frames that the model sees together. Memory and, beyond linear, time grow with it.
        overlap: Frames that a window shares with the next, fewer than `window` and at least 1.
        threshold: Least score, which is the class probability, of an object in a window.
        mask_threshold: Probability from which on a pixel belongs to a mask.
        link_threshold: Objects of two windows are one if their masks, in all shared frames together, have at least
            this intersection over union.
        max_objects: Most objects of a window.
        progress: Show a progress bar of the frames.

    Raises:
        ValueError: A model of images; no frames, or frames of different sizes; a frame that cannot be read; window and
            overlap that do not fit together.
    """
    if model.config.model_type != MaskFormerHfVideoConfig.model_type:
        raise ValueError("This is a model of images, which knows no videos: use `predict`, frame by frame.")
    if not 1 <= overlap < window:
        raise ValueError(f"`overlap` is {overlap}: it must be at least 1 and less than `window`, {window}.")
    frames: Any = video
    if isinstance(video, str | Path) and Path(video).is_file():
        frames = VideoFile(video)
    elif isinstance(video, str | Path | np.ndarray | torch.Tensor | list | tuple):
        frames = frames_of(video)
    total = len(frames) if hasattr(frames, "__len__") else getattr(frames, "stated_frames", 0) or None
    id2label = {int(label_id): label for label_id, label in (model.config.id2label or {}).items()}
    tracks: list[_Track] = []
    # Of the window before: the track of each of its objects, and its masks in the shared frames.
    earlier: list[tuple[_Track, list[RunLengths]]] = []
    size, num_frames = (0, 0), 0
    was_training = model.training
    model.eval()
    try:
        reader = _read_frames(model, processor, tqdm(frames, "Segmenting", total, unit="frame", disable=not progress))
        for start, end, is_last, seen in _windows(reader, window, overlap):
            size, num_frames = seen[0].size, end
            found = _find_objects(model, seen, threshold, mask_threshold, max_objects)
            links = link_objects(
                [masks for _, masks in earlier], [found_masks.masks[:overlap] for found_masks in found], link_threshold
            )
            # Frames whose masks are taken from this window, counted within it.
            first = overlap // 2 if start else 0
            last = len(seen) if is_last else len(seen) - (overlap - overlap // 2)
            kept = []
            for item, link in zip(found, links, strict=True):
                track = earlier[link][0] if link is not None else _Track()
                track.add(item, range(start + first, start + last), item.masks[first:last])
                if link is None:
                    tracks.append(track)
                kept.append((track, item.masks[-overlap:]))
            earlier = kept
    finally:
        model.train(was_training)
    if num_frames == 0:
        raise ValueError("A video has no frames; give at least one.")
    seen_tracks = [track for track in tracks if track.masks]
    return VideoPrediction(
        size, num_frames, [track.record(number, num_frames, id2label) for number, track in enumerate(seen_tracks, 1)]
    )


class _Track:
    """An object over several windows."""

    def __init__(self) -> None:
        self.masks: dict[int, dict[str, Any]] = {}
        self.scores: dict[int, float] = {}  # by label, summed over frames
        self.num_scored = 0

    def add(self, item: _Found, frames: range, masks: list[RunLengths]) -> None:
        self.scores[item.label_id] = self.scores.get(item.label_id, 0.0) + item.score * len(frames)
        self.num_scored += len(frames)
        self.masks |= {frame: mask for frame, mask in zip(frames, masks, strict=True) if mask is not None}

    def record(self, number: int, num_frames: int, id2label: dict[int, str]) -> dict[str, Any]:
        label_id = max(self.scores, key=lambda label: self.scores[label])
        return {
            "id": number,
            "label_id": label_id,
            "label": id2label[label_id],
            "score": self.scores[label_id] / self.num_scored,
            "segmentations": [self.masks.get(frame) for frame in range(num_frames)],
        }


def link_objects(
    earlier: Sequence[Sequence[RunLengths]], later: Sequence[Sequence[RunLengths]], threshold: float
) -> list[int | None]:
    """Which object of the earlier window each of the later one is, if any: by their masks in the shared frames.

    The pair of largest intersection over union, of all shared frames together, goes first, and nobody is in two pairs.
    """
    pairs = [
        (overlap, -after, -before)
        for after, later_masks in enumerate(later)
        for before, earlier_masks in enumerate(earlier)
        if (overlap := tube_overlap(earlier_masks, later_masks)) >= threshold and overlap > 0
    ]
    links: list[int | None] = [None] * len(later)
    taken: set[int] = set()
    for _, negative_after, negative_before in sorted(pairs, reverse=True):
        after, before = -negative_after, -negative_before
        if links[after] is None and before not in taken:
            links[after] = before
            taken.add(before)
    return links


def tube_overlap(first: Sequence[RunLengths], second: Sequence[RunLengths]) -> float:
    """Intersection over union of two objects in the same frames; 0 if neither has a pixel."""
    from pycocotools import mask as coco_mask

    intersection = union = 0
    for a, b in zip(first, second, strict=True):
        if a is not None and b is not None:
            intersection += int(coco_mask.area(coco_mask.merge([a, b], intersect=True)))
        union += sum(int(coco_mask.area(mask)) for mask in (a, b) if mask is not None)
    union -= intersection
    return intersection / union if union else 0.0


def _read_frames(
    model: MaskFormerHfForVideoSegmentation, processor: MaskFormerHfVideoProcessor, frames: Iterable[ImageInput]
) -> Iterator[_Frame]:
    first_size = None
    for index, source in enumerate(frames):
        image = read_image(source, model.config.num_channels)
        size = image_size(image, model.config.num_channels)
        first_size = first_size or size
        if size != first_size:
            raise ValueError(
                f"Frame {index} has the size {size} (height, width), and the first {first_size}: a video has one."
            )
        yield _Frame(dict(processor.preprocess([image], return_tensors="pt")), size)


def _windows(frames: Iterator[_Frame], window: int, overlap: int) -> Iterator[tuple[int, int, bool, list[_Frame]]]:
    """Number of the first frame and of that behind the last, whether no other window follows, and the frames."""
    start, seen = 0, list(islice(frames, window))
    following: deque[_Frame] = deque()
    while seen:
        following.extend(islice(frames, window - overlap))
        yield start, start + len(seen), not following, seen
        if not following:
            return
        start += len(seen) - overlap
        seen = [*seen[-overlap:], *following]
        following.clear()


def _find_objects(
    model: MaskFormerHfForVideoSegmentation,
    seen: list[_Frame],
    threshold: float,
    mask_threshold: float,
    max_objects: int,
) -> list[_Found]:
    pixel_values = torch.cat([frame.inputs["pixel_values"] for frame in seen], dim=1)
    # Convolutions of the CPU and of tensor cores run fastest on channels-last memory.
    frames = pixel_values[0].to(model.device, model.dtype, memory_format=torch.channels_last)
    pixel_mask = seen[0].inputs["pixel_mask"].expand(-1, len(seen), -1, -1)
    outputs: Any = model(pixel_values=frames[None], pixel_mask=pixel_mask.to(model.device))
    tracks = best_tracks(outputs.class_queries_logits[0], threshold=threshold, top_k=max_objects)
    (geometry,) = image_geometries(outputs, [seen[0].size])
    tubes = [
        encode_seen(masks)
        for masks in tube_masks(
            outputs.masks_queries_logits[0], tracks.queries, geometry, mask_threshold=mask_threshold
        )
    ]
    return [
        _Found(label_id, score, [frame[index] for frame in tubes])
        for index, (label_id, score) in enumerate(zip(tracks.labels.tolist(), tracks.scores.tolist(), strict=True))
    ]
