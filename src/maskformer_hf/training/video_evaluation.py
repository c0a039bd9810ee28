"""Measuring a model on videos: video AP, region similarity J and flicker."""

import time
from typing import Any

import torch
from tqdm import tqdm

from ..data import VideoDataset
from ..inference import Model, predict
from ..metrics import RegionSimilarity, VideoAP
from ..models.configuration_video import MaskFormerHfVideoConfig
from ..models.video_processing_maskformer import encode_seen
from ..video import link_objects, predict_video

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
    progress: bool = True,
) -> dict[str, Any]:
    """Finds the objects of each video as a user would, with `predict_video`; those of a model of images frame by frame.

    Args:
        class_ids: for each class of the model its id in the data.
        threshold: Least score of an object in a window, or in a frame.
        max_detections: Of a video and class, for AP.

    Returns the figures of `VideoAP` and `RegionSimilarity`, plus `task` ("video"), `score_name` and `score` (AP),
    `method` ("clips", or "single frames" of a model of images), `videos`, `frames`, `seconds`, `frames_per_second`.
    """
    sees_clips = model.config.model_type == MaskFormerHfVideoConfig.model_type
    precision, similarity = VideoAP(len(videos.id2label), max_detections=max_detections), RegionSimilarity()
    start, num_frames = time.perf_counter(), 0
    with tqdm(
        total=sum(len(paths) for paths in videos.frame_paths),
        desc="evaluate",
        unit="frame",
        disable=None if progress else True,
    ) as bar:
        for index, paths in enumerate(videos.frame_paths):
            if sees_clips:
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
            similarity.update(prediction, reference)
            num_frames += len(paths)
            bar.update(len(paths))
    seconds = time.perf_counter() - start
    figures = precision.compute(videos.id2label)
    return {
        "task": "video",
        "score_name": "ap",
        "score": figures["ap"],
        **similarity.compute(),
        **figures,
        "method": "clips" if sees_clips else "single frames",
        "videos": len(videos),
        "frames": num_frames,
        "seconds": seconds,
        "frames_per_second": num_frames / seconds,
    }


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
