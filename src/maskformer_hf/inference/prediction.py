"""What was found in a photo.

Shapes: N segments, H W pixels of the photo.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch

from ..models.results import Result

Task = Literal["semantic", "instance", "panoptic"]


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
        task: str,
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

    @classmethod
    def of(cls, result: Result, task: str, size: tuple[int, int], id2label: Mapping[Any, str] | None) -> "Prediction":
        """A result with the names of its classes, on the CPU."""
        labels = id2label or {}
        segments = []
        for record in result.segments:
            segment = {name: record[name] for name in ("id", "label_id")}
            segment |= {"label": labels[record["label_id"]], "score": record["score"], "area": record["area"]}
            if "box" in record:
                segment["box"] = list(record["box"])
            segments.append(segment)
        if task == "panoptic":
            segments.sort(key=lambda segment: -segment["area"])
        segmentation, masks = (None if part is None else part.cpu() for part in (result.segmentation, result.masks))
        return cls(task, size, segments, segmentation, masks)

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
