"""The measures of this folder as `evaluate.Metric`: `add_batch`, `add`, `compute`, and `evaluate.combine`.

    metric = MeanIoUMetric(num_labels=3)
    metric.add_batch(predictions=maps, references=other_maps)
    metric.compute()["mean_iou"]

A metric of `evaluate` writes its inputs to a file until `compute`. These count at once and keep no image. Nothing is
loaded from the Hub.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import evaluate
import torch
from datasets import Features, Image, List, Value

from .boundary import DILATION_RATIO, BoundaryAP, BoundaryIoU
from .mask_ap import MaskAP
from .mean_iou import MeanIoU
from .panoptic_quality import PanopticQuality

_PANOPTIC_QUALITY_PAPER = "https://arxiv.org/abs/1801.00868"
_BOUNDARY_IOU_PAPER = "https://arxiv.org/abs/2103.16562"
_COCO = "https://cocodataset.org/#detection-eval"

_MAP = Image()
_SEGMENTS = {"segmentation": Image(), "segments_info": List({"id": Value("int64"), "label_id": Value("int64")})}
_MASKS = {"masks": List(Image()), "labels": List(Value("int64"))}


class StreamingMetric(evaluate.Metric):
    """An `evaluate.Metric` around a measure with `update`, `compute` and `reset`.

    Args:
        measure: Sees one prediction and one reference at a time.
        id2label: Names for `per_class`.

    With several processes call `metric.measure.reduce()` on each before `compute`, which then gives the figures of all.
    """

    def __init__(self, measure: Any, id2label: Mapping[int, str] | None = None) -> None:
        self.measure = measure
        self.id2label = id2label
        self.num_examples = 0
        super().__init__()

    def _build_data_dir(self) -> str:
        return ""  # nothing is written, so no folder is needed

    def __len__(self) -> int:
        """Images since the last `compute`."""
        return self.num_examples

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Counts one image."""
        if kwargs:
            raise ValueError(f"{sorted(kwargs)} are no inputs of {self.name}; it has a prediction and a reference")
        self.measure.update(_as_map(prediction), _as_map(reference))
        self.num_examples += 1

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Counts one image after the other; they may differ in size."""
        if kwargs:
            raise ValueError(f"{sorted(kwargs)} are no inputs of {self.name}; it has predictions and references")
        for prediction, reference in _pairs(predictions, references):
            self.add(prediction=prediction, reference=reference)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The figures over all images that were added, these included. Then it starts anew."""
        if kwargs:
            raise ValueError(f"{sorted(kwargs)} are no options of compute; they belong into {type(self).__name__}(...)")
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self.num_examples:
            raise ValueError(f"{self.name} has seen no image: call add or add_batch before compute")
        result = self.measure.compute(self.id2label)
        self.measure.reset()
        self.num_examples = 0
        return result


class MeanIoUMetric(StreamingMetric):
    """Mean IoU and accuracies of class maps: see `MeanIoU`."""

    def __init__(
        self,
        num_labels: int,
        *,
        ignore_index: int = 255,
        device: str | torch.device = "cpu",
        id2label: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(MeanIoU(num_labels, ignore_index=ignore_index, device=device), id2label)

    def _info(self) -> evaluate.MetricInfo:
        return _info(MeanIoU, "Maps (H, W) of class ids, of any integer type.", _MAP, _MAP)


class BoundaryIoUMetric(StreamingMetric):
    """Boundary IoU of class maps: see `BoundaryIoU`."""

    def __init__(
        self,
        num_labels: int,
        *,
        ignore_index: int = 255,
        dilation_ratio: float = DILATION_RATIO,
        device: str | torch.device = "cpu",
        id2label: Mapping[int, str] | None = None,
    ) -> None:
        measure = BoundaryIoU(num_labels, ignore_index=ignore_index, dilation_ratio=dilation_ratio, device=device)
        super().__init__(measure, id2label)

    def _info(self) -> evaluate.MetricInfo:
        return _info(BoundaryIoU, "Maps (H, W) of class ids, of any integer type.", _MAP, _MAP, _BOUNDARY_IOU_PAPER)


class PanopticQualityMetric(StreamingMetric):
    """Panoptic quality: see `PanopticQuality`."""

    def __init__(
        self, num_labels: int, label_ids_to_fuse: Collection[int] = (), *, id2label: Mapping[int, str] | None = None
    ) -> None:
        super().__init__(PanopticQuality(num_labels, label_ids_to_fuse), id2label)

    def _info(self) -> evaluate.MetricInfo:
        inputs = "What `post_process_panoptic_segmentation` gives for an image; references may have `iscrowd`."
        crowd = {**_SEGMENTS, "segments_info": List({**_SEGMENTS["segments_info"].feature, "iscrowd": Value("bool")})}
        return _info(PanopticQuality, inputs, _SEGMENTS, crowd, _PANOPTIC_QUALITY_PAPER)


class MaskAPMetric(StreamingMetric):
    """COCO's average precision of masks: see `MaskAP`."""

    def __init__(
        self, num_labels: int, *, max_detections: int = 100, id2label: Mapping[int, str] | None = None
    ) -> None:
        super().__init__(MaskAP(num_labels, max_detections=max_detections), id2label)

    def _info(self) -> evaluate.MetricInfo:
        return _masks_info(MaskAP, _COCO)


class BoundaryAPMetric(StreamingMetric):
    """COCO's average precision with boundary IoU: see `BoundaryAP`."""

    def __init__(
        self,
        num_labels: int,
        *,
        max_detections: int = 100,
        dilation_ratio: float = DILATION_RATIO,
        id2label: Mapping[int, str] | None = None,
    ) -> None:
        measure = BoundaryAP(num_labels, max_detections=max_detections, dilation_ratio=dilation_ratio)
        super().__init__(measure, id2label)

    def _info(self) -> evaluate.MetricInfo:
        return _masks_info(BoundaryAP, _BOUNDARY_IOU_PAPER)


def _masks_info(measure: type, reference_url: str) -> evaluate.MetricInfo:
    inputs = "Dictionaries of masks (N, H, W) or RLE, labels, and scores; references may have is_crowd and areas."
    scores = {"scores": List(Value("float64"))}
    return _info(measure, inputs, {**_MASKS, **scores}, {**_MASKS, "is_crowd": List(Value("bool"))}, reference_url)


def _info(
    measure: type, inputs: str, predictions: Any, references: Any, reference_url: str | None = None
) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=measure.__doc__ or "",
        citation="",
        inputs_description=f"\n\n{inputs}",  # appended to docstrings
        features=Features({"predictions": predictions, "references": references}),
        reference_urls=[reference_url] if reference_url else [],
    )


def _pairs(predictions: Any, references: Any) -> Iterable[tuple[Any, Any]]:
    if predictions is None or references is None:
        raise ValueError("give predictions and references, one of each for an image")
    if len(predictions) != len(references):
        raise ValueError(f"there are {len(predictions)} predictions and {len(references)} references")
    return zip(predictions, references, strict=True)


def _as_map(value: Any) -> Any:
    """Class maps as tensors; dictionaries as they are."""
    return value if isinstance(value, Mapping) else torch.as_tensor(value)
