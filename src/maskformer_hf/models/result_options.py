"""How results are read from logits: by the checkpoint's own facts, and by what a caller says."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .panoptic import MERGINGS
from .semantic import RESIZES

TASKS = ("semantic", "instance", "panoptic")
CLASS_SCORES = ("softmax", "sigmoid")
MASK_VALUES = ("sigmoid", "linear")

# What a checkpoint says about its results, with the defaults of its configuration. The image processor has the same
# fields, so that it gives the same results without the model.
FACTS: dict[str, Any] = {
    "task": "panoptic",
    "object_mask_threshold": 0.8,
    "overlap_mask_area_threshold": 0.8,
    "stuff_object_mask_threshold": None,
    "stuff_overlap_mask_area_threshold": None,
    "instance_threshold": 0.5,
    "duplicate_iou": None,
    "intersect_with_mask": False,
    "panoptic_merging": "argmax",
    "class_scores": "softmax",
    "mask_values": "sigmoid",
    "label_ids_to_fuse": None,
}

# Fields that are shares or probabilities, 0 to 1.
_SHARES = (
    "threshold",
    "mask_threshold",
    "overlap_mask_area_threshold",
    "stuff_threshold",
    "stuff_overlap_mask_area_threshold",
    "duplicate_iou",
)
_MAY_BE_NONE = ("stuff_threshold", "stuff_overlap_mask_area_threshold", "duplicate_iou")

# The papers' least scores of a segment. Scores of one merging are not those of another, so a checkpoint's own threshold
# holds for its own merging.
THRESHOLDS = {"argmax": 0.8, "mask_wise": 0.3}


@dataclass(frozen=True)
class ResultOptions:
    """Options of `results_of`; `ResultOptions.of` completes them by a checkpoint's own.

    Args:
        task: "semantic", "instance" or "panoptic".
        threshold: Least score of a panoptic segment or an instance. Semantic results have none.
        mask_threshold: Probability from which on a pixel belongs to a mask.
        overlap_mask_area_threshold: A panoptic segment goes if less than this part of its mask is left by better ones.
        stuff_threshold, stuff_overlap_mask_area_threshold: The same two for classes in `label_ids_to_fuse`, if those
            have others.
        label_ids_to_fuse: Stuff: one panoptic segment each, and no instances.
        max_instances: So many of the best pairs of query and class can become instances; 100, or the number of queries
            if that is larger, if None.
        duplicate_iou: An instance whose IoU with a better one of its class is larger goes; None keeps them all.
        intersect_with_mask: A panoptic segment keeps only pixels where its own mask probability reaches
            `mask_threshold`, as in Mask2Former; else all that it won, as in MaskFormer.
        merging: How panoptic segments share the pixels: "argmax", the largest class score times mask probability, or
            "mask_wise", whole masks one after the other, the best first.
        class_scores: Probabilities of classes are the "softmax" of their logits, or the "sigmoid" of each.
        mask_values: What counts of a mask is the "sigmoid" of its logits, or is "linear" in them (Panoptic SegFormer).
        resize: What semantic results bring to the target size: mask "logits" or class "scores".

    Raises:
        ValueError: An unknown task, merging or resize, or a number out of its range.
    """

    task: str
    threshold: float = 0.5
    mask_threshold: float = 0.5
    overlap_mask_area_threshold: float = 0.8
    stuff_threshold: float | None = None
    stuff_overlap_mask_area_threshold: float | None = None
    label_ids_to_fuse: Collection[int] = frozenset()
    max_instances: int | None = None
    duplicate_iou: float | None = None
    intersect_with_mask: bool = False
    merging: str = "argmax"
    class_scores: str = "softmax"
    mask_values: str = "sigmoid"
    resize: str = "logits"

    def __post_init__(self) -> None:
        for name, choices in (
            ("task", TASKS),
            ("merging", tuple(MERGINGS)),
            ("resize", RESIZES),
            ("class_scores", CLASS_SCORES),
            ("mask_values", MASK_VALUES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {getattr(self, name)!r}.")
        for name in _SHARES:
            value: Any = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if not (isinstance(value, Real) and 0 <= float(value) <= 1):
                raise ValueError(f"`{name}` must be a number from 0 to 1, got {value!r}.")
        if self.max_instances is not None and self.max_instances < 1:
            raise ValueError(f"`max_instances` must be at least 1, or None, got {self.max_instances}.")
        object.__setattr__(self, "label_ids_to_fuse", frozenset(self.label_ids_to_fuse))

    @classmethod
    def of(cls, source: Any, task: str | None = None, **given: Any) -> "ResultOptions":
        """The options of a checkpoint, changed by those that are given and not None.

        Args:
            source: The model's configuration or the image processor; both carry the facts of results.
            task: What the checkpoint was trained for if None.

        Raises:
            ValueError: An unknown option or value; the message says what there is.
        """
        names = [field.name for field in fields(cls) if field.name != "task"]
        for name in given:
            if name not in names:
                raise ValueError(f"There is no option {name!r} of results; there are {', '.join(names)}.")
        facts = facts_of(source)
        options: dict[str, Any] = {
            "task": facts["task"] if task is None else task,
            "overlap_mask_area_threshold": facts["overlap_mask_area_threshold"],
            "stuff_overlap_mask_area_threshold": facts["stuff_overlap_mask_area_threshold"],
            "label_ids_to_fuse": facts["label_ids_to_fuse"] or (),
            "duplicate_iou": facts["duplicate_iou"],
            "intersect_with_mask": facts["intersect_with_mask"],
            "class_scores": facts["class_scores"],
            "mask_values": facts["mask_values"],
        }
        if options["task"] == "panoptic":
            merging = given.get("merging") or facts["panoptic_merging"]
            options |= {"merging": merging, "threshold": facts["object_mask_threshold"]}
            if merging == facts["panoptic_merging"]:
                options["stuff_threshold"] = facts["stuff_object_mask_threshold"]
            else:
                options["threshold"] = THRESHOLDS.get(merging, options["threshold"])
        elif options["task"] == "instance":
            options["threshold"] = facts["instance_threshold"]
        return cls(**{**options, **{name: value for name, value in given.items() if value is not None}})

    def least_scores(self, labels: Tensor) -> Tensor:
        """The least score of a panoptic segment of each of these classes, float32."""
        least = torch.full(labels.shape, float(self.threshold), device=labels.device)
        if self.stuff_threshold is not None:
            stuff = torch.tensor(sorted(self.label_ids_to_fuse), dtype=labels.dtype, device=labels.device)
            least[torch.isin(labels, stuff)] = float(self.stuff_threshold)
        return least

    def least_share(self, label: int) -> float:
        """The part of its mask that a panoptic segment of this class must keep."""
        own = self.stuff_overlap_mask_area_threshold if label in self.label_ids_to_fuse else None
        return self.overlap_mask_area_threshold if own is None else own


def facts_of(source: Any) -> dict[str, Any]:
    """The facts of results that a configuration or a processor carries; defaults for those that it lacks."""
    return {name: getattr(source, name, default) for name, default in FACTS.items()}
