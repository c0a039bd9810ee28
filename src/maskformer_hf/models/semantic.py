"""Semantic results: the class of every pixel, of query models and of per-pixel models.

Shapes: Q queries, K classes, h w mask cells, H W target pixels, N blocks, C classes that are seen, P sampled pixels.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .block_grid import make_grid, temporary_numel
from .image_geometry import ImageGeometry, plain_logits, resize_matrix
from .mask_blocks import MARGIN, BlockCanvas, block_strips, full_precision, split_blocks
from .probabilities import class_probabilities

# What is brought to the target size: mask logits, or class scores that were computed at the size of the input.
RESIZES = ("logits", "scores")

# Pixels of a class from which its score is computed.
SCORED_PIXELS = 256


@torch.no_grad()
def semantic_segmentation(
    class_logits: Tensor, mask_logits_Qhw: Tensor, geometry: ImageGeometry, *, resize: str = "logits"
) -> Tensor:
    """Class id of every pixel, (H, W) int64: argmax over classes of sum over queries of class times mask probability.

    The plain formula is the argmax of `plain_semantic_scores`.

    Args:
        class_logits: (Q, K + 1), no-object last.
        resize: What is brought to the target size: mask "logits" (the original with
            SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or PANOPTIC_ON), or class "scores" computed at the padded size (the
            original's default for semantic models). The two agree where the target size is the image size, and the
            second is slow elsewhere, since it has no short cut.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize={resize!r} is unknown; choose 'logits' or 'scores'.")
    if resize == "scores" and geometry.image_size != geometry.target_size:
        strips = semantic_score_strips(class_logits, mask_logits_Qhw, geometry, resize=resize)
        return torch.cat([scores.argmax(0) for scores in strips])
    probabilities_QK = class_probabilities(class_logits)[:, :-1].contiguous()
    grid = make_grid(mask_logits_Qhw.shape[-2:], geometry, mask_logits_Qhw.device)
    canvas = BlockCanvas(grid, torch.int64)
    with full_precision(mask_logits_Qhw.device):
        for strip in block_strips(mask_logits_Qhw, grid):
            lower_NK = strip.low.sigmoid_() @ probabilities_QK
            upper_NK = strip.high.sigmoid_() @ probabilities_QK
            best_N, winner_N = lower_NK.max(1)
            upper_NK.scatter_(1, winner_N[:, None], -1.0)
            undecided = (best_N <= upper_NK.amax(1) + MARGIN).nonzero()[:, 0]
            canvas.fill(strip, winner_N)
            for blocks in split_blocks(undecided, grid, max(probabilities_QK.shape)):
                # Only those classes are compared that can win a pixel of these blocks.
                possible_K = (upper_NK[blocks] >= best_N[blocks, None] - MARGIN).any(0)
                possible_K[winner_N[blocks]] = True
                classes = possible_K.nonzero()[:, 0]
                row, column = strip.position(blocks)
                masks = strip.logits(row, column).sigmoid_()
                scores = masks.flatten(0, 1) @ probabilities_QK[:, classes]
                canvas.paint(row, column, classes[scores.argmax(1)])
    return canvas.image()


@torch.no_grad()
def semantic_scores(
    class_logits: Tensor, mask_logits_Qhw: Tensor, geometry: ImageGeometry, *, resize: str = "logits"
) -> Tensor:
    """Class scores of every pixel, (K, H, W) float32, as `semantic_segmentation` compares them; not normalised."""
    return torch.cat(list(semantic_score_strips(class_logits, mask_logits_Qhw, geometry, resize=resize)), dim=1)


def plain_semantic_scores(
    class_logits: Tensor, mask_logits_Qhw: Tensor, geometry: ImageGeometry, *, resize: str = "logits"
) -> Tensor:
    """What `semantic_scores` gives, by the plain formula, which holds all masks at full resolution: (K, H, W)."""
    if resize == "scores":
        at_image_size = geometry._replace(target_size=geometry.image_size)
        scores = plain_semantic_scores(class_logits, mask_logits_Qhw, at_image_size)
        return plain_logits(scores, ImageGeometry(geometry.image_size, geometry.image_size, geometry.target_size))
    masks_QHW = plain_logits(mask_logits_Qhw, geometry).sigmoid()
    return torch.einsum("qk,qhw->khw", class_probabilities(class_logits)[:, :-1], masks_QHW)


@torch.no_grad()
def semantic_score_strips(
    class_logits: Tensor, mask_logits_Qhw: Tensor, geometry: ImageGeometry, *, resize: str
) -> Iterator[Tensor]:
    """The rows of `semantic_scores` from top to bottom, some at a time: (K, rows, W) float32."""
    padded, image, target = geometry
    probabilities_QK = class_probabilities(class_logits)[:, :-1]
    queries, height, _ = mask_logits_Qhw.shape
    device = mask_logits_Qhw.device
    # Rows are resized by matrices, because a strip needs only some of them; columns by F.interpolate.
    if resize == "logits":
        to_points = resize_matrix(height, padded[0], image[0], target[0])
        to_target = torch.eye(target[0])
    else:
        to_points = resize_matrix(height, padded[0], image[0], image[0])
        to_target = resize_matrix(image[0], image[0], image[0], target[0])
    step = max(1, temporary_numel(device) // (queries * max(padded[1], target[1])))
    for start in range(0, target[0], step):
        point_weights, first_point = _touched(to_target[start : start + step])
        last_point = first_point + point_weights.shape[1]
        mask_weights, first_row = _touched(to_points[first_point:last_point])
        with full_precision(device):
            cells = mask_logits_Qhw[:, first_row : first_row + mask_weights.shape[1]].float()
            logits = torch.matmul(mask_weights.to(device), cells)
            logits = _resize_width(logits, padded[1])[..., : image[1]]
            if resize == "logits":
                logits = _resize_width(logits, target[1])
            scores = torch.einsum("qk,qrw->krw", probabilities_QK, logits.sigmoid())
            if resize == "scores":
                scores = _resize_width(torch.matmul(point_weights.to(device), scores), target[1])
        yield scores


@torch.no_grad()
def per_pixel_segmentation(logits_Khw: Tensor, geometry: ImageGeometry) -> Tensor:
    """Class id of every pixel, (H, W) int64, from class logits of every pixel, the larger the better.

    The plain formula is the argmax of `per_pixel_scores`.
    """
    grid = make_grid(logits_Khw.shape[-2:], geometry, logits_Khw.device)
    canvas = BlockCanvas(grid, torch.int64)
    with full_precision(logits_Khw.device):
        for strip in block_strips(logits_Khw, grid):
            best_N, winner_N = strip.low.max(1)
            strip.high.scatter_(1, winner_N[:, None], -math.inf)
            undecided = (best_N <= strip.high.amax(1) + MARGIN).nonzero()[:, 0]
            canvas.fill(strip, winner_N)
            for blocks in split_blocks(undecided, grid, len(logits_Khw)):
                row, column = strip.position(blocks)
                canvas.paint(row, column, strip.logits(row, column).argmax(-1))
    return canvas.image()


@torch.no_grad()
def per_pixel_scores(logits_Khw: Tensor, geometry: ImageGeometry) -> Tensor:
    """Class logits of every pixel, (K, H, W) float32, as `per_pixel_segmentation` compares them."""
    return plain_logits(logits_Khw, geometry)


@torch.no_grad()
def semantic_segments(
    class_logits: Tensor | None, mask_logits_Qhw: Tensor, geometry: ImageGeometry, segmentation_HW: Tensor
) -> list[dict[str, Any]]:
    """One record for each class that is seen, the largest first: id and label_id (both the class), score, area.

    The score of a class is its share of all class scores, on average over its pixels: 1 where no other class was
    thought of. Up to `SCORED_PIXELS` of them, evenly spaced, stand for all; the scores of every pixel would take longer
    than the segmentation.

    Args:
        class_logits: (Q, K + 1), or None for a per-pixel model, whose `mask_logits_Qhw` are the logits of its classes.
        segmentation_HW: What `semantic_segmentation` or `per_pixel_segmentation` gave.
    """
    num_labels = len(mask_logits_Qhw) if class_logits is None else class_logits.shape[-1] - 1
    areas_K = torch.bincount(segmentation_HW.flatten(), minlength=num_labels)
    order = areas_K.argsort(descending=True, stable=True)
    label_ids_C = order[areas_K[order] > 0]
    # Pixels sorted by class, so that those of one class are neighbours; int16 sorts three times as fast.
    by_class = segmentation_HW.flatten().to(torch.int16).argsort(stable=True)
    first_K = areas_K.cumsum(0) - areas_K
    steps_P = (torch.arange(SCORED_PIXELS, device=areas_K.device) + 0.5) / SCORED_PIXELS
    pixels_CP = by_class[first_K[label_ids_C, None] + (steps_P * areas_K[label_ids_C, None]).long()]
    # From pixels of the target to those of the padded input, to -1..1 as `grid_sample` wants it.
    height, width = geometry.target_size
    y = (pixels_CP // width + 0.5) * (geometry.image_size[0] / height) * (2 / geometry.padded_size[0]) - 1
    x = (pixels_CP % width + 0.5) * (geometry.image_size[1] / width) * (2 / geometry.padded_size[1]) - 1
    grid = torch.stack((x, y), dim=-1).to(torch.float32)
    logits_QCP = F.grid_sample(mask_logits_Qhw[None].float(), grid[None], padding_mode="border", align_corners=False)[0]
    if class_logits is None:
        scores_CPK = logits_QCP.softmax(0).permute(1, 2, 0)
    else:
        scores_CPK = torch.einsum("qk,qcp->cpk", class_probabilities(class_logits)[:, :-1], logits_QCP.sigmoid())
    own_CP = scores_CPK.gather(2, label_ids_C[:, None, None].expand(-1, SCORED_PIXELS, 1))[..., 0]
    shares = (own_CP / scores_CPK.sum(2)).mean(1)
    return [
        {"id": label_id, "label_id": label_id, "score": score, "area": area}
        for label_id, score, area in zip(
            label_ids_C.tolist(), shares.tolist(), areas_K[label_ids_C].tolist(), strict=True
        )
    ]


def _touched(weights: Tensor) -> tuple[Tensor, int]:
    """Drops the columns of zeros on both sides; also returns where the rest begins."""
    used = (weights != 0).any(0).nonzero()[:, 0]
    first, last = int(used[0]), int(used[-1])
    return weights[:, first : last + 1], first


def _resize_width(values: Tensor, width: int) -> Tensor:
    if values.shape[-1] == width:
        return values
    return F.interpolate(values[None], size=(values.shape[-2], width), mode="bilinear", align_corners=False)[0]
