"""Images as people give them: paths, PIL images, arrays and tensors."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .windows import Window

ReadImage = Image.Image | np.ndarray | torch.Tensor
ImageInput = str | Path | ReadImage


def read_image(source: ImageInput, num_channels: int = 3) -> ReadImage:
    """The image as the processor takes it: files and PIL images upright (EXIF) and in RGB, arrays as they are.

    Raises:
        ValueError: No such file, no image, a truncated one, or one with more than 8 bits a channel.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        return source
    name = "The image" if isinstance(source, Image.Image) else repr(str(source))
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        image = ImageOps.exif_transpose(image)
        # Opening reads the header only.
        image.load()
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {name}.") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no image, or none that Pillow reads.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow reports a broken PNG as a SyntaxError.
        raise ValueError(f"{name} cannot be read as an image: {first_line(error)}") from error
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has more than 8 bits a channel (mode {image.mode}): convert it to 0..255 first.")
    return image.convert("RGB") if num_channels == 3 else image


def image_size(image: ReadImage, num_channels: int = 3) -> tuple[int, int]:
    """Height and width of what `read_image` gives."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    shape = tuple(image.shape)
    if len(shape) == 2:
        return shape
    if len(shape) == 3 and shape[0] == num_channels and shape[2] != num_channels:
        return shape[1], shape[2]
    if len(shape) == 3 and shape[2] == num_channels:
        return shape[0], shape[1]
    raise ValueError(
        f"An image of shape {shape} does not have the model's {num_channels} channels: give (height, width, "
        f"{num_channels}) or ({num_channels}, height, width)."
    )


def crop_image(image: ReadImage, window: Window, num_channels: int) -> ReadImage:
    """A part of what `read_image` gives."""
    if isinstance(image, Image.Image):
        return image.crop((window.left, window.top, window.right, window.bottom))
    rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
    channels_last = image.ndim == 2 or tuple(image.shape[:2]) == image_size(image, num_channels)
    return image[rows, columns] if channels_last else image[:, rows, columns]


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
