"""Boundary IoU and boundary AP (Cheng et al. 2021, "Boundary IoU: Improving Object-Centric Image Segmentation
Evaluation").

The boundary of a mask consists of its pixels at most d pixels from the outside, where d is 2 % of the image's diagonal.
Distances are those of a king on a chess board (the larger of dx and dy), and beyond the image everything is outside.

Shapes: N masks, K classes, H W pixels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .mask_ap import MaskAP
from .run_lengths import rles_of_crops

DILATION_RATIO = 0.02


def boundary_width(height: int, width: int, dilation_ratio: float = DILATION_RATIO) -> int:
    """d in pixels, at least 1."""
    return max(1, round(dilation_ratio * math.hypot(height, width)))


def mask_boundary(masks: torch.Tensor, width: int) -> torch.Tensor:
    """The pixels of masks (..., H, W) bool at most `width` pixels from the outside; same shape."""
    eroded = masks
    for dim in (-1, -2):
        eroded = _window(eroded, width, dim, torch.logical_and, outside=False)
    return masks & ~eroded


def boundary_iou(masks: torch.Tensor, others: torch.Tensor, dilation_ratio: float = DILATION_RATIO) -> torch.Tensor:
    """Boundary IoU of each mask with its partner: (N, H, W) bool twice -> (N,) float32, NaN for two empty masks."""
    width = boundary_width(masks.shape[-2], masks.shape[-1], dilation_ratio)
    boundary, other = mask_boundary(masks.bool(), width), mask_boundary(others.bool(), width)
    return (boundary & other).sum((-2, -1)) / (boundary | other).sum((-2, -1))


class BoundaryIoU:
    """Boundary IoU of the classes of class maps, accumulated image by image.

    Definition, over the pixels of all images together: with G_k the boundary of class k in the reference and P_k in the
    prediction, IoU_k = |G_k and P_k| / |G_k or P_k|. Void pixels of the reference belong to no class in both maps.
    A class without boundary in both is NaN and the mean skips it.

    Args:
        num_labels: K, the number of classes.
        ignore_index: The reference id of void pixels.
        dilation_ratio: Width of the boundary as a share of the image's diagonal.
        device: Where the (3, K) int64 counts live; maps are moved there.
    """

    def __init__(
        self,
        num_labels: int,
        *,
        ignore_index: int = 255,
        dilation_ratio: float = DILATION_RATIO,
        device: str | torch.device = "cpu",
    ) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}; a mean needs at least one class")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.dilation_ratio = dilation_ratio
        # Rows: boundary pixels of the reference, of the prediction, of both.
        self.counts = torch.zeros(3, num_labels, dtype=torch.int64, device=device)

    def update(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        """Counts one map (H, W) or a batch of maps (B, H, W), integer tensors of one shape."""
        if predictions.shape != references.shape:
            raise ValueError(
                f"predictions {tuple(predictions.shape)} and references {tuple(references.shape)} differ in shape; "
                "pass the references' sizes as target_sizes when post-processing"
            )
        predictions = predictions.to(self.counts.device, torch.int64)
        references = references.to(self.counts.device, torch.int64)
        void = references == self.ignore_index
        outside = ~void & ((references < 0) | (references >= self.num_labels))
        if bool(outside.any()):
            raise ValueError(
                f"reference id {int(references[outside][0])} is neither one of the {self.num_labels} classes nor "
                f"void ({self.ignore_index})"
            )
        no_class = void | (predictions < 0) | (predictions >= self.num_labels)
        width = boundary_width(references.shape[-2], references.shape[-1], self.dilation_ratio)
        # Outside of boundaries `num_labels` stands for no class.
        true, found = (
            torch.where(_label_boundary(labels, width), labels, self.num_labels)
            for labels in (
                references.masked_fill(void, self.num_labels),
                predictions.masked_fill(no_class, self.num_labels),
            )
        )
        both = torch.where(true == found, true, self.num_labels)
        for row, labels in enumerate((true, found, both)):
            self.counts[row] += torch.bincount(labels.flatten(), minlength=self.num_labels + 1)[: self.num_labels]

    def merge(self, other: "BoundaryIoU") -> None:
        """Adds the counts of another one."""
        self.counts += other.counts

    def reduce(self) -> None:
        """Adds up the counts of all processes; call once, on every process, before `compute`."""
        from accelerate.utils import reduce

        self.counts: Any = reduce(self.counts, reduction="sum")

    def reset(self) -> None:
        self.counts.zero_()

    def compute(self, id2label: Mapping[int, str] | None = None) -> dict[str, Any]:
        """Returns `boundary_iou`, the mean over classes, and `per_class`: one dict a class with `label`,
        `boundary_iou` and `pixels` of the reference's boundary. Plain floats, each a share of 1."""
        true, predicted, both = self.counts.cpu().double()
        iou = both / (true + predicted - both)  # 0 / 0 is NaN
        names = id2label or {}
        return {
            "boundary_iou": float(iou.nanmean()),
            "per_class": [
                {
                    "label": names.get(index, str(index)),
                    "boundary_iou": float(iou[index]),
                    "pixels": int(true[index]),
                }
                for index in range(self.num_labels)
            ],
        }


class BoundaryAP(MaskAP):
    """Average precision with the smaller of mask IoU and boundary IoU in place of mask IoU, except for crowds.

    It does as the authors' `boundary_iou.coco_instance_api`. Figures have `MaskAP`'s names after `boundary_`.
    """

    def __init__(self, num_labels: int, *, max_detections: int = 100, dilation_ratio: float = DILATION_RATIO) -> None:
        super().__init__(num_labels, max_detections=max_detections)
        self.dilation_ratio = dilation_ratio

    def _iou(self, rles: list[Any], true_rles: list[Any], is_crowd: np.ndarray) -> np.ndarray:
        mask_iou = super()._iou(rles, true_rles, is_crowd)
        boundaries, true_boundaries = (_rle_boundaries(group, self.dilation_ratio) for group in (rles, true_rles))
        boundary = super()._iou(boundaries, true_boundaries, is_crowd)
        return np.where(is_crowd, mask_iou, np.minimum(mask_iou, boundary))

    def compute(self, id2label: Mapping[int, str] | None = None) -> dict[str, Any]:
        """`MaskAP.compute`'s figures as `boundary_ap`, `boundary_ap50` and so on, in `per_class` too."""

        def rename(figures: dict[str, Any]) -> dict[str, Any]:
            return {f"boundary_{name}" if name[:2] in ("ap", "ar") else name: value for name, value in figures.items()}

        result = rename(super().compute(id2label))
        return {**result, "per_class": [rename(row) for row in result["per_class"]]}


def _window(values: torch.Tensor, reach: int, dim: int, combine: Any, outside: bool | int) -> torch.Tensor:
    """Combines (by and, minimum or maximum) each value with its neighbours up to `reach` away along `dim`.

    `outside` is the value beyond the ends. Windows are doubled, so that the cost grows with the logarithm of `reach`.
    """
    length = values.shape[dim]
    pad = (reach, reach) if dim == -1 else (0, 0, reach, reach)
    result = F.pad(values, pad, value=outside)
    size = 1
    while size < 2 * reach + 1:
        # The last window overlaps the one before.
        step = min(size, 2 * reach + 1 - size)
        remaining = result.shape[dim] - step
        result = combine(result.narrow(dim, 0, remaining), result.narrow(dim, step, remaining))
        size += step
    assert result.shape[dim] == length
    return result


def _label_boundary(labels: torch.Tensor, width: int) -> torch.Tensor:
    """Where another label, or the border of the map (..., H, W), is at most `width` pixels away: bool."""
    low, high = labels, labels
    for dim in (-1, -2):
        low = _window(low, width, dim, torch.minimum, outside=-1)
        high = _window(high, width, dim, torch.maximum, outside=-1)
    return low != high


def _rle_boundaries(rles: Sequence[Any], dilation_ratio: float) -> list[Any]:
    """The boundary of each mask of one image, as RLEs."""
    from pycocotools import mask as coco_mask

    crops, corners, size = [], [], (0, 0)
    for rle in rles:
        size = height, width = rle["size"]
        left, top, box_width, box_height = (int(side) for side in coco_mask.toBbox(rle))
        # Beyond the box the mask is empty, as it is beyond the image.
        inside = coco_mask.decode(rle)[top : top + box_height, left : left + box_width]
        inside = torch.from_numpy(np.ascontiguousarray(inside)).bool()
        crops.append(mask_boundary(inside, boundary_width(height, width, dilation_ratio)).numpy())
        corners.append((top, left))
    return rles_of_crops(crops, corners, size)
