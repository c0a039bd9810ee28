"""A prediction, or what a data set says, as a picture: the photo, tinted by class, outlined, with a legend."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torchvision import tv_tensors

from .data.report import Pick
from .data.sample import Sample, SegmentationDataset, binary_masks, void_mask
from .inference.images import ImageInput, image_size, read_image
from .inference.prediction import Prediction
from .inference.video import VideoPrediction

# Successive labels are a golden angle apart, so that any few neighbours differ and a label keeps its colour whatever
# the number of classes.
GOLDEN_ANGLE = 137.508
# Oklch lightness and chroma. Three tiers, so that two labels which meet on the hue circle still differ; the chroma is
# about the largest that sRGB can show. 21 golden angles are all but a whole number of turns: there the tier moves on.
TIERS = ((0.70, 0.17), (0.52, 0.15), (0.86, 0.13))

PANEL_COLOR = (250, 250, 250)
TEXT_COLOR = (32, 33, 36)
FAINT_TEXT_COLOR = (112, 117, 122)
# Stripes over what is void.
HATCH_COLORS = ((70, 70, 70), (150, 150, 150))

# Of the contact sheet, in pixels: a picture's cell, its caption, what is between cells.
CELL_HEIGHT, CELL_WIDTH, CAPTION_HEIGHT, CELL_GAP = 270, 360, 40, 12
SHEET_COLUMNS = 4


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

    picture = _paint(image, front, palette, opacity)
    entries = _legend_entries(prediction, id2label, colors)
    return add_legend(picture, entries) if legend and entries else picture


def draw_tracks(
    frame: ImageInput, prediction: VideoPrediction, number: int, *, opacity: float = 0.55, names: bool = True
) -> Image.Image:
    """A frame of a video under the masks of its tracks, of its own size; a track has one colour in all frames.

    Args:
        frame: What `predict_video` saw as frame `number`, from 0.
        names: Write label and id of each track above its mask.

    Raises:
        ValueError: The frame and the prediction differ in size.
    """
    image = _to_pil(read_image(frame))
    height, width = prediction.size
    if image.size != (width, height):
        raise ValueError(
            f"Frame {number} is {image.height} x {image.width} pixels, the prediction {height} x {width}: draw it on "
            "the video that was given to `predict_video`."
        )
    palette, seen = [(0, 0, 0)], Counter()
    for track in prediction.tracks:
        palette.append(label_color(track["label_id"], seen[track["label_id"]]))
        seen[track["label_id"]] += 1
    masks = {
        index: prediction.mask(track, number).numpy()
        for index, track in enumerate(prediction.tracks, start=1)
        if track["segmentations"][number] is not None
    }
    front = np.zeros((height, width), np.int32)
    # Small ones last, so that one in front of a larger one is not hidden under it.
    order = sorted(masks, key=lambda index: (-int(masks[index].sum()), index))
    for index in order:
        front[masks[index]] = index
    picture = _paint(image, front, palette, opacity)
    if names:
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(11, round(min(picture.size) / 24)))
        for index in order:
            rows, columns = masks[index].nonzero()
            text = f"{prediction.tracks[index - 1]['label']} {prediction.tracks[index - 1]['id']}"
            left, top, right, bottom = font.getbbox(text)
            box_width, box_height = round(right - left) + 6, round(bottom - top) + 6
            x = min(int(columns.min()), max(0, width - box_width))
            y = max(0, int(rows.min()) - box_height)
            draw.rectangle((x, y, x + box_width - 1, y + box_height - 1), fill=palette[index])
            draw.text((x + 3 - left, y + 3 - top), text, font=font, fill=_readable_on(palette[index]))
    return picture


def draw_sample(
    sample: Sample, id2label: Mapping[int, str], *, opacity: float = 0.55, legend: bool = True
) -> Image.Image:
    """A photo under what its data set says of it, as `draw_segmentation` draws predictions; void and crowds hatched."""
    masks_NHW = binary_masks(sample)
    segments = [
        {"id": number, "label_id": label, "label": id2label[label], "score": 1.0, "area": area}
        for number, (label, area) in enumerate(
            zip(sample["labels"].tolist(), masks_NHW.sum((1, 2)).tolist(), strict=True), start=1
        )
        if area
    ]
    photo = sample["image"].as_subclass(torch.Tensor)
    prediction = Prediction("instance", (photo.shape[1], photo.shape[2]), segments, masks=masks_NHW)
    picture = draw_segmentation(photo, prediction, opacity=opacity, legend=False)
    picture = _hatch(picture, void_mask(sample).numpy())
    entries = _legend_entries(prediction, id2label, _segment_colors(prediction))
    return add_legend(picture, entries) if legend and entries else picture


def contact_sheet(dataset: SegmentationDataset, picks: Sequence[Pick]) -> Image.Image:
    """Pictures of a data set with its labels drawn, side by side, and a legend of the classes they show.

    Args:
        picks: as of `data.report.DataReport`. Of a pick with a segment's number what surrounds that segment is shown.
    """
    columns = min(SHEET_COLUMNS, max(1, len(picks)))
    rows = max(1, -(-len(picks) // columns))
    height, width = CELL_HEIGHT + CAPTION_HEIGHT + CELL_GAP, CELL_WIDTH + CELL_GAP
    sheet = Image.new("RGB", (columns * width + CELL_GAP, rows * height + CELL_GAP), PANEL_COLOR)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    shown: set[int] = set()
    has_void = False
    for place, pick in enumerate(picks):
        sample = _at_cell_size(dataset[pick.index], pick.number)
        picture = draw_sample(sample, dataset.id2label, legend=False)
        if len(dataset.id2label) > 1:
            _write_names(picture, sample, dataset.id2label)
        shown |= set(sample["labels"].tolist())
        has_void |= bool(void_mask(sample).any())
        left, top = CELL_GAP + place % columns * width, CELL_GAP + place // columns * height
        sheet.paste(picture, (left + (CELL_WIDTH - picture.width) // 2, top + (CELL_HEIGHT - picture.height) // 2))
        name = f"{pick.index}: {sample['name'].rsplit('/', 1)[-1]}"
        for line, (text, color) in enumerate(((name, TEXT_COLOR), (pick.reason, FAINT_TEXT_COLOR))):
            text = _shortened(text, font)
            draw.text((left, top + CELL_HEIGHT + 3 + 17 * line), text, font=font, fill=color)
    entries = [LegendEntry([label_color(label)], dataset.id2label[label], "") for label in sorted(shown)]
    if has_void:
        entries.append(LegendEntry([*HATCH_COLORS] * 2, "void or crowd", ""))
    return add_legend(sheet, entries, font_size=16, below=True) if entries else sheet


def _at_cell_size(sample: Sample, number: int | None) -> Sample:
    """A sample, or what surrounds one of its segments, resized to fit into a cell of the contact sheet.

    Segments without a pixel in it get no label.
    """
    image = sample["image"].as_subclass(torch.Tensor)
    planes_PHW = sample["planes"].as_subclass(torch.Tensor)
    if number is not None:
        rows, columns = (planes_PHW == number).any(0).nonzero().unbind(1)
        window = []
        # Six times as long as the segment, and long enough to tell where one is.
        wanted = max(64, *(6 * int(places.max() - places.min() + 1) for places in (rows, columns)))
        for places, length in ((rows, image.shape[1]), (columns, image.shape[2])):
            side = min(length, wanted)
            start = min(max(0, (int(places.min() + places.max()) - side) // 2), length - side)
            window.append(slice(start, start + side))
        image, planes_PHW = image[:, window[0], window[1]], planes_PHW[:, window[0], window[1]]
    scale = min(CELL_HEIGHT / image.shape[1], CELL_WIDTH / image.shape[2])
    size = max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[2]))
    photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    planes_PHW = F.interpolate(planes_PHW[None].double(), size=size, mode="nearest")[0].int()
    present = torch.bincount(planes_PHW.flatten().clamp(min=0), minlength=len(sample["labels"]) + 1)[1:] > 0
    renumbered = torch.cat((torch.zeros(1, dtype=torch.int32), present.cumsum(0).int(), planes_PHW.new_full((1,), -1)))
    return {
        "image": tv_tensors.Image(torch.from_numpy(np.array(photo)).permute(2, 0, 1)),
        "planes": tv_tensors.Mask(renumbered[planes_PHW.long()]),
        "labels": sample["labels"][present],
        "is_crowd": sample["is_crowd"][present],
        "name": sample["name"],
    }


def _write_names(picture: Image.Image, sample: Sample, id2label: Mapping[int, str]) -> None:
    """Writes the name of each class onto its largest segment, where there is room."""
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    masks_NHW = binary_masks(sample).numpy()
    areas = masks_NHW.sum((1, 2))
    named: set[int] = set()
    free = np.ones(masks_NHW.shape[1:], bool)
    for index in areas.argsort()[::-1].tolist():
        label = int(sample["labels"][index])
        half = round(font.getlength(id2label[label]) / 2) + 3
        if label in named or areas[index] < 24 * half:
            continue
        # As far from its border as steps of shrinking tell, at half the resolution.
        core = masks_NHW[index, ::2, ::2]
        while (smaller := ~_dilate(~np.pad(core, 1), 1)[1:-1, 1:-1]).any():
            core = smaller
        y, x = (2 * int(places[len(places) // 2]) for places in core.nonzero())
        room = (slice(max(0, y - 8), y + 8), slice(max(0, x - half), x + half))
        if x - half < 0 or x + half > picture.width or not free[room].all():
            continue
        named.add(label)
        free[room] = False
        name = id2label[label]
        draw.text((x, y), name, font=font, fill="white", anchor="mm", stroke_width=2, stroke_fill="black")


def _hatch(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """Dark stripes over the pixels of a mask (H, W)."""
    if not mask.any():
        return picture
    height, width = mask.shape
    stripe = max(3, round(min(height, width) / 80))
    y, x = np.indices(mask.shape)
    pixels = np.array(picture)
    striped = mask & ((x + y) // stripe % 2 == 0)
    pixels[striped] = 0.4 * pixels[striped] + 0.6 * np.array(HATCH_COLORS[0])
    return Image.fromarray(pixels)


def _shortened(text: str, font: Any) -> str:
    """Text that fits the width of a cell."""
    if font.getlength(text) <= CELL_WIDTH:
        return text
    while text and font.getlength(text + "...") > CELL_WIDTH:
        text = text[:-1]
    return text + "..."


def _to_pil(image: Image.Image | np.ndarray | torch.Tensor) -> Image.Image:
    """RGB, from any kind of image that `read_image` gives."""
    if not isinstance(image, Image.Image):
        height, width = image_size(image)
        array = np.asarray(image)
        image = Image.fromarray(array if array.shape[:2] == (height, width) else np.moveaxis(array, 0, 2))
    return image.convert("RGB")


def _paint(
    image: Image.Image, front: np.ndarray, palette: Sequence[tuple[int, int, int]], opacity: float
) -> Image.Image:
    """The photo under the segment that shows at each pixel, (H, W) indices into the palette, outlined; 0 is none."""
    pixels = np.asarray(image, dtype=np.float32).copy()
    covered = front > 0
    pixels[covered] += opacity * (np.asarray(palette, np.float32)[front[covered]] - pixels[covered])
    # A light line between dark ones shows on any ground.
    thickness = max(1, round(min(front.shape) / 500))
    line = _dilate(_borders(front), thickness - 1)
    pixels[_dilate(line, thickness) & ~line] *= 0.6
    pixels[line] = 0.15 * pixels[line] + 0.85 * 255
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _readable_on(color: tuple[int, int, int]) -> str:
    """Black or white, whichever stands out."""
    red, green, blue = color
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


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


def add_legend(
    picture: Image.Image, entries: list[LegendEntry], font_size: int | None = None, below: bool = False
) -> Image.Image:
    """The picture with a panel below it, or unless `below` on its right where it is taller than wide."""
    font_size = font_size or max(11, round(min(picture.size) / 30))
    font = ImageFont.load_default(font_size)
    gap, margin, line_height = round(0.45 * font_size), font_size, round(1.65 * font_size)
    swatch = round(1.05 * font_size)

    def entry_width(entry: LegendEntry) -> int:
        return round(swatch + gap + font.getlength(entry.name) + gap + font.getlength(entry.detail))

    beside = picture.height > picture.width and not below
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
