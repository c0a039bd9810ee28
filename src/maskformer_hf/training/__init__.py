"""Training and evaluation of models by recipe: `train` and `evaluate_checkpoint`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint_evaluation import CheckpointEvaluationOptions, evaluate_checkpoint
    from .evaluation import evaluate
    from .evaluation_options import EvaluationOptions
    from .evaluation_table import format_table
    from .failures import DiskFullError, TrainingDivergedError
    from .loop import train, train_model

__all__ = [
    "CheckpointEvaluationOptions",
    "DiskFullError",
    "EvaluationOptions",
    "TrainingDivergedError",
    "evaluate",
    "evaluate_checkpoint",
    "format_table",
    "train",
    "train_model",
]

_MODULES = {
    "CheckpointEvaluationOptions": "checkpoint_evaluation",
    "DiskFullError": "failures",
    "EvaluationOptions": "evaluation_options",
    "TrainingDivergedError": "failures",
    "evaluate": "evaluation",
    "evaluate_checkpoint": "checkpoint_evaluation",
    "format_table": "evaluation_table",
    "train": "loop",
    "train_model": "loop",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, as accelerate takes a second, for which `maskformer segment` need not wait.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
