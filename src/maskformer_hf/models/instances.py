"""Objects: instances of an image and tracks of a clip. Their masks may overlap.

Shapes: Q queries, K classes, N objects, T frames, h w mask cells, H W target pixels.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .block_masks import masks_above
from .image_geometry import ImageGeometry
from .probabilities import IMPOSSIBLE, class_probabilities, logit_of

if TYPE_CHECKING:
    from .result_options import ResultOptions

# Pixels that are compared at once when masks are searched for duplicates: they take four bytes each there.
PIXELS_AT_ONCE = 2**18


class Instances(NamedTuple):
    """N instances of one image, best score first; their masks may overlap.

    masks (N, H, W) bool; scores (N,) float32; labels (N,) int64; areas (N,) int64 in pixels; boxes (N, 4) float32, x0
    y0 x1 y1 in pixels, where x1 and y1 are the far edges of the last pixels, so that x1 - x0 is the width.
    """

    masks: Tensor
    scores: Tensor
    labels: Tensor
    areas: Tensor
    boxes: Tensor


class Tracks(NamedTuple):
    """N objects of one clip, best first.

    scores (N,) float32; labels (N,) int64; queries (N,) int64, the query of each, whose tube in all frames is its mask.
    """

    scores: Tensor
    labels: Tensor
    queries: Tensor


@torch.no_grad()
def instance_segmentation(
    class_logits: Tensor, masks: Any, geometry: ImageGeometry, options: "ResultOptions"
) -> Instances:
    """Instances that may overlap, from the best pairs of query and class, as Mask2Former does it.

    A mask is where the mask probability exceeds `options.mask_threshold`. The score is the class probability times the
    mean mask probability inside the mask; instances below `options.threshold` and empty ones are left out, and so are
    those of `options.label_ids_to_fuse` (stuff) after the `options.max_instances` best pairs have been chosen. One
    query can give several instances, of different classes.

    Args:
        class_logits: (Q, K + 1), no-object last.
        masks: Mask logits (Q, h, w), or what computes them; only those of the queries that can give an instance are
            asked for.
    """
    top_k = max(100, len(class_logits)) if options.max_instances is None else options.max_instances
    if options.class_scores == "sigmoid":
        # Pairs with stuff take no place from those with things.
        class_logits = class_logits.clone()
        class_logits[:, sorted(options.label_ids_to_fuse)] = IMPOSSIBLE
    class_scores, labels, queries = best_pairs(class_logits, top_k, options.class_scores)
    # The mean of probabilities is at most 1, hence no pair can end above its class score. Linear values have no limit.
    is_linear = options.mask_values == "linear"
    possible = (class_scores >= options.threshold) | is_linear
    if options.label_ids_to_fuse:
        stuff = torch.tensor(sorted(options.label_ids_to_fuse), device=labels.device)
        possible &= ~torch.isin(labels, stuff)
    class_scores, queries, labels = class_scores[possible], queries[possible], labels[possible]
    kept, position = torch.unique(queries, return_inverse=True)
    found = masks_above(masks[kept], geometry, logit_of(options.mask_threshold), options.mask_values)
    quality = found.probability_sums / found.areas.clamp(min=1)
    if is_linear:
        quality = (found.probability_sums / (found.areas + 1)).square()  # as in Panoptic SegFormer
    scores = class_scores * quality[position]
    alive = ((scores >= options.threshold) & (found.areas[position] > 0)).nonzero()[:, 0]
    order = alive[scores[alive].argsort(descending=True, stable=True)]
    position = position[order]
    instances = Instances(
        masks=found.draw(position.tolist()),
        scores=scores[order],
        labels=labels[order],
        areas=found.areas[position],
        boxes=found.boxes[position],
    )
    return instances if options.duplicate_iou is None else without_duplicates(instances, options.duplicate_iou)


@torch.no_grad()
def flatten_masks(masks_NHW: Tensor, boxes_N4: Tensor, least_visible_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draws masks into one map, earlier ones on top: ids (H, W) int32 with 0 = void, and which were drawn (N,) bool.

    A mask of which fewer pixels than `least_visible_N`, or none, would be visible is left out; the ids of the others
    count from 1. Without these numbers none is left out: id i is that of mask i - 1, and one that is hidden altogether
    has no pixel.
    """
    segmentation = torch.zeros(masks_NHW.shape[1:], dtype=torch.int32, device=masks_NHW.device)
    drawn_N = torch.ones(len(masks_NHW), dtype=torch.bool, device=masks_NHW.device)
    ids = torch.zeros((), dtype=torch.int32, device=masks_NHW.device)
    for index, (left, top, right, bottom) in enumerate(boxes_N4.int().tolist()):
        window = segmentation[top:bottom, left:right]
        free = (window == 0) & masks_NHW[index, top:bottom, left:right]
        if least_visible_N is not None:
            visible = torch.count_nonzero(free)
            drawn_N[index] = (visible > 0) & (visible >= least_visible_N[index])
        ids = ids + drawn_N[index]
        window += free * (ids * drawn_N[index])
    return segmentation, drawn_N


@torch.no_grad()
def without_duplicates(instances: Instances, duplicate_iou: float) -> Instances:
    """Instances, best first, without those whose mask has an IoU above `duplicate_iou` with a better one of the same
    class that stays."""
    masks = instances.masks.flatten(1)
    common_NN = torch.zeros(len(masks), len(masks), device=masks.device)
    for part in masks.split(PIXELS_AT_ONCE, dim=1):
        part = part.float()  # products of float32 are fast, and exact up to 2^24
        common_NN += part @ part.T
    areas = masks.sum(1)
    iou_NN = common_NN / (areas[:, None] + areas - common_NN).clamp(min=1)
    duplicates = ((iou_NN > duplicate_iou) & (instances.labels[:, None] == instances.labels)).cpu()
    kept = torch.ones(len(masks), dtype=torch.bool)
    for index in range(len(masks)):
        if kept[index]:
            kept[index + 1 :] &= ~duplicates[index, index + 1 :]
    kept = kept.to(masks.device)
    others = {name: part[kept] for name, part in instances._asdict().items() if name != "masks"}
    return Instances(masks=keep_masks(instances.masks, kept), **others)


@torch.no_grad()
def keep_masks(masks_NHW: Tensor, kept_N: Tensor) -> Tensor:
    """`masks[kept]` within the same storage, to save a copy: the masks that stay are moved up."""
    indices = kept_N.nonzero()[:, 0].tolist()
    for position, index in enumerate(indices):
        if position != index:
            masks_NHW[position] = masks_NHW[index]
    return masks_NHW[: len(indices)]


@torch.no_grad()
def best_tracks(class_logits: Tensor, *, threshold: float = 0.0, top_k: int = 10) -> Tracks:
    """The `top_k` best pairs of query and class of a clip, as Mask2Former-VIS takes them, that reach `threshold`.

    class_logits (Q, K + 1), no-object last. The score is the class probability alone, whatever the mask.
    """
    scores, labels, queries = best_pairs(class_logits, top_k)
    reached = scores >= threshold
    return Tracks(scores[reached], labels[reached], queries[reached])


@torch.no_grad()
def tube_masks(
    mask_logits_QThw: Tensor, queries: Tensor, geometry: ImageGeometry, *, mask_threshold: float = 0.5
) -> Iterator[Tensor]:
    """The masks of N queries in each frame of a clip, one frame after the other, (N, H, W) bool.

    queries (N,) may name a query twice. A mask is where its probability exceeds `mask_threshold`.
    """
    kept, position = torch.unique(queries, return_inverse=True)
    places = position.tolist()
    for frame_Qhw in mask_logits_QThw.unbind(1):
        yield masks_above(frame_Qhw[kept], geometry, logit_of(mask_threshold)).draw(places)


def best_pairs(class_logits: Tensor, top_k: int, class_scores: str = "softmax") -> tuple[Tensor, Tensor, Tensor]:
    """Class probabilities, labels and queries of the `top_k` most probable pairs of query and class, best first."""
    num_labels = class_logits.shape[-1] - 1
    pairs = class_probabilities(class_logits, class_scores)[:, :-1].flatten()
    scores, pair = pairs.topk(min(top_k, len(pairs)))
    return scores, pair % num_labels, pair // num_labels
