"""Measuring a model on a data set: streaming, so that memory does not grow with the number of images."""

import time
from typing import Any

import torch
from tqdm import tqdm

from ..data import SegmentationDataset, Task, VideoDataset, as_task, videos_in
from ..inference.load import Model
from ..inference.predict import check_task, predict
from ..inference.views_of_models import in_evaluation_mode, private_view
from .classes import match_classes
from .evaluation_options import EvaluationOptions
from .kinds import kind_of
from .measures import Measures
from .video_evaluation import evaluate_videos


def evaluate(
    model: Model,
    processor: Any,
    dataset: SegmentationDataset,
    options: EvaluationOptions | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Runs the model over a data set by `predict`, as a user would, and compares at each image's own size.

    Semantic: mean IoU. Instance: mask AP of the best instances of an image; void is treated as a crowd of every class.
    Panoptic: panoptic quality. Frames of videos (`videos_in`) are measured as videos, by `evaluate_videos`, unless a
    task is asked for. The model is left as it is.

    Args:
        given: Fields of `EvaluationOptions`, in place of those in `options`.

    Returns the figures of `MeanIoU`, `MaskAP` or `PanopticQuality`, plus `task`, `score_name` and `score` (the figure
    by which the best checkpoint is kept), `images`, `seconds` and `images_per_second`, and with `per_image` a list of
    `name`, `index` and `score` of that name.

    Raises ValueError where the classes of the model and of the data have other names; their order may differ.
    """
    options = EvaluationOptions.of(options, given)
    videos = videos_to_measure(model, dataset, options.task)
    model = _evaluated(model, options.mixed_precision)
    device = torch.device(options.device) if options.device is not None else next(model.parameters()).device
    if videos is not None:
        class_ids = match_classes(model.config, dataset, "the model", "the data")
        return evaluate_videos(model, processor, videos, class_ids, options)
    task = choose_task(options.task, model, dataset)
    dataset = as_task(dataset, task)
    class_ids = match_classes(model.config, dataset, "the model", "the data")
    if options.merging is not None and task != "panoptic":
        raise ValueError(f"merging={options.merging!r} is for panoptic results, and {task} ones are measured")
    measures = Measures(task, dataset, class_ids, options, device)
    start = time.perf_counter()
    _measure_images(model, processor, dataset, measures)
    if options.processes[1] > 1:
        measures.reduce()
    seconds = time.perf_counter() - start
    return {
        **measures.figures(),
        "images": len(dataset),
        "seconds": seconds,
        "images_per_second": len(dataset) / seconds,
    }


def _measure_images(model: Model, processor: Any, dataset: SegmentationDataset, measures: Measures) -> None:
    """Feeds the measures with this process's share of the images."""
    options, task = measures.options, measures.task
    rank, count = options.processes
    indices = range(rank, len(dataset), count)
    threshold = 0.0 if options.threshold is None and task == "instance" else options.threshold
    hidden = None if options.progress else True
    with tqdm(total=len(indices), desc="evaluate", unit="image", disable=hidden) as bar:
        for first in range(0, len(indices), options.batch_size):
            batch = indices[first : first + options.batch_size]
            samples = [dataset[index] for index in batch]
            predictions = predict(
                model,
                processor,
                [sample["image"].as_subclass(torch.Tensor) for sample in samples],
                task=task,
                batch_size=options.batch_size,
                threshold=threshold,
                merging=options.merging,
                max_instances=options.max_detections,
            )
            for index, sample, prediction in zip(batch, samples, predictions, strict=True):
                measures.update(index, sample, prediction)
            bar.update(len(samples))


def _evaluated(model: Model, mixed_precision: str) -> Model:
    """The model in evaluation mode, its forward under autocast; results are made of its outputs without."""
    if mixed_precision == "no":
        return in_evaluation_mode(model)
    view = private_view(model).eval()
    dtype = torch.float16 if mixed_precision == "fp16" else torch.bfloat16
    view.forward = torch.autocast(view.device.type, dtype)(view.forward)
    return view


def videos_to_measure(model: Model, dataset: SegmentationDataset, task: Task | None) -> VideoDataset | None:
    """The videos to measure; None if single images are to be. Raises ValueError if a model of clips would have to."""
    videos = videos_in(dataset) if task is None else None
    if kind_of(model.config).needs_videos and videos is None:
        raise ValueError(
            "a model of videos is measured on videos as they are: data of format 'youtube_vis' or 'davis', without a "
            "task, class_groups and void_classes"
        )
    return videos


def choose_task(task: Task | None, model: Model, dataset: SegmentationDataset) -> Task:
    """What is measured of single images; see `EvaluationOptions.task`."""
    if task is None:
        task = model.config.task
        if dataset.task == "semantic" or (dataset.task == "instance" and task == "panoptic"):
            # Annotations of objects tell nothing about stuff, so a panoptic model is measured on its objects.
            task = dataset.task
    return check_task(task, model)
