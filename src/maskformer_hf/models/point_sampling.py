"""Values of masks at points, and the choice of the points (PointRend, https://arxiv.org/abs/1912.08193)."""

import math

import torch
from torch.nn import functional as F


def uniform_points(*size: int, device: torch.device, generator: torch.Generator | None = None) -> torch.Tensor:
    """Random points (*size, 2), x and y in [0, 1)."""
    return torch.rand(*size, 2, device=device, generator=generator)


def sample_points(masks_NHW: torch.Tensor, points_NP2: torch.Tensor) -> torch.Tensor:
    """Read maps bilinearly at points: (N, P), float32; of maps (N, ..., H, W), (N, ..., P).

    Args:
        masks_NHW: Boolean or floating-point maps. Boolean ones are never copied to floats as a whole. Dimensions
            between N and H, such as queries or frames, share the points of their N.
        points_NP2: x and y in [0, 1], 0 and 1 being the outer edges of the outermost pixels. Outside of the pixel
            centres, values fade to 0, as with `grid_sample(padding_mode="zeros", align_corners=False)`.
    """
    num_maps, *shared, height, width = masks_NHW.shape
    masks_NCHW = masks_NHW.reshape(num_maps, math.prod(shared), height, width)
    if masks_NHW.is_floating_point():
        grid = 2 * points_NP2[:, None] - 1
        values_NCP = F.grid_sample(masks_NCHW.float(), grid, align_corners=False)[:, :, 0]
    else:
        values_NCP = _sample_boolean(masks_NCHW, points_NP2)
    return values_NCP.reshape(num_maps, *shared, points_NP2.shape[1])


def _sample_boolean(masks_NCHW: torch.Tensor, points_NP2: torch.Tensor) -> torch.Tensor:
    num_channels, height, width = masks_NCHW.shape[1:]
    x = points_NP2[..., 0] * width - 0.5
    y = points_NP2[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    flat_NCX = masks_NCHW.flatten(2)
    values_NCP = x.new_zeros(len(x), num_channels, x.shape[1])
    for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            corner_NCP = flat_NCX.gather(2, index[:, None].expand(-1, num_channels, -1))
            values_NCP += corner_NCP * (inside * weight_x * weight_y)[:, None]
    return values_NCP


@torch.no_grad()
def uncertain_points(
    mask_logits_Nhw: torch.Tensor,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Choose points (N, P, 2) for each mask: the ones whose logits are nearest to 0 out of many, the rest at random."""
    num_masks, device = len(mask_logits_Nhw), mask_logits_Nhw.device
    num_candidates = int(num_points * oversample_ratio)
    num_uncertain = int(num_points * importance_sample_ratio)
    candidates = uniform_points(num_masks, num_candidates, device=device, generator=generator)
    certainty = sample_points(mask_logits_Nhw, candidates).abs()
    # A loss is a sum over the points: their order does not matter, and sorting them costs as much as finding them.
    index = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices
    uncertain = candidates.gather(1, index[..., None].expand(-1, -1, 2))
    uniform = uniform_points(num_masks, num_points - num_uncertain, device=device, generator=generator)
    return torch.cat((uncertain, uniform), dim=1)
