"""The training augmentation of a recipe: which transforms, in which order, with which values."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn
from torchvision.transforms import v2

from .augment import (
    ClassShareLimitedCrop,
    DetrResize,
    LargeScaleJitter,
    MagnifiedWindow,
    PhotometricDistortion,
    QuarterTurn,
    ShortEdgeResize,
)

Kind = Literal["short_edge_jitter", "large_scale_jitter", "detr", "magnification_jitter"]


@dataclass
class AugmentationArguments:
    """What `augmentation` makes.

    Attributes:
        kind: How images are resized and cropped.
            "short_edge_jitter", MaskFormer's on semantic data: resize to one of `short_edge`, cut out a window.
            "large_scale_jitter", Mask2Former's on COCO: see `LargeScaleJitter`; then cut out a window.
            "detr", MaskFormer's on panoptic data: see `DetrResize`.
            "magnification_jitter": see `MagnifiedWindow`.
        short_edge: Lengths of the shorter side in pixels, drawn evenly. Two are the smallest and the largest of all,
            more are the only ones. "short_edge_jitter" and "detr" need it.
        long_edge: The longer side gets no longer than this many pixels.
        scale: Smallest and largest factor of "large_scale_jitter" and "magnification_jitter".
        crop_size: (height, width) of the window that is cut out, in pixels. None keeps the whole image. "detr" has
            windows of its own.
        crop_max_class_share: See `ClassShareLimitedCrop`.
        color_jitter: See `PhotometricDistortion`.
        flip_probability: Of swapping left and right.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees. With the flip these are all eight orientations, for images
            that have no up.
    """

    kind: Kind = "short_edge_jitter"
    short_edge: list[int] | None = None
    long_edge: int | None = None
    scale: list[float] = field(default_factory=lambda: [0.1, 2.0])
    crop_size: list[int] | None = None
    crop_max_class_share: float = 1.0
    color_jitter: bool = True
    flip_probability: float = 0.5
    quarter_turns: bool = False


def augmentation(arguments: AugmentationArguments | None = None, **given: Any) -> v2.Compose:
    """The training transform of a `Sample`: quarter turns, resizing and cropping, colour, flip.

    Args:
        given: Fields of `AugmentationArguments`, in place of those in `arguments`.

    Raises ValueError for a field that the kind needs and that is missing, or that it has no use for.
    """
    fields = replace(arguments or AugmentationArguments(), **given)
    transforms: list[nn.Module] = [QuarterTurn()] if fields.quarter_turns else []
    match fields.kind:
        case "short_edge_jitter":
            transforms.append(ShortEdgeResize(_needed(fields, "short_edge"), fields.long_edge))
        case "large_scale_jitter":
            _refuse(fields, "short_edge", "long_edge")
            transforms.append(LargeScaleJitter(_needed(fields, "crop_size"), fields.scale))
        case "magnification_jitter":
            _refuse(fields, "short_edge", "long_edge")
            transforms.append(MagnifiedWindow(_needed(fields, "crop_size"), fields.scale))
        case "detr":
            _refuse(fields, "crop_size")
            transforms.append(DetrResize(_needed(fields, "short_edge"), fields.long_edge))
    if fields.crop_size is not None:
        transforms.append(ClassShareLimitedCrop(fields.crop_size, fields.crop_max_class_share))
    if fields.color_jitter:
        transforms.append(PhotometricDistortion())
    transforms.append(v2.RandomHorizontalFlip(fields.flip_probability))
    return v2.Compose(transforms)


def _needed(fields: AugmentationArguments, name: str) -> Sequence[int]:
    value = getattr(fields, name)
    if value is None:
        raise ValueError(f"{name} is missing, which the augmentation {fields.kind!r} needs")
    return value


def _refuse(fields: AugmentationArguments, *names: str) -> None:
    for name in names:
        value = getattr(fields, name)
        if value is not None:
            raise ValueError(f"{name} is {value}, for which the augmentation {fields.kind!r} has no use: leave it out")
