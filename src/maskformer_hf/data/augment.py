"""The transforms of training: each takes and returns a `Sample`, whose planes follow the image.

Segments that leave the image stay in `labels`; collation drops them.

Shapes: K classes, N segments, P planes, H W pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ..models.resize import resize_nearest
from .sample import Sample


class QuarterTurn(nn.Module):
    """Turns by 0, 90, 180 or 270 degrees, with equal probability. No pixel is interpolated."""

    def forward(self, sample: Sample) -> Sample:
        turns = int(torch.randint(4, ()))
        image, planes = (
            torch.rot90(tensor.as_subclass(torch.Tensor), turns, (-2, -1)).contiguous()
            for tensor in (sample["image"], sample["planes"])
        )
        return {**sample, "image": tv_tensors.Image(image), "planes": tv_tensors.Mask(planes)}


class ShortEdgeResize(nn.Module):
    """Resizes so that the shorter side gets a random length, while the longer side stays within `long_edge`.

    Args:
        short_edge: lengths in pixels. Two are a range that one is drawn from; more are a choice.
        long_edge: in pixels; None does not limit the longer side.
    """

    def __init__(self, short_edge: Sequence[int], long_edge: int | None = None) -> None:
        super().__init__()
        self.lengths = range(short_edge[0], short_edge[1] + 1) if len(short_edge) == 2 else list(short_edge)
        self.long_edge = long_edge

    def forward(self, sample: Sample) -> Sample:
        length = self.lengths[int(torch.randint(len(self.lengths), ()))]
        image = functional.resize(sample["image"], [length], max_size=self.long_edge, antialias=True)
        return _with_planes_resized(sample, image)


class LargeScaleJitter(nn.Module):
    """Mask2Former's resizing on COCO (https://arxiv.org/abs/2012.07177): `scale` times the size that fits the window.

    Args:
        size: (height, width) of the window in pixels.
        scale: smallest and largest factor, between which one is drawn evenly.
    """

    def __init__(self, size: Sequence[int], scale: Sequence[float]) -> None:
        super().__init__()
        height, width = size
        # torchvision calls it a size of (height, width), but reads it as (width, height).
        self.jitter = v2.ScaleJitter((width, height), (scale[0], scale[1]))

    def forward(self, sample: Sample) -> Sample:
        return _with_planes_resized(sample, self.jitter(sample["image"]))


class DetrResize(nn.Module):
    """DETR's resizing, with which MaskFormer was trained on panoptic data.

    It is `ShortEdgeResize`. With probability one half two steps come before it: a resize to a shorter side of 400, 500
    or 600 pixels, and a crop of 384 to 600 pixels a side.
    """

    FIRST_LENGTHS = (400, 500, 600)
    WINDOW = (384, 600)

    def __init__(self, short_edge: Sequence[int], long_edge: int | None = None) -> None:
        super().__init__()
        self.first_resize = ShortEdgeResize(self.FIRST_LENGTHS)
        self.resize = ShortEdgeResize(short_edge, long_edge)

    def forward(self, sample: Sample) -> Sample:
        if float(torch.rand(())) < 0.5:
            sample = self.first_resize(sample)
            height, width = (
                int(torch.randint(min(side, self.WINDOW[0]), min(side, self.WINDOW[1]) + 1, ()))
                for side in sample["image"].shape[-2:]
            )
            sample = ClassShareLimitedCrop((height, width))(sample)
        return self.resize(sample)


class MagnifiedWindow(nn.Module):
    """Cuts a window out of the image and magnifies it to `size`.

    It is for images of one instrument, such as a microscope, where the size of a pixel has a meaning and the size of
    the image has none. The factor is drawn such that small ones are as probable as large ones: half of them lie below
    the geometric mean. In a smaller image the window is cut short, and collation pads.

    Args:
        size: (height, width) of the result in pixels.
        scale: smallest and largest factor.
    """

    def __init__(self, size: Sequence[int], scale: Sequence[float]) -> None:
        super().__init__()
        self.size = tuple(size)
        self.scale = tuple(scale)

    def forward(self, sample: Sample) -> Sample:
        smallest, largest = self.scale
        factor = smallest * (largest / smallest) ** float(torch.rand(()))
        sides = sample["image"].shape[-2:]
        # Cutting comes before resizing: a whole image of a microscope, magnified, is a hundred times the window.
        height, width = (
            min(side, max(1, round(length / factor))) for side, length in zip(sides, self.size, strict=True)
        )
        top = int(torch.randint(sides[0] - height + 1, ()))
        left = int(torch.randint(sides[1] - width + 1, ()))
        size = [min(self.size[0], max(1, round(height * factor))), min(self.size[1], max(1, round(width * factor)))]
        image = functional.resized_crop(sample["image"], top, left, height, width, size, antialias=True)
        planes = functional.crop(sample["planes"], top, left, height, width)
        return _with_planes_resized({**sample, "planes": tv_tensors.Mask(planes)}, image)


class ClassShareLimitedCrop(nn.Module):
    """Cuts out a random window in which no class covers more than `max_share` of the labelled pixels.

    As in the original, it tries ten windows and takes the last one whatever that holds. A side shorter than the window
    stays as it is, and collation pads.

    Args:
        size: (height, width) of the window in pixels.
        max_share: 1.0 accepts every window.
    """

    TRIES = 10

    def __init__(self, size: Sequence[int], max_share: float = 1.0) -> None:
        super().__init__()
        self.size = tuple(size)
        self.max_share = max_share

    def forward(self, sample: Sample) -> Sample:
        planes_PHW = sample["planes"].as_subclass(torch.Tensor)
        height, width = min(self.size[0], planes_PHW.shape[1]), min(self.size[1], planes_PHW.shape[2])
        top, left = 0, 0
        for _ in range(self.TRIES):
            top = int(torch.randint(planes_PHW.shape[1] - height + 1, ()))
            left = int(torch.randint(planes_PHW.shape[2] - width + 1, ()))
            if self.max_share >= 1.0:
                break
            counts_K = _pixels_a_class(planes_PHW[:, top : top + height, left : left + width], sample["labels"])
            # A window of one class has no boundary to learn, so it is refused whatever `max_share` is.
            if int((counts_K > 0).sum()) > 1 and int(counts_K.max()) < self.max_share * int(counts_K.sum()):
                break
        window = {"top": top, "left": left, "height": height, "width": width}
        return {
            **sample,
            "image": tv_tensors.Image(functional.crop(sample["image"], **window)),
            "planes": tv_tensors.Mask(functional.crop(sample["planes"], **window)),
        }


def _with_planes_resized(sample: Sample, image: torch.Tensor) -> Sample:
    """The sample with another image, and with its planes resized to that one's size."""
    planes_PHW = resize_nearest(sample["planes"].as_subclass(torch.Tensor), image.shape[-2:])
    return {**sample, "image": tv_tensors.Image(image), "planes": tv_tensors.Mask(planes_PHW)}


def _pixels_a_class(planes_PHW: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Pixels of each class, (K,) int64. Where segments overlap a pixel counts once for each."""
    # Entry 0 is void, entry 1 no segment.
    pixels_N = torch.bincount(planes_PHW.flatten() + 1, minlength=len(labels) + 2)[2:]
    counts_K = pixels_N.new_zeros(int(labels.max()) + 1 if len(labels) else 1)
    return counts_K.index_add_(0, labels, pixels_N)


class PhotometricDistortion(v2.Transform):
    """SSD's colour jitter: brightness, contrast, saturation and hue, each applied with probability one half.

    Contrast comes before or after saturation, by chance. Ranges are those of the original's `ColorAugSSDTransform`:
    brightness +-32 of 255, contrast and saturation x0.5 to x1.5, hue +-18 of OpenCV's 180 (0.1 of a turn). Unlike
    there, hue comes first and not after saturation, because its round trip through HSV is the only step in uint8.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        chosen = torch.rand(5) < 0.5
        draw = torch.rand(4)
        return {
            "offset": float(draw[0] * 64 - 32) if chosen[0] else 0.0,
            "contrast": float(draw[1] + 0.5) if chosen[1] else 1.0,
            "saturation": float(draw[2] + 0.5) if chosen[2] else 1.0,
            "hue": float(draw[3] * 0.2 - 0.1) if chosen[3] else 0.0,
            "contrast_last": bool(chosen[4]),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        image = inpt.as_subclass(torch.Tensor)
        if params["hue"] != 0.0:
            image = functional.adjust_hue(image, params["hue"])
        image = image.float() + params["offset"]
        if not params["contrast_last"]:
            image = (image * params["contrast"]).clamp_(0, 255)
        if params["saturation"] != 1.0:
            grey = functional.rgb_to_grayscale(image)
            image = torch.lerp(grey.expand_as(image), image, params["saturation"])
        if params["contrast_last"]:
            image = image * params["contrast"]
        return tv_tensors.wrap(image.clamp_(0, 255).round_().to(torch.uint8), like=inpt)
