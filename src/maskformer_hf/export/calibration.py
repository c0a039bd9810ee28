"""The photos on which static int8 measures the ranges of activations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from ..inference.images import preprocess, read_image, reading_of
from ..models.image_files import IMAGE_SUFFIXES, files_in

NUM_PHOTOS = 64


def find_photos(folder: Path) -> list[Path]:
    """Up to 64 photos below a folder.

    Raises:
        ValueError: There is no such folder, or it holds no photos.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r} to calibrate on.")
    found = files_in(folder, IMAGE_SUFFIXES, deep=True)
    if not found:
        raise ValueError(f"The folder {str(folder)!r} holds no photos to calibrate on.")
    # Evenly spaced, because neighbours are often frames of one scene.
    step = max(1, len(found) // NUM_PHOTOS)
    return found[::step][:NUM_PHOTOS]


class CalibrationPhotos:
    """Gives onnxruntime's quantiser one photo after the other, through the image processor."""

    def __init__(self, paths: Sequence[Path], processor: Any, static_size: tuple[int, int] | None):
        self.processor = processor
        self.static_size = static_size
        self.inputs = map(self._read, paths)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.inputs, None)

    def _read(self, path: Path) -> dict[str, Any]:
        image = read_image(path, str(path), reading_of(self.processor))
        pixel_values = preprocess(self.processor, image)["pixel_values"]
        if self.static_size:
            pixel_values = F.interpolate(pixel_values, size=self.static_size, mode="bilinear", align_corners=False)
        return {"pixel_values": pixel_values.numpy()}
