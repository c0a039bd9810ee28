"""The legend of a picture: colours, names, and how much there is of each class."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .palette import FAINT_TEXT_COLOR, PANEL_COLOR, TEXT_COLOR, Color, largest_first

# A legend shows the colours of this many segments of a class.
NUM_COLORS = 4


class LegendEntry(NamedTuple):
    """One class of the legend: the colours of its largest segments, its name, and a detail in fainter print."""

    colors: Sequence[Color]
    name: str
    detail: str


def legend_entries(
    segments: Sequence[dict[str, Any]],
    num_pixels: int,
    colors: Mapping[int, Color],
    id2label: Mapping[int, str] | None = None,
) -> list[LegendEntry]:
    """One entry per class, the largest first.

    Its detail is a count where a class has several segments, otherwise its share of the area.

    Args:
        segments: Dictionaries with `id`, `label_id`, `label` and `area`.
        num_pixels: The area of the photo.
        colors: By segment id.
        id2label: Names of the classes, in place of the segments' own.
    """
    classes: dict[int, list[dict[str, Any]]] = {}
    for segment in largest_first(segments):
        classes.setdefault(segment["label_id"], []).append(segment)
    areas = {label_id: sum(segment["area"] for segment in members) for label_id, members in classes.items()}
    entries = []
    for label_id, members in sorted(classes.items(), key=lambda item: -areas[item[0]]):
        name = members[0]["label"] if id2label is None else id2label[label_id]
        share = 100 * areas[label_id] / num_pixels
        detail = f"x {len(members)}" if len(members) > 1 else f"{share:.0f} %" if share >= 1 else "<1 %"
        entries.append(LegendEntry([colors[segment["id"]] for segment in members[:NUM_COLORS]], str(name), detail))
    return entries


def add_legend(
    picture: Image.Image, entries: Sequence[LegendEntry], font_size: int | None = None, below: bool = False
) -> Image.Image:
    """The picture with a panel: below it, or on its right if it is taller than wide.

    Args:
        below: Put the panel below, whatever the shape of the picture.
    """
    measures = _Measures(font_size or max(11, round(min(picture.size) / 30)))
    beside = picture.height > picture.width and not below
    rows, column_width, panel = measures.arrange(entries, picture.size, beside)
    corner = (picture.width, 0) if beside else (0, picture.height)
    canvas = Image.new("RGB", (max(picture.width, corner[0] + panel[0]), corner[1] + panel[1]), PANEL_COLOR)
    canvas.paste(picture)
    for index, entry in enumerate(entries):
        column, row = divmod(index, rows)
        left = corner[0] + measures.margin + column * column_width
        measures.draw(canvas, entry, left, corner[1] + measures.margin + row * measures.line_height)
    return canvas


class _Measures:
    """Lengths in pixels, all of them from the size of the font."""

    def __init__(self, font_size: int):
        self.font = ImageFont.load_default(font_size)
        self.gap, self.margin = round(0.45 * font_size), font_size
        self.swatch, self.line_height = round(1.05 * font_size), round(1.65 * font_size)

    def width(self, entry: LegendEntry) -> int:
        text = self.font.getlength(entry.name) + self.gap + self.font.getlength(entry.detail)
        return round(self.swatch + self.gap + text)

    def arrange(
        self, entries: Sequence[LegendEntry], picture_size: tuple[int, int], beside: bool
    ) -> tuple[int, int, tuple[int, int]]:
        """Rows, the width of a column, and the panel's (width, height)."""
        width, height = picture_size
        column_width = max(self.width(entry) for entry in entries) + 2 * self.gap
        if beside:
            rows = max(1, (height - 2 * self.margin) // self.line_height)
            columns = -(-len(entries) // rows)
            return rows, column_width, (2 * self.margin + columns * column_width, height)
        columns = max(1, min(len(entries), (width - 2 * self.margin) // column_width))
        rows = -(-len(entries) // columns)
        # Fewer columns may do for as many rows, and they spread a little where there is room.
        columns = -(-len(entries) // rows)
        column_width = max(column_width, min((width - 2 * self.margin) // columns, round(1.6 * column_width)))
        panel_height = 2 * self.margin + rows * self.line_height - (self.line_height - self.swatch)
        return rows, column_width, (2 * self.margin + columns * column_width, panel_height)

    def draw(self, canvas: Image.Image, entry: LegendEntry, left: int, top: int) -> None:
        draw = ImageDraw.Draw(canvas)
        canvas.paste(_swatch(entry.colors, self.swatch), (left, top))
        middle, left = top + self.swatch / 2, left + self.swatch + self.gap
        draw.text((left, middle), entry.name, font=self.font, fill=TEXT_COLOR, anchor="lm")
        place = (left + self.font.getlength(entry.name) + self.gap, middle)
        draw.text(place, entry.detail, font=self.font, fill=FAINT_TEXT_COLOR, anchor="lm")


def _swatch(colors: Sequence[Color], size: int) -> Image.Image:
    """A square with round corners, in stripes if there are several colours. It is drawn large, so that it is smooth."""
    scale = 8
    large = Image.new("RGB", (size * scale, size * scale), PANEL_COLOR)
    stripes, shape = large.copy(), Image.new("L", large.size)
    draw = ImageDraw.Draw(stripes)
    for index, color in enumerate(colors):
        draw.rectangle((large.width * index // len(colors), 0, large.width, large.height), fill=color)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, large.width - 1, large.height - 1), radius=2 * scale, fill=255)
    large.paste(stripes, mask=shape)
    return large.resize((size, size), Image.Resampling.LANCZOS)
