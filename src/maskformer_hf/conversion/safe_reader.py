"""Reads checkpoints that come from elsewhere. Nothing that a file may hold is ever run."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .wording import shorten


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the state dict of an original checkpoint, without running anything that a file may hold.

    Args:
        path: `.safetensors`; or a `.pkl`, as in the model zoo, that holds numpy arrays by name, at the top or below
            `"model"`; or a `.pth`, as Detectron2 writes in training, that holds tensors in the same way.

    Raises:
        ValueError: The file is of another kind, is damaged, or asks for more than arrays and plain containers.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no complete safetensors file: {error}") from error
    if path.suffix == ".pth":
        return _read_tensors(path)
    if path.suffix != ".pkl":
        raise ValueError(f"{path} is neither `.pkl` nor `.pth` nor `.safetensors`.")
    try:
        with path.open("rb") as file:
            return _arrays_by_name(_ArrayUnpickler(file).load())
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path} is no pickle of numpy arrays by name: {error}") from error


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        # PyTorch's own list of what a file may ask for: tensors and plain containers.
        content = torch.load(path, map_location="cpu", weights_only=True)
        return _values_by_name(content, torch.Tensor)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no PyTorch file of tensors by name, or asks for more than tensors and plain containers. It was "
            "not run. If you trust the file, save its tensors as safetensors where it was made."
        ) from error
    except Exception as error:
        raise ValueError(f"{path} is no PyTorch file of tensors by name: {error}") from error


def _arrays_by_name(content: Any) -> dict[str, torch.Tensor]:
    arrays = _values_by_name(content, _Array)
    return {name: torch.from_numpy(array.to_numpy()) for name, array in arrays.items()}


def _values_by_name(content: Any, kind: type) -> dict[str, Any]:
    """What lies below `"model"`, or mmdetection's `"state_dict"`, or at the top if there is no such key."""
    state = content.get("model", content.get("state_dict", content)) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}.")
    others = [str(name) for name, value in state.items() if not isinstance(value, kind)]
    if others:
        raise ValueError(f"these are no arrays: {shorten(others)}.")
    return {str(name): value for name, value in state.items()}


class _Dtype:
    """Stands in for `numpy.dtype`, so that a file can only use what is written here, and only plain numbers."""

    def __init__(self, code: str, *_: Any):
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise ValueError(f"it holds an array of {self.dtype}, and only numbers are read.")

    def __setstate__(self, state: tuple):
        byte_order = state[1]
        if byte_order == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """Stands in for `numpy.ndarray` and collects what it consists of."""

    def __setstate__(self, state: tuple):
        _, self.shape, self.dtype, self.fortran_order, self.data = state

    def to_numpy(self) -> np.ndarray:
        array = np.frombuffer(self.data, self.dtype.dtype).reshape(self.shape, order="F" if self.fortran_order else "C")
        return array.astype(array.dtype.newbyteorder("="), order="C")


def _reconstruct(*_: Any) -> _Array:
    """What numpy calls up to protocol 4: it makes an empty array first and sets its content as state."""
    return _Array()


def _from_buffer(data: bytes | bytearray, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    """What numpy calls from protocol 5 on."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


class _ArrayUnpickler(pickle.Unpickler):
    """Finds the names in `allowed` and no others."""

    # numpy 2 renamed `numpy.core`; the released files are older.
    allowed = {  # noqa: RUF012
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise ValueError(
                f"it asks for `{module}.{name}`, which is neither an array nor a plain container. It was not run. If "
                "you trust the file, save its arrays as safetensors where it was made."
            )
        return self.allowed[module, name]
