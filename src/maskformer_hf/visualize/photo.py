"""The photo that a picture is drawn on."""

from PIL import Image

from ..inference.images import ImageInput, read_image


def rgb_photo(image: ImageInput) -> Image.Image:
    """What `predict` takes as an image, as a PIL image in RGB."""
    return Image.fromarray(read_image(image).permute(1, 2, 0).cpu().contiguous().numpy())
