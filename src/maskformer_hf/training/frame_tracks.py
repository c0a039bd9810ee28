"""Tracks of the objects of a video from what a model of images finds in each frame."""

from typing import Any, NamedTuple

import torch

from ..inference.predict import predict
from ..inference.tracks import link_objects
from ..models.coco_rle import encode_seen

NUM_OBJECTS = 10
"""Most objects in each frame, or in each window of frames of `predict_video`, as in Mask2Former-VIS."""


class _Track(NamedTuple):
    """An object in T frames: its run lengths or None in each, the sum of its scores, and its class where it is seen."""

    masks: list[Any]
    scores: list[float]
    labels: list[int]


def track_frame_by_frame(
    model: Any, processor: Any, paths: list[str], threshold: float = 0.0, link_threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Links what a model of images finds in single frames to tracks like those of `VideoPrediction`.

    An object continues the track whose mask in the frame before it overlaps most, if their intersection over union is
    at least `link_threshold`; otherwise it begins a track. A track has the class that it has most often. Its score is
    the sum of its scores over the number of all frames, which puts short tracks last.

    Args:
        paths: the files of the frames.
        threshold: least score of an object in a frame.
    """
    tracks: list[_Track] = []
    earlier: list[_Track] = []  # those that the frame before shows
    for number, path in enumerate(paths):
        [prediction] = predict(model, processor, path, task="instance", threshold=threshold, max_instances=NUM_OBJECTS)
        # A mask without a pixel can be neither linked nor measured.
        segments = [segment for segment in prediction.segments if segment["area"]]
        masks = [prediction.mask(segment) for segment in segments]
        stacked = torch.stack(masks) if masks else torch.zeros(0, *prediction.size, dtype=torch.bool)
        found = encode_seen(stacked)
        links = link_objects(
            [[track.masks[number - 1]] for track in earlier], [[mask] for mask in found], link_threshold
        )
        current = []
        for segment, mask, link in zip(segments, found, links, strict=True):
            track = _Track([None] * len(paths), [], []) if link is None else earlier[link]
            if link is None:
                tracks.append(track)
            track.masks[number] = mask
            track.scores.append(segment["score"])
            track.labels.append(segment["label_id"])
            current.append(track)
        earlier = current
    return [
        {
            "label_id": max(track.labels, key=track.labels.count),
            "score": sum(track.scores) / len(paths),
            "segmentations": track.masks,
        }
        for track in tracks
    ]
