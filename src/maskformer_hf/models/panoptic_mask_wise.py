"""Mask-wise merging (Panoptic SegFormer, https://arxiv.org/abs/2109.03814, section 3.4): whole masks are painted, the
best first.

Shapes: Q queries, N candidates, K classes, h w mask cells, H W target pixels, X blocks in which a mask has pixels, P
side of a block.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .block_masks import BlockMasks, masks_above, plain_masks_above
from .image_geometry import ImageGeometry
from .mask_blocks import BlockCanvas
from .probabilities import class_probabilities, logit_of

if TYPE_CHECKING:
    from .result_options import ResultOptions

# The original's number of pairs of a query and a thing.
NUM_PAIRS = 100

PanopticResult = tuple[Tensor, list[dict[str, Any]]]


class Candidates(NamedTuple):
    """Masks that may become segments: class scores (N,), labels (N,) and queries (N,). A query may come twice."""

    scores: Tensor
    labels: Tensor
    queries: Tensor

    def part(self, chosen: Tensor) -> "Candidates":
        return Candidates(*(values[chosen] for values in self))


@torch.no_grad()
def mask_wise_segmentation(
    class_logits: Tensor, masks: Any, geometry: ImageGeometry, options: "ResultOptions"
) -> PanopticResult:
    """Segment id of every pixel, (H, W) int32 with 0 = void, and one record a segment in the order of painting.

    A candidate is a query with its best class, unless that is no-object. Its mask is where its mask probability m
    exceeds `options.mask_threshold`, and its score is the class score times the square of the mask's quality, the sum
    of m in the mask over its pixels plus one. Masks are painted in the order of their scores, each on pixels that are
    still empty. One is left out if its score is below `options.threshold`, or if less than
    `options.overlap_mask_area_threshold` of it is empty. Segments of one class in `options.label_ids_to_fuse` share the
    first one's id and record; both thresholds may be others for them. Every segment lies in its own mask, so
    `options.intersect_with_mask` changes nothing.

    The plain formula is `plain_paint`. Records and arguments are those of `panoptic_segmentation`.
    """
    return paint(candidates_of(class_logits, options), masks, geometry, options)


def candidates_of(class_logits: Tensor, options: "ResultOptions") -> Candidates:
    """What may become a segment. With sigmoid scores these are the best pairs of a query and a thing, and all stuff."""
    if options.class_scores == "softmax":
        return best_classes(class_logits)
    scores_QK = class_probabilities(class_logits, options.class_scores)[:, :-1]
    stuff = sorted(options.label_ids_to_fuse)
    things = [label for label in range(scores_QK.shape[1]) if label not in options.label_ids_to_fuse]
    best_Z, query_Z = scores_QK[:, stuff].max(0)
    pairs = scores_QK[:, things].flatten()
    best_N, pair_N = pairs.topk(min(options.max_instances or NUM_PAIRS, len(pairs)))
    labels = torch.tensor(things, device=pairs.device)[pair_N % len(things)]
    return Candidates(
        torch.cat((best_N, best_Z)),
        torch.cat((labels, torch.tensor(stuff, dtype=labels.dtype, device=labels.device))),
        torch.cat((pair_N // len(things), query_Z)),
    )


def best_classes(class_logits: Tensor) -> Candidates:
    """Each query whose best class is not no-object, with that class."""
    scores, labels = class_probabilities(class_logits).max(-1)
    queries = (labels != class_logits.shape[-1] - 1).nonzero()[:, 0]
    return Candidates(scores[queries], labels[queries], queries)


def paint(candidates: Candidates, masks: Any, geometry: ImageGeometry, options: "ResultOptions") -> PanopticResult:
    """The panoptic result of some candidates; see `mask_wise_segmentation`."""
    if options.mask_values == "sigmoid":
        # The quality of a mask is below 1.
        candidates = candidates.part(candidates.scores >= options.least_scores(candidates.labels))
    if len(candidates.queries) == 0:
        return torch.zeros(geometry.target_size, dtype=torch.int32, device=masks.device), []
    queries, position = torch.unique(candidates.queries, return_inverse=True)
    found = masks_above(masks[queries], geometry, logit_of(options.mask_threshold), options.mask_values)
    areas, sums = found.areas[position], found.probability_sums[position]
    scores = candidates.scores * quality(sums, areas)
    order = ranking(scores, options.least_scores(candidates.labels), areas)
    places, mask_areas, labels = torch.stack([position[order], areas[order], candidates.labels[order]]).tolist()
    numbers_HW, painted = _paint_in_order(
        found,
        places,
        [fewest_pixels(area, options.least_share(label)) for area, label in zip(mask_areas, labels, strict=True)],
    )
    segment_ids, records = as_records(painted, labels, scores[order].tolist(), options)
    table = torch.tensor([0, *segment_ids], dtype=torch.int32, device=masks.device)
    return table.index_select(0, numbers_HW.flatten()).view(numbers_HW.shape), records


def _paint_in_order(found: BlockMasks, queries: list[int], fewest: list[int]) -> tuple[Tensor, list[int]]:
    """Number of the mask that each pixel got, (H, W) int32 with 0 for none, and how many pixels each mask got.

    Args:
        queries: Whose masks are painted; the first is number 1.
        fewest: A mask that would get fewer pixels gets none.
    """
    rows, columns = found.grid.rows, found.grid.columns
    device = found.row.device
    # One row a block, and small numbers: what takes time here is to move memory.
    dtype = torch.uint8 if len(queries) < 256 else torch.int32
    canvas_NP = torch.zeros(
        rows.num_blocks * columns.num_blocks, found.grid.pixels_per_block, dtype=dtype, device=device
    )
    block_X = (found.row * columns.num_blocks + found.column)[found.order]
    pixels_XP = found.pixels.flatten(1)
    painted = []
    # Nothing in this loop waits for the device.
    for number, (query, least) in enumerate(zip(queries, fewest, strict=True), start=1):
        own = slice(found.starts[query], found.starts[query + 1])
        before_XP = canvas_NP.index_select(0, block_X[own])
        empty_XP = pixels_XP.index_select(0, found.order[own]).logical_and_(before_XP == 0)
        count = torch.count_nonzero(empty_XP)
        count = count * (count >= least)
        before_XP += empty_XP.to(dtype).mul_(number * (count > 0))
        canvas_NP.index_copy_(0, block_X[own], before_XP)
        painted.append(count)
    canvas = BlockCanvas(found.grid, torch.int32)
    canvas.values.permute(0, 2, 1, 3).copy_(
        canvas_NP.view(rows.num_blocks, columns.num_blocks, rows.block_length, columns.block_length)
    )
    return canvas.image(), torch.stack(painted).tolist() if painted else []


def plain_paint(
    candidates: Candidates, masks: Any, geometry: ImageGeometry, options: "ResultOptions"
) -> PanopticResult:
    """What `paint` gives, by the plain formula, which holds all masks at full resolution."""
    masks_QHW, areas, sums = plain_masks_above(
        masks[:], geometry, logit_of(options.mask_threshold), options.mask_values
    )
    masks_NHW, areas, sums = (values[candidates.queries] for values in (masks_QHW, areas, sums))
    scores = candidates.scores * quality(sums, areas)
    order = ranking(scores, options.least_scores(candidates.labels), areas)
    labels = candidates.labels[order].tolist()
    filled_HW = torch.zeros(geometry.target_size, dtype=torch.int64, device=masks_QHW.device)
    painted = []
    for number, (index, label) in enumerate(zip(order.tolist(), labels, strict=True), start=1):
        empty_HW = masks_NHW[index] & (filled_HW == 0)
        count = int(empty_HW.sum())
        painted.append(count if count >= fewest_pixels(int(areas[index]), options.least_share(label)) else 0)
        if painted[-1]:
            filled_HW[empty_HW] = number
    segment_ids, records = as_records(painted, labels, scores[order].tolist(), options)
    return torch.tensor([0, *segment_ids], dtype=torch.int32, device=masks_QHW.device)[filled_HW], records


def quality(sums_N: Tensor, areas_N: Tensor) -> Tensor:
    """What the class score of a mask is multiplied by; see `mask_wise_segmentation`."""
    return (sums_N / (areas_N + 1)).square()


def ranking(scores_N: Tensor, least_N: Tensor, areas_N: Tensor) -> Tensor:
    """Candidates that reach their least score and have a mask, best first; of equal ones the first comes first."""
    order = scores_N.argsort(descending=True, stable=True)
    return order[((scores_N >= least_N) & (scores_N > 0) & (areas_N > 0))[order]]


def fewest_pixels(area: int, share: float) -> int:
    """The smallest number of pixels, at least 1, that is at least this share of an area, as division says it."""
    count = math.ceil(area * share)
    return max(1, next(number for number in (count - 1, count, count + 1) if number / area >= share))


def as_records(
    painted: list[int], labels: list[int], scores: list[float], options: "ResultOptions"
) -> tuple[list[int], list[dict[str, Any]]]:
    """The segment id of each candidate, 0 for those without pixels, and the records of the segments."""
    segment_ids: list[int] = []
    records: list[dict[str, Any]] = []
    record_of_fused: dict[int, dict[str, Any]] = {}
    record: dict[str, Any] | None
    for area, label, score in zip(painted, labels, scores, strict=True):
        if not area:
            segment_ids.append(0)
            continue
        record = record_of_fused.get(label)
        if record is None:
            fused = label in options.label_ids_to_fuse
            record = {
                "id": len(records) + 1,
                "label_id": label,
                "was_fused": fused,
                "score": round(score, 6),
                "area": 0,
            }
            records.append(record)
            if fused:
                record_of_fused[label] = record
        record["area"] += area
        segment_ids.append(record["id"])
    return segment_ids, records
