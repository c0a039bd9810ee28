"""Sine position encoding of DETR (https://arxiv.org/abs/2005.12872), as MaskFormer uses it."""

import math

import torch


def sine_position_encoding(
    height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype, temperature: float = 10000.0
) -> torch.Tensor:
    """Encode the position of each cell of a map: (1, channels, height, width).

    The first half of the channels encodes y, the second x; both are normalised to (0, 2 pi] over the whole map, padding
    included, because the original masks padding nowhere.
    """
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=device)
    frequency = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / half)

    def encode(size: int) -> torch.Tensor:
        position = torch.arange(1, size + 1, dtype=torch.float32, device=device)
        # 1e-6 is in the original, and moves its values by up to 1e-6 of a turn.
        phase = (position / (size + 1e-6) * (2 * math.pi))[:, None] / frequency
        return torch.stack((phase[:, 0::2].sin(), phase[:, 1::2].cos()), dim=2).flatten(1)  # (size, half)

    y = encode(height).T[:, :, None].expand(half, height, width)
    x = encode(width).T[:, None, :].expand(half, height, width)
    return torch.cat((y, x)).unsqueeze(0).to(dtype)
