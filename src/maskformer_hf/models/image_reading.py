"""Images of any kind to tensors (C, H, W), and the sizes that they get.

Shapes: B images, C channels, H W pixels.
"""

import math
import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import SizeDict, get_image_size_for_max_height_width

from .image_opening import is_source, name_of, open_image
from .image_values import as_8_bits


class Reading(NamedTuple):
    """How images become arrays.

    Attributes:
        channels: What an image must have; None takes any number.
        convert_rgb: Whether grey, palettes, CMYK and transparency become RGB; None is where there must be 3 channels.
        is_8_bit: Whether values become whole numbers of 0 to 255 (`as_8_bits`); otherwise they stay as they are.
        data_format: Where the channels of arrays are; None finds out.
        max_pixels: See `open_image`.
        may_guess: See `as_8_bits`.
    """

    channels: int | None = 3
    convert_rgb: bool | None = None
    is_8_bit: bool = True
    data_format: Any = None
    max_pixels: int | None = None
    may_guess: bool = True

    @classmethod
    def of(cls, processor: Any, **options: Any) -> "Reading":
        """That of an image processor, whose fields `options` may overrule for a call."""

        def option(name: str, default: Any = None) -> Any:
            return options[name] if name in options else getattr(processor, name, default)

        mean = option("image_mean")
        # Whoever scales by another factor, or not at all, says what the values are.
        scales_bytes = bool(option("do_rescale", True)) and abs(option("rescale_factor", 1 / 255) * 255 - 1) < 1e-3
        return cls(
            channels=None if mean is None or isinstance(mean, (int, float)) else len(mean),
            convert_rgb=option("do_convert_rgb"),
            is_8_bit=scales_bytes,
            data_format=option("input_data_format"),
            max_pixels=option("max_pixels"),
        )

    @property
    def is_rgb(self) -> bool:
        return self.channels == 3 if self.convert_rgb is None else self.convert_rgb


def list_images(images: Any) -> list[Any]:
    """Nested lists and batches of arrays as one list."""
    if isinstance(images, (list, tuple)):
        return [image for entry in images for image in list_images(entry)]
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def read_images(
    images: Iterable[Any], reading: Reading, device: Any = None, sizes: Sequence[tuple[int, int] | None] | None = None
) -> list[Tensor]:
    """Images of any kind as (C, H, W) each, uint8 or float32.

    Args:
        sizes: (height, width) of the annotations of each image. Images with annotations come as they are stored, others
            upright.

    Raises:
        ValueError: No image, one that cannot be read, or one without pixels, with other channels or with values that
            are no image; the message has the image's number.
    """
    read = []
    for index, image in enumerate(images):
        size = None if sizes is None else sizes[index]
        tensor = read_image(image, f"Image {index}", reading, upright=sizes is None, size=size)
        # torchvision resizes uint8 and float32 on every device.
        tensor = (tensor if tensor.dtype == torch.uint8 else tensor.float()).contiguous()
        read.append(tensor if device is None else tensor.to(device))
    if not read:
        raise ValueError("There are no images; give at least one.")
    return read


def read_image(
    image: Any,
    name: str = "The image",
    reading: Reading = Reading(),  # noqa: B008  (it cannot be changed)
    *,
    upright: bool = True,
    size: tuple[int, int] | None = None,
    timeout: float | None = None,
) -> Tensor:
    """An image of any kind as (C, H, W): uint8, or of its own dtype if values stay. Not to be written to.

    It is a view of an array or a tensor that need not be changed, so that tiles of a memory-mapped file are read alone.

    Args:
        image: What `open_image` opens, or an array or tensor of any dtype: (H, W), (C, H, W) or (H, W, C).
        name: How messages call the image where it has no path.
        upright, size, timeout: See `open_image`.

    Raises:
        ValueError: See `read_images`.
    """
    data_format = reading.data_format
    if is_source(image):
        path = image if isinstance(image, (str, os.PathLike)) else getattr(image, "name", None)
        own_name = "" if isinstance(path, (str, os.PathLike)) else name
        picture = open_image(
            image, own_name, upright=upright, size=size, max_pixels=reading.max_pixels, timeout=timeout
        )
        name = own_name or name_of(image)
        image, data_format = _pixels_of(picture, reading, name), "channels_last"
    elif not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(
            f"{name} is a {type(image).__name__}; give a PIL image, an array, a tensor, a path, a URL, bytes or an "
            "open file."
        )
    array = _channels_first(image, name, reading, data_format)
    if reading.is_8_bit:
        array = as_8_bits(array, name, may_guess=reading.may_guess)
    tensor = array if isinstance(array, Tensor) else _tensor_of(array)
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        value = tensor[~torch.isfinite(tensor)][0].item()
        raise ValueError(f"{name} holds {value}; replace values that are not finite before.")
    return tensor


def as_tensor(values: Any) -> Tensor:
    """A map or a mask as a tensor, as it is stored: of what `open_image` opens, an array, a tensor or lists."""
    if is_source(values):
        values = np.array(open_image(values, upright=False))
    return values if isinstance(values, Tensor) else torch.as_tensor(np.array(values))


class _Memory:
    """The memory of an array, as something that could be written to; nothing here writes to it.

    torch asks for that, where photos and memory-mapped files are read-only, and a copy may be large.
    """

    def __init__(self, array: np.ndarray) -> None:
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
        self.array = array


def _tensor_of(array: np.ndarray) -> Tensor:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Memory(array)))


def _pixels_of(picture: PIL.Image.Image, reading: Reading, name: str) -> np.ndarray:
    """(H, W) or (H, W, C), with the dtype of the picture's mode."""
    if reading.is_rgb and picture.mode != "RGB" and not picture.mode.startswith(("I", "F")):
        try:
            # Through RGBA where Pillow knows no other way, or would warn of a palette with transparency.
            direct = picture.mode in ("1", "L", "LA", "RGBA", "CMYK", "YCbCr", "HSV")
            picture = picture.convert("RGB") if direct else picture.convert("RGBA").convert("RGB")
        except ValueError as error:
            raise ValueError(f"{name} has pixels of mode {picture.mode}; convert it to RGB first.") from error
    return np.asarray(picture)


def _channels_first(image: Any, name: str, reading: Reading, data_format: Any) -> Any:
    """(C, H, W) with the channels that are wanted."""
    shape = tuple(image.shape)
    if image.ndim not in (2, 3):
        raise ValueError(f"{name} has shape {shape}; give (H, W), (C, H, W) or (H, W, C).")
    if 0 in shape:
        raise ValueError(f"{name} has 0 pixels: its shape is {shape}. Leave it out.")
    if image.ndim == 2:
        image, data_format = image[None], "channels_first"
    if data_format is None:
        data_format = _guess_data_format(shape, reading, name)
    if str(getattr(data_format, "value", data_format)) == "channels_last":
        image = image.permute(2, 0, 1) if isinstance(image, Tensor) else image.transpose(2, 0, 1)
    found, wanted = image.shape[0], 3 if reading.is_rgb else reading.channels
    converts = reading.convert_rgb is not False
    if converts and found in (2, 4) and wanted == found - 1:
        image = image[:wanted]  # transparency
    elif converts and found in (1, 2) and wanted == 3:
        image = image[:1].repeat(3, 0) if isinstance(image, np.ndarray) else image[:1].expand(3, -1, -1)
    if reading.channels is not None and image.shape[0] != reading.channels:
        raise ValueError(
            f"{name} has {found} channels (its shape is {shape}) where the model takes {reading.channels}, the number "
            "of entries of image_mean: give an image with as many"
            + (", or do_convert_rgb=True for grey, palette or RGBA images." if not reading.is_rgb else ".")
        )
    return image


def _guess_data_format(shape: tuple[int, ...], reading: Reading, name: str) -> str:
    """First or last side, whichever has the wanted number of channels, or else that of a common image."""
    for counts in ((reading.channels,), (1, 2, 3, 4)):
        if shape[0] in counts:
            if shape[-1] in counts:
                warnings.warn(
                    "The first and the last side of an array could be its channels: the first is taken. Say which by "
                    "input_data_format.",
                    stacklevel=2,
                )
            return "channels_first"
        if shape[-1] in counts:
            return "channels_last"
    wanted = "1 to 4" if reading.channels is None else f"the model's {reading.channels} channels"
    raise ValueError(
        f"{name} has shape {shape}, in which neither the first nor the last side is {wanted}; give (C, H, W) or "
        "(H, W, C), or say which by input_data_format."
    )


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
