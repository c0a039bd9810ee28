"""Training augmentation of a photo and its segments together, as MaskFormer trains on semantic data.

Each transform takes and returns a `Sample`, whose planes follow the image. Segments that leave the picture stay in
`labels`; collation drops them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from .sample import Sample


class ClassShareLimitedCrop(nn.Module):
    """A random window in which no class covers more than `max_share` of the labelled pixels.

    As in the original, ten windows are tried and the last is taken whatever it holds. A side shorter than the window
    stays as it is: collation pads.

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
            # A window of one class has no boundary to learn, whatever its share.
            if int((counts_K > 0).sum()) > 1 and int(counts_K.max()) < self.max_share * int(counts_K.sum()):
                break
        window = {"top": top, "left": left, "height": height, "width": width}
        return {
            **sample,
            "image": tv_tensors.Image(functional.crop(sample["image"], **window)),
            "planes": tv_tensors.Mask(functional.crop(sample["planes"], **window)),
        }


def _pixels_a_class(planes_PHW: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Pixels of each class, (K,); one of two overlapping segments counts twice."""
    # Entry 0 is void, entry 1 no segment.
    pixels_N = torch.bincount(planes_PHW.flatten() + 1, minlength=len(labels) + 2)[2:]
    counts_K = pixels_N.new_zeros(int(labels.max()) + 1 if len(labels) else 1)
    return counts_K.index_add_(0, labels, pixels_N)


class PhotometricDistortion(v2.Transform):
    """SSD's colour jitter: brightness, contrast, saturation and hue, each applied with probability one half.

    Contrast comes before or after saturation, by chance. Ranges are those of the original's `ColorAugSSDTransform`:
    brightness +-32 of 255, contrast and saturation x0.5 to x1.5, hue +-18 of OpenCV's 180 (0.1 of a turn). Hue comes
    first, not after saturation: its round trip through HSV is the only part that wants uint8.
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


def augmentation(
    *,
    short_edge: Sequence[int],
    crop_size: Sequence[int],
    crop_max_class_share: float = 1.0,
    color_jitter: bool = True,
    flip_probability: float = 0.5,
) -> v2.Compose:
    """The training transform, in the original's order: short edge, crop, colour, flip.

    Args:
        short_edge: (smallest, largest) length in pixels of the shorter side; drawn evenly between the two.
        crop_size: (height, width) of the window cut out.
    """
    smallest, largest = short_edge
    transforms: list[nn.Module] = [
        v2.RandomResize(smallest, largest + 1, antialias=True),
        ClassShareLimitedCrop(crop_size, crop_max_class_share),
    ]
    if color_jitter:
        transforms.append(PhotometricDistortion())
    transforms.append(v2.RandomHorizontalFlip(flip_probability))
    return v2.Compose(transforms)
