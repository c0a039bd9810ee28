"""Decoding images and maps of ids, with errors that name the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision import tv_tensors


@contextmanager
def names_file(path: str | Path) -> Iterator[None]:
    """Turns what Pillow raises for a missing, broken or huge file into a ValueError with the file's name."""
    try:
        yield
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> tv_tensors.Image:
    """Decodes an image to (3, H, W) uint8 RGB.

    The pixels are taken as they are stored, whatever orientation EXIF tells, as in COCO's annotations. Only if `size`
    does not fit them, but fits the image turned as EXIF tells, the image is turned, as it was annotated so.

    Args:
        size: (height, width) of the annotations; None takes the image as it is stored.
    """
    with names_file(path), Image.open(path) as photo:
        stored = (photo.height, photo.width)
        if photo.mode.startswith(("I", "F")):
            raise ValueError(
                f"{path} has pixels of mode {photo.mode}, whose range nobody states; save it with 8 bits a channel"
            )
        turned = photo
        if size is not None and size != stored:
            turned = ImageOps.exif_transpose(photo)
            if (turned.height, turned.width) != size:
                raise ValueError(
                    f"{path} is {stored} (height, width), its annotations are for {size}; annotate the photo as it "
                    "is, or resize both together"
                )
        image_HWC = np.array(turned.convert("RGB"))
    return tv_tensors.Image(torch.from_numpy(image_HWC).permute(2, 0, 1).contiguous())


def orientation_of(path: str | Path) -> tuple[int, tuple[int, int]]:
    """How EXIF says that a photo is to be turned, 1 if it does not, and (height, width) of the pixels as stored."""
    try:
        with Image.open(path) as photo:
            return int(photo.getexif().get(0x0112, 1)), (photo.height, photo.width)
    except Exception:  # whatever is odd about EXIF is no reason to stop
        return 1, (0, 0)


def read_id_map(path: str | Path) -> np.ndarray:
    """Decodes a PNG with one channel of ids, to (H, W): 8 bits (mode L, or P with the palette's indices), 16 or 32."""
    with names_file(path), Image.open(path) as png:
        ids_HW = np.array(png)
    if ids_HW.ndim != 2:
        raise ValueError(f"{path} has shape {ids_HW.shape}; a map of ids has one channel (mode L, P or I;16)")
    return ids_HW
