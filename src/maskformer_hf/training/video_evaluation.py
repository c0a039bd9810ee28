"""Measuring a model on videos: video AP, region similarity J and flicker."""

import time
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from ..data import VideoDataset
from ..inference.load import Model
from ..inference.predict import predict
from ..inference.video import link_objects, predict_video
from ..metrics import RegionSimilarity, VideoAP
from ..models.modeling_auto import sees_clips
from ..models.video_processing_maskformer import encode_seen

NUM_OBJECTS = 10
"""Of a window, or a frame, as in Mask2Former-VIS."""


def evaluate_videos(
    model: Model,
    processor: Any,
    videos: VideoDataset,
    class_ids: list[int],
    *,
    threshold: float = 0.0,
    max_detections: int = 100,
    per_video: bool = False,
    processes: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> dict[str, Any]:
    """Finds the objects of each video as a user would, with `predict_video`; those of a model of images frame by frame.

    Args:
        class_ids: for each class of the model its id in the data.
        threshold: Least score of an object in a window, or in a frame.
        max_detections: Of a video and class, for AP.
        per_video: Also the J of each video.
        processes: (rank, count) shares the videos out; every process must call.

    Returns the figures of `VideoAP` and `RegionSimilarity`, plus `task` ("video"), `score_name` and `score` (AP),
    `method` ("clips", or "single frames" of a model of images), `videos`, `frames`, `seconds`, `frames_per_second`, and
    with `per_video` a list `per_image` of `name`, `score` (J) and `index`, that of the frame in its middle, counting
    the frames of all videos.
    """
    clips = sees_clips(model.config)
    precision, similarity = VideoAP(len(videos.id2label), max_detections=max_detections), RegionSimilarity()
    scores: list[dict[str, Any]] = []
    rank, count = processes
    lengths = [len(paths) for paths in videos.frame_paths]
    start = time.perf_counter()
    with tqdm(
        total=sum(lengths[rank::count]),
        desc="evaluate",
        unit="frame",
        disable=None if progress else True,
    ) as bar:
        for index in range(rank, len(videos), count):
            paths = videos.frame_paths[index]
            if clips:
                video_model: Any = model
                found = predict_video(
                    video_model, processor, paths, threshold=threshold, max_objects=NUM_OBJECTS
                ).tracks
            else:
                found = track_frame_by_frame(model, processor, paths, threshold)
            prediction = {
                "segmentations": [track["segmentations"] for track in found],
                "scores": [track["score"] for track in found],
                "labels": [class_ids[track["label_id"]] for track in found],
            }
            reference = videos.objects(index)._asdict()
            precision.update(prediction, reference, index)
            alone = RegionSimilarity()
            alone.update(prediction, reference)
            similarity.merge(alone)
            if per_video:
                middle = sum(lengths[:index]) + lengths[index] // 2
                scores.append({"name": videos.name(index), "index": middle, "score": alone.compute()["j"]})
            bar.update(len(paths))
    if count > 1:
        precision.reduce()
        similarity.reduce()
        scores = gather_object(scores)
    seconds = time.perf_counter() - start
    figures = precision.compute(videos.id2label)
    result = {
        "task": "video",
        "score_name": "ap",
        "score": figures["ap"],
        **similarity.compute(),
        **figures,
        "method": "clips" if clips else "single frames",
        "videos": len(videos),
        "frames": sum(lengths),
        "seconds": seconds,
        "frames_per_second": sum(lengths) / seconds,
    }
    if per_video:
        result["per_image"] = sorted(scores, key=lambda row: row["index"])
    return result


def track_frame_by_frame(
    model: Model, processor: Any, paths: list[str], threshold: float = 0.0, link_threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Tracks of what a model of images finds in each frame on its own, like those of `VideoPrediction`.

    An object is that of the frame before whose mask it overlaps most, by `link_threshold` at least. A track has the
    class that it has most often, and as its score the sum of those of its frames over the number of all frames, which
    leaves short ones behind.
    """
    masks: list[list[Any]] = []
    scores: list[float] = []
    labels: list[list[int]] = []
    earlier: list[int] = []
    for number, path in enumerate(paths):
        [prediction] = predict(model, processor, path, task="instance", threshold=threshold, max_instances=NUM_OBJECTS)
        # Nothing to be linked or measured is in a mask without a pixel.
        segments = [segment for segment in prediction.segments if segment["area"]]
        shape = (0, *prediction.size)
        tubes = encode_seen(
            torch.stack([prediction.mask(segment) for segment in segments])
            if segments
            else torch.zeros(shape, dtype=torch.bool)
        )
        links = link_objects(
            [[masks[track][number - 1]] for track in earlier], [[mask] for mask in tubes], link_threshold
        )
        current = []
        for segment, mask, link in zip(segments, tubes, links, strict=True):
            if link is None:
                track = len(masks)
                masks.append([None] * len(paths))
                scores.append(0.0)
                labels.append([])
            else:
                track = earlier[link]
            masks[track][number] = mask
            scores[track] += segment["score"] / len(paths)
            labels[track].append(segment["label_id"])
            current.append(track)
        earlier = current
    return [
        {"label_id": max(seen, key=seen.count), "score": score, "segmentations": frames}
        for seen, score, frames in zip(labels, scores, masks, strict=True)
    ]
