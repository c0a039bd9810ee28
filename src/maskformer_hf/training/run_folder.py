"""The output folder of a run: checkpoints to go on from, the best model, and the final one."""

import json
import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from .arguments import Recipe
from .checkpointing import INCOMPLETE, begin_folder, finish_folder, keep_last, numbered_folders, remove_unfinished
from .distributed import load_checkpoint
from .failures import CHECKPOINT
from .json_files import write_json
from .model_folder import write_model
from .optimization import WeightAverage

BEST = "best-"


class Progress:
    """What a checkpoint must know besides weights and optimizer.

    Attributes:
        step: Number of whole steps.
        best_score: Of all evaluations.
        seconds: Time of training, evaluations included, without steps that were lost between two runs.
    """

    def __init__(self) -> None:
        self.step = 0
        self.best_score = -math.inf
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def check_folder(output_dir: Path, resume: bool, overwrite: bool) -> None:
    """Raises ValueError if a folder holds what a run would write, and the run neither resumes nor may overwrite it."""
    if resume or overwrite:
        return
    report = output_dir / "data.json"
    reports = [] if _is_own_report(report) else [report, output_dir / "data.png", output_dir / "data_validation.png"]
    _refuse([*_results(output_dir), *(path for path in reports if path.exists())])


def _refuse(found: list[Path]) -> None:
    if found:
        raise ValueError(
            f"{found[0].parent} already holds {found[0].name}; pass --resume to go on, --overwrite to begin anew, or "
            "choose another --output"
        )


def _results(output_dir: Path) -> list[Path]:
    """What a run has left in a folder, but for the check of the data: checkpoints first."""
    names = [f"{CHECKPOINT}*", f"{BEST}*", "model", "log.jsonl", "evaluation.json", "validation-*.png"]
    return [path for name in names for path in sorted(output_dir.glob(name), reverse=True)]


def _is_own_report(path: Path) -> bool:
    """Whether a file is the check of the data of a run, which may have stopped there to start again."""
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
        return all("most_segments" in split for split in splits)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def prepare_folder(accelerator: Accelerator, output_dir: Path, resume: bool, overwrite: bool) -> Path | None:
    """Makes the folder of a run, and goes on from its last checkpoint if there is one, which is returned.

    Raises ValueError as `check_folder` does.
    """
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        remove_unfinished(output_dir)
        for path in _results(output_dir) if overwrite and not resume else ():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    accelerator.wait_for_everyone()
    if not resume:
        _refuse(_results(output_dir))
    checkpoints = numbered_folders(output_dir, CHECKPOINT)
    if not checkpoints:
        return None
    load_checkpoint(accelerator, checkpoints[-1])
    return checkpoints[-1]


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int) -> None:
    """Every process writes its part; the main one gives the folder its name."""
    folder = output_dir / f"{CHECKPOINT}{step:06d}"
    if accelerator.is_main_process:
        begin_folder(folder)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(folder.parent / f"{INCOMPLETE}{folder.name}"))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish_folder(folder)
        keep_last(output_dir, CHECKPOINT, 2)


def save_best(model: Any, processor: Any, recipe: Recipe, step: int, record: dict[str, Any]) -> None:
    """Writes a model that is better than all before it, in place of the last such model."""
    output_dir = Path(recipe.output_dir)
    folder = output_dir / f"{BEST}{step:06d}"
    write_model(model, processor, begin_folder(folder), getattr(torch, recipe.export_dtype), record)
    finish_folder(folder)
    keep_last(output_dir, BEST, 1)


def write_evaluation(output_dir: Path, step: int, result: dict[str, Any]) -> None:
    write_json(output_dir / "evaluation.json", {"step": step, **result})


def export_model(
    accelerator: Accelerator,
    whole: Callable[[], Any],
    average: WeightAverage | None,
    processor: Any,
    recipe: Recipe,
    record: dict[str, Any],
) -> Path:
    """Writes `<output_dir>/model`, the best model or the last one, and returns that folder; call on every process.

    Args:
        whole: Gives the model in one piece; every process must call it.
        average: Of the weights, which is exported in their place.
    """
    output_dir = Path(recipe.output_dir)
    target = output_dir / "model"
    best = numbered_folders(output_dir, BEST)
    with average.applied() if average else nullcontext():
        model = whole()
        if accelerator.is_main_process:
            unfinished = begin_folder(target)
            if best and recipe.export_weights == "best":
                shutil.copytree(best[-1], unfinished, dirs_exist_ok=True)
            else:
                write_model(model, processor, unfinished, getattr(torch, recipe.export_dtype), record)
            finish_folder(target)
        accelerator.wait_for_everyone()
    return target
