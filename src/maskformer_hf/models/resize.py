"""The one rule by which masks and maps of ids are resized.

Training data, the image processor and the matcher must agree on which pixel stands for which, or a model learns masks
that are shifted by a part of a pixel. The rule is the original's: `F.interpolate(mode="nearest")`, where pixel `i` of a
side that is resized from `length` to `new_length` takes the value of pixel `floor(i * length / new_length)`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_nearest(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes the last two dimensions to `size` (height, width) by the nearest neighbour.

    Args:
        masks: (..., H, W) of any dtype on any device. No copy as floating-point numbers is made.

    Returns:
        (..., height, width) of the same dtype; `masks` itself if it has this size already.
    """
    height, width = size
    if (height, width) == tuple(masks.shape[-2:]):
        return masks
    rows = _nearest_indices(masks.shape[-2], height, masks.device)
    columns = _nearest_indices(masks.shape[-1], width, masks.device)
    return masks[..., rows[:, None], columns]


def _nearest_indices(length: int, new_length: int, device: torch.device) -> Tensor:
    """Which of `length` pixels each of `new_length` pixels takes, (new_length,) int64.

    Read off torch itself, because its float32 product rounds below a whole number for some pairs of lengths.
    """
    positions = torch.arange(length, dtype=torch.float32, device=device)
    return F.interpolate(positions[None, None], size=new_length, mode="nearest")[0, 0].long()
