"""What is measured, and how the model runs for it."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..data import Task


@dataclass(frozen=True)
class EvaluationOptions:
    """What `evaluate` measures, and how.

    Attributes:
        task: What is measured. If None: what the model was trained for, or what the annotations can tell of that.
            Annotations of finer tasks do for coarser ones: see `as_task`.
        batch_size: Images that run together.
        threshold: Least score of what is found. None: 0 for objects, as AP weighs them by their scores, and that of the
            model's configuration for panoptic segments.
        merging: How panoptic segments share the pixels; None: as the model's configuration says.
        max_detections: Most objects of an image, the best ones, that count for AP. 100 is COCO's; images with more
            objects need more.
        boundary: Also boundary IoU (semantic) or boundary AP (instance).
        per_image: Also the score of each image on its own. For videos, the J of each.
        device: Where the model is; None: where its parameters are.
        mixed_precision: "bf16" or "fp16" runs the forward under autocast.
        processes: (rank, count) shares the images out; every process must call.
        progress: Show a progress bar.
    """

    task: Task | None = None
    batch_size: int = 1
    threshold: float | None = None
    merging: str | None = None
    max_detections: int = 100
    boundary: bool = False
    per_image: bool = False
    device: str | torch.device | None = None
    mixed_precision: str = "no"
    processes: tuple[int, int] = (0, 1)
    progress: bool = True

    @classmethod
    def of(cls, options: "EvaluationOptions | None", given: dict[str, Any]) -> "EvaluationOptions":
        """The options with other values for some fields. Raises TypeError for a field that there is not."""
        return replace(options or cls(), **given)
