"""Pictures: a photo under its segments, a frame under its tracks, and what a data set says."""

from .contact_sheet import contact_sheet
from .legend import LegendEntry, add_legend
from .palette import PANEL_COLOR, TEXT_COLOR, label_color
from .predictions import draw_segmentation
from .samples import draw_sample
from .tracks import draw_tracks

__all__ = [
    "PANEL_COLOR",
    "TEXT_COLOR",
    "LegendEntry",
    "add_legend",
    "contact_sheet",
    "draw_sample",
    "draw_segmentation",
    "draw_tracks",
    "label_color",
]
