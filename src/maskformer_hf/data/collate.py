"""Lists of samples to the batch that the model's forward takes.

Shapes: B images, N segments, P planes, H W pixels of the batch, h w those of an image.
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import torch

from .sample import Sample, void_mask


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
        height, width = (
            -(-max(minimum, *sides) // self.size_divisor) * self.size_divisor
            for minimum, sides in zip(
                self.size, zip(*(sample["image"].shape[-2:] for sample in samples), strict=True), strict=True
            )
        )
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
            targets_N = _targets(sample)
            mask_labels.append(_padded_masks(sample, targets_N, height, width))
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


def _targets(sample: Sample) -> torch.Tensor:
    """Indices of the segments to learn: no crowd, and not lost by cropping."""
    planes_PHW = sample["planes"].as_subclass(torch.Tensor)
    # Entry 0 is void, entry 1 no segment.
    pixels_N = torch.bincount(planes_PHW.flatten() + 1, minlength=len(sample["labels"]) + 2)[2:]
    return ((pixels_N > 0) & ~sample["is_crowd"]).nonzero().flatten()


def _padded_masks(sample: Sample, targets_N: torch.Tensor, height: int, width: int) -> torch.Tensor:
    planes_PHW = sample["planes"].as_subclass(torch.Tensor)
    h, w = planes_PHW.shape[-2:]
    masks_NHW = torch.zeros(len(targets_N), height, width, dtype=torch.bool)
    numbers_N = (targets_N + 1).to(planes_PHW.dtype)[:, None, None]
    torch.eq(planes_PHW[0], numbers_N, out=masks_NHW[:, :h, :w])
    for plane_HW in planes_PHW[1:]:
        masks_NHW[:, :h, :w] |= plane_HW == numbers_N
    return masks_NHW
