"""Training augmentation of a photo and its segments together, as MaskFormer, DETR and Mask2Former train.

Each transform takes and returns a `Sample`, whose planes follow the image. Segments that leave the picture stay in
`labels`; collation drops them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from .sample import Sample

Kind = Literal["short_edge_jitter", "large_scale_jitter", "detr", "magnification_jitter"]


class QuarterTurn(nn.Module):
    """Turns by a multiple of 90 degrees, each as probable: no pixel is interpolated."""

    def forward(self, sample: Sample) -> Sample:
        turns = int(torch.randint(4, ()))
        image, planes = (
            torch.rot90(tensor.as_subclass(torch.Tensor), turns, (-2, -1)).contiguous()
            for tensor in (sample["image"], sample["planes"])
        )
        return {**sample, "image": tv_tensors.Image(image), "planes": tv_tensors.Mask(planes)}


class ShortEdgeResize(nn.Module):
    """Resizes such that the shorter side gets a length drawn from `short_edge`, and the longer at most `long_edge`.

    Args:
        short_edge: two lengths in pixels stand for all between them, more for themselves.
    """

    def __init__(self, short_edge: Sequence[int], long_edge: int | None = None) -> None:
        super().__init__()
        self.lengths = range(short_edge[0], short_edge[1] + 1) if len(short_edge) == 2 else list(short_edge)
        self.long_edge = long_edge

    def forward(self, sample: Sample) -> Sample:
        length = self.lengths[int(torch.randint(len(self.lengths), ()))]
        return _resize(sample, length, self.long_edge)


class DetrResize(nn.Module):
    """DETR's resizing, by which MaskFormer was trained on panoptic data: `ShortEdgeResize`, half of the time behind a
    resize to a shorter side of 400, 500 or 600 pixels and a window of 384 to 600 pixels a side."""

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
    """A window cut out of the photo and magnified, by a factor drawn between the two of `scale`, to `size`.

    For photos of one instrument, in which the size of a pixel says something and that of the photo nothing. Small
    factors are as probable as large ones: half of them lie below the geometric mean. A window that leaves the photo is
    cut short, and collation pads.

    Args:
        size: (height, width) of the result in pixels.
    """

    def __init__(self, size: Sequence[int], scale: Sequence[float]) -> None:
        super().__init__()
        self.size = tuple(size)
        self.scale = tuple(scale)

    def forward(self, sample: Sample) -> Sample:
        smallest, largest = self.scale
        factor = smallest * (largest / smallest) ** float(torch.rand(()))
        sides = sample["image"].shape[-2:]
        # Cutting before resizing: a whole photo of a microscope, magnified, is a hundred times the window.
        height, width = (
            min(side, max(1, round(length / factor))) for side, length in zip(sides, self.size, strict=True)
        )
        top = int(torch.randint(sides[0] - height + 1, ()))
        left = int(torch.randint(sides[1] - width + 1, ()))
        size = [min(self.size[0], max(1, round(height * factor))), min(self.size[1], max(1, round(width * factor)))]
        image, planes = (
            functional.resized_crop(tensor, top, left, height, width, size, antialias=True)
            for tensor in (sample["image"], sample["planes"])
        )
        return {**sample, "image": tv_tensors.Image(image), "planes": tv_tensors.Mask(planes)}


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


def _resize(sample: Sample, short_edge: int, long_edge: int | None) -> Sample:
    """Bilinear with antialiasing for the image; of the planes the nearest pixel."""
    return {
        **sample,
        "image": tv_tensors.Image(functional.resize(sample["image"], [short_edge], max_size=long_edge, antialias=True)),
        "planes": tv_tensors.Mask(functional.resize(sample["planes"], [short_edge], max_size=long_edge)),
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
    kind: Kind = "short_edge_jitter",
    short_edge: Sequence[int] | None = None,
    long_edge: int | None = None,
    scale: Sequence[float] = (0.1, 2.0),
    crop_size: Sequence[int] | None = None,
    crop_max_class_share: float = 1.0,
    color_jitter: bool = True,
    flip_probability: float = 0.5,
    quarter_turns: bool = False,
) -> v2.Compose:
    """The training transform: quarter turns, resizing and cropping, colour, flip.

    Args:
        kind: "short_edge_jitter", MaskFormer's on semantic data: resize to one of `short_edge`, cut out a window.
            "large_scale_jitter", Mask2Former's on COCO (https://arxiv.org/abs/2012.07177): resize to `scale` times what
            fits into the window, cut out a window; collation pads. "detr", MaskFormer's panoptic one: see `DetrResize`.
            "magnification_jitter": see `MagnifiedWindow`.
        short_edge: lengths in pixels of the shorter side, drawn evenly: two are the smallest and the largest of all,
            more are the only ones. "large_scale_jitter" and "magnification_jitter" do without.
        long_edge: the longer side gets no longer than this.
        scale: (smallest, largest) factor of "large_scale_jitter", drawn evenly between the two, or of
            "magnification_jitter".
        crop_size: (height, width) of the window cut out; None keeps the whole. "detr" draws its own.
        crop_max_class_share: see `ClassShareLimitedCrop`.
        quarter_turns: turn by 0, 90, 180 or 270 degrees: with the flip all eight orientations, for photos without an
            up.
    """
    transforms: list[nn.Module] = [QuarterTurn()] if quarter_turns else []
    match kind:
        case "short_edge_jitter":
            transforms.append(ShortEdgeResize(_needed(kind, short_edge=short_edge), long_edge))
        case "large_scale_jitter":
            _refuse(kind, short_edge=short_edge, long_edge=long_edge)
            height, width = _needed(kind, crop_size=crop_size)
            transforms.append(v2.ScaleJitter((width, height), (scale[0], scale[1])))
        case "magnification_jitter":
            _refuse(kind, short_edge=short_edge, long_edge=long_edge)
            transforms.append(MagnifiedWindow(_needed(kind, crop_size=crop_size), scale))
        case "detr":
            _refuse(kind, crop_size=crop_size)
            transforms.append(DetrResize(_needed(kind, short_edge=short_edge), long_edge))
    if crop_size is not None:
        transforms.append(ClassShareLimitedCrop(crop_size, crop_max_class_share))
    if color_jitter:
        transforms.append(PhotometricDistortion())
    transforms.append(v2.RandomHorizontalFlip(flip_probability))
    return v2.Compose(transforms)


def _needed(kind: Kind, **option: Sequence[int] | None) -> Sequence[int]:
    [(name, value)] = option.items()
    if value is None:
        raise ValueError(f"{name} is missing, which the augmentation {kind!r} needs")
    return value


def _refuse(kind: Kind, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} is {value}, for which the augmentation {kind!r} has no use: leave it out")
