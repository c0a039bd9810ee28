"""Lists of samples to the batch that the model's forward takes.

Shapes: B images, N segments, P planes, H W pixels of the batch, h w those of an image.
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import torch

from .sample import VOID, Sample, void_mask
from .video import ClipSample


class Batch(TypedDict):
    """pixel_values (B, 3, H, W) float32, pixel_mask (B, H, W) bool, mask_labels B times (N, H, W) bool, class_labels B
    times (N,) int64, void_masks (B, H, W) bool where they were asked for."""

    pixel_values: torch.Tensor
    pixel_mask: torch.Tensor
    mask_labels: list[torch.Tensor]
    class_labels: list[torch.Tensor]
    void_masks: NotRequired[torch.Tensor]


class Collator:
    """Normalises, pads with zeros at the right and bottom, and makes one mask of every segment that has a pixel left.

    Padding and void are the background of every mask, as in the original. Crowds are no targets.

    Args:
        image_mean, image_std: per channel, of values scaled to 0..1.
        size_divisor: the padded sides are multiples of it; 0 pads to the largest image alone, as image processors do.
        size: (height, width) every batch is padded to at least; with crops of one size no batch then differs in shape.
        return_void_masks: adds `void_masks`, true at void pixels and in crowds, false in the padding; the model's mask
            losses leave them out.
    """

    def __init__(
        self,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        size_divisor: int = 32,
        size: Sequence[int] = (0, 0),
        return_void_masks: bool = False,
    ) -> None:
        # (x / 255 - mean) / std in one multiplication and one subtraction
        self.scale = 1.0 / (255.0 * torch.tensor(image_std))[:, None, None]
        self.shift = (torch.tensor(image_mean) / torch.tensor(image_std))[:, None, None]
        self.size_divisor = size_divisor or 1
        self.size = tuple(size)
        self.return_void_masks = return_void_masks

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        height, width = self._size([sample["image"].shape[-2:] for sample in samples])
        channels = samples[0]["image"].shape[0]
        pixel_values = torch.zeros(len(samples), channels, height, width)
        pixel_mask = torch.zeros(len(samples), height, width, dtype=torch.bool)
        void_masks = torch.zeros_like(pixel_mask)
        mask_labels, class_labels = [], []
        for index, sample in enumerate(samples):
            image = sample["image"].as_subclass(torch.Tensor)
            h, w = image.shape[-2:]
            torch.mul(image, self.scale, out=pixel_values[index, :, :h, :w]).sub_(self.shift)
            pixel_mask[index, :h, :w] = True
            planes_PHW = sample["planes"].as_subclass(torch.Tensor)
            targets_N = _targets(planes_PHW, sample["is_crowd"])
            mask_labels.append(_padded_masks(planes_PHW, targets_N, height, width))
            class_labels.append(sample["labels"][targets_N])
            if self.return_void_masks:
                void_masks[index, :h, :w] = void_mask(sample)
        batch: Batch = {
            "pixel_values": pixel_values,
            "pixel_mask": pixel_mask,
            "mask_labels": mask_labels,
            "class_labels": class_labels,
        }
        if self.return_void_masks:
            batch["void_masks"] = void_masks
        return batch

    def _size(self, sizes: Sequence[Sequence[int]]) -> list[int]:
        """Height and width of a batch."""
        return [
            -(-max(minimum, *sides) // self.size_divisor) * self.size_divisor
            for minimum, sides in zip(self.size, zip(*sizes, strict=True), strict=True)
        ]


class ClipCollator(Collator):
    """`Collator` for clips of T frames each.

    Returns pixel_values (B, T, 3, H, W), pixel_mask (B, T, H, W), mask_labels B times (N, T, H, W), class_labels and
    void_masks (B, T, H, W). Objects that no frame of their clip shows are dropped; one that some frame shows has an
    empty mask in the others.
    """

    def __call__(self, samples: Sequence[ClipSample]) -> Batch:  # pyrefly: ignore[bad-override]
        height, width = self._size([clip["video"].shape[-2:] for clip in samples])
        num_frames, channels = samples[0]["video"].shape[:2]
        pixel_values = torch.zeros(len(samples), num_frames, channels, height, width)
        pixel_mask = torch.zeros(len(samples), num_frames, height, width, dtype=torch.bool)
        void_masks = torch.zeros_like(pixel_mask)
        mask_labels, class_labels = [], []
        for index, clip in enumerate(samples):
            video = clip["video"].as_subclass(torch.Tensor)
            planes_TPHW = clip["planes"].as_subclass(torch.Tensor)
            h, w = video.shape[-2:]
            torch.mul(video, self.scale, out=pixel_values[index, ..., :h, :w]).sub_(self.shift)
            pixel_mask[index, :, :h, :w] = True
            targets_N = _targets(planes_TPHW, clip["is_crowd"])
            frames = [_padded_masks(planes_PHW, targets_N, height, width) for planes_PHW in planes_TPHW]
            mask_labels.append(torch.stack(frames, dim=1))
            class_labels.append(clip["labels"][targets_N])
            if self.return_void_masks:
                crowds_C = clip["is_crowd"].nonzero().flatten() + 1
                void_masks[index, :, :h, :w] = (planes_TPHW[:, 0] == VOID) | torch.isin(planes_TPHW, crowds_C).any(1)
        batch: Batch = {
            "pixel_values": pixel_values,
            "pixel_mask": pixel_mask,
            "mask_labels": mask_labels,
            "class_labels": class_labels,
        }
        if self.return_void_masks:
            batch["void_masks"] = void_masks
        return batch


def _targets(planes: torch.Tensor, is_crowd_N: torch.Tensor) -> torch.Tensor:
    """Indices of the segments to learn: no crowd, and not lost by cropping. Planes (P, H, W), or of several frames."""
    # Entry 0 is void, entry 1 no segment.
    pixels_N = torch.bincount(planes.flatten() + 1, minlength=len(is_crowd_N) + 2)[2:]
    return ((pixels_N > 0) & ~is_crowd_N).nonzero().flatten()


def _padded_masks(planes_PHW: torch.Tensor, targets_N: torch.Tensor, height: int, width: int) -> torch.Tensor:
    h, w = planes_PHW.shape[-2:]
    masks_NHW = torch.zeros(len(targets_N), height, width, dtype=torch.bool)
    numbers_N = (targets_N + 1).to(planes_PHW.dtype)[:, None, None]
    torch.eq(planes_PHW[0], numbers_N, out=masks_NHW[:, :h, :w])
    for plane_HW in planes_PHW[1:]:
        masks_NHW[:, :h, :w] |= plane_HW == numbers_N
    return masks_NHW
