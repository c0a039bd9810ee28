"""Layers of backbones that branch on sizes, in a form without branches, so that a graph works for any size."""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@contextmanager
def for_any_size(model: nn.Module) -> Iterator[None]:
    """Within it, some layers of backbones compute the same results without branches on sizes.

    A branch on a size would be baked into the graph, as it was taken for the example.
    """
    patched: list[tuple[nn.Module, str]] = []
    configs: dict[int, Any] = {}
    for module in model.modules():
        if type(module).__name__ == "SwinAttention":
            configs[id(module.config)] = module.config
    implementations = [config._attn_implementation for config in configs.values()]
    for config in configs.values():
        # The ONNX exporter decomposes fused attention, and the result then has other strides than the program recorded.
        config._attn_implementation = "eager"
    for module in model.modules():
        method = _METHODS.get(type(module).__name__)
        if method is not None:
            name, function = method
            setattr(module, name, types.MethodType(function, module))
            patched.append((module, name))
    try:
        yield
    finally:
        for module, name in patched:
            delattr(module, name)
        for config, implementation in zip(configs.values(), implementations, strict=True):
            config._attn_implementation = implementation


def _round_up(length: int, divisor: int) -> int:
    return (length + divisor - 1) // divisor * divisor


def _remainder(numbers: torch.Tensor, divisor: int) -> torch.Tensor:
    """`numbers % divisor` for numbers from 0 on; the ONNX exporter cannot divide by a size with `%`."""
    return numbers - numbers // divisor * divisor


def conv_same(self: Any, x: torch.Tensor) -> torch.Tensor:
    """The forward of timm's Conv2dSame, which pads as TensorFlow does: ceil(length / stride) outputs, and where the
    padding is odd the larger half on the right and below."""
    padding: list[int] = []
    for axis in (1, 0):
        length, stride = x.shape[axis + 2], self.stride[axis]
        span = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
        # Kernels that are smaller than their stride are 1x1 and need no padding.
        total = (length + stride - 1) // stride * stride - stride + span - length if span >= stride else 0
        padding += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _pad_to_patches(self: Any, pixel_values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    patch_height, patch_width = self.patch_size
    return F.pad(pixel_values, (0, _round_up(width, patch_width) - width, 0, _round_up(height, patch_height) - height))


def _pad_to_even(self: Any, input_feature: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.pad(input_feature, (0, 0, 0, _round_up(width, 2) - width, 0, _round_up(height, 2) - height))


class _ShiftedWindows:
    """Where the cells of a map go when it is padded, shifted cyclically and cut into windows, and the way back.

    All indices lie on one axis, the images of a batch too, and this axis never has length 1: where an image has a
    single row, column or window, torch.export treats reshapes and broadcasts as special cases of that size.

    Attributes:
        row, column: Of each cell of the padded and shifted map, (cells of all images), in the order of windows.
        image: The image of the batch that it belongs to.
    """

    def __init__(self, batch_size: int, size: tuple[int, int], layer: Any, device: torch.device):
        self.batch_size, (self.height, self.width) = batch_size, size
        self.window, self.shift, self.device = layer.window_size, layer.shift_size, device
        self.area = self.window * self.window
        self.padded_height, self.padded_width = (_round_up(length, self.window) for length in size)
        self.columns = self.padded_width // self.window
        index = torch.arange(batch_size * self.padded_height * self.padded_width, device=device)
        number, cell = index // self.area, index % self.area
        row = number // self.columns * self.window + cell // self.window
        self.image, self.row = row // self.padded_height, _remainder(row, self.padded_height)
        self.column = _remainder(number, self.columns) * self.window + cell % self.window

    def sources(self) -> torch.Tensor:
        """For each cell in a window, its index in maps that have one cell of zeros behind their last, for padding."""
        num_cells = self.height * self.width
        row = _remainder(self.row + self.shift, self.padded_height)
        column = _remainder(self.column + self.shift, self.padded_width)
        is_inside = (row < self.height) & (column < self.width)
        return torch.where(is_inside, row * self.width + column, num_cells) + self.image * (num_cells + 1)

    def mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Added to attention, (windows, area, area): cells that the shift brought together do not see each other."""
        if self.shift == 0:
            return None
        region = 3 * self._part(self.row, self.padded_height) + self._part(self.column, self.padded_width)
        region = region.view(-1, self.area)
        return torch.where(region.unsqueeze(1) == region.unsqueeze(2), 0.0, -100.0).to(dtype)

    def _part(self, place: torch.Tensor, length: int) -> torch.Tensor:
        """0 before the last window, 1 in it, 2 where it holds what came around from the other side."""
        return (place >= length - self.window).long() + (place >= length - self.shift).long()

    def targets(self) -> torch.Tensor:
        """For each cell of the maps, its index among the cells in windows."""
        index = torch.arange(self.batch_size * self.height * self.width, device=self.device)
        row, column = index // self.width, _remainder(index, self.width)
        image, row = row // self.height, _remainder(row, self.height)
        row = _remainder(row + self.padded_height - self.shift, self.padded_height)
        column = _remainder(column + self.padded_width - self.shift, self.padded_width)
        number = (image * (self.padded_height // self.window) + row // self.window) * self.columns
        number = number + column // self.window
        return number * self.area + row % self.window * self.window + column % self.window


def _swin_layer(
    self: Any, hidden_states: torch.Tensor, input_dimensions: tuple[int, int], *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, Any]:
    """SwinLayer's forward. Padding, cyclic shift and cutting into windows are one gather, and so is the way back."""
    batch_size, num_cells, channels = hidden_states.shape
    windows = _ShiftedWindows(batch_size, input_dimensions, self, hidden_states.device)
    padded = F.pad(self.layernorm_before(hidden_states), (0, 0, 0, 1)).view(-1, channels)
    cells = padded.index_select(0, windows.sources()).view(-1, windows.area, channels)
    attended, weights = self.attention(cells, windows.mask(hidden_states.dtype), **kwargs)
    attended = attended.reshape(-1, channels).index_select(0, windows.targets())
    hidden_states = hidden_states + attended.view(batch_size, num_cells, channels)
    return hidden_states + self.mlp(self.layernorm_after(hidden_states)), weights


# By the name of a class: the method to replace, and what replaces it.
_METHODS = {
    "Conv2dSame": ("forward", conv_same),
    "SwinPatchEmbeddings": ("maybe_pad", _pad_to_patches),
    "SwinPatchMerging": ("maybe_pad", _pad_to_even),
    "SwinLayer": ("forward", _swin_layer),
}
