"""Sizes that lead from mask logits to a result, and the plain way to go there.

The order is that of the original MaskFormer and Mask2Former (`mask_former_model.py`, `maskformer_model.py`): mask
logits are resized bilinearly to the padded input, cropped to the image, resized to the target size, and only then
turned into probabilities and compared with thresholds.

Shapes: B images, Q queries or classes, h w mask cells, H W target pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ImageGeometry(NamedTuple):
    """Three (height, width) pairs in pixels that lead from mask logits to the result of one image."""

    padded_size: tuple[int, int]
    image_size: tuple[int, int]
    target_size: tuple[int, int]


def image_geometries(
    outputs: Any, target_sizes: Sequence[tuple[int, int]] | Tensor | None = None
) -> list[ImageGeometry]:
    """Reads the sizes of each image, or clip, of a batch from model outputs.

    Without `outputs.padded_sizes` the padded input is taken to be four times as large as the mask logits, without
    `outputs.image_sizes` the images are taken to be unpadded. Without target sizes the result has the image size.

    Raises:
        ValueError: Sizes that contradict each other; the message names the image.
    """
    maps = maps_of(outputs)
    default = [(4 * maps[index].shape[-2], 4 * maps[index].shape[-1]) for index in range(_batch_size(outputs))]
    padded_sizes = _size_list(getattr(outputs, "padded_sizes", None), default, "padded_sizes")
    image_sizes = _size_list(getattr(outputs, "image_sizes", None), padded_sizes, "image_sizes")
    targets = _size_list(target_sizes, image_sizes, "target_sizes")
    for index, (padded, image) in enumerate(zip(padded_sizes, image_sizes, strict=True)):
        if image[0] > padded[0] or image[1] > padded[1]:
            raise ValueError(f"Image {index}: image size {image} is larger than the padded size {padded}.")
    return [ImageGeometry(*sizes) for sizes in zip(padded_sizes, image_sizes, targets, strict=True)]


def is_per_pixel(outputs: Any) -> bool:
    """Whether model outputs are class logits of every pixel, `logits`, and not classes and masks of queries."""
    return getattr(outputs, "logits", None) is not None


def maps_of(outputs: Any) -> Any:
    """What a model has put out for pixels. Entry i belongs to image i.

    The class logits of pixels (B, K, h, w), or mask logits of queries (B, Q, h, w) or (B, Q, T, h, w). Mask logits may
    not exist yet: then entry i of `outputs.masks` has `shape` and `device`, and computes the masks of the queries by
    which it is indexed.
    """
    if is_per_pixel(outputs):
        return outputs.logits
    return outputs.masks if outputs.masks_queries_logits is None else outputs.masks_queries_logits


def plain_logits(mask_logits: Tensor, geometry: ImageGeometry) -> Tensor:
    """Logits of all queries at all pixels: (Q, h, w) to (Q, H, W) float32.

    This defines what `mask_blocks` computes block by block without ever holding all of it: 840 MB for 100 queries and
    an image of 1024 x 2048.
    """
    resized = _interpolate(mask_logits.float(), geometry.padded_size)
    image_height, image_width = geometry.image_size
    return _interpolate(resized[..., :image_height, :image_width], geometry.target_size)


def resize_matrix(mask_length: int, padded_length: int, image_length: int, target_length: int) -> Tensor:
    """What `plain_logits` does to one axis, as a matrix (target, mask) float32.

    Its weights are those of `F.interpolate`, for they are read off the interpolation of unit vectors.
    """
    unit = torch.eye(mask_length)[None]
    padded = F.interpolate(unit, size=padded_length, mode="linear", align_corners=False)
    image = padded[..., :image_length]
    if target_length != image_length:
        image = F.interpolate(image, size=target_length, mode="linear", align_corners=False)
    return image[0].T.contiguous()


def _interpolate(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _batch_size(outputs: Any) -> int:
    return len(outputs.logits if is_per_pixel(outputs) else outputs.class_queries_logits)


def _size_list(sizes: Any, default: list[tuple[int, int]], name: str) -> list[tuple[int, int]]:
    if sizes is None:
        return default
    rows = sizes.tolist() if isinstance(sizes, Tensor) else [tuple(size) for size in sizes]
    if len(rows) != len(default):
        raise ValueError(f"{name} has {len(rows)} entries for {len(default)} images; give one (height, width) each.")
    result = []
    for index, row in enumerate(rows):
        if len(row) != 2 or any(int(side) != side or side < 1 for side in row):
            raise ValueError(f"{name}[{index}] is {row}; give (height, width) as two positive whole numbers.")
        result.append((int(row[0]), int(row[1])))
    return result
