"""Boxes: centre and size as shares of the image (cx, cy, w, h), or edges (left, top, right, bottom).

Shapes: N boxes, M other boxes.
"""

import torch


def to_edges(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4): left, top, right and bottom of boxes that are given by centre and size."""
    centers, sizes = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centers - sizes / 2, centers + sizes / 2), dim=-1)


def to_centers(edges: torch.Tensor) -> torch.Tensor:
    """(..., 4): centre and size of boxes that are given by their edges."""
    first, last = edges[..., :2], edges[..., 2:]
    return torch.cat(((first + last) / 2, last - first), dim=-1)


def boxes_of_masks(masks_NHW: torch.Tensor) -> torch.Tensor:
    """Left, top, right and bottom of masks in pixels, (N, 4) float32; right and bottom are past the last pixel.

    Those of an empty mask are 0.
    """
    edges = []
    for touched in (masks_NHW.any(1), masks_NHW.any(2)):
        length = touched.shape[1]
        numbers = touched.to(torch.uint8)
        if not length or not len(touched):
            edges.append(masks_NHW.new_zeros(len(touched), 2, dtype=torch.float32))
            continue
        first = numbers.argmax(1)
        last = length - numbers.flip(1).argmax(1)
        edges.append((torch.stack((first, last), dim=1) * numbers.amax(1, keepdim=True)).float())
    (left, right), (top, bottom) = (pair.unbind(1) for pair in edges)
    return torch.stack((left, top, right, bottom), dim=1)


def generalized_iou(edges: torch.Tensor, others: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Generalised IoU (https://arxiv.org/abs/1902.09630) of boxes by their edges, (..., 4) each, broadcast."""

    def area(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return (last - first).clamp(min=0).prod(-1)

    overlap = area(torch.maximum(edges[..., :2], others[..., :2]), torch.minimum(edges[..., 2:], others[..., 2:]))
    union = (edges[..., 2:] - edges[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1) - overlap
    union = union.clamp(min=eps)
    hull = area(torch.minimum(edges[..., :2], others[..., :2]), torch.maximum(edges[..., 2:], others[..., 2:]))
    hull = hull.clamp(min=eps)
    return overlap / union - (hull - union) / hull


def inverse_sigmoid(values: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    values = values.clamp(0, 1)
    return torch.log(values.clamp(min=eps) / (1 - values).clamp(min=eps))
