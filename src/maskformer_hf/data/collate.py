"""Lists of samples to the batch that the model's forward takes.

Shapes: B images or clips, T frames of a clip, N segments, P planes, H W pixels of the batch, h w pixels of one image.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch

from ..models.loss_terms import TargetMap
from .sample import VOID, Sample
from .video import ClipSample


class Batch(TypedDict):
    """What `Collator` makes of images; for clips of T frames each (H, W) is (T, H, W).

    pixel_values: (B, 3, H, W) float32; (B, T, 3, H, W) for clips.
    pixel_mask: (B, H, W) bool, false in the padding.
    mask_labels: B tensors (N, H, W) bool.
    class_labels: B tensors (N,) int64.
    void_masks: (B, H, W) bool, if they were asked for.
    target_maps: for each name B tensors (N, H, W) float32, if a loss term needs any.
    """

    pixel_values: torch.Tensor
    pixel_mask: torch.Tensor
    mask_labels: list[torch.Tensor]
    class_labels: list[torch.Tensor]
    void_masks: NotRequired[torch.Tensor]
    target_maps: NotRequired[dict[str, list[torch.Tensor]]]


class Collator:
    """Normalises, pads with zeros at the right and bottom, and makes a mask of every segment that has a pixel left.

    Padding and void are background of every mask, as in the original. Crowds are no targets. A batch holds images
    (`Sample`) or clips of one number of frames (`ClipSample`). An object that some frame of a clip shows has an empty
    mask in the others; one that no frame shows is dropped.

    Args:
        image_mean, image_std: per channel, of values scaled to 0..1.
        size_divisor: the padded sides are multiples of it. 0 pads to the largest image, as image processors do.
        size: (height, width) to which every batch is padded at least. With crops of one size all batches then have the
            same shape.
        return_void_masks: adds `void_masks`, true at void pixels and in crowds, false in the padding. The mask losses
            of the models leave these pixels out.
        target_maps: name -> function of masks (N, H, W) that gives maps of the same shape. Adds `target_maps`, which
            worker processes then compute.
    """

    def __init__(
        self,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        size_divisor: int = 32,
        size: Sequence[int] = (0, 0),
        return_void_masks: bool = False,
        target_maps: Mapping[str, TargetMap] | None = None,
    ) -> None:
        # (x / 255 - mean) / std in one multiplication and one subtraction
        self.scale = 1.0 / (255.0 * torch.tensor(image_std))[:, None, None]
        self.shift = (torch.tensor(image_mean) / torch.tensor(image_std))[:, None, None]
        self.size_divisor = size_divisor or 1
        self.size = tuple(size)
        self.return_void_masks = return_void_masks
        self.target_maps = dict(target_maps or {})

    def __call__(self, samples: Sequence[Sample] | Sequence[ClipSample]) -> Batch:
        # An image is treated as a clip of one frame; that axis is dropped at the end.
        are_clips = "video" in samples[0]
        clips = [_frames(sample) for sample in samples]
        height, width = self._size([clip.pixels.shape[-2:] for clip in clips])
        num_frames, channels = clips[0].pixels.shape[:2]
        pixel_values = torch.zeros(len(clips), num_frames, channels, height, width)
        pixel_mask = torch.zeros(len(clips), num_frames, height, width, dtype=torch.bool)
        void_masks = torch.zeros_like(pixel_mask) if self.return_void_masks else None
        mask_labels, class_labels = [], []
        for index, (clip, sample) in enumerate(zip(clips, samples, strict=True)):
            h, w = clip.pixels.shape[-2:]
            torch.mul(clip.pixels, self.scale, out=pixel_values[index, ..., :h, :w]).sub_(self.shift)
            pixel_mask[index, :, :h, :w] = True
            targets_N = _targets(clip.planes, sample["is_crowd"])
            masks_NTHW = _padded_masks(clip.planes, targets_N, height, width)
            mask_labels.append(masks_NTHW if are_clips else masks_NTHW[:, 0])
            class_labels.append(sample["labels"][targets_N])
            if void_masks is not None:
                crowds_C = sample["is_crowd"].nonzero().flatten() + 1
                void_masks[index, :, :h, :w] = (clip.planes[:, 0] == VOID) | torch.isin(clip.planes, crowds_C).any(1)
        batch: Batch = {
            "pixel_values": pixel_values if are_clips else pixel_values[:, 0],
            "pixel_mask": pixel_mask if are_clips else pixel_mask[:, 0],
            "mask_labels": mask_labels,
            "class_labels": class_labels,
        }
        if void_masks is not None:
            batch["void_masks"] = void_masks if are_clips else void_masks[:, 0]
        if self.target_maps:
            batch["target_maps"] = {
                name: [_map_of(function, masks) for masks in mask_labels] for name, function in self.target_maps.items()
            }
        return batch

    def _size(self, sizes: Sequence[Sequence[int]]) -> list[int]:
        """Height and width of a batch."""
        return [
            -(-max(minimum, *sides) // self.size_divisor) * self.size_divisor
            for minimum, sides in zip(self.size, zip(*sizes, strict=True), strict=True)
        ]


class _Frames(NamedTuple):
    """pixels (T, 3, h, w) uint8 and planes (T, P, h, w) int32 of a clip, or of an image, whose T is 1."""

    pixels: torch.Tensor
    planes: torch.Tensor


def _frames(sample: Any) -> _Frames:
    planes = sample["planes"].as_subclass(torch.Tensor)
    if "video" in sample:
        return _Frames(sample["video"].as_subclass(torch.Tensor), planes)
    return _Frames(sample["image"].as_subclass(torch.Tensor)[None], planes[None])


def _targets(planes_TPHW: torch.Tensor, is_crowd_N: torch.Tensor) -> torch.Tensor:
    """Indices of the segments to learn: those that are no crowd and that cropping has not removed."""
    # Entry 0 is void, entry 1 no segment.
    pixels_N = torch.bincount(planes_TPHW.flatten() + 1, minlength=len(is_crowd_N) + 2)[2:]
    return ((pixels_N > 0) & ~is_crowd_N).nonzero().flatten()


def _padded_masks(planes_TPHW: torch.Tensor, targets_N: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The masks of some segments, (N, T, height, width) bool."""
    h, w = planes_TPHW.shape[-2:]
    masks_NTHW = torch.zeros(len(targets_N), len(planes_TPHW), height, width, dtype=torch.bool)
    numbers_N = (targets_N + 1).to(planes_TPHW.dtype)[:, None, None, None]
    planes_PTHW = planes_TPHW.transpose(0, 1)
    torch.eq(planes_PTHW[0], numbers_N, out=masks_NTHW[..., :h, :w])
    for plane_THW in planes_PTHW[1:]:
        masks_NTHW[..., :h, :w] |= plane_THW == numbers_N
    return masks_NTHW


def _map_of(function: TargetMap, masks: torch.Tensor) -> torch.Tensor:
    """The function's map of masks (N, H, W) or (N, T, H, W), frame by frame; same shape."""
    return function(masks.flatten(0, -3)).view(masks.shape)
