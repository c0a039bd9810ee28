"""Sine position encoding of DETR (https://arxiv.org/abs/2005.12872), as MaskFormer and Mask2Former-VIS use it."""

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
    y = _encode(height, half, device, temperature).T[:, :, None].expand(half, height, width)
    x = _encode(width, half, device, temperature).T[:, None, :].expand(half, height, width)
    return torch.cat((y, x)).unsqueeze(0).to(dtype)


def clip_position_encoding(
    num_frames: int,
    height: int,
    width: int,
    channels: int,
    device: torch.device,
    dtype: torch.dtype,
    temperature: float = 10000.0,
) -> torch.Tensor:
    """Encode the position of each cell of the maps of a clip: (num_frames, channels, height, width).

    To the encoding of y and x that of time is added, which has all channels to itself and is normalised to (0, 2 pi]
    over the clip (Mask2Former-VIS, https://arxiv.org/abs/2112.10764).
    """
    z = _encode(num_frames, channels, device, temperature)
    return (sine_position_encoding(height, width, channels, device, z.dtype, temperature) + z[..., None, None]).to(
        dtype
    )


def _encode(size: int, channels: int, device: torch.device, temperature: float) -> torch.Tensor:
    """Encode the positions along one axis, (size, channels) float32."""
    index = torch.arange(channels, dtype=torch.float32, device=device)
    frequency = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / channels)
    position = torch.arange(1, size + 1, dtype=torch.float32, device=device)
    # The original has the 1e-6. It moves values by up to 1e-6 of a turn.
    phase = (position / (size + 1e-6) * (2 * math.pi))[:, None] / frequency
    return torch.stack((phase[:, 0::2].sin(), phase[:, 1::2].cos()), dim=2).flatten(1)
