"""Lists of (photo, segmentation map) to the batch that the model's forward takes."""

from collections.abc import Sequence
from typing import TypedDict

import torch

from .semantic_folder import IGNORE_INDEX, SemanticSample


class Batch(TypedDict):
    """pixel_values (B, 3, H, W) float32, pixel_mask (B, H, W) bool, mask_labels B times (N, H, W) bool, class_labels B
    times (N,) int64."""

    pixel_values: torch.Tensor
    pixel_mask: torch.Tensor
    mask_labels: list[torch.Tensor]
    class_labels: list[torch.Tensor]


class SemanticCollator:
    """Normalises, pads with zeros at the right and bottom, and splits each map into one mask a class present.

    Padding and void are the background of every mask, as in the original.

    Args:
        image_mean, image_std: per channel, of values scaled to 0..1.
        size_divisor: the padded sides are multiples of it; 0 pads to the largest image alone, as image processors do.
        size: (height, width) every batch is padded to at least; with crops of one size no batch then differs in shape.
    """

    def __init__(
        self,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        size_divisor: int = 32,
        size: Sequence[int] = (0, 0),
    ) -> None:
        # (x / 255 - mean) / std in one multiplication and one subtraction
        self.scale = 1.0 / (255.0 * torch.tensor(image_std))[:, None, None]
        self.shift = (torch.tensor(image_mean) / torch.tensor(image_std))[:, None, None]
        self.size_divisor = size_divisor or 1
        self.size = tuple(size)

    def __call__(self, samples: Sequence[SemanticSample]) -> Batch:
        height, width = (
            -(-max(minimum, *sides) // self.size_divisor) * self.size_divisor
            for minimum, sides in zip(
                self.size, zip(*(sample["image"].shape[-2:] for sample in samples), strict=True), strict=True
            )
        )
        channels = samples[0]["image"].shape[0]
        pixel_values = torch.zeros(len(samples), channels, height, width)
        pixel_mask = torch.zeros(len(samples), height, width, dtype=torch.bool)
        mask_labels, class_labels = [], []
        for index, sample in enumerate(samples):
            image = sample["image"].as_subclass(torch.Tensor)
            map_HW = sample["segmentation_map"].as_subclass(torch.Tensor)
            h, w = map_HW.shape
            torch.mul(image, self.scale, out=pixel_values[index, :, :h, :w]).sub_(self.shift)
            pixel_mask[index, :h, :w] = True
            present = torch.bincount(map_HW.flatten(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX].nonzero().flatten()
            masks_NHW = torch.zeros(len(present), height, width, dtype=torch.bool)
            torch.eq(map_HW, present[:, None, None].to(map_HW.dtype), out=masks_NHW[:, :h, :w])
            mask_labels.append(masks_NHW)
            class_labels.append(present)
        return {
            "pixel_values": pixel_values,
            "pixel_mask": pixel_mask,
            "mask_labels": mask_labels,
            "class_labels": class_labels,
        }
