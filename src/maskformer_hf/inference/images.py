"""Images as people give them: paths, URLs, bytes, open files, PIL images, arrays and tensors."""

import os
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from ..models.image_opening import is_source
from ..models.image_reading import Reading, read_image
from .windows import Window

ImageInput = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | torch.Tensor


def is_image(images: Any) -> bool:
    """Whether this is one image, and not several."""
    return is_source(images) or (isinstance(images, np.ndarray | torch.Tensor) and images.ndim != 4)


def reading_of(processor: Any, max_pixels: int | None = None) -> Reading:
    """How images for this processor are read; it has a limit of pixels of its own if none is given."""
    return Reading.of(processor) if max_pixels is None else Reading.of(processor, max_pixels=max_pixels)


def image_size(image: torch.Tensor) -> tuple[int, int]:
    """Height and width of (C, H, W)."""
    return image.shape[-2], image.shape[-1]


def crop_image(image: torch.Tensor, window: Window) -> torch.Tensor:
    """A part of (C, H, W)."""
    return image[:, window.top : window.bottom, window.left : window.right]


def preprocess(processor: Any, image: torch.Tensor) -> Any:
    """The inputs of an image that was read, or of a part of it."""
    return processor.preprocess([image], input_data_format="channels_first", return_tensors="pt")


__all__ = ["ImageInput", "Reading", "crop_image", "image_size", "is_image", "preprocess", "read_image", "reading_of"]
