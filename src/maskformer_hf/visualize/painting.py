"""Masks on photos: tinted, outlined, hatched."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from .palette import Color, largest_first

# Stripes over pixels that are void.
HATCH_COLORS = ((70, 70, 70), (150, 150, 150))


def paint_segments(
    photo: Image.Image,
    segments: Iterable[dict[str, Any]],
    mask_of: Callable[[dict[str, Any]], np.ndarray],
    colors: Mapping[int, Color],
    opacity: float,
) -> Image.Image:
    """The photo under its segments, the small ones in front, so that none hides behind a larger one.

    Args:
        segments: Dictionaries with `id` and `area`.
        mask_of: The mask of a segment, (H, W) bool.
        colors: By segment id.
    """
    ordered = largest_first(segments)
    return paint_masks(photo, map(mask_of, ordered), [colors[segment["id"]] for segment in ordered], opacity)


def paint_masks(
    photo: Image.Image, masks: Iterable[np.ndarray], colors: Sequence[Color], opacity: float
) -> Image.Image:
    """The photo under masks, (H, W) bool, each in its colour. Later ones are in front of earlier ones."""
    # Which mask shows at each pixel, counted from 1; 0 where there is none.
    front = np.zeros((photo.height, photo.width), np.int32)
    for number, mask in enumerate(masks, start=1):
        front[mask] = number
    pixels = np.asarray(photo, dtype=np.float32).copy()
    covered = front > 0
    tints = np.array([(0, 0, 0), *colors], np.float32)[front[covered]]
    pixels[covered] += opacity * (tints - pixels[covered])
    # A light line between dark ones shows on any ground.
    thickness = max(1, round(min(front.shape) / 500))
    line = _grow(_borders(front), thickness - 1)
    pixels[_grow(line, thickness) & ~line] *= 0.6
    pixels[line] = 0.15 * pixels[line] + 0.85 * 255
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _borders(front: np.ndarray) -> np.ndarray:
    """The pixels (H, W) that differ from the one to their right or below: a line one pixel wide between segments."""
    line = np.zeros(front.shape, bool)
    line[:, :-1] = front[:, :-1] != front[:, 1:]
    line[:-1] |= front[:-1] != front[1:]
    return line


def _grow(mask: np.ndarray, steps: int) -> np.ndarray:
    """A mask (H, W) grown by `steps` pixels to each side."""
    # With no iterations, scipy would go on until nothing changes.
    return ndimage.binary_dilation(mask, iterations=steps) if steps else mask


def hatch(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture with dark stripes over the pixels of a mask (H, W)."""
    if not mask.any():
        return picture
    stripe = max(3, round(min(mask.shape) / 80))
    y, x = np.indices(mask.shape)
    pixels = np.array(picture)
    striped = mask & ((x + y) // stripe % 2 == 0)
    pixels[striped] = 0.4 * pixels[striped] + 0.6 * np.array(HATCH_COLORS[0])
    return Image.fromarray(pixels)
