"""What was found in a photo.

Shapes: B images, Q queries, K classes, N instances, H W pixels of the photo.
"""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F

from ..models.post_processing import (
    ImageGeometry,
    image_geometries,
    instance_segmentation,
    is_per_pixel,
    panoptic_segmentation,
    per_pixel_segmentation,
    semantic_segmentation,
    without_duplicates,
)
from .load import Model

Task = Literal["semantic", "instance", "panoptic"]
TASKS: tuple[Task, ...] = ("semantic", "instance", "panoptic")
SCORED_PIXELS = 256


class Prediction:
    """What was found in one photo of H x W pixels. Tensors are on the CPU.

    Attributes:
        task: "semantic", "instance" or "panoptic".
        size: (H, W).
        segments: One dictionary for each segment: `id`, `label_id`, `label`, `score` (0 to 1) and `area` (pixels), the
            largest first. Instances have a `box` too (left, top, right, bottom in pixels), and the best score is first.
        segmentation: (H, W) int. Semantic: class ids, which are also the ids of the segments. Panoptic: segment ids
            from 1; 0 is void. None for instances.
        masks: (N, H, W) bool for instances, which may overlap; `masks[i]` belongs to `segments[i]`. None otherwise. For
            a photo in tiles it is put together when it is asked for; `mask` gives one of thousands without the others.
    """

    def __init__(
        self,
        task: Task,
        size: tuple[int, int],
        segments: list[dict[str, Any]] | None = None,
        segmentation: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        crops: list[torch.Tensor] | None = None,
    ) -> None:
        """`crops` may take the place of `masks`: the part of each mask that lies in its box, (height, width) bool."""
        self.task = task
        self.size = size
        self.segments = segments or []
        self.segmentation = segmentation
        self._masks = masks
        self._crops = crops

    def __repr__(self) -> str:
        return f"Prediction({self.task!r}, {self.size}, {len(self.segments)} segments)"

    @property
    def masks(self) -> torch.Tensor | None:
        if self._crops is None:
            return self._masks
        masks = torch.zeros((len(self.segments), *self.size), dtype=torch.bool)
        for segment, mask in zip(self.segments, masks, strict=True):
            self._paste(segment, mask)
        return masks

    def mask(self, segment: dict[str, Any]) -> torch.Tensor:
        """The pixels of one of `segments`: (H, W) bool."""
        if self._crops is not None:
            return self._paste(segment, torch.zeros(self.size, dtype=torch.bool))
        if self._masks is not None:
            return self._masks[segment["id"] - 1]
        assert self.segmentation is not None
        return self.segmentation == segment["id"]

    def _paste(self, segment: dict[str, Any], mask_HW: torch.Tensor) -> torch.Tensor:
        assert self._crops is not None
        left, top, right, bottom = (int(side) for side in segment["box"])
        mask_HW[top:bottom, left:right] = self._crops[segment["id"] - 1]
        return mask_HW


def outputs_to_predictions(
    model: Model,
    outputs: Any,
    target_sizes: Sequence[tuple[int, int]],
    *,
    task: Task,
    threshold: float | None = None,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float | None = None,
    label_ids_to_fuse: Collection[int] | None = None,
    max_instances: int | None = None,
) -> list[Prediction]:
    """What `predict` makes of model outputs; the options are its."""
    config = model.config
    id2label = {int(label_id): label for label_id, label in (config.id2label or {}).items()}
    if label_ids_to_fuse is None:
        label_ids_to_fuse = config.label_ids_to_fuse or ()
    images: Any = (
        ([None] * len(outputs.logits), outputs.logits)
        if is_per_pixel(outputs)
        else (outputs.class_queries_logits, outputs.masks_queries_logits)
    )
    predictions = []
    for class_logits, mask_logits, geometry in zip(*images, image_geometries(outputs, target_sizes), strict=True):
        masks = None
        if task == "semantic":
            if class_logits is None:
                segmentation = per_pixel_segmentation(mask_logits, geometry)
            else:
                segmentation = semantic_segmentation(class_logits, mask_logits, geometry)
            records = _semantic_segments(class_logits, mask_logits, geometry, segmentation)
        elif task == "panoptic":
            segmentation, records = panoptic_segmentation(
                class_logits,
                mask_logits,
                geometry,
                threshold=config.object_mask_threshold if threshold is None else threshold,
                mask_threshold=mask_threshold,
                overlap_mask_area_threshold=config.overlap_mask_area_threshold
                if overlap_mask_area_threshold is None
                else overlap_mask_area_threshold,
                label_ids_to_fuse=label_ids_to_fuse,
                intersect_with_mask=config.intersect_with_mask,
            )
            records.sort(key=lambda record: -record["area"])
        else:
            instances = instance_segmentation(
                class_logits,
                mask_logits,
                geometry,
                threshold=config.instance_threshold if threshold is None else threshold,
                mask_threshold=mask_threshold,
                top_k=max(100, len(class_logits)) if max_instances is None else max_instances,
                excluded_label_ids=label_ids_to_fuse,
            )
            if config.duplicate_iou is not None:
                instances = without_duplicates(instances, config.duplicate_iou)
            segmentation, masks = None, instances.masks.cpu()
            records = [
                {"id": index, "label_id": label_id, "score": score, "area": area, "box": box}
                for index, (label_id, score, area, box) in enumerate(
                    zip(
                        instances.labels.tolist(),
                        instances.scores.tolist(),
                        instances.areas.tolist(),
                        instances.boxes.tolist(),
                        strict=True,
                    ),
                    start=1,
                )
            ]
        segments = [
            {
                "id": record["id"],
                "label_id": record["label_id"],
                "label": id2label[record["label_id"]],
                "score": record["score"],
                "area": record["area"],
                **({"box": record["box"]} if "box" in record else {}),
            }
            for record in records
        ]
        segmentation = None if segmentation is None else segmentation.cpu()
        predictions.append(Prediction(task, geometry.target_size, segments, segmentation, masks))
    return predictions


def _semantic_segments(
    class_logits: torch.Tensor | None, mask_logits: torch.Tensor, geometry: ImageGeometry, segmentation: torch.Tensor
) -> list[dict[str, Any]]:
    """One record a class that is seen, the largest first. Without `class_logits` each mask is the logits of a class.

    The score of a class is its share of all class scores, on average over its pixels: 1 where no other class was
    thought of. Up to `SCORED_PIXELS` of them, evenly spaced, stand for all; the scores of every pixel would take longer
    than the segmentation.
    """
    num_labels = len(mask_logits) if class_logits is None else class_logits.shape[-1] - 1
    areas = torch.bincount(segmentation.flatten(), minlength=num_labels)
    order = areas.argsort(descending=True, stable=True)
    label_ids = order[areas[order] > 0]
    # Pixels sorted by class: those of one class are neighbours.
    # As int16, which sorts three times as fast.
    by_class = segmentation.flatten().to(torch.int16).argsort(stable=True)
    first = areas.cumsum(0) - areas
    steps = (torch.arange(SCORED_PIXELS, device=areas.device) + 0.5) / SCORED_PIXELS
    positions = first[label_ids, None] + (steps * areas[label_ids, None]).long()
    pixels = by_class[positions]  # (classes seen, SCORED_PIXELS)
    # From pixels of the target to those of the padded input, to -1..1 as `grid_sample` wants it.
    height, width = geometry.target_size
    y = (pixels // width + 0.5) * (geometry.image_size[0] / height) * (2 / geometry.padded_size[0]) - 1
    x = (pixels % width + 0.5) * (geometry.image_size[1] / width) * (2 / geometry.padded_size[1]) - 1
    grid = torch.stack((x, y), dim=-1).to(torch.float32)
    logits_QCP = F.grid_sample(mask_logits[None].float(), grid[None], padding_mode="border", align_corners=False)[0]
    if class_logits is None:
        scores = logits_QCP.softmax(0).permute(1, 2, 0)
    else:
        probabilities = class_logits.float().softmax(-1)[:, :-1]
        scores = torch.einsum("qk,qcp->cpk", probabilities, logits_QCP.sigmoid())
    share = scores.gather(2, label_ids[:, None, None].expand(-1, SCORED_PIXELS, 1))[..., 0] / scores.sum(2)
    return [
        {"id": label_id, "label_id": label_id, "score": score, "area": area}
        for label_id, score, area in zip(
            label_ids.tolist(), share.mean(1).tolist(), areas[label_ids].tolist(), strict=True
        )
    ]
