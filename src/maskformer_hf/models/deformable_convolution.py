"""Deformable convolution, which learns where it looks and how much each place counts (DCNv2,
https://arxiv.org/abs/1811.11168)."""

import torch
from torch.nn import functional as F

try:
    # Much less memory than without it.
    from torchvision.ops import deform_conv2d
except ImportError:
    deform_conv2d = None

# Cells that a 3x3 convolution looks at.
NUM_TAPS = 9


def deformable_convolution(
    maps_BChw: torch.Tensor,
    offsets: torch.Tensor,
    counts: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """A 3x3 convolution of maps (B, C, h, w) with this weight (O, C, 3, 3), which keeps their size and type.

    It is computed in float32, because not every device can do it with less.

    Args:
        offsets: Down and right of each of the nine taps in turn, (B, G 18, h, w), for each of G groups of channels.
        counts: How much each tap counts, (B, G 9, h, w).
    """
    dtype = maps_BChw.dtype
    with torch.autocast(maps_BChw.device.type, enabled=False):
        maps_BChw, offsets, counts, weight = (x.float() for x in (maps_BChw, offsets, counts, weight))
        bias = None if bias is None else bias.float()
        if deform_conv2d is None or torch.compiler.is_exporting():
            result = sampled_convolution(maps_BChw, offsets, counts, weight)
            result = result if bias is None else result + bias[:, None, None]
        else:
            result = deform_conv2d(maps_BChw, offsets, weight, bias, padding=(1, 1), mask=counts)
    return result.to(dtype)


def sampled_convolution(
    maps_BChw: torch.Tensor, offsets: torch.Tensor, counts: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """What `torchvision.ops.deform_conv2d` computes, by `grid_sample`, which exported files know, in more memory."""
    num_groups = counts.shape[1] // NUM_TAPS
    height, width = maps_BChw.shape[-2:]
    steps = torch.arange(-1, 2, device=maps_BChw.device)
    rows = torch.arange(height, device=maps_BChw.device)
    columns = torch.arange(width, device=maps_BChw.device)
    # X is B G.
    down_X9hw, right_X9hw = offsets.unflatten(1, (num_groups, NUM_TAPS, 2)).flatten(0, 1).unbind(2)
    y_X9hw = rows[:, None] + steps.repeat_interleave(3)[:, None, None] + down_X9hw
    x_X9hw = columns + steps.repeat(3)[:, None, None] + right_X9hw
    # From cells to the coordinates of grid_sample, in which the map reaches from -1 to 1.
    grid = torch.stack(((2 * x_X9hw + 1) / width - 1, (2 * y_X9hw + 1) / height - 1), dim=-1)
    maps_Xchw = maps_BChw.unflatten(1, (num_groups, -1)).flatten(0, 1)
    sampled = F.grid_sample(maps_Xchw, grid.flatten(1, 2), align_corners=False).unflatten(2, (NUM_TAPS, height))
    sampled_Xc9hw = sampled * counts.unflatten(1, (num_groups, NUM_TAPS)).flatten(0, 1)[:, None]
    sampled_BC9hw = sampled_Xc9hw.unflatten(0, (-1, num_groups)).flatten(1, 2)
    return torch.einsum("bckhw,ock->bohw", sampled_BC9hw, weight.flatten(2))
