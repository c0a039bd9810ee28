"""What the numbers of an image mean: any dtype to 8 bits, by its range.

Models are trained on photos of 8 bits, so every image becomes one: the same photo as uint8, as float of 0 to 1 or as
uint16 gives the same pixels.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What resampling adds to both ends of a range.
OVERSHOOT = 0.1


def as_8_bits(values: Any, name: str, *, may_guess: bool = True) -> Any:
    """Values of any shape and range as uint8; a uint8 array or tensor as it is.

    - bool: False is 0, True 255.
    - Whole numbers: up to 255 as they are. Beyond, up to 4095 they are taken for 12 bits, up to 65535 for 16 bits.
    - Fractions: 0 to 1, or else 0 to 255.

    What is a guess is said by a warning. Fractions are rounded; what resampling has added to both ends is cut.

    Args:
        values: A numpy array or a tensor. All values that belong together, as those of a clip, should come together.
        name: How messages call the image.
        may_guess: Whether a guess is an error.

    Raises:
        ValueError: A range that is none of these, a value that is not finite, or no numbers at all.
    """
    if values.dtype in (np.uint8, torch.uint8):
        return values
    numbers = _as_numbers(values, name)
    if numbers.numel() == 0:
        return numbers.to(torch.uint8)
    if numbers.is_floating_point() and not bool(torch.isfinite(numbers).all()):
        value = numbers[~torch.isfinite(numbers)][0].item()
        raise ValueError(f"{name} holds {value}; replace values that are not finite before.")
    low, high = (float(value) for value in numbers.aminmax())
    find_white = _white_of_fractions if numbers.is_floating_point() else _white_of_whole_numbers
    white, guess = find_white(low, high, f"{name} holds values from {low:g} to {high:g}", str(values.dtype))
    if guess and not may_guess:
        raise ValueError(f"{name} holds values up to {high:g}, which leaves open what is white: save it with 8 bits.")
    if guess:
        # Python's default filter says each of them once.
        warnings.warn(guess, stacklevel=2)
    return (numbers * (255 / white)).round_().clamp_(0, 255).to(torch.uint8)


def _as_numbers(values: Any, name: str) -> Tensor:
    """As int32, int64 or a float type that torch computes with."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{name} is an array of {values.dtype}; give uint8, uint16, float or bool.")
        if values.dtype == bool:
            values = values.astype(np.uint8) * np.int32(255)
        kind = values.dtype.kind + str(values.dtype.itemsize)
        targets = {"f2": np.float32, "f4": np.float32, "f8": np.float64, "u4": np.int64, "u8": np.int64, "i8": np.int64}
        # Also to the byte order of this machine.
        return torch.from_numpy(values.astype(targets.get(kind, np.float64 if values.dtype.kind == "f" else np.int32)))
    if values.dtype == torch.bool:
        return values.to(torch.int32) * 255
    if values.is_complex() or values.is_quantized:
        raise ValueError(f"{name} is a tensor of {values.dtype}; give uint8, uint16, float or bool.")
    if values.is_floating_point():
        return values.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
    return values.to(torch.int64 if values.dtype.itemsize >= 4 else torch.int32)


def _white_of_fractions(low: float, high: float, found: str, dtype: str) -> tuple[float, str]:
    """The value of white, and what has to be said about it."""
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        cut = low < 0 or high > 1
        return 1.0, "An image of fractions goes a little beyond 0 to 1: what is beyond is cut." if cut else ""
    if low < -OVERSHOOT and high < 10:
        raise ValueError(
            f"{found}, as if it were normalised already: give values of 0 to 1 or 0 to 255, or call the processor with "
            "do_rescale=False, do_normalize=False."
        )
    if low < -OVERSHOOT * 255 or high > (1 + OVERSHOOT) * 255:
        raise ValueError(f"{found}; fractions must be 0 to 1 or 0 to 255. Scale them first.")
    if high < 10:
        return 255.0, "An image of fractions has small values beyond 1: it is taken for a dark one of 0 to 255."
    cut = low < 0 or high > 255
    return 255.0, "An image of fractions goes a little beyond 0 to 255: what is beyond is cut." if cut else ""


def _white_of_whole_numbers(low: float, high: float, found: str, dtype: str) -> tuple[float, str]:
    if low < 0 or high > 65535:
        raise ValueError(f"{found}; whole numbers must be 0 to 255, or 0 to 65535. Scale them first.")
    has_16_bits = dtype.endswith("uint16")
    if high <= 255:
        guess = "An image of uint16 has no value above 255: it is taken for one of 8 bits. Give uint8 if it is."
        return 255.0, guess if has_16_bits and high > 0 else ""
    if high <= 4095:
        return 4095.0, "An image of 16 bits has no value above 4095: it is taken for one of 12 bits. Scale it if not."
    return 65535.0, ""
