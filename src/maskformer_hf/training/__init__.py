"""Training and evaluation of models by recipe: `train` and `evaluate_checkpoint`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation import evaluate, evaluate_checkpoint, format_table
    from .loop import TrainingDivergedError, train, train_model

__all__ = ["TrainingDivergedError", "evaluate", "evaluate_checkpoint", "format_table", "train", "train_model"]

_MODULES = {
    "TrainingDivergedError": "loop",
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
