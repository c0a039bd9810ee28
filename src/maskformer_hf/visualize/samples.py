"""What a data set says of a photo, as a picture."""

from collections.abc import Mapping

import torch
from PIL import Image

from ..data.sample import Sample, binary_masks, void_mask
from .legend import add_legend, legend_entries
from .painting import hatch, paint_segments
from .palette import segment_colors


def draw_sample(
    sample: Sample, id2label: Mapping[int, str], *, opacity: float = 0.55, legend: bool = True
) -> Image.Image:
    """The photo of a sample under its labels, as `draw_segmentation` draws predictions. Void and crowds are hatched.

    Args:
        opacity: How strongly the colours cover the photo, 0 to 1.
    """
    masks_NHW = binary_masks(sample)
    areas, labels = masks_NHW.sum((1, 2)).tolist(), sample["labels"].tolist()
    segments = [
        {"id": number, "label_id": label, "label": id2label[label], "area": area}
        for number, (label, area) in enumerate(zip(labels, areas, strict=True))
        if area
    ]
    colors = segment_colors(segments)
    photo = sample_photo(sample)
    picture = paint_segments(photo, segments, lambda segment: masks_NHW[segment["id"]].numpy(), colors, opacity)
    picture = hatch(picture, void_mask(sample).numpy())
    entries = legend_entries(segments, photo.height * photo.width, colors)
    return add_legend(picture, entries) if legend and entries else picture


def sample_photo(sample: Sample) -> Image.Image:
    image_CHW = sample["image"].as_subclass(torch.Tensor)
    return Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy())
