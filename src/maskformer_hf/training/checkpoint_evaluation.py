"""Measuring a checkpoint on data on disk: opening both so that they fit, and writing down what comes out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ..data import SegmentationDataset, as_task, find_data, open_dataset
from ..inference.load import checkpoint_path, load
from ..inference.reparameterise import reparameterise
from .classes import match_classes
from .evaluation import choose_task, evaluate, videos_to_measure
from .evaluation_options import EvaluationOptions
from .json_files import write_json


@dataclass(frozen=True)
class CheckpointEvaluationOptions(EvaluationOptions):
    """`EvaluationOptions`, and which data are read and what is written.

    Attributes:
        dtype: Type of the weights and the forward, e.g. "bfloat16"; None keeps float32.
        split: The part of the folder, as `open_dataset` takes it; None: the folder itself.
        format: See `open_dataset`.
        class_groups: See `open_dataset`. If None, and the data have other classes than the checkpoint, the groups and
            void classes of its training, from its training.json.
        json_path: Where to write the figures; NaN is written as null.
        worst: How many of the worst images to draw into `picture`, with photo, annotation and prediction of each.
    """

    dtype: str | torch.dtype | None = None
    split: str | None = None
    format: str = "auto"
    class_groups: Literal["supercategory"] | Mapping[str, Sequence[str]] | None = None
    json_path: str | Path | None = None
    worst: int = 0
    picture: str | Path | None = None


def evaluate_checkpoint(
    checkpoint: str | Path,
    data: str | Path,
    options: CheckpointEvaluationOptions | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Evaluates a bundled name, a local folder or a Hub name on a data set of any format that `open_dataset` reads.

    Args:
        data: A folder, a COCO json, or with format "datasets" a name on the Hub.
        given: Fields of `CheckpointEvaluationOptions`, in place of those in `options`.

    Returns the figures of `evaluate`, and `checkpoint`, `data` and `split`.

    Raises ValueError if the classes of the data are not those of the checkpoint.
    """
    options = replace(options or CheckpointEvaluationOptions(), **given)
    if options.worst and options.picture is None:
        raise ValueError("worst images need a file to be drawn to: give picture")
    checkpoint_path(checkpoint)
    root, split = find_data(Path(data), options.split, options.format)
    model, processor = load(checkpoint, options.device, options.dtype)
    reparameterise(model)
    dataset = _open_for(model, checkpoint, root, split, options)
    task = options.task
    if videos_to_measure(model, dataset, task) is None:
        task = choose_task(task, model, dataset)
    match_classes(model.config, as_task(dataset, task), f"checkpoint {checkpoint}", f"data {data}")
    result: dict[str, Any] = {"checkpoint": str(checkpoint), "data": str(data), "split": options.split}
    # The model is where `load` has put it.
    names = [field.name for field in fields(EvaluationOptions)]
    shared = EvaluationOptions(**{name: getattr(options, name) for name in names})
    result |= evaluate(model, processor, dataset, shared, task=task, per_image=options.worst > 0, device=None)
    if options.worst:
        from .comparison import draw_worst

        assert options.picture is not None, "checked above"
        score_name = "J" if result["task"] == "video" else result["score_name"]
        found = result["per_image"]
        draw_worst(model, processor, as_task(dataset, task), found, options.worst, score_name, options.picture)
    if options.json_path is not None:
        write_json(Path(options.json_path), result)
    return result


def _open_for(
    model: Any, checkpoint: str | Path, root: Path, split: str, options: CheckpointEvaluationOptions
) -> SegmentationDataset:
    """The data set, with the classes grouped as in the checkpoint's training if only that gives its classes."""
    trained = _trained_data(checkpoint)
    # The columns that the library datasets is to read, if the training data had to name them.
    columns = (trained.get("options") or {}) if options.format.startswith("datasets") else {}
    dataset = open_dataset(root, split, format=options.format, class_groups=options.class_groups, options=columns)
    known, labels = set(dataset.id2label.values()), set((model.config.id2label or {}).values())
    groups = trained.get("class_groups")
    members = {name for group in groups.values() for name in group} if isinstance(groups, dict) else set()
    if options.class_groups is None and trained and labels != known and members <= known:
        void = [name for name in trained.get("void_classes") or () if name in known]
        return open_dataset(root, split, format=options.format, class_groups=groups, void_classes=void, options=columns)
    return dataset


def _trained_data(checkpoint: str | Path) -> dict[str, Any]:
    """The section `data` of the recipe that a checkpoint was trained by; empty without a training.json."""
    path = Path(checkpoint_path(checkpoint)) / "training.json"
    if not path.is_file():
        return {}
    return (json.loads(path.read_text(encoding="utf-8")).get("recipe") or {}).get("data") or {}
