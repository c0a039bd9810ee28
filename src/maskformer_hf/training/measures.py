"""The measures of each task, fed with predictions and samples of a data set.

Shapes: N segments, P planes, H W pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from ..data import VOID, Sample, SegmentationDataset, Task, class_map
from ..data.sample import flat_map
from ..inference.prediction import Prediction
from ..metrics import BoundaryAP, BoundaryIoU, MaskAP, MeanIoU, PanopticQuality
from ..metrics.run_lengths import as_rles, rles_of_crops, rles_of_map
from .classes import NO_CLASS
from .evaluation_options import EvaluationOptions

SCORE_NAMES: dict[Task, str] = {"semantic": "mean_iou", "instance": "ap", "panoptic": "pq"}
"""The figure that tells which of two models is better."""


class Measures:
    """What is measured of a task: the measure with the score, then boundary measures if they are asked for.

    Args:
        class_ids: See `match_classes`.
        options: Its `max_detections`, `boundary` and `per_image`.
        device: Where the counts of semantic measures are.
    """

    def __init__(
        self,
        task: Task,
        dataset: SegmentationDataset,
        class_ids: Sequence[int],
        options: EvaluationOptions,
        device: torch.device,
    ) -> None:
        self.task: Task = task
        self.dataset = dataset
        self.class_ids = class_ids
        self.options = options
        self.device = device
        self.main = self._main_measure()
        self.boundary = self._boundary_measure() if options.boundary else None
        self.scores: list[dict[str, Any]] = []

    def _main_measure(self) -> Any:
        num_labels = len(self.dataset.id2label)
        if self.task == "semantic":
            return MeanIoU(num_labels, ignore_index=NO_CLASS, device=self.device)
        if self.task == "instance":
            return MaskAP(num_labels, max_detections=self.options.max_detections)
        return PanopticQuality(num_labels, self.dataset.label_ids_to_fuse)

    def _boundary_measure(self) -> Any:
        num_labels = len(self.dataset.id2label)
        if self.task == "semantic":
            return BoundaryIoU(num_labels, ignore_index=NO_CLASS, device=self.device)
        if self.task == "instance":
            return BoundaryAP(num_labels, max_detections=self.options.max_detections)
        raise ValueError("boundary measures are for tasks 'semantic' and 'instance', not 'panoptic'")

    def update(self, index: int, sample: Sample, prediction: Prediction) -> None:
        """Counts image number `index` of the data set."""
        if self.task == "semantic":
            assert prediction.segmentation is not None
            found, true = class_ids_of(prediction.segmentation, self.class_ids), class_map(sample, NO_CLASS)
        elif self.task == "panoptic":
            found, true = panoptic_prediction(prediction, self.class_ids), panoptic_reference(sample)
        else:
            found = instance_prediction(prediction, self.class_ids)
            true = instance_reference(sample, found["labels"])
        # Detections of equal score are put in order by the number of their image.
        arguments = (found, true, index) if self.task == "instance" else (found, true)
        if self.options.per_image:
            alone = self._main_measure()
            alone.update(*arguments)
            score = alone.compute()[SCORE_NAMES[self.task]]
            self.scores.append({"name": sample["name"], "index": index, "score": score})
            self.main.merge(alone)
        else:
            self.main.update(*arguments)
        if self.boundary is not None:
            self.boundary.update(*arguments)

    def reduce(self) -> None:
        """Adds up what all processes have counted; call once, on every process."""
        self.main.reduce()
        if self.boundary is not None:
            self.boundary.reduce()
        self.scores = gather_object(self.scores)

    def figures(self) -> dict[str, Any]:
        """The figures of all measures, and their rows for each class joined."""
        figures = self.main.compute(self.dataset.id2label)
        if self.boundary is not None:
            boundary = self.boundary.compute(self.dataset.id2label)
            # Both count pixels or objects of each class; the main measure's are kept.
            rows = zip(boundary["per_class"], figures["per_class"], strict=True)
            figures = {**boundary, **figures, "per_class": [{**first, **second} for first, second in rows]}
        result = {"task": self.task, "score_name": SCORE_NAMES[self.task], "score": figures[SCORE_NAMES[self.task]]}
        result |= figures
        if self.options.per_image:
            result["per_image"] = sorted(self.scores, key=lambda row: row["index"])
        return result


def class_ids_of(segmentation_HW: torch.Tensor, class_ids: Sequence[int]) -> torch.Tensor:
    """A map of the model's classes in the ids of the data."""
    if list(class_ids) == list(range(len(class_ids))):
        return segmentation_HW
    # The last entry, which index -1 reaches, stands for no class.
    return torch.tensor([*class_ids, NO_CLASS], device=segmentation_HW.device)[segmentation_HW]


def panoptic_prediction(prediction: Prediction, class_ids: Sequence[int]) -> dict[str, Any]:
    """What `PanopticQuality` takes."""
    segments = [{**segment, "label_id": class_ids[segment["label_id"]]} for segment in prediction.segments]
    return {"segmentation": prediction.segmentation, "segments_info": segments}


def panoptic_reference(sample: Sample) -> dict[str, Any]:
    labels, is_crowd = sample["labels"].tolist(), sample["is_crowd"].tolist()
    flat_HW = flat_map(sample["planes"].as_subclass(torch.Tensor))
    present = [index for index in torch.unique(flat_HW).tolist() if index > 0]
    return {
        # Samples have -1 for void and 0 for no segment; panoptic quality has them the other way round.
        "segmentation": torch.where(flat_HW > 0, flat_HW, -1 - flat_HW),
        "segments_info": [
            {"id": index, "label_id": labels[index - 1], "iscrowd": is_crowd[index - 1]} for index in present
        ],
    }


def instance_prediction(prediction: Prediction, class_ids: Sequence[int]) -> dict[str, Any]:
    """What `MaskAP` takes, without objects of classes that the data do not have."""
    segments = [segment for segment in prediction.segments if class_ids[segment["label_id"]] != NO_CLASS]
    crops, corners = [], []
    for segment in segments:
        left, top, right, bottom = (int(side) for side in segment["box"])
        crops.append(prediction.mask(segment)[top:bottom, left:right].numpy())
        corners.append((top, left))
    return {
        "masks": rles_of_crops(crops, corners, prediction.size),
        "scores": [segment["score"] for segment in segments],
        "labels": [class_ids[segment["label_id"]] for segment in segments],
    }


def instance_reference(sample: Sample, predicted_labels: Sequence[int]) -> dict[str, Any]:
    """The objects of a sample, and void as a crowd of each of the predicted classes.

    What is found where nothing is known is neither right nor wrong, as in a crowd.
    """
    planes_PHW = sample["planes"].as_subclass(torch.Tensor)
    labels, is_crowd = sample["labels"].tolist(), sample["is_crowd"].tolist()
    masks, kept = [], []
    for plane_HW in planes_PHW:
        rles = rles_of_map(plane_HW, len(labels))
        present = [index - 1 for index in torch.unique(plane_HW).tolist() if index > 0]
        masks += [rles[index] for index in present]
        kept += present
    reference = {"masks": masks, "labels": [labels[i] for i in kept], "is_crowd": [is_crowd[i] for i in kept]}
    void_HW = planes_PHW[0] == VOID
    if bool(void_HW.any()):
        [void] = as_rles(void_HW[None])
        for label in sorted(set(predicted_labels)):
            reference["masks"].append(void)
            reference["labels"].append(label)
            reference["is_crowd"].append(True)
    return reference
