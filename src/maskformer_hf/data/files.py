"""Decoding images and maps of ids, with errors that name the file."""

from pathlib import Path
from typing import Any

import numpy as np
from torchvision import tv_tensors

from ..models.image_opening import open_image
from ..models.image_reading import Reading
from ..models.image_reading import read_image as read_tensor


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> tv_tensors.Image:
    """Decodes an image to (3, H, W) uint8 RGB.

    The pixels are taken as they are stored, whatever orientation EXIF tells, as in COCO's annotations. Only if `size`
    does not fit them, but fits the image turned as EXIF tells, the image is turned, as it was annotated so.

    Args:
        size: (height, width) of the annotations; None takes the image as it is stored.

    Raises:
        ValueError: A file that cannot be read, or of another size.
    """
    image = decode_image(path, size, upright=False)
    found = (image.shape[-2], image.shape[-1])
    if size is not None and found != tuple(size):
        raise ValueError(
            f"{path} is {found} (height, width), its annotations are for {tuple(size)}; annotate the photo as it is, "
            "or resize both together"
        )
    return image


def decode_image(
    source: Any, size: tuple[int, int] | None = None, *, upright: bool, name: str = ""
) -> tv_tensors.Image:
    """An image of any mode as (3, H, W) uint8 RGB: `upright` by EXIF, as drawing tools show it, or as it is stored.

    Args:
        source: what `open_image` opens. Messages call what has no path `name`.
        size: (height, width) of the annotations. If it fits only the other way, that one is taken.

    Raises:
        ValueError: A file that cannot be read, or one of more than 8 bits a channel whose range is not clear.
    """
    pixels = read_tensor(source, name, Reading(may_guess=False), upright=upright, size=size)
    return tv_tensors.Image(pixels.contiguous())


def read_id_map(path: str | Path) -> np.ndarray:
    """Decodes a PNG with one channel of ids, to (H, W): 8 bits (mode L, or P with the palette's indices), 16 or 32."""
    ids_HW = np.array(open_image(path, upright=False))
    if ids_HW.ndim != 2:
        raise ValueError(f"{path} has shape {ids_HW.shape}; a map of ids has one channel (mode L, P or I;16)")
    return ids_HW
