"""Photo, annotation and prediction side by side: what a figure does not show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from ..data import Sample, SegmentationDataset
from ..inference import Model, Prediction, predict
from ..visualize import PANEL_COLOR, TEXT_COLOR, draw_sample, draw_segmentation

PANEL_WIDTH = 480
FONT_SIZE = 16


def draw_comparison(sample: Sample, prediction: Prediction, id2label: Mapping[int, str], title: str) -> Image.Image:
    """One row: photo, annotation and prediction, the photo `PANEL_WIDTH` pixels wide, under a title.

    id2label: The classes of the annotation.
    """
    photo = Image.fromarray(sample["image"].as_subclass(torch.Tensor).permute(1, 2, 0).contiguous().numpy(force=True))
    scale = PANEL_WIDTH / photo.width
    panels = [
        picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
        for picture in (photo, draw_sample(sample, id2label), draw_segmentation(photo, prediction))
    ]
    font = ImageFont.load_default(FONT_SIZE)
    gap, top = FONT_SIZE // 2, 2 * FONT_SIZE
    row_width = sum(panel.width for panel in panels) + 2 * gap
    row = Image.new("RGB", (row_width, top + max(panel.height for panel in panels)), PANEL_COLOR)
    draw = ImageDraw.Draw(row)
    left = 0
    for panel, text in zip(panels, (title, "annotation", "prediction"), strict=True):
        while text and font.getlength(text) > panel.width:
            text = "..." + text.removeprefix("...")[1:]
        draw.text((left, top / 2), text, font=font, fill=TEXT_COLOR, anchor="lm")
        row.paste(panel, (left, top))
        left += panel.width + gap
    return row


def stack_rows(rows: Sequence[Image.Image]) -> Image.Image:
    """Pictures under each other."""
    picture = Image.new(
        "RGB", (max(row.width for row in rows), sum(row.height + FONT_SIZE for row in rows)), PANEL_COLOR
    )
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height + FONT_SIZE
    return picture


def draw_worst(
    model: Model,
    processor: Any,
    dataset: SegmentationDataset,
    scores: Sequence[dict[str, Any]],
    number: int,
    score_name: str,
    path: str | Path,
) -> list[str]:
    """Draws the `number` images of the lowest score into one file, the worst first, and returns their names.

    Args:
        dataset: Its task is what is predicted.
        scores: `per_image` of `evaluate`; images without a score, as they have nothing to find, are left out.
    """
    worst = sorted((row for row in scores if row["score"] == row["score"]), key=lambda row: row["score"])[:number]
    if not worst:
        raise ValueError("no image has a score, so there is no worst one: is anything annotated?")
    rows = []
    for row in worst:
        sample = dataset[row["index"]]
        [prediction] = predict(model, processor, sample["image"].as_subclass(torch.Tensor), task=dataset.task)
        title = f"{score_name} {row['score']:.3f}  {row['name']}"
        rows.append(draw_comparison(sample, prediction, dataset.id2label, title))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stack_rows(rows).save(path)
    return [row["name"] for row in worst]
