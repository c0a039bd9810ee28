"""Measuring a model on videos: video AP, region similarity J and flicker."""

import time
from typing import Any, NamedTuple

from accelerate.utils import gather_object
from tqdm import tqdm

from ..data import VideoDataset
from ..inference.load import Model
from ..metrics import RegionSimilarity, VideoAP
from .evaluation_options import EvaluationOptions
from .kinds import kind_of


def evaluate_videos(
    model: Model, processor: Any, videos: VideoDataset, class_ids: list[int], options: EvaluationOptions
) -> dict[str, Any]:
    """Finds the objects of each video and compares them with the annotated ones.

    A model of clips finds them with `predict_video`, as a user would. A model of images finds them frame by frame, and
    they are linked to tracks.

    Args:
        class_ids: For each class of the model its id in the data.
        options: Its threshold is the least score of an object in a window, or in a frame. `max_detections` counts for
            each video and class. `per_image` asks for the J of each video.

    Returns the figures of `VideoAP` and `RegionSimilarity`, plus `task` ("video"), `score_name` and `score` (AP),
    `method` ("clips" or "single frames"), `videos`, `frames`, `seconds`, `frames_per_second`, and with `per_image` a
    list `per_image` of `name`, `score` (J) and `index` of each video: the index is that of the frame in its middle
    among the frames of all videos.
    """
    if options.boundary:
        raise ValueError("boundary measures are for photos; these are videos")
    measures = _Measures(VideoAP(len(videos.id2label), max_detections=options.max_detections), RegionSimilarity(), [])
    start = time.perf_counter()
    _measure(model, processor, videos, class_ids, options, measures)
    scores = measures.scores
    if options.processes[1] > 1:
        measures.precision.reduce()
        measures.similarity.reduce()
        scores = gather_object(scores)
    seconds = time.perf_counter() - start
    num_frames = sum(len(paths) for paths in videos.frame_paths)
    figures = measures.precision.compute(videos.id2label)
    result = {
        "task": "video",
        "score_name": "ap",
        "score": figures["ap"],
        **measures.similarity.compute(),
        **figures,
        "method": kind_of(model.config).tracking,
        "videos": len(videos),
        "frames": num_frames,
        "seconds": seconds,
        "frames_per_second": num_frames / seconds,
    }
    if options.per_image:
        result["per_image"] = sorted(scores, key=lambda row: row["index"])
    return result


class _Measures(NamedTuple):
    precision: VideoAP
    similarity: RegionSimilarity
    scores: list[dict[str, Any]]


def _measure(
    model: Model,
    processor: Any,
    videos: VideoDataset,
    class_ids: list[int],
    options: EvaluationOptions,
    measures: _Measures,
) -> None:
    """Feeds the measures with this process's share of the videos."""
    rank, count = options.processes
    lengths = [len(paths) for paths in videos.frame_paths]
    find_tracks = kind_of(model.config).tracks
    hidden = None if options.progress else True
    with tqdm(total=sum(lengths[rank::count]), desc="evaluate", unit="frame", disable=hidden) as bar:
        for index in range(rank, len(videos), count):
            paths = videos.frame_paths[index]
            found = find_tracks(model, processor, paths, options.threshold or 0.0)
            prediction = {
                "segmentations": [track["segmentations"] for track in found],
                "scores": [track["score"] for track in found],
                "labels": [class_ids[track["label_id"]] for track in found],
            }
            reference = videos.objects(index)._asdict()
            measures.precision.update(prediction, reference, index)
            alone = RegionSimilarity()
            alone.update(prediction, reference)
            measures.similarity.merge(alone)
            if options.per_image:
                middle = sum(lengths[:index]) + lengths[index] // 2
                score = alone.compute()["j"]
                measures.scores.append({"name": videos.name(index), "index": middle, "score": score})
            bar.update(len(paths))
