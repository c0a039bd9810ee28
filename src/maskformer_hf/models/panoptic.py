"""Panoptic results: every pixel belongs to one segment or to none.

Shapes: Q queries that are kept, K classes, h w mask cells, H W target pixels, N blocks, M queries listed for a block.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .block_grid import make_grid
from .image_geometry import ImageGeometry, plain_logits
from .mask_blocks import MARGIN, BlockCanvas, block_strips, count_pixels, full_precision, list_queries
from .panoptic_mask_wise import as_records, mask_wise_segmentation
from .part import Part
from .probabilities import class_probabilities, logit_of

if TYPE_CHECKING:
    from .result_options import ResultOptions


class Winners(NamedTuple):
    """Which query has won each pixel.

    ids: (H, W) int32, k where query k has won and its own mask covers the pixel, k + Q where it has won without.
    mask_areas: (Q,) int64, pixels that the own mask of each query covers, whoever has won them.
    """

    ids: Tensor
    mask_areas: Tensor


@torch.no_grad()
def panoptic_segmentation(
    class_logits: Tensor, masks: Any, geometry: ImageGeometry, options: "ResultOptions"
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Segment id of every pixel, (H, W) int32 with 0 = void, and one record a segment in the order of the queries.

    A query stays when its best class is not no-object and scores more than `options.threshold`. Each pixel goes to the
    query with the largest class score times mask probability. A segment stays when its pixels are at least
    `options.overlap_mask_area_threshold` of those where its own mask probability reaches `options.mask_threshold`.
    Segments of one class in `options.label_ids_to_fuse` share the first one's id and record; the least score and the
    least part may be others for them.

    Records: id, label_id, was_fused (the label is one of those to fuse), score (that of the first query of a fused
    segment) and area in pixels.

    Args:
        class_logits: (Q, K + 1), no-object last.
        masks: Mask logits (Q, h, w), or what computes them; only those of the queries that stay are asked for.
    """
    scores, labels = class_probabilities(class_logits, options.class_scores).max(-1)
    kept = ((labels != class_logits.shape[-1] - 1) & (scores > options.least_scores(labels))).nonzero()[:, 0]
    if len(kept) == 0:
        return torch.zeros(geometry.target_size, dtype=torch.int32, device=masks.device), []
    scores, labels = scores[kept], labels[kept]
    winners = find_winners(scores, masks[kept], geometry, logit_of(options.mask_threshold))
    won = torch.bincount(winners.ids.flatten(), minlength=2 * len(kept)).view(2, -1)

    # From here on everything is a few numbers a query: one copy to the host, plain Python, one table look-up back.
    won_own, won_other, mask_areas = torch.cat([won, winners.mask_areas[None]]).tolist()
    painted = []
    for own, other, mask_area, label in zip(won_own, won_other, mask_areas, labels.tolist(), strict=True):
        area = own + other
        stays = mask_area > 0 and area / mask_area >= options.least_share(label)
        painted.append((own if options.intersect_with_mask else area) if stays else 0)
    segment_ids, records = as_records(painted, labels.tolist(), scores.tolist(), options)
    others = [0] * len(kept) if options.intersect_with_mask else segment_ids
    table = torch.tensor(segment_ids + others, dtype=torch.int32, device=winners.ids.device)
    return table.index_select(0, winners.ids.flatten()).view(winners.ids.shape), records


def find_winners(scores_Q: Tensor, mask_logits_Qhw: Tensor, geometry: ImageGeometry, limit: float) -> Winners:
    """Who wins each pixel by class score times mask probability; `limit` is the logit from which on a mask covers it.

    The plain formula is `plain_winners`.
    """
    num_queries, device = len(scores_Q), mask_logits_Qhw.device
    grid = make_grid(mask_logits_Qhw.shape[-2:], geometry, device)
    canvas = BlockCanvas(grid, torch.int32)
    mask_areas_Q = torch.zeros(num_queries, dtype=torch.int64, device=device)
    with full_precision(device):
        for strip in block_strips(mask_logits_Qhw, grid):
            covered_NQ = strip.low >= limit
            partly_covered_NQ = (strip.high >= limit) & ~covered_NQ
            mask_areas_Q += count_pixels(strip.pixel_counts, covered_NQ)
            lower_NQ, upper_NQ = strip.low.sigmoid_().mul_(scores_Q), strip.high.sigmoid_().mul_(scores_Q)
            best_N, winner_N = lower_NQ.max(1)
            own_N = covered_NQ.gather(1, winner_N[:, None])[:, 0]
            canvas.fill(strip, torch.where(own_N, winner_N, winner_N + num_queries))
            # A block is computed where a second query may win a pixel, and where a mask has an edge to be counted; in
            # it only the queries which that concerns.
            candidates_NQ = upper_NQ >= best_N[:, None] - MARGIN
            needs_pixels_N = (candidates_NQ.sum(1) > 1) | partly_covered_NQ.any(1)
            concerned_NQ = (candidates_NQ | partly_covered_NQ) & needs_pixels_N[:, None]
            for blocks, queries_NM, listed_NM in list_queries(concerned_NQ, grid):
                row, column = strip.position(blocks)
                logits_NMP = strip.listed_logits(row, column, queries_NM)
                covers_NMP = logits_NMP >= limit
                # A query that only fills the list cannot win.
                weights_NM = torch.where(listed_NM, scores_Q[queries_NM], -1.0)
                place = logits_NMP.sigmoid_().mul_(weights_NM[..., None]).max(1, keepdim=True).indices
                winner_NP = queries_NM[..., None].expand_as(logits_NMP).gather(1, place)[:, 0]
                own_NP = covers_NMP.gather(1, place)[:, 0]
                canvas.paint(row, column, torch.where(own_NP, winner_NP, winner_NP + num_queries))
                counts_NM = (covers_NMP & grid.inside(row, column)[:, None]).sum(-1)
                counts_NM *= listed_NM & partly_covered_NQ[blocks].gather(1, queries_NM)
                mask_areas_Q.index_add_(0, queries_NM.flatten(), counts_NM.flatten())
    return Winners(canvas.image(), mask_areas_Q)


def plain_winners(scores_Q: Tensor, mask_logits_Qhw: Tensor, geometry: ImageGeometry, limit: float) -> Winners:
    """What `find_winners` finds, by the plain formula, which holds all masks at full resolution."""
    logits_QHW = plain_logits(mask_logits_Qhw, geometry)
    winner_HW = (scores_Q[:, None, None] * logits_QHW.sigmoid()).argmax(0)
    covers_QHW = logits_QHW >= limit
    own_HW = covers_QHW.gather(0, winner_HW[None])[0]
    return Winners(torch.where(own_HW, winner_HW, winner_HW + len(scores_Q)).int(), covers_QHW.sum((1, 2)))


# The slot "merging" of `parts.py`: how panoptic segments share the pixels. It is here, so that the image processor
# needs no part of a model.
MERGINGS: dict[str, Part] = {"argmax": Part(panoptic_segmentation), "mask_wise": Part(mask_wise_segmentation)}
