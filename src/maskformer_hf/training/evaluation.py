"""Measuring a model on a data set: streaming, so that memory does not grow with the number of images."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from ..data import (
    VOID,
    Sample,
    SegmentationDataset,
    Task,
    VideoDataset,
    as_task,
    class_map,
    open_dataset,
    videos_in,
)
from ..inference.batches import forward_batch
from ..inference.load import Model, checkpoint_path, load
from ..inference.predict import check_task, predict
from ..inference.prediction import Prediction
from ..metrics import BoundaryAP, BoundaryIoU, MaskAP, MeanIoU, PanopticQuality
from ..metrics.mask_ap import as_rles, rles_of_crops, rles_of_map
from ..models.modeling_auto import sees_clips
from .video_evaluation import evaluate_videos

# The figure that tells which of two models is the better one.
SCORE_NAMES: dict[Task, str] = {"semantic": "mean_iou", "instance": "ap", "panoptic": "pq"}
NO_CLASS = -1


def evaluate(
    model: Model,
    processor: Any,
    dataset: SegmentationDataset,
    *,
    task: Task | None = None,
    batch_size: int = 1,
    threshold: float | None = None,
    max_detections: int = 100,
    boundary: bool = False,
    per_image: bool = False,
    device: str | torch.device | None = None,
    mixed_precision: str = "no",
    processes: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> dict[str, Any]:
    """Runs the model over a data set through its image processor, as a user would; compares at each image's own size.

    Semantic: mean IoU. Instance: mask AP of the `max_detections` best instances of an image; void is treated as a crowd
    of every class. Panoptic: panoptic quality. The frames of videos (`videos_in`), unless a task is asked for: as
    videos, by `evaluate_videos`.

    Args:
        task: What is measured; what the model was trained for if None, or if the annotations cannot tell that, what
            they can. Annotations of finer tasks do for coarser ones: see `as_task`.
        threshold: Least score of what is found: of objects 0, for AP weighs them by their scores; of panoptic segments
            that of the model's configuration, if None.
        max_detections: Of an image, for AP; 100 is COCO's. Images with more objects need more.
        boundary: Also boundary IoU (semantic) or boundary AP (instance).
        per_image: Also each image's score on its own; each video's, which is its J.
        device: Where the model is; None: where its parameters are.
        mixed_precision: "bf16" or "fp16" runs the forward under autocast.
        processes: (rank, count) shares the images out; every process must call.

    Returns the figures of `MeanIoU`, `MaskAP` or `PanopticQuality`, plus `task`, `score_name` and `score` (the figure
    by which the best checkpoint is kept), `images`, `seconds` and `images_per_second`, and with `per_image` a list of
    `name`, `index` and `score` of that name. The model is put into evaluation mode, and back into the mode it was in.

    Raises ValueError where the classes of the model and of the data have other names; their order may differ.
    """
    videos = _videos_to_measure(model, dataset, task)
    device = torch.device(device) if device is not None else next(model.parameters()).device
    autocast = torch.autocast(
        device.type, torch.float16 if mixed_precision == "fp16" else torch.bfloat16, enabled=mixed_precision != "no"
    )
    if videos is not None:
        if boundary:
            raise ValueError("boundary measures are for photos; these are videos")
        with autocast:
            return evaluate_videos(
                model,
                processor,
                videos,
                match_classes(model.config, dataset, "the model", "the data"),
                threshold=threshold or 0.0,
                max_detections=max_detections,
                per_video=per_image,
                processes=processes,
                progress=progress,
            )
    task = _choose_task(task, model, dataset)
    dataset = as_task(dataset, task)
    class_ids = match_classes(model.config, dataset, "the model", "the data")
    rank, count = processes
    indices = range(rank, len(dataset), count)
    measures = _measures(task, dataset, max_detections, boundary, device)
    scores: list[dict[str, Any]] = []
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    with tqdm(total=len(indices), desc="evaluate", unit="image", disable=None if progress else True) as bar:
        for first in range(0, len(indices), batch_size):
            batch = indices[first : first + batch_size]
            samples = [dataset[index] for index in batch]
            images = [sample["image"].as_subclass(torch.Tensor) for sample in samples]
            if task == "semantic":
                predictions = _class_maps(model, processor, images, autocast, class_ids)
            else:
                with autocast:
                    found = predict(
                        model,
                        processor,
                        images,
                        task=task,
                        batch_size=batch_size,
                        threshold=0 if threshold is None and task == "instance" else threshold,
                        max_instances=max_detections,
                    )
                predictions = [_to_measure(prediction, class_ids) for prediction in found]
            for index, sample, prediction in zip(batch, samples, predictions, strict=True):
                reference = _reference(sample, task, prediction)
                arguments = (prediction, reference, index) if task == "instance" else (prediction, reference)
                if per_image:
                    alone = _measures(task, dataset, max_detections, False, device)[0]
                    alone.update(*arguments)
                    scores.append({"name": sample["name"], "index": index, "score": alone.compute()[SCORE_NAMES[task]]})
                    measures[0].merge(alone)
                for measure in measures[1 if per_image else 0 :]:
                    measure.update(*arguments)
            bar.update(len(samples))
    model.train(was_training)
    if count > 1:
        for measure in measures:
            measure.reduce()
        scores = gather_object(scores)
    seconds = time.perf_counter() - start
    figures = [measure.compute(dataset.id2label) for measure in measures]
    result: dict[str, Any] = {
        "task": task,
        "score_name": SCORE_NAMES[task],
        "score": figures[0][SCORE_NAMES[task]],
        **{name: value for part in reversed(figures) for name, value in part.items()},
        # One row a class with the figures of all measures; what several count, the first one says.
        "per_class": [
            {name: value for row in reversed(rows) for name, value in row.items()}
            for rows in zip(*(part["per_class"] for part in figures), strict=True)
        ],
        "images": len(dataset),
        "seconds": seconds,
        "images_per_second": len(dataset) / seconds,
    }
    if per_image:
        result["per_image"] = sorted(scores, key=lambda row: row["index"])
    return result


def evaluate_checkpoint(
    checkpoint: str | Path,
    data: str | Path,
    task: Task | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    json_path: str | Path | None = None,
    batch_size: int = 1,
    *,
    split: str | None = None,
    format: str = "auto",
    class_groups: Literal["supercategory"] | Mapping[str, Sequence[str]] | None = None,
    threshold: float | None = None,
    max_detections: int = 100,
    boundary: bool = False,
    worst: int = 0,
    picture: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluates a bundled name, a local folder or a Hub name on a data set of any format that `open_dataset` reads.

    Args:
        data: A folder, a COCO json, or with format "datasets" a name on the Hub.
        dtype: Of the weights and the forward, e.g. "bfloat16"; None keeps float32.
        json_path: Where to write the returned figures; NaN is written as null.
        split: What of the folder, as `open_dataset` has it; None: the folder itself.
        class_groups: See `regroup`. If None, and the data have other classes than the checkpoint, the groups and void
            classes of its training, from its training.json.
        threshold, max_detections, boundary: See `evaluate`.
        worst: How many of the worst images go into `picture`, which shows photo, annotation and prediction of each.

    Raises ValueError when the classes of the data are not those of the checkpoint.
    """
    checkpoint_path(checkpoint)
    root, part = find_data(Path(data), split, format)
    model, processor = load(checkpoint, device, dtype)
    trained = _trained_data(checkpoint)
    # Which columns the library datasets is to read, if the training data had to say it.
    options = (trained.get("options") or {}) if format.startswith("datasets") else {}
    dataset = open_dataset(root, part, format=format, class_groups=class_groups, options=options)
    known, labels = set(dataset.id2label.values()), set((model.config.id2label or {}).values())
    groups = trained.get("class_groups")
    members = {name for group in groups.values() for name in group} if isinstance(groups, dict) else set()
    if class_groups is None and trained and labels != known and members <= known:
        void = [name for name in trained.get("void_classes") or () if name in known]
        dataset = open_dataset(root, part, format=format, class_groups=groups, void_classes=void, options=options)
    if _videos_to_measure(model, dataset, task) is None:
        task = _choose_task(task, model, dataset)
    match_classes(model.config, as_task(dataset, task), f"checkpoint {checkpoint}", f"data {data}")
    result: dict[str, Any] = {"checkpoint": str(checkpoint), "data": str(data), "split": split}
    result |= evaluate(
        model,
        processor,
        dataset,
        task=task,
        batch_size=batch_size,
        threshold=threshold,
        max_detections=max_detections,
        boundary=boundary,
        per_image=worst > 0,
    )
    if worst:
        from .comparison import draw_worst

        if picture is None:
            raise ValueError("worst images need a file to be drawn to: give picture")
        score_name = "J" if result["task"] == "video" else result["score_name"]
        draw_worst(model, processor, as_task(dataset, task), result["per_image"], worst, score_name, picture)
    if json_path is not None:
        write_json(Path(json_path), result)
    return result


def _videos_to_measure(model: Model, dataset: SegmentationDataset, task: Task | None) -> VideoDataset | None:
    """None where single images are to be measured. Raises ValueError where a model of videos would have to."""
    videos = videos_in(dataset) if task is None else None
    if sees_clips(model.config) and videos is None:
        raise ValueError(
            "a model of videos is measured on videos as they are: data of format 'youtube_vis' or 'davis', without a "
            "task, class_groups and void_classes"
        )
    return videos


def match_classes(config: Any, dataset: SegmentationDataset, model_name: str, data_name: str) -> list[int]:
    """For each class of a model its id in the data; `NO_CLASS` for stuff where the data have objects only.

    Raises ValueError unless the other classes have the same names on both sides.
    """
    model_labels = [name for _, name in sorted((int(index), name) for index, name in config.id2label.items())]
    data_ids = {name: index for index, name in dataset.id2label.items()}
    expected = set(model_labels)
    if dataset.task == "instance" and not expected <= data_ids.keys():
        expected -= {model_labels[index] for index in config.label_ids_to_fuse or ()}
    lacking, unknown = sorted(expected - data_ids.keys()), sorted(data_ids.keys() - expected)
    if lacking or unknown:
        differences = [
            f"only in {whose}: {', '.join(map(repr, names[:5]))}" + (f" and {len(names) - 5} more" * (len(names) > 5))
            for whose, names in ((model_name, lacking), (data_name, unknown))
            if names
        ]
        raise ValueError(
            f"{model_name} and {data_name} have different classes ({'; '.join(differences)}): evaluate a checkpoint "
            "that was trained on these classes, or group the data's as it was trained (class_groups)"
        )
    return [data_ids.get(name, NO_CLASS) for name in model_labels]


def check_classes(model_labels: dict[int, str], data_labels: dict[int, str], model_name: str, data_name: str) -> None:
    """Raises ValueError unless both name the same classes by the same ids."""
    for index in range(max(len(model_labels), len(data_labels))):
        ours, theirs = model_labels.get(index), data_labels.get(index)
        if ours != theirs:
            raise ValueError(
                f"class {index} is {ours!r} in {model_name} and {theirs!r} in {data_name}; "
                "ids and names must agree: correct classes.txt, or evaluate a checkpoint trained on these classes"
            )


def _choose_task(task: Task | None, model: Model, dataset: SegmentationDataset) -> Task:
    if task is None:
        task = model.config.task
        if dataset.task == "semantic" or (dataset.task == "instance" and task == "panoptic"):
            # Objects annotated as instances say nothing of stuff, so a panoptic model is measured on its objects.
            task = dataset.task
    return check_task(task, model)


def find_data(path: Path, split: str | None, format: str = "auto") -> tuple[Path, str]:
    """The root and split for `open_dataset`."""
    if format == "datasets" and not path.exists():
        if split is None:
            raise ValueError(f"{path} is no folder, so it is taken for a name on the Hub; say which split of it")
        return path, split
    if path.is_file():
        if split is not None:
            raise ValueError(f"{path} is a file, which has no split {split!r}; give its folder, or no split")
        return path.parent, path.name
    if not path.is_dir():
        raise ValueError(f"there is no folder or file {str(path)!r}")
    return path, "." if split is None else split


def _trained_data(checkpoint: str | Path) -> dict[str, Any]:
    """What the recipe of a checkpoint's training says of its data; empty without a record."""
    path = Path(checkpoint_path(checkpoint)) / "training.json"
    if not path.is_file():
        return {}
    return (json.loads(path.read_text(encoding="utf-8")).get("recipe") or {}).get("data") or {}


def _measures(
    task: Task, dataset: SegmentationDataset, max_detections: int, boundary: bool, device: torch.device
) -> list[Any]:
    """What counts, the measure with the score first."""
    num_labels = len(dataset.id2label)
    if task == "semantic":
        measures: list[Any] = [MeanIoU(num_labels, ignore_index=NO_CLASS, device=device)]
        return measures + [BoundaryIoU(num_labels, ignore_index=NO_CLASS, device=device)] * boundary
    if task == "instance":
        measures = [MaskAP(num_labels, max_detections=max_detections)]
        return measures + [BoundaryAP(num_labels, max_detections=max_detections)] * boundary
    if boundary:
        raise ValueError("boundary measures are for tasks 'semantic' and 'instance', not 'panoptic'")
    return [PanopticQuality(num_labels, dataset.label_ids_to_fuse)]


def _class_maps(
    model: Model,
    processor: Any,
    images: list[torch.Tensor],
    autocast: AbstractContextManager,
    class_ids: list[int],
) -> list[torch.Tensor]:
    """The class of each pixel of each image, by the ids of the data; stays on the device where that can be."""
    maps: list[torch.Tensor] = [torch.empty(0)] * len(images)
    if getattr(processor, "tile_size", None):
        with autocast:
            maps = [part.segmentation for part in predict(model, processor, images, task="semantic")]  # pyrefly: ignore
    else:
        # More padding than its own would change an image's answer, so only images of one padded size share a batch.
        same_size: dict[torch.Size, list[tuple[int, Any]]] = {}
        for index, image in enumerate(images):
            inputs = processor(images=[image], return_tensors="pt")
            same_size.setdefault(inputs["pixel_values"].shape, []).append((index, inputs))
        with torch.inference_mode():
            for group in same_size.values():
                with autocast:
                    outputs = forward_batch(model, [inputs for _, inputs in group])
                sizes = [tuple(images[index].shape[-2:]) for index, _ in group]
                found = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
                for (index, _), map_HW in zip(group, found, strict=True):
                    maps[index] = map_HW
    if class_ids == list(range(len(class_ids))):
        return maps
    table = torch.tensor([*class_ids, NO_CLASS])
    return [table.to(map_HW.device)[map_HW] for map_HW in maps]


def _to_measure(prediction: Prediction, class_ids: list[int]) -> dict[str, Any]:
    """What `MaskAP` and `PanopticQuality` take."""
    segments = [{**segment, "label_id": class_ids[segment["label_id"]]} for segment in prediction.segments]
    if prediction.task == "panoptic":
        return {"segmentation": prediction.segmentation, "segments_info": segments}
    segments = [segment for segment in segments if segment["label_id"] != NO_CLASS]
    crops, corners = [], []
    for segment in segments:
        left, top, right, bottom = (int(side) for side in segment["box"])
        crops.append(prediction.mask(segment)[top:bottom, left:right].numpy())
        corners.append((top, left))
    return {
        "masks": rles_of_crops(crops, corners, prediction.size),
        "scores": [segment["score"] for segment in segments],
        "labels": [segment["label_id"] for segment in segments],
    }


def _reference(sample: Sample, task: Task, prediction: Any) -> Any:
    """The annotation of an image as the measure of the task takes it."""
    if task == "semantic":
        return class_map(sample, NO_CLASS)
    planes_PHW = sample["planes"].as_subclass(torch.Tensor)
    labels, is_crowd = sample["labels"].tolist(), sample["is_crowd"].tolist()
    if task == "panoptic":
        flat_HW = planes_PHW[0]
        for plane_HW in planes_PHW[1:]:
            flat_HW = torch.where(plane_HW > 0, plane_HW, flat_HW)
        present = [index for index in torch.unique(flat_HW).tolist() if index > 0]
        return {
            # Samples have -1 for void and 0 for what is no segment, panoptic quality has them the other way round.
            "segmentation": torch.where(flat_HW > 0, flat_HW, -1 - flat_HW),
            "segments_info": [
                {"id": index, "label_id": labels[index - 1], "iscrowd": is_crowd[index - 1]} for index in present
            ],
        }
    masks, kept = [], []
    for plane_HW in planes_PHW:
        rles = rles_of_map(plane_HW, len(labels))
        present = [index - 1 for index in torch.unique(plane_HW).tolist() if index > 0]
        masks += [rles[index] for index in present]
        kept += present
    reference = {"masks": masks, "labels": [labels[i] for i in kept], "is_crowd": [is_crowd[i] for i in kept]}
    void_HW = planes_PHW[0] == VOID
    if bool(void_HW.any()):
        # What is found where nothing is known is neither right nor wrong, as in a crowd.
        [void] = as_rles(void_HW[None])
        for label in sorted(set(prediction["labels"])):
            reference["masks"].append(void)
            reference["labels"].append(label)
            reference["is_crowd"].append(True)
    return reference


# Columns of the table: heading, key in `per_class`, whether it is a share.
_COLUMNS: dict[str, list[tuple[str, str, bool]]] = {
    "semantic": [("IoU", "iou", True), ("boundary IoU", "boundary_iou", True), ("accuracy", "accuracy", True)],
    "instance": [
        ("AP", "ap", True),
        ("AP50", "ap50", True),
        ("boundary AP", "boundary_ap", True),
        ("AR", "ar", True),
        ("objects", "objects", False),
    ],
    "video": [("AP", "ap", True), ("AP50", "ap50", True), ("AR", "ar", True), ("objects", "objects", False)],
    "panoptic": [
        ("PQ", "pq", True),
        ("SQ", "sq", True),
        ("RQ", "rq", True),
        ("found", "true_positives", False),
        ("missed", "false_negatives", False),
        ("false", "false_positives", False),
    ],
}


def format_table(result: dict[str, Any]) -> str:
    """The figures of `evaluate` as text, one line a class, shares in percent."""
    rows = [dict(row) for row in result["per_class"]]
    columns = [column for column in _COLUMNS[result["task"]] if column[1] in rows[0]]
    if result["task"] == "semantic":
        pixels = sum(row["pixels"] for row in rows) or 1
        columns.append(("share", "share", True))
        for row in rows:
            row["share"] = row["pixels"] / pixels
    width = max(5, *(len(row["label"]) for row in rows))
    lines = ["  ".join([f"{'class':{width}}", *(f"{heading:>6}" for heading, _, _ in columns)])]
    for row in rows:
        cells = []
        for heading, key, is_share in columns:
            value = row[key]
            text = "-" if value != value else f"{value:.1%}" if is_share else str(value)
            cells.append(f"{text:>{max(6, len(heading))}}")
        lines.append("  ".join([f"{row['label']:{width}}", *cells]))
    return "\n".join([*lines, *_summary(result)])


def _summary(result: dict[str, Any]) -> list[str]:
    """The means, as they are published: IoU as a share of 1, AP and PQ as percentages without the sign."""

    def percent(*names: str) -> list[str]:
        return [f"{100 * result[name]:.1f}" if result[name] == result[name] else "-" for name in names]

    if result["task"] == "video":
        figures = zip(("AP", "AP50", "AP75", "AR at 10"), percent("ap", "ap50", "ap75", "ar_10"), strict=True)
        return [
            f"video {', '.join(f'{name} {cell}' for name, cell in figures)}, J {percent('j')[0]}, flicker "
            f"{percent('flicker')[0]} ({result['method']}: {result['videos']} videos, {result['frames']} frames, "
            f"{result['frames_per_second']:.1f} a second)"
        ]
    speed = f"({result['images']} images, {result['images_per_second']:.1f} a second)"
    if result["task"] == "semantic":
        boundary = f", boundary IoU {result['boundary_iou']:.4f}" if "boundary_iou" in result else ""
        return [
            f"mean IoU {result['mean_iou']:.4f}, pixel accuracy {result['pixel_accuracy']:.4f}, mean accuracy "
            f"{result['mean_accuracy']:.4f}, frequency-weighted IoU {result['frequency_weighted_iou']:.4f}{boundary} "
            + speed
        ]
    if result["task"] == "panoptic":
        lines = [f"{'':8}      PQ      SQ      RQ"]
        for name, suffix in (("all", ""), ("things", "_things"), ("stuff", "_stuff")):
            cells = percent(*(f"{figure}{suffix}" for figure in ("pq", "sq", "rq")))
            lines.append(f"{name:8}" + "".join(f"{cell:>8}" for cell in cells))
        return [*lines, speed]
    lines = []
    for prefix, title in (("", "mask"), ("boundary_", "boundary")):
        if f"{prefix}ap" not in result:
            continue
        keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")
        cells = percent(*(prefix + key for key in keys))
        names = ("AP", "AP50", "AP75", "small", "medium", "large", f"AR at {result['max_detections']}")
        lines.append(f"{title} " + ", ".join(f"{name} {cell}" for name, cell in zip(names, cells, strict=True)))
    return [*lines, speed]


def write_json(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_nan_to_none(result), indent=2) + "\n", encoding="utf-8")


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and value != value else value
