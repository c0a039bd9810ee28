"""Many samples of a data set on one sheet."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torchvision import tv_tensors

from ..data.report import Pick
from ..data.sample import VOID, Sample, SegmentationDataset, binary_masks, void_mask
from .legend import LegendEntry, add_legend
from .painting import HATCH_COLORS
from .palette import FAINT_TEXT_COLOR, PANEL_COLOR, TEXT_COLOR, label_color
from .samples import draw_sample

# In pixels: the cell of a picture, its caption, and the gap between cells.
CELL_HEIGHT, CELL_WIDTH, CAPTION_HEIGHT, CELL_GAP = 270, 360, 40, 12
NUM_COLUMNS = 4


def contact_sheet(dataset: SegmentationDataset, picks: Sequence[Pick]) -> Image.Image:
    """Samples of a data set with their labels drawn, side by side, and a legend of the classes they show.

    Args:
        picks: Which samples, as in `data.report.DataReport`. A pick with the number of a segment shows what surrounds
            that segment.
    """
    columns = min(NUM_COLUMNS, max(1, len(picks)))
    rows = max(1, -(-len(picks) // columns))
    height, width = CELL_HEIGHT + CAPTION_HEIGHT + CELL_GAP, CELL_WIDTH + CELL_GAP
    sheet = Image.new("RGB", (columns * width + CELL_GAP, rows * height + CELL_GAP), PANEL_COLOR)
    shown: set[int] = set()
    has_void = False
    for place, pick in enumerate(picks):
        sample = _at_cell_size(dataset[pick.index], pick.number)
        row, column = divmod(place, columns)
        _fill_cell(sheet, (CELL_GAP + column * width, CELL_GAP + row * height), sample, pick, dataset.id2label)
        shown |= set(sample["labels"].tolist())
        has_void |= bool(void_mask(sample).any())
    entries = [LegendEntry([label_color(label)], dataset.id2label[label], "") for label in sorted(shown)]
    if has_void:
        entries.append(LegendEntry([*HATCH_COLORS, *HATCH_COLORS], "void or crowd", ""))
    return add_legend(sheet, entries, font_size=16, below=True) if entries else sheet


def _fill_cell(
    sheet: Image.Image, corner: tuple[int, int], sample: Sample, pick: Pick, id2label: Mapping[int, str]
) -> None:
    left, top = corner
    picture = draw_sample(sample, id2label, legend=False)
    if len(id2label) > 1:
        _write_names(picture, sample, id2label)
    sheet.paste(picture, (left + (CELL_WIDTH - picture.width) // 2, top + (CELL_HEIGHT - picture.height) // 2))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    name = f"{pick.index}: {sample['name'].rsplit('/', 1)[-1]}"
    for line, (text, color) in enumerate(((name, TEXT_COLOR), (pick.reason, FAINT_TEXT_COLOR))):
        place = (left, top + CELL_HEIGHT + 3 + 17 * line)
        draw.text(place, _shortened(text, font), font=font, fill=color)


def _at_cell_size(sample: Sample, number: int | None) -> Sample:
    """A sample, or what surrounds one of its segments, resized to fit into a cell.

    Segments that have no pixel left are dropped.
    """
    image_CHW = sample["image"].as_subclass(torch.Tensor)
    planes_PHW = sample["planes"].as_subclass(torch.Tensor)
    if number is not None:
        rows, columns = _window_around(planes_PHW, number)
        image_CHW, planes_PHW = image_CHW[:, rows, columns], planes_PHW[:, rows, columns]
    height, width = image_CHW.shape[1:]
    scale = min(CELL_HEIGHT / height, CELL_WIDTH / width)
    size = max(1, round(scale * height)), max(1, round(scale * width))
    photo = Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    planes_PHW = F.interpolate(planes_PHW[None].double(), size=size, mode="nearest")[0].int()
    present = torch.bincount(planes_PHW.flatten().clamp(min=0), minlength=len(sample["labels"]) + 1)[1:] > 0
    # New numbers of the segments: 0 stays nothing. VOID is -1, so it finds the last entry and stays void.
    nothing, void = planes_PHW.new_zeros(1), planes_PHW.new_full((1,), VOID)
    renumbered = torch.cat((nothing, present.cumsum(0).int(), void))
    return {
        "image": tv_tensors.Image(torch.from_numpy(np.array(photo)).permute(2, 0, 1)),
        "planes": tv_tensors.Mask(renumbered[planes_PHW.long()]),
        "labels": sample["labels"][present],
        "is_crowd": sample["is_crowd"][present],
        "name": sample["name"],
    }


def _window_around(planes_PHW: torch.Tensor, number: int) -> tuple[slice, slice]:
    """Rows and columns around a segment, within the image."""
    segment_HW = (planes_PHW == number).any(0)
    places = segment_HW.nonzero().unbind(1)
    # Six times as long as the segment, and long enough to tell where it is.
    wanted = max(64, *(6 * int(axis.max() - axis.min() + 1) for axis in places))
    window = []
    for axis, length in zip(places, segment_HW.shape, strict=True):
        side = min(length, wanted)
        start = min(max(0, (int(axis.min() + axis.max()) - side) // 2), length - side)
        window.append(slice(start, start + side))
    return window[0], window[1]


def _write_names(picture: Image.Image, sample: Sample, id2label: Mapping[int, str]) -> None:
    """Writes the name of each class onto its largest segment, where there is room."""
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    masks_NHW = binary_masks(sample).numpy()
    areas = masks_NHW.sum((1, 2))
    named: set[int] = set()
    free = np.ones(masks_NHW.shape[1:], bool)
    for index in areas.argsort()[::-1].tolist():
        label = int(sample["labels"][index])
        name = id2label[label]
        half = round(font.getlength(name) / 2) + 3
        if label in named or areas[index] < 24 * half:
            continue
        y, x = _innermost(masks_NHW[index])
        room = (slice(max(0, y - 8), y + 8), slice(max(0, x - half), x + half))
        if x - half < 0 or x + half > picture.width or not free[room].all():
            continue
        named.add(label)
        free[room] = False
        draw.text((x, y), name, font=font, fill="white", anchor="mm", stroke_width=2, stroke_fill="black")


def _innermost(mask_HW: np.ndarray) -> tuple[int, int]:
    """The place in a mask that is farthest from its border and the image's, at half the resolution."""
    depth = ndimage.distance_transform_cdt(np.pad(mask_HW[::2, ::2], 1), metric="taxicab")[1:-1, 1:-1]
    rows, columns = (depth == depth.max()).nonzero()
    middle = len(rows) // 2
    return 2 * int(rows[middle]), 2 * int(columns[middle])


def _shortened(text: str, font: Any) -> str:
    """The text, or as much of its beginning as fits the width of a cell."""
    if font.getlength(text) <= CELL_WIDTH:
        return text
    while text and font.getlength(text + "...") > CELL_WIDTH:
        text = text[:-1]
    return text + "..."
