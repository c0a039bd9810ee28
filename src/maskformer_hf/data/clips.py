"""Clips of a few frames each, as models of videos train on them.

Shapes: T frames of a clip, P planes, H W pixels.
"""

from collections.abc import Callable

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .sample import Sample
from .video import ClipSample, VideoDataset


class Clips(Dataset[ClipSample]):
    """A clip of each video: some frames near one another, drawn anew at each access, as Mask2Former-VIS trains.

    First a reference frame is drawn, then the others among the frames at most `frame_range` before or behind it. They
    come in the order of the video. A video of fewer frames repeats some.

    Args:
        num_frames: T.
        frame_range: in frames. The original has 20.

    Draws from torch's global generator, which `SampleStream` seeds.
    """

    def __init__(self, videos: VideoDataset, num_frames: int = 2, frame_range: int = 20) -> None:
        if num_frames < 1 or frame_range < 1:
            raise ValueError(f"num_frames is {num_frames}, frame_range {frame_range}; both must be at least 1")
        self.videos = videos
        self.num_frames = num_frames
        self.frame_range = frame_range

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> ClipSample:
        length = len(self.videos.frame_paths[index])
        reference = int(torch.randint(length, ()))
        first, stop = max(0, reference - self.frame_range), min(length, reference + self.frame_range + 1)
        others = [frame for frame in range(first, stop) if frame != reference] or [reference]
        order = torch.randperm(len(others)).tolist()
        chosen = [others[order[number % len(others)]] for number in range(self.num_frames - 1)]
        return self.videos.clip(index, sorted([reference, *chosen]))


class ClipTransform:
    """Applies an augmentation of images to clips: all frames of a clip get the same random choices."""

    def __init__(self, transform: Callable[[Sample], Sample]) -> None:
        self.transform = transform

    def __call__(self, clip: ClipSample) -> ClipSample:
        planes_TPHW = clip["planes"].as_subclass(torch.Tensor)
        # An image may have leading axes, here that of the frames, and planes are resized and cut one by one.
        sample = self.transform(
            {
                "image": tv_tensors.Image(clip["video"].as_subclass(torch.Tensor)),
                "planes": tv_tensors.Mask(planes_TPHW.flatten(0, 1)),
                "labels": clip["labels"],
                "is_crowd": clip["is_crowd"],
                "name": clip["name"],
            }
        )
        planes = sample["planes"].as_subclass(torch.Tensor).unflatten(0, planes_TPHW.shape[:2])
        return {
            **clip,
            "video": tv_tensors.Video(sample["image"].as_subclass(torch.Tensor)),
            "planes": tv_tensors.Mask(planes),
        }
