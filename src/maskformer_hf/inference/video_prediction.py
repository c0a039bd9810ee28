"""What was found in a video."""

from typing import Any

import numpy as np
import torch

from .prediction import Prediction


class VideoPrediction:
    """What was found in a video of T frames of H x W pixels.

    Attributes:
        size: (H, W).
        num_frames: T.
        tracks: One dictionary for each object: `id` from 1 in the order of appearance, `label_id`, `label`, `score` (0
            to 1), and `segmentations` as in the files of YouTube-VIS: pycocotools' RLE of each frame, None where the
            object is out of sight.
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


def _box(run_lengths: Any) -> list[float]:
    """(left, top, right, bottom) of a mask; right and bottom are those of the first pixel behind it."""
    from pycocotools import mask as coco_mask

    left, top, width, height = coco_mask.toBbox(run_lengths).tolist()
    return [left, top, left + width, top + height]
