"""Colours: one for each class, varied for the segments of one class."""

from collections.abc import Iterable
from typing import Any

import numpy as np

Color = tuple[int, int, int]

# Successive labels are a golden angle apart in hue, so that any few neighbours differ, and a label keeps its colour
# whatever the number of classes.
GOLDEN_ANGLE = 137.508
# Oklch lightness and chroma. Three tiers, so that two labels with nearly the same hue still differ; the chroma is about
# the largest that sRGB can show. 21 golden angles are almost a whole number of turns, so there the tier moves on.
TIERS = ((0.70, 0.17), (0.52, 0.15), (0.86, 0.13))

PANEL_COLOR = (250, 250, 250)
TEXT_COLOR = (32, 33, 36)
FAINT_TEXT_COLOR = (112, 117, 122)


def label_color(label_id: int, variation: int = 0) -> Color:
    """The colour of a class, the same in every picture and for any number of classes.

    Args:
        variation: 0 is the class's own colour; 1, 2, ... differ from it in lightness and by a few degrees of hue, to
            tell things of the same class apart.
    """
    lightness, chroma = TIERS[(label_id + label_id // 21) % len(TIERS)]
    hue = 235 + label_id * GOLDEN_ANGLE
    # Alternately lighter and darker, up to two steps each way. Beyond that, only hue tells them apart.
    step = (variation + 1) // 2 * (1 if variation % 2 else -1)
    lightness = min(max(lightness + 0.07 * (step % 5 - 5 * (step % 5 > 2)), 0.42), 0.9)
    hue += 9 * (step % 7 - 7 * (step % 7 > 3))
    return _oklch_to_srgb(lightness, chroma, hue)


def segment_colors(segments: Iterable[dict[str, Any]]) -> dict[int, Color]:
    """The colour of each segment id; the n-th largest segment of a class has the n-th variation of its colour."""
    colors, seen = {}, {}
    for segment in largest_first(segments):
        label_id = segment["label_id"]
        colors[segment["id"]] = label_color(label_id, seen.get(label_id, 0))
        seen[label_id] = seen.get(label_id, 0) + 1
    return colors


def largest_first(segments: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(segments, key=lambda segment: (-segment["area"], segment["id"]))


def readable_on(color: Color) -> str:
    """Black or white, whichever stands out."""
    red, green, blue = color
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _oklch_to_srgb(lightness: float, chroma: float, hue: float) -> Color:
    """Oklch (https://bottosson.github.io/posts/oklab/), hue in degrees, to 8-bit sRGB.

    A colour that sRGB cannot show loses chroma until it can.
    """
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
