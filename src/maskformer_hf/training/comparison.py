"""Pictures of photo, annotation and prediction side by side, which show more than figures do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from ..data import SegmentationDataset
from ..inference.load import Model
from ..output_files import save_picture
from ..visualize import (
    PANEL_COLOR,
    TEXT_COLOR,
    LegendEntry,
    add_legend,
    draw_sample,
    draw_segmentation,
    label_color,
)
from .kinds import kind_of

# In pixels.
PANEL_WIDTH, PANEL_HEIGHT, GAP = 320, 400, 8
# The worst images are few, and looked at closely.
LARGE_PANEL = (480, 600)
FONT_SIZE = 14


def draw_comparisons(
    model: Model,
    processor: Any,
    dataset: SegmentationDataset,
    indices: Sequence[int],
    titles: Sequence[str] = (),
    panel_size: tuple[int, int] = (PANEL_WIDTH, PANEL_HEIGHT),
) -> Image.Image:
    """A row of photo, annotation and prediction for each of some images, and below them the colours of the classes.

    Args:
        dataset: Its task is what is predicted. For a model of clips it holds frames of videos; the model then sees the
            frames around each one too.
        titles: What is written above each row, if anything.
        panel_size: Largest width and height of each picture.
    """
    label_ids = {name: label for label, name in dataset.id2label.items()}
    kind = kind_of(model.config)
    rows, shown = [], set()
    for index in indices:
        sample = dataset[index]
        image = sample["image"].as_subclass(torch.Tensor)
        prediction = kind.predict_one(model, processor, dataset, index, image)
        for segment in prediction.segments:
            # The data may number the classes in another order, and colours go by numbers.
            segment["label_id"] = label_ids.get(segment["label"], segment["label_id"])
        photo = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        drawn = draw_sample(sample, dataset.id2label, legend=False), draw_segmentation(photo, prediction, legend=False)
        scale = min(panel_size[0] / photo.width, panel_size[1] / photo.height)
        size = max(1, round(scale * photo.width)), max(1, round(scale * photo.height))
        rows.append([panel.resize(size, Image.Resampling.BICUBIC) for panel in (photo, *drawn)])
        shown |= {dataset.id2label[label] for label in sample["labels"].tolist()}
        shown |= {segment["label"] for segment in prediction.segments}
    title_height = 2 * FONT_SIZE if titles else 0
    height = sum(title_height + row[0].height + GAP for row in rows)
    picture = Image.new("RGB", (3 * (panel_size[0] + GAP), height), PANEL_COLOR)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_SIZE)
    top = 0
    for number, row in enumerate(rows):
        if titles:
            draw.text((GAP, top + title_height / 2), titles[number], font=font, fill=TEXT_COLOR, anchor="lm")
        top += title_height
        for column, panel in enumerate(row):
            picture.paste(panel, (column * (panel_size[0] + GAP) + (panel_size[0] - panel.width) // 2, top))
        top += row[0].height + GAP
    entries = [LegendEntry([label_color(label)], name, "") for label, name in dataset.id2label.items() if name in shown]
    return add_legend(picture, entries, font_size=FONT_SIZE, below=True) if entries else picture


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
        scores: `per_image` of `evaluate`. Images whose score is NaN, as there is nothing to find, are left out.
        score_name: What the titles call the score.
    """
    worst = sorted((row for row in scores if row["score"] == row["score"]), key=lambda row: row["score"])[:number]
    if not worst:
        raise ValueError("no image has a score, so there is no worst one: is anything annotated?")
    titles = [f"{score_name} {row['score']:.3f}   {row['name'].rsplit('/', 1)[-1]}" for row in worst]
    picture = draw_comparisons(model, processor, dataset, [row["index"] for row in worst], titles, LARGE_PANEL)
    save_picture(picture, path)
    return [row["name"] for row in worst]
