"""The photo that a picture is drawn on."""

import numpy as np
from PIL import Image

from ..inference.images import ImageInput, read_image


def rgb_photo(image: ImageInput) -> Image.Image:
    """What `predict` takes as an image, as a PIL image in RGB."""
    read = read_image(image)
    array = read if isinstance(read, np.ndarray) else read.cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
