"""Frames of a video under their tracks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .painting import paint_masks
from .palette import Color, label_color, readable_on
from .photo import rgb_photo

if TYPE_CHECKING:
    from ..inference.images import ImageInput
    from ..inference.video_prediction import VideoPrediction


def draw_tracks(
    frame: ImageInput, prediction: VideoPrediction, number: int, *, opacity: float = 0.55, names: bool = True
) -> Image.Image:
    """A frame of a video, in its own size, under the masks of its tracks. A track has one colour in all frames.

    Args:
        frame: What `predict_video` saw as frame `number`, counted from 0.
        opacity: How strongly the colours cover the frame, 0 to 1.
        names: Write label and id of each track above its mask.

    Raises:
        ValueError: The frame cannot be read, or differs in size from the prediction.
    """
    photo = rgb_photo(frame)
    height, width = prediction.size
    if photo.size != (width, height):
        raise ValueError(
            f"Frame {number} is {photo.height} x {photo.width} pixels, the prediction {height} x {width}: draw it on "
            "the video that was given to `predict_video`."
        )
    colors, seen = [], Counter()
    for track in prediction.tracks:
        colors.append(label_color(track["label_id"], seen[track["label_id"]]))
        seen[track["label_id"]] += 1
    masks = {
        index: prediction.mask(track, number).numpy()
        for index, track in enumerate(prediction.tracks)
        if track["segmentations"][number] is not None
    }
    # Small ones in front, so that none hides behind a larger one.
    order = sorted(masks, key=lambda index: (-int(masks[index].sum()), index))
    picture = paint_masks(photo, (masks[index] for index in order), [colors[index] for index in order], opacity)
    if names:
        font = ImageFont.load_default(max(11, round(min(picture.size) / 24)))
        for index in order:
            track = prediction.tracks[index]
            _write_above(picture, masks[index], f"{track['label']} {track['id']}", colors[index], font)
    return picture


def _write_above(picture: Image.Image, mask: np.ndarray, text: str, color: Color, font: Any) -> None:
    """Writes a text in a box of a colour on top of the upper edge of a mask (H, W), within the picture."""
    rows, columns = mask.nonzero()
    left, top, right, bottom = font.getbbox(text)
    width, height = round(right - left) + 6, round(bottom - top) + 6
    x = min(int(columns.min()), max(0, picture.width - width))
    y = max(0, int(rows.min()) - height)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    draw.text((x + 3 - left, y + 3 - top), text, font=font, fill=readable_on(color))
