"""Training and evaluation of models by recipe: `train` and `evaluate_checkpoint`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation import evaluate, evaluate_checkpoint, format_table
    from .loop import train, train_model
    from .stops import DiskFullError, TrainingDivergedError

__all__ = [
    "DiskFullError",
    "TrainingDivergedError",
    "evaluate",
    "evaluate_checkpoint",
    "format_table",
    "train",
    "train_model",
]

_MODULES = {
    "DiskFullError": "stops",
    "TrainingDivergedError": "stops",
    "evaluate": "evaluation",
    "evaluate_checkpoint": "evaluation",
    "format_table": "evaluation",
    "train": "loop",
    "train_model": "loop",
}


def __getattr__(name: str) -> Any:
    # On first use: accelerate takes a second to import, which `maskformer segment` need not wait for.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
