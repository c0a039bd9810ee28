"""The one reader of a model's logits: `results_of`.

Shapes: B images, Q queries, K classes, N segments, H W pixels of the result.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .image_geometry import ImageGeometry, image_geometries, is_per_pixel, maps_of
from .instances import Instances, flatten_masks, instance_segmentation, keep_masks
from .panoptic import MERGINGS
from .probabilities import as_softmax
from .result_options import ResultOptions
from .semantic import (
    per_pixel_scores,
    per_pixel_segmentation,
    semantic_scores,
    semantic_segmentation,
    semantic_segments,
)


class Result:
    """What was found in one image. Tensors are on the device of the logits.

    Attributes:
        segmentation: (H, W). Semantic: class ids, int64. Panoptic: segment ids from 1, 0 = void, int32. None for
            instances.
        segments: One record a segment with id, label_id, score (0 to 1), area in pixels and was_fused (the label is one
            of `label_ids_to_fuse`); for instances also box (left, top, right, bottom in pixels). Semantic: the ids are
            those of the classes, the largest comes first. Panoptic: in the order of their ids. Instances: ids count
            from 1, the best score comes first.
        masks: (N, H, W) bool for instances, which may overlap, in the order of `segments`; else None.
        boxes: (N, 4) float32 for instances, likewise; else None.
    """

    def __init__(
        self,
        segments: list[dict[str, Any]] | Callable[[], list[dict[str, Any]]],
        segmentation: Tensor | None = None,
        masks: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> None:
        """`segments` may be a function: semantic scores take time, and many callers want the map alone."""
        self._segments = segments
        self.segmentation = segmentation
        self.masks = masks
        self.boxes = boxes

    @property
    def segments(self) -> list[dict[str, Any]]:
        if callable(self._segments):
            self._segments = self._segments()
        return self._segments


def results_of(
    outputs: Any, options: ResultOptions, target_sizes: Sequence[tuple[int, int]] | Tensor | None = None
) -> list[Result]:
    """What a model has found in each image of a batch.

    Args:
        outputs: Of a query model or a per-pixel model. Masks that do not exist yet (`outputs.masks`) are asked for only
            by the queries that can matter.
        target_sizes: (height, width) of each result; else that of the input without padding.

    Raises:
        ValueError: Outputs that cannot give such a result, logits that are not finite, or sizes that contradict each
            other.
    """
    return list(iterate_results(outputs, options, target_sizes))


def iterate_results(
    outputs: Any, options: ResultOptions, target_sizes: Sequence[tuple[int, int]] | Tensor | None = None
) -> Iterator[Result]:
    """`results_of`, one image at a time, so that the masks of one image can go before those of the next come."""
    _check(outputs, options.task)
    read = READERS[options.task]
    for class_logits, masks, geometry in _images_of(outputs, target_sizes):
        if options.mask_values == "linear" and geometry.image_size == geometry.padded_size:
            # Panoptic SegFormer resizes once, from the cells to the result.
            geometry = ImageGeometry(*[geometry.target_size] * 3)
        yield read(class_logits, masks, geometry, options)


def class_scores_of(
    outputs: Any, options: ResultOptions, target_sizes: Sequence[tuple[int, int]] | Tensor | None = None
) -> Iterator[Tensor]:
    """Class scores of every pixel of each image, (K, H, W) float32, of which semantic results are the argmax.

    For a query model they are sums of probabilities, for a per-pixel model its logits. They take much memory.
    """
    _check(outputs, "semantic")
    for class_logits, masks, geometry in _images_of(outputs, target_sizes):
        if class_logits is None:
            yield per_pixel_scores(masks, geometry)
        else:
            logits = as_softmax(class_logits, options.class_scores)
            yield semantic_scores(logits, masks[:], geometry, resize=options.resize)


def draw_instances(result: Result, overlap_mask_area_threshold: float | None = None) -> Result:
    """Instances with their map, better scores on top: `segmentation` (H, W) int32, 0 = void.

    With a threshold, instances are left out of which less than this part, or nothing, would be visible, as in panoptic
    merging. The masks that stay keep their storage: `result` must not be used afterwards.
    """
    assert result.masks is not None
    assert result.boxes is not None
    least_visible = None
    if overlap_mask_area_threshold is not None:
        areas = torch.tensor([segment["area"] for segment in result.segments], device=result.masks.device)
        least_visible = areas * overlap_mask_area_threshold
    segmentation, drawn = flatten_masks(result.masks, result.boxes, least_visible)
    left = [segment for segment, is_drawn in zip(result.segments, drawn.tolist(), strict=True) if is_drawn]
    segments = [{**segment, "id": index} for index, segment in enumerate(left, start=1)]
    return Result(segments, segmentation, keep_masks(result.masks, drawn), result.boxes[drawn])


def _semantic(class_logits: Tensor | None, masks: Any, geometry: ImageGeometry, options: ResultOptions) -> Result:
    mask_logits = masks[:]
    if class_logits is None:
        segmentation = per_pixel_segmentation(mask_logits, geometry)
    else:
        class_logits = as_softmax(class_logits, options.class_scores)
        segmentation = semantic_segmentation(class_logits, mask_logits, geometry, resize=options.resize)

    def segments() -> list[dict[str, Any]]:
        records = semantic_segments(class_logits, mask_logits, geometry, segmentation)
        return [{**record, "was_fused": record["label_id"] in options.label_ids_to_fuse} for record in records]

    return Result(segments, segmentation)


def _instance(class_logits: Tensor, masks: Any, geometry: ImageGeometry, options: ResultOptions) -> Result:
    instances = instance_segmentation(class_logits, masks, geometry, options)
    return Result(_records(instances), masks=instances.masks, boxes=instances.boxes)


def _panoptic(class_logits: Tensor, masks: Any, geometry: ImageGeometry, options: ResultOptions) -> Result:
    segmentation, segments = MERGINGS[options.merging].build(class_logits, masks, geometry, options)
    return Result(segments, segmentation)


# By task.
READERS: dict[str, Callable[[Any, Any, ImageGeometry, ResultOptions], Result]] = {
    "semantic": _semantic,
    "instance": _instance,
    "panoptic": _panoptic,
}


def _records(instances: Instances) -> list[dict[str, Any]]:
    rows = zip(
        instances.labels.tolist(),
        instances.scores.tolist(),
        instances.areas.tolist(),
        instances.boxes.tolist(),
        strict=True,
    )
    return [
        {"id": index, "label_id": label_id, "was_fused": False, "score": score, "area": area, "box": tuple(box)}
        for index, (label_id, score, area, box) in enumerate(rows, start=1)
    ]


def _images_of(outputs: Any, target_sizes: Any) -> Iterator[tuple[Tensor | None, Any, ImageGeometry]]:
    """Class logits of the queries (None for a per-pixel model), masks and sizes of each image."""
    maps = maps_of(outputs)
    for index, geometry in enumerate(image_geometries(outputs, target_sizes)):
        class_logits = None if is_per_pixel(outputs) else outputs.class_queries_logits[index]
        yield class_logits, maps[index], geometry


def _check(outputs: Any, task: str) -> None:
    if is_per_pixel(outputs):
        if task != "semantic":
            raise ValueError(
                "These are outputs of a per-pixel model, which knows no masks of its own: only "
                "`post_process_semantic_segmentation` can read them."
            )
    elif len(outputs.class_queries_logits) and len(maps_of(outputs)[0].shape) == 4:
        raise ValueError(
            "These are outputs of a video model: only `post_process_instance_segmentation` of "
            "`MaskFormerHfVideoProcessor` can read them."
        )
