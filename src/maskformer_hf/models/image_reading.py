"""Images of any kind to tensors (C, H, W), and the sizes that they get.

Shapes: B images, C channels, H W pixels.
"""

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import SizeDict, get_image_size_for_max_height_width, load_image


def list_images(images: Any) -> list[Any]:
    """Nested lists and batches of arrays as one list."""
    if isinstance(images, (list, tuple)):
        return [image for entry in images for image in list_images(entry)]
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def read_images(
    images: Iterable[Any],
    *,
    do_convert_rgb: bool | None,
    input_data_format: Any,
    image_mean: Any,
    device: Any,
) -> list[Tensor]:
    """Images of any kind as (C, H, W) each, uint8 or float32.

    Args:
        image_mean: Has as many entries as the images must have channels, unless it is a number or None.

    Raises:
        ValueError: No image, one without pixels or with other channels, or a value that is not finite; the message has
            the image's number.
    """
    tensors = (
        _read_image(image, index, do_convert_rgb, input_data_format, image_mean) for index, image in enumerate(images)
    )
    read = [tensor if device is None else tensor.to(device) for tensor in tensors]
    if not read:
        raise ValueError("There are no images; give at least one.")
    return read


def _read_image(image: Any, index: int, do_convert_rgb: bool | None, input_data_format: Any, image_mean: Any) -> Tensor:
    array, data_format = _as_array(image, index, do_convert_rgb, input_data_format)
    if array.ndim == 2:
        array, data_format = array[None], "channels_first"
    if array.ndim != 3:
        raise ValueError(f"Image {index} has shape {tuple(array.shape)}; give (C, H, W) or (H, W, C).")
    if array.numel() == 0:
        raise ValueError(f"Image {index} has 0 pixels: its shape is {tuple(array.shape)}. Leave it out.")
    channels = None if isinstance(image_mean, (int, float)) or image_mean is None else len(image_mean)
    if data_format is None:
        data_format = _guess_data_format(array, channels, index)
    if str(getattr(data_format, "value", data_format)) == "channels_last":
        array = array.permute(2, 0, 1)
    if do_convert_rgb and array.shape[0] in (1, 4):
        # As PIL converts: grey is repeated, transparency dropped.
        array = array.expand(3, -1, -1) if array.shape[0] == 1 else array[:3]
    if channels is not None and array.shape[0] != channels:
        raise ValueError(
            f"Image {index} has {array.shape[0]} channels (shape {tuple(array.shape)} as C, H, W) where image_mean "
            f"has {channels}; use do_convert_rgb=True for grey, palette or RGBA images, or give image_mean and "
            "image_std one entry a channel."
        )
    if array.is_floating_point() and not bool(torch.isfinite(array).all()):
        value = array[~torch.isfinite(array)][0].item()
        raise ValueError(f"Image {index} holds {value}; replace values that are not finite before the processor.")
    # torchvision resizes uint8 and float32 on every device.
    return (array if array.dtype == torch.uint8 else array.float()).contiguous()


def as_tensor(values: Any) -> Tensor:
    """A map or a mask as a tensor: from a path of a PNG file, a PIL image, an array, a tensor or lists."""
    if isinstance(values, (str, os.PathLike)):
        with PIL.Image.open(values) as image:
            return torch.from_numpy(np.array(image))
    return values if isinstance(values, Tensor) else torch.as_tensor(np.array(values))


def size_of(image: Tensor) -> tuple[int, int]:
    """(height, width) of (..., H, W)."""
    return image.shape[-2], image.shape[-1]


def resized_size(size: tuple[int, int], wanted: SizeDict, round_up_to: int = 0) -> tuple[int, int]:
    """(height, width) of an image after resizing, by transformers' rules for `size`; then rounded up to a multiple."""
    if wanted.shortest_edge:
        height, width = get_size_with_aspect_ratio(size, wanted.shortest_edge, wanted.longest_edge)
    elif wanted.max_height and wanted.max_width:
        height, width = get_image_size_for_max_height_width(size, wanted.max_height, wanted.max_width)
    elif wanted.height and wanted.width:
        height, width = wanted.height, wanted.width
    else:
        raise ValueError(
            f"size={dict(wanted)} is not understood; give shortest_edge (and longest_edge), height and width, or "
            "max_height and max_width."
        )
    # A side of a very long image can round to 0.
    height, width = max(1, height), max(1, width)
    if round_up_to:
        height, width = (math.ceil(side / round_up_to) * round_up_to for side in (height, width))
    return height, width


def padded_size(images: list[Tensor], pad_size: SizeDict | None, divisor: int) -> tuple[int, int]:
    """(height, width) of a batch: `pad_size`, or the largest sides rounded up to a multiple of `divisor` if not 0."""
    largest = [max(image.shape[dim] for image in images) for dim in (1, 2)]
    if pad_size is not None:
        if pad_size.height is None or pad_size.width is None:
            raise ValueError(f"pad_size={dict(pad_size)} needs height and width.")
        if pad_size.height < largest[0] or pad_size.width < largest[1]:
            raise ValueError(
                f"pad_size={dict(pad_size)} is smaller than the largest image, {tuple(largest)}; enlarge it."
            )
        return pad_size.height, pad_size.width
    if divisor:
        largest = [math.ceil(side / divisor) * divisor for side in largest]
    return largest[0], largest[1]


def pad_images(images: list[Tensor], padded: tuple[int, int]) -> dict[str, Tensor]:
    """pixel_values (B, C, H, W) of images (C, H, W), zero beyond them, and pixel_mask (B, H, W) int64."""
    pixel_values = torch.zeros(len(images), images[0].shape[0], *padded, device=images[0].device)
    pixel_mask = torch.zeros(len(images), *padded, dtype=torch.int64, device=images[0].device)
    for index, image in enumerate(images):
        pixel_values[index, :, : image.shape[1], : image.shape[2]] = image
        pixel_mask[index, : image.shape[1], : image.shape[2]] = 1
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask}


def _as_array(image: Any, index: int, do_convert_rgb: bool | None, data_format: Any) -> tuple[Tensor, Any]:
    """The values of an image of any kind, and where its channels are, if that is known."""
    if isinstance(image, (str, os.PathLike)):
        image = load_image(os.fspath(image))
    if isinstance(image, PIL.Image.Image):
        return torch.from_numpy(np.array(image.convert("RGB") if do_convert_rgb else image)), "channels_last"
    if isinstance(image, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(image)), data_format
    if isinstance(image, Tensor):
        return image, data_format
    raise ValueError(
        f"Image {index} is a {type(image).__name__}; give a PIL image, an array, a tensor, a path or a URL."
    )


def _guess_data_format(image: Tensor, channels: int | None, index: int) -> str:
    """First or last dimension, whichever has the wanted number of channels, or else that of a common image."""
    for counts in ((channels,), (1, 3, 4)):
        if image.shape[0] in counts:
            return "channels_first"
        if image.shape[-1] in counts:
            return "channels_last"
    wanted = "1, 3 or 4" if channels is None else f"{channels} by image_mean"
    raise ValueError(
        f"Image {index} has shape {tuple(image.shape)}, in which neither the first nor the last side is the number of "
        f"channels ({wanted}); give image_mean and image_std one entry a channel, or input_data_format."
    )
