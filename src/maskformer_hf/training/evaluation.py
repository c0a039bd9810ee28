"""Measuring a model on a data set: streaming, so that memory does not grow with the number of images."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..data import SegmentationDataset, SemanticFolder, class_map
from ..inference import Model, forward_batch, load
from ..metrics import MeanIoU


def evaluate(
    model: Model,
    processor: Any,
    dataset: SegmentationDataset,
    *,
    task: str = "semantic",
    batch_size: int = 1,
    device: str | torch.device | None = None,
    mixed_precision: str = "no",
    processes: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> dict[str, Any]:
    """Runs the model over a data set through its image processor, as a user would; compares at each image's own size.

    Args:
        device: where the model is; None: where its parameters are.
        mixed_precision: "bf16" or "fp16" runs the forward under autocast.
        processes: (rank, count) shares the images out; every process must call.

    Returns `MeanIoU.compute`'s figures, plus `task`, `score_name` and `score` (the figure by which the best checkpoint is
    kept), `images`, `seconds` and `images_per_second`. The model is put into evaluation mode, and back into the mode
    it was in.
    """
    if task != "semantic":
        raise ValueError(f"task is {task!r}; only 'semantic' can be evaluated on a folder of class-id maps")
    device = torch.device(device) if device is not None else next(model.parameters()).device
    metric = MeanIoU(len(dataset.id2label), device=device)
    rank, count = processes
    indices = range(rank, len(dataset), count)
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    autocast = torch.autocast(
        device.type, torch.float16 if mixed_precision == "fp16" else torch.bfloat16, enabled=mixed_precision != "no"
    )
    with torch.inference_mode(), tqdm(total=len(indices), desc="evaluate", disable=None if progress else True) as bar:
        for first in range(0, len(indices), batch_size):
            samples = [dataset[index] for index in indices[first : first + batch_size]]
            # More padding than its own would change an image's answer, so only images of one padded size share a batch.
            same_size: dict[torch.Size, list[tuple[Any, torch.Tensor]]] = {}
            for sample in samples:
                inputs = processor(images=[sample["image"].as_subclass(torch.Tensor)], return_tensors="pt")
                truth_HW = class_map(sample)
                same_size.setdefault(inputs["pixel_values"].shape, []).append((inputs, truth_HW))
            for group in same_size.values():
                with autocast:
                    outputs = forward_batch(model, [inputs for inputs, _ in group])
                maps = processor.post_process_semantic_segmentation(
                    outputs, target_sizes=[tuple(truth_HW.shape) for _, truth_HW in group]
                )
                for prediction_HW, (_, truth_HW) in zip(maps, group, strict=True):
                    metric.update(prediction_HW, truth_HW)
            bar.update(len(samples))
    model.train(was_training)
    if count > 1:
        metric.reduce()
    seconds = time.perf_counter() - start
    figures = metric.compute(dataset.id2label)
    return {
        "task": task,
        "score_name": "mean_iou",
        "score": figures["mean_iou"],
        **figures,
        "images": len(dataset),
        "seconds": seconds,
        "images_per_second": len(dataset) / seconds,
    }


def evaluate_checkpoint(
    checkpoint: str | Path,
    data: str | Path,
    task: str | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    json_path: str | Path | None = None,
    batch_size: int = 1,
) -> dict[str, Any]:
    """Evaluates a bundled name, a local folder or a Hub name on a folder with `images/`, `labels/` and `classes.txt`.

    Args:
        task: None takes "semantic", the only one a folder of class-id maps can answer.
        dtype: of the weights and the forward, e.g. "bfloat16"; None keeps float32.
        json_path: where to write the returned figures; NaN is written as null.

    Raises ValueError when the classes of the data are not those of the checkpoint.
    """
    model, processor = load(checkpoint, device, dtype)
    dataset = SemanticFolder(data)
    trained: Any = model.config.id2label
    check_classes(trained, dataset.id2label, f"checkpoint {checkpoint}", f"data {data}")
    result = evaluate(model, processor, dataset, task=task or "semantic", batch_size=batch_size)
    result = {"checkpoint": str(checkpoint), "data": str(data), "task": task or "semantic", **result}
    if json_path is not None:
        write_json(Path(json_path), result)
    return result


def check_classes(model_labels: dict[int, str], data_labels: dict[int, str], model_name: str, data_name: str) -> None:
    """Raises ValueError unless both name the same classes by the same ids."""
    for index in range(max(len(model_labels), len(data_labels))):
        ours, theirs = model_labels.get(index), data_labels.get(index)
        if ours != theirs:
            raise ValueError(
                f"class {index} is {ours!r} in {model_name} and {theirs!r} in {data_name}; "
                "ids and names must agree: correct classes.txt, or evaluate a checkpoint trained on these classes"
            )


def format_table(result: dict[str, Any]) -> str:
    """The figures of `evaluate` as text, one line a class, in percent."""
    width = max(len(item["label"]) for item in result["per_class"])
    lines = [f"{'class':{width}}    IoU  accuracy  share"]
    pixels = sum(item["pixels"] for item in result["per_class"]) or 1
    for item in result["per_class"]:
        share = item["pixels"] / pixels
        lines.append(f"{item['label']:{width}}  {item['iou']:5.1%}  {item['accuracy']:8.1%}  {share:5.1%}")
    lines.append(
        f"mean IoU {result['mean_iou']:.4f}, pixel accuracy {result['pixel_accuracy']:.4f}, "
        f"mean accuracy {result['mean_accuracy']:.4f}, frequency-weighted IoU {result['frequency_weighted_iou']:.4f} "
        f"({result['images']} images, {result['images_per_second']:.1f} a second)"
    )
    return "\n".join(lines)


def write_json(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_nan_to_none(result), indent=2) + "\n", encoding="utf-8")


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and value != value else value
