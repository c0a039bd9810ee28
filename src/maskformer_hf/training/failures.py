"""Failures that end training before its last step: one message that tells the reason and how to go on."""

import errno
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from .checkpointing import numbered_folders, remove_unfinished
from .distributed import local_part

CHECKPOINT = "checkpoint-"


class TrainingDivergedError(ValueError):
    """The loss or the weights stopped being numbers; the last checkpoint on disk is from before."""


class DiskFullError(OSError):
    """The disk is full; the last checkpoint on it is whole."""


@contextmanager
def explain_failures(output_dir: Path, step: Callable[[], int], reports: bool) -> Iterator[None]:
    """Tells which checkpoint there is when training diverges, the disk is full, or Ctrl-C is pressed.

    Args:
        step: Gives the number of whole steps so far.
        reports: Whether this process reports Ctrl-C, which all processes get.

    Raises:
        TrainingDivergedError: For a FloatingPointError of the loss, of the matcher (which sees it first) or of weights.
        DiskFullError: For the errors that PyTorch, safetensors and Python raise when a disk is full.
    """
    try:
        yield
    except FloatingPointError as error:
        raise TrainingDivergedError(
            f"step {step() + 1}: {error}. Lower optimization.learning_rate or warm up longer. {_remedy(output_dir)}"
        ) from error
    except KeyboardInterrupt:
        if reports:
            tqdm.write(f"Stopped in step {step() + 1}: {_remedy(output_dir)}.", file=sys.stderr)
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        remove_unfinished(output_dir)  # half a checkpoint is useless and takes room
        free = shutil.disk_usage(output_dir).free / 2**20
        raise DiskFullError(
            f"step {step()}: the disk of {output_dir} is full ({free:.1f} MiB free without what did not fit); "
            f"make room. {_remedy(output_dir)}"
        ) from error


def is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # The message of safetensors comes from Rust. torch.save has the others, whatever keeps it from writing.
    return any(words in str(error) for words in ("os error 28", "inline_container", "iostream error"))


def check_finite(parameters: Iterable[torch.Tensor]) -> None:
    """Raises FloatingPointError if a weight is NaN or infinite. Weights show a bad update before the loss does."""
    norms = torch._foreach_norm([local_part(parameter.detach()) for parameter in parameters])
    if not bool(torch.stack(norms).isfinite().all()):
        raise FloatingPointError("weights are NaN or infinite after the update")


def _remedy(output_dir: Path) -> str:
    checkpoints = numbered_folders(output_dir, CHECKPOINT)
    if not checkpoints:
        return "No checkpoint had been written yet"
    return f"The last good checkpoint is {checkpoints[-1]}, from which the same command with --resume goes on"
