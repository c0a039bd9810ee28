"""A prediction as a picture: the photo, tinted by class, outlined, with a legend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from PIL import Image

from .legend import add_legend, legend_entries
from .painting import paint_segments
from .palette import segment_colors
from .photo import rgb_photo

if TYPE_CHECKING:
    from ..inference.images import ImageInput
    from ..inference.prediction import Prediction


def draw_segmentation(
    image: ImageInput,
    prediction: Prediction,
    id2label: Mapping[int, str] | None = None,
    *,
    opacity: float = 0.55,
    legend: bool = True,
) -> Image.Image:
    """The photo under its segments, with a legend below a wide picture and beside a tall one.

    Stuff has the colour of its class; things of one class have variations of it. Pixels that belong to nothing stay as
    they are. Nothing is resized: the photo keeps its pixels, and the legend is added to it.

    Args:
        image: What was given to `predict`: a path, a PIL image, or 8-bit RGB as an array or tensor.
        id2label: Names for the legend, in place of those of the prediction.
        opacity: How strongly the colours cover the photo, 0 to 1.

    Raises:
        ValueError: The photo cannot be read, or differs in size from the prediction.
    """
    photo = rgb_photo(image)
    height, width = prediction.size
    if photo.size != (width, height):
        raise ValueError(
            f"The image is {photo.height} x {photo.width} pixels, the prediction {height} x {width}: draw it on the "
            "image that was given to `predict`, and leave `target_sizes` as it is."
        )
    segments, colors = prediction.segments, segment_colors(prediction.segments)
    picture = paint_segments(photo, segments, lambda segment: prediction.mask(segment).numpy(), colors, opacity)
    entries = legend_entries(segments, height * width, colors, id2label)
    return add_legend(picture, entries) if legend and entries else picture
