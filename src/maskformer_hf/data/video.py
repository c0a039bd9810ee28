"""What videos with objects are: the form of their readers and of their clips, and their frames as images.

`open_dataset` gives the frames, which are images like others; `videos_in` gives back the videos of such a data set.

Shapes: V videos, T frames of a clip, N objects, P planes, H W pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .cached import Cached
from .files import read_image
from .sample import Problem, Sample, SegmentationDataset, Task


class ClipSample(TypedDict):
    """Some frames of a video. See `Sample`, whose form each frame has.

    video: (T, 3, H, W) uint8 RGB.
    planes: (T, P, H, W) int32. A value means the same object in all frames.
    labels: (N,) int64, also of objects that no frame shows; collation drops these.
    is_crowd: (N,) bool.
    name: how a message calls the video.
    """

    video: tv_tensors.Video
    planes: tv_tensors.Mask
    labels: torch.Tensor
    is_crowd: torch.Tensor
    name: str


class Objects(NamedTuple):
    """The objects of a video.

    segmentations: for each object the run lengths (pycocotools' RLE) in every frame, None where it has no pixel.
    """

    labels: list[int]
    is_crowd: list[bool]
    segmentations: list[list[Any]]


class VideoDataset(Protocol):
    """What readers of videos give. Frames are decoded when asked for.

    Attributes:
        id2label: Names of the classes, numbered from 0 without gaps.
        frame_paths: The files of each video's frames, in order.
        problems: Annotations that were left out.
    """

    id2label: dict[int, str]
    frame_paths: list[list[str]]
    problems: list[Problem]

    def __len__(self) -> int:
        """Videos, V."""
        ...

    def name(self, index: int) -> str: ...

    def objects(self, index: int) -> Objects: ...

    def clip(self, index: int, frames: Sequence[int]) -> ClipSample:
        """The frames of a video that have these numbers, counted from 0."""
        ...


class VideoFrames(Dataset[Sample]):
    """The frames of all videos, one after the other, as images, for models of images.

    Attributes:
        videos: the `VideoDataset`.
    """

    task: Task = "instance"

    def __init__(self, videos: VideoDataset) -> None:
        self.videos = videos
        self.id2label = videos.id2label
        self.label_ids_to_fuse: list[int] = []
        self.problems = videos.problems
        self.image_paths = [path for video in videos.frame_paths for path in video]
        self._starts = np.cumsum([0, *(len(video) for video in videos.frame_paths)])

    def __len__(self) -> int:
        return len(self.image_paths)

    def place(self, index: int) -> tuple[int, int]:
        """The video that an image is from, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        video = int(np.searchsorted(self._starts, index, side="right")) - 1
        return video, index - int(self._starts[video])

    def __getitem__(self, index: int) -> Sample:
        video, frame = self.place(index)
        clip = self.videos.clip(video, [frame])
        planes_PHW = clip["planes"].as_subclass(torch.Tensor)[0]
        is_visible_N = torch.bincount(planes_PHW.flatten(), minlength=len(clip["labels"]) + 1)[1:] > 0
        # Objects that only other frames show are dropped, the others are numbered anew from 1.
        numbers = torch.cat((torch.zeros(1, dtype=torch.int64), is_visible_N.cumsum(0) * is_visible_N)).to(torch.int32)
        return {
            "image": tv_tensors.Image(clip["video"].as_subclass(torch.Tensor)[0]),
            "planes": tv_tensors.Mask(numbers[planes_PHW.long()]),
            "labels": clip["labels"][is_visible_N],
            "is_crowd": clip["is_crowd"][is_visible_N],
            "name": self.image_paths[index],
        }


def videos_in(dataset: SegmentationDataset) -> VideoDataset | None:
    """The videos whose frames make up a data set. None for other images, and where classes or task were changed."""
    if isinstance(dataset, Cached):
        dataset = dataset.dataset
    return dataset.videos if isinstance(dataset, VideoFrames) else None


def read_frames(paths: Sequence[str], size: tuple[int, ...]) -> tv_tensors.Video:
    height, width = size
    return tv_tensors.Video(
        torch.stack([read_image(path, (height, width)).as_subclass(torch.Tensor) for path in paths])
    )


def stack_planes(planes: Sequence[np.ndarray]) -> tv_tensors.Mask:
    """(T, P, H, W) from frames (P, H, W) whose numbers of planes may differ. Missing planes are empty."""
    most = max(len(frame) for frame in planes)
    padded = [np.pad(frame, ((0, most - len(frame)), (0, 0), (0, 0))) for frame in planes]
    return tv_tensors.Mask(torch.from_numpy(np.stack(padded).astype(np.int32, copy=False)))
