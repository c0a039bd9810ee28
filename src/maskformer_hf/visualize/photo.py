"""The photo that a picture is drawn on."""

import numpy as np
from PIL import Image

from ..inference.images import ImageInput, image_size, read_image


def rgb_photo(image: ImageInput) -> Image.Image:
    """A path, a PIL image, or 8-bit RGB as an array or tensor, as a PIL image in RGB."""
    image = read_image(image)
    if not isinstance(image, Image.Image):
        size = image_size(image)
        array = np.asarray(image)
        image = Image.fromarray(array if array.shape[:2] == size else np.moveaxis(array, 0, 2))
    return image.convert("RGB")
