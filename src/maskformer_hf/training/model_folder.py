"""The folder of a trained model: weights, image processor, record of the training, and model card."""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..model_card import write_model_card
from .arguments import Recipe
from .json_files import write_json


def write_model(model: nn.Module, processor: Any, folder: Path, dtype: torch.dtype, record: dict[str, Any]) -> None:
    """Saves a model and its processor, `record` as training.json, and the model card.

    Only matrices and filters are stored as `dtype`; statistics and biases are small and keep their precision.
    config.json still says float32, so `from_pretrained` restores that type.

    Args:
        record: See `training_record`.
    """
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in model.state_dict().items()
    }
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    model.save_pretrained(folder, state_dict=state)  # pyrefly: ignore[not-callable]
    processor.save_pretrained(folder)
    write_json(folder / "training.json", record)
    write_model_card(folder, name="path/to/this/folder")


@dataclass(frozen=True)
class ImageCounts:
    """How many images a model was trained and measured on.

    Attributes:
        training: None for a stream, which has no number.
        training_videos: How many videos the training images are the frames of, if they are frames.
    """

    training: int | None
    validation: int = 0
    training_videos: int | None = None


def training_record(
    recipe: Recipe,
    images: ImageCounts,
    *,
    step: int,
    evaluation: dict[str, Any] | None,
    seconds: float | None = None,
    machine: str | None = None,
    processes: int = 1,
    command: str | None = None,
) -> dict[str, Any]:
    """How a model was made: the content of training.json, which the model card repeats.

    Args:
        step: The optimizer step that the weights are from.
        evaluation: What `evaluate` returned for these weights.
        seconds: Time of the whole run so far.
        machine: What it ran on, in words.
        processes: Number of processes.
        command: The command line; None: that of this process.
    """
    program = Path(sys.argv[0])
    is_command = program.name == "maskformer" or program.parts[-2:] == ("maskformer_hf", "__main__.py")
    own_command = shlex.join([*(["maskformer"] if is_command else ["python", str(program)]), *sys.argv[1:]])
    return {
        "command": command or own_command,
        "recipe": dataclasses.asdict(recipe),
        "data": {
            "name": Path(recipe.data.root).resolve().name,
            "training": _joined(recipe.data.train),
            "training_images": images.training,
            **({"training_videos": images.training_videos} if images.training_videos else {}),
            "validation": _joined(recipe.data.validation),
            "validation_images": images.validation,
        },
        "step": step,
        "seconds": seconds and round(seconds),
        "machine": machine,
        "processes": processes,
        "versions": {name: version(name) for name in ("maskformer-hf", "torch", "transformers")},
        "evaluation": evaluation,
    }


def _joined(splits: str | list[str] | None) -> str | None:
    return " + ".join(splits) if isinstance(splits, list) else splits
