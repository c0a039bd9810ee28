"""A prediction as a picture: the photo, tinted by class, outlined, with a legend."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .inference import ImageInput, Prediction, image_size, read_image

# Successive labels are a golden angle apart, so that any few neighbours differ and a label keeps its colour whatever
# the number of classes.
GOLDEN_ANGLE = 137.508
# Oklch lightness and chroma. Three tiers, so that two labels which meet on the hue circle still differ; the chroma is
# about the largest that sRGB can show. 21 golden angles are all but a whole number of turns: there the tier moves on.
TIERS = ((0.70, 0.17), (0.52, 0.15), (0.86, 0.13))

PANEL_COLOR = (250, 250, 250)
TEXT_COLOR = (32, 33, 36)
FAINT_TEXT_COLOR = (112, 117, 122)


class LegendEntry(NamedTuple):
    """One class of the legend: colours of its largest segments, its name, and what is said behind it."""

    colors: list[tuple[int, int, int]]
    name: str
    detail: str


def label_color(label_id: int, variation: int = 0) -> tuple[int, int, int]:
    """The colour of a class, the same in every picture and for any number of classes.

    Args:
        variation: 0 is the class's own colour; 1, 2, ... tell things of the same class apart by lightness and a few
            degrees of hue.
    """
    lightness, chroma = TIERS[(label_id + label_id // 21) % len(TIERS)]
    hue = 235 + label_id * GOLDEN_ANGLE
    # Alternately lighter and darker, two steps each way; then hue alone tells them apart.
    step = (variation + 1) // 2 * (1 if variation % 2 else -1)
    lightness = min(max(lightness + 0.07 * (step % 5 - 5 * (step % 5 > 2)), 0.42), 0.9)
    hue += 9 * (step % 7 - 7 * (step % 7 > 3))
    return _oklch_to_srgb(lightness, chroma, hue)


def draw_segmentation(
    image: ImageInput,
    prediction: Prediction,
    id2label: Mapping[int, str] | None = None,
    *,
    opacity: float = 0.55,
    legend: bool = True,
) -> Image.Image:
    """The photo under its segments, with a legend below a wide picture and beside a tall one.

    Stuff has the colour of its class, things of one class vary it. Pixels that belong to nothing stay as they are.
    Nothing is resized: the photo keeps its pixels, the legend is added to it.

    Args:
        image: What was given to `predict`: a path, a PIL image, or 8-bit RGB as an array or tensor.
        id2label: Names for the legend, if not those of the prediction.
        opacity: Of the colours, 0 to 1.

    Raises:
        ValueError: The photo and the prediction differ in size.
    """
    image = _to_pil(read_image(image))
    height, width = prediction.size
    if image.size != (width, height):
        raise ValueError(
            f"The image is {image.height} x {image.width} pixels, the prediction {height} x {width}: draw it on the "
            "image that was given to `predict`, and leave `target_sizes` as it is."
        )

    colors = _segment_colors(prediction)
    # Index of the segment that shows at each pixel, 0 where there is none; small ones last, so that an instance in
    # front of a larger one is not hidden under it.
    front = np.zeros((height, width), np.int32)
    palette = [(0, 0, 0)]
    for segment in sorted(prediction.segments, key=lambda segment: (-segment["area"], segment["id"])):
        front[prediction.mask(segment).numpy()] = len(palette)
        palette.append(colors[segment["id"]])

    pixels = np.asarray(image, dtype=np.float32).copy()
    covered = front > 0
    pixels[covered] += opacity * (np.asarray(palette, np.float32)[front[covered]] - pixels[covered])
    # A light line between dark ones shows on any ground.
    thickness = max(1, round(min(height, width) / 500))
    line = _dilate(_borders(front), thickness - 1)
    pixels[_dilate(line, thickness) & ~line] *= 0.6
    pixels[line] = 0.15 * pixels[line] + 0.85 * 255
    picture = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    entries = _legend_entries(prediction, id2label, colors)
    return _add_legend(picture, entries) if legend and entries else picture


def _to_pil(image: Image.Image | np.ndarray | torch.Tensor) -> Image.Image:
    """RGB, from any kind of image that `read_image` gives."""
    if not isinstance(image, Image.Image):
        height, width = image_size(image)
        array = np.asarray(image)
        image = Image.fromarray(array if array.shape[:2] == (height, width) else np.moveaxis(array, 0, 2))
    return image.convert("RGB")


def _segment_colors(prediction: Prediction) -> dict[int, tuple[int, int, int]]:
    """Colour of each segment id; the n-th largest segment of a class has the n-th variation of its colour."""
    colors, seen = {}, {}
    for segment in sorted(prediction.segments, key=lambda segment: (-segment["area"], segment["id"])):
        label_id = segment["label_id"]
        colors[segment["id"]] = label_color(label_id, seen.get(label_id, 0))
        seen[label_id] = seen.get(label_id, 0) + 1
    return colors


def _oklch_to_srgb(lightness: float, chroma: float, hue: float) -> tuple[int, int, int]:
    """Oklch (https://bottosson.github.io/posts/oklab/), hue in degrees, to 8-bit sRGB. Out of gamut loses chroma."""
    angle = np.deg2rad(hue)
    while True:
        a, b = chroma * np.cos(angle), chroma * np.sin(angle)
        long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        linear = np.array(
            [
                4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
                -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
                -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
            ]
        )
        if chroma < 0.02 or (linear.min() >= 0 and linear.max() <= 1):
            break
        chroma *= 0.95
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (int(value) for value in np.round(255 * encoded))
    return red, green, blue


def _borders(front: np.ndarray) -> np.ndarray:
    """The pixels (H, W) that differ from the one to their right or below: a line one pixel wide between segments."""
    line = np.zeros(front.shape, bool)
    line[:, :-1] = front[:, :-1] != front[:, 1:]
    line[:-1] |= front[:-1] != front[1:]
    return line


def _dilate(mask: np.ndarray, steps: int) -> np.ndarray:
    """A mask (H, W) grown by `steps` pixels."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def _legend_entries(
    prediction: Prediction, id2label: Mapping[int, str] | None, colors: Mapping[int, tuple[int, int, int]]
) -> list[LegendEntry]:
    """One entry a class, the largest first: a count where a class has several segments, else its share of the area."""
    groups: dict[int, list[dict]] = {}
    for segment in sorted(prediction.segments, key=lambda segment: (-segment["area"], segment["id"])):
        groups.setdefault(segment["label_id"], []).append(segment)
    num_pixels = prediction.size[0] * prediction.size[1]
    entries = []
    for label_id, segments in sorted(groups.items(), key=lambda item: -sum(segment["area"] for segment in item[1])):
        name = segments[0]["label"] if id2label is None else id2label[label_id]
        share = 100 * sum(segment["area"] for segment in segments) / num_pixels
        detail = f"x {len(segments)}" if len(segments) > 1 else f"{share:.0f} %" if share >= 1 else "<1 %"
        entries.append(LegendEntry([colors[segment["id"]] for segment in segments[:4]], str(name), detail))
    return entries


def _add_legend(picture: Image.Image, entries: list[LegendEntry]) -> Image.Image:
    """The picture with a panel below it, or on its right where it is taller than wide."""
    font_size = max(11, round(min(picture.size) / 30))
    font = ImageFont.load_default(font_size)
    gap, margin, line_height = round(0.45 * font_size), font_size, round(1.65 * font_size)
    swatch = round(1.05 * font_size)

    def entry_width(entry: LegendEntry) -> int:
        return round(swatch + gap + font.getlength(entry.name) + gap + font.getlength(entry.detail))

    beside = picture.height > picture.width
    column_width = max(entry_width(entry) for entry in entries) + 2 * gap
    if beside:
        rows = max(1, (picture.height - 2 * margin) // line_height)
        columns = -(-len(entries) // rows)
        panel = (2 * margin + columns * column_width, picture.height)
    else:
        columns = max(1, min(len(entries), (picture.width - 2 * margin) // column_width))
        rows = -(-len(entries) // columns)
        # The last row is as full as the others, and columns spread a little where there is room.
        columns = -(-len(entries) // rows)
        column_width = max(column_width, min((picture.width - 2 * margin) // columns, round(1.6 * column_width)))
        panel = (2 * margin + columns * column_width, 2 * margin + rows * line_height - (line_height - swatch))

    offset = (picture.width, 0) if beside else (0, picture.height)
    canvas = Image.new("RGB", (max(picture.width, offset[0] + panel[0]), offset[1] + panel[1]), PANEL_COLOR)
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for index, entry in enumerate(entries):
        column, row = divmod(index, rows)
        left = offset[0] + margin + column * column_width
        top = offset[1] + margin + row * line_height
        canvas.paste(_swatch(entry.colors, swatch), (left, top))
        middle = top + swatch / 2
        text_left = left + swatch + gap
        draw.text((text_left, middle), entry.name, font=font, fill=TEXT_COLOR, anchor="lm")
        detail_left = text_left + font.getlength(entry.name) + gap
        draw.text((detail_left, middle), entry.detail, font=font, fill=FAINT_TEXT_COLOR, anchor="lm")
    return canvas


def _swatch(colors: list[tuple[int, int, int]], size: int) -> Image.Image:
    """A square with round corners, in stripes where a class has several colours; drawn large, so that it is smooth."""
    scale = 8
    large = Image.new("RGB", (size * scale, size * scale), PANEL_COLOR)
    stripes, shape = large.copy(), Image.new("L", large.size)
    draw = ImageDraw.Draw(stripes)
    for index, color in enumerate(colors):
        draw.rectangle((large.width * index // len(colors), 0, large.width, large.height), fill=color)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, large.width - 1, large.height - 1), radius=2 * scale, fill=255)
    large.paste(stripes, mask=shape)
    return large.resize((size, size), Image.Resampling.LANCZOS)
