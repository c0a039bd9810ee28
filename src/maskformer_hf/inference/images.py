"""Images as people give them: paths, URLs, bytes, open files, PIL images, arrays and tensors."""

import os
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from ..models.image_opening import first_line, is_source
from ..models.image_reading import Reading, list_images, read_array
from .windows import Window

# (C, H, W) as `read_image` gives it: uint8, unless the processor does not scale by 1 / 255.
ReadImage = np.ndarray | torch.Tensor
ImageInput = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | Image.Image | ReadImage


def is_image(images: Any) -> bool:
    """Whether this is one image, and not several."""
    return is_source(images) or (isinstance(images, ReadImage) and images.ndim != 4)


def reading_of(processor: Any, max_pixels: int | None = None) -> Reading:
    """How images for this processor are read; it has a limit of pixels of its own if none is given."""
    return Reading.of(processor) if max_pixels is None else Reading.of(processor, max_pixels=max_pixels)


def read_image(
    source: ImageInput, num_channels: int = 3, name: str = "The image", reading: Reading | None = None
) -> ReadImage:
    """The image as (C, H, W), upright; files in RGB and uint8.

    Args:
        num_channels: What the image must have, if there is no `reading`.
        name: How messages call an image without a path.
        reading: That of the processor which the image is for.

    Raises:
        ValueError: An image that cannot be read, or with values or channels that are none of an image; in one line that
            names it.
    """
    return read_array(source, name, reading or Reading(num_channels))


def image_size(image: ReadImage) -> tuple[int, int]:
    """Height and width of what `read_image` gives."""
    return int(image.shape[-2]), int(image.shape[-1])


def crop_image(image: ReadImage, window: Window) -> ReadImage:
    """A part of what `read_image` gives."""
    return image[..., window.top : window.bottom, window.left : window.right]


def preprocess(processor: Any, image: ReadImage) -> Any:
    """The inputs of what `read_image` gives, or of a part of it."""
    return processor.preprocess([image], input_data_format="channels_first", return_tensors="pt")


__all__ = [
    "ImageInput",
    "ReadImage",
    "Reading",
    "crop_image",
    "first_line",
    "image_size",
    "is_image",
    "list_images",
    "preprocess",
    "read_array",
    "read_image",
    "reading_of",
]
