"""What training and evaluation do differently for models of images and for models of clips."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..data import Clips, ClipTransform, SegmentationDataset, VideoDataset, videos_in
from ..inference.predict import predict
from ..inference.prediction import Prediction
from ..inference.video import predict_video
from .arguments import DataArguments
from .frame_tracks import NUM_OBJECTS, track_frame_by_frame

# The frames around one of them that a model of clips sees for a picture of that frame.
CLIP_FRAMES = 8


class Kind(NamedTuple):
    """One kind of model.

    Attributes:
        needs_videos: Whether it takes nothing but the frames of videos.
        training_data: (data set, augmentation of images, arguments) -> what it trains on, and the augmentation of that.
        frames: arguments -> images in each sample of `training_data`.
        tracking: How it finds the objects of a video, in words for a result.
        tracks: (model, processor, files of a video's frames, least score of an object in a frame or window) -> tracks
            like those of `VideoPrediction`.
        predict_one: (model, processor, data set, index, image) -> what it finds in an image of the data set.
    """

    needs_videos: bool
    training_data: Callable[[SegmentationDataset, Any, DataArguments], tuple[Any, Any]]
    frames: Callable[[DataArguments], int]
    tracking: str
    tracks: Callable[[Any, Any, list[str], float], list[dict[str, Any]]]
    predict_one: Callable[[Any, Any, Any, int, torch.Tensor], Prediction]


def kind_of(config: Any) -> Kind:
    """The kind of models of a configuration, or of a class of configurations."""
    return KINDS[config.kind]


def videos_of(dataset: SegmentationDataset) -> VideoDataset:
    """The videos whose frames a data set is. Raises ValueError if it is none, as a model of clips trains on videos."""
    videos = videos_in(dataset)
    if videos is None:
        raise ValueError(
            "a model of videos trains on videos as they are: one split of format 'youtube_vis' or 'davis', without "
            "task, class_groups, void_classes and unlabelled"
        )
    return videos


def _clips(dataset: SegmentationDataset, transform: Any, arguments: DataArguments) -> tuple[Any, Any]:
    return Clips(videos_of(dataset), arguments.frames, arguments.frame_range), ClipTransform(transform)


def _tracks_of_clips(model: Any, processor: Any, paths: list[str], threshold: float) -> list[dict[str, Any]]:
    return predict_video(model, processor, paths, threshold=threshold, max_objects=NUM_OBJECTS).tracks


def _predict_image(
    model: Any, processor: Any, dataset: SegmentationDataset, index: int, image: torch.Tensor
) -> Prediction:
    [prediction] = predict(model, processor, image, task=dataset.task)
    return prediction


def _predict_frame(model: Any, processor: Any, dataset: Any, index: int, image: torch.Tensor) -> Prediction:
    video, frame = dataset.place(index)
    paths = dataset.videos.frame_paths[video]
    first = max(0, min(frame - CLIP_FRAMES // 2, len(paths) - CLIP_FRAMES))
    return predict_video(model, processor, paths[first : first + CLIP_FRAMES]).frame(frame - first)


KINDS = {
    "image": Kind(
        needs_videos=False,
        training_data=lambda dataset, transform, arguments: (dataset, transform),
        frames=lambda arguments: 1,
        tracking="single frames",
        tracks=track_frame_by_frame,
        predict_one=_predict_image,
    ),
    "clip": Kind(
        needs_videos=True,
        training_data=_clips,
        frames=lambda arguments: arguments.frames,
        tracking="clips",
        tracks=_tracks_of_clips,
        predict_one=_predict_frame,
    ),
}
