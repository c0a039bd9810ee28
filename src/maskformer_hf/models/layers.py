"""Small layers that more than one part is built of."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

# The pixel decoders normalise with GroupNorm(32), whatever their width.
NUM_NORM_GROUPS = 32


class ConvNorm(nn.Sequential):
    """Convolution without bias, GroupNorm and, if asked for, ReLU; keeps the map's size, or divides it by `stride`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        activation: bool,
        num_groups: int = NUM_NORM_GROUPS,
        stride: int = 1,
    ):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
            nn.GroupNorm(num_groups, out_channels),
            nn.ReLU(inplace=True) if activation else nn.Identity(),
        )


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each cell of a map (B, C, h, w)."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int, num_layers: int):
        super().__init__()
        widths = [in_features, *[hidden_features] * (num_layers - 1), out_features]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            states = F.relu(layer(states))
        return self.layers[-1](states)


def input_projection(channels: int, config: Any) -> nn.Module:
    """A 1x1 convolution to the width of the transformer decoder, where a map has another width or it is enforced."""
    if config.enforce_input_projection or channels != config.hidden_size:
        return nn.Conv2d(channels, config.hidden_size, 1)
    return nn.Identity()


def init_convolutions(module: nn.Module):
    """Initialise all convolutions below `module` as Detectron2's `c2_xavier_fill` does."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            init.kaiming_uniform_(layer.weight, a=1)
            if layer.bias is not None:
                init.zeros_(layer.bias)


def init_batch_norm(norm: Any):
    """A BatchNorm that has seen nothing."""
    init.ones_(norm.weight)
    init.zeros_(norm.bias)
    init.zeros_(norm.running_mean)
    init.ones_(norm.running_var)
    init.zeros_(norm.num_batches_tracked)


def check_norm_groups(config: Any):
    """Refuse a width of the pixel decoder that GroupNorm cannot split."""
    if config.feature_size % NUM_NORM_GROUPS:
        raise ValueError(
            f"`feature_size` must be a multiple of {NUM_NORM_GROUPS} (GroupNorm groups), got {config.feature_size}."
        )


Layer = TypeVar("Layer", bound=nn.Module)


@torch.no_grad()
def keep_rows(new: Layer, old: nn.Module, rows: Sequence[int | None]) -> Layer:
    """Make row i of every parameter and buffer of `new` row `rows[i]` of the same one of `old`.

    None leaves a row as it is. A parameter without rows, a number, is kept.
    """
    former = dict((*old.named_parameters(), *old.named_buffers()))
    for name, tensor in (*new.named_parameters(), *new.named_buffers()):
        if not tensor.dim():
            tensor.copy_(former[name])
            continue
        for row, former_row in enumerate(rows):
            if former_row is not None:
                tensor[row] = former[name][former_row]
    return new
