"""Values of masks at points, and the choice of the points (PointRend, https://arxiv.org/abs/1912.08193)."""

import torch
from torch.nn import functional as F


def sample_points(masks_NHW: torch.Tensor, points_NP2: torch.Tensor) -> torch.Tensor:
    """Read maps bilinearly at points: (N, P), float32.

    Args:
        masks_NHW: Boolean or floating-point maps. Boolean ones are never copied to floats as a whole.
        points_NP2: x and y in [0, 1], 0 and 1 being the outer edges of the outermost pixels. Outside of the pixel
            centres, values fade to 0, as with `grid_sample(padding_mode="zeros", align_corners=False)`.
    """
    if masks_NHW.is_floating_point():
        grid = 2 * points_NP2[:, :, None] - 1
        return F.grid_sample(masks_NHW[:, None].float(), grid, align_corners=False)[:, 0, :, 0]
    height, width = masks_NHW.shape[-2:]
    x = points_NP2[..., 0] * width - 0.5
    y = points_NP2[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    flat = masks_NHW.flatten(1)
    result = torch.zeros_like(x)
    for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            result += flat.gather(1, index) * inside * weight_x * weight_y
    return result


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
    candidates = torch.rand(num_masks, num_candidates, 2, device=device, generator=generator)
    certainty = sample_points(mask_logits_Nhw, candidates).abs()
    index = certainty.topk(num_uncertain, dim=1, largest=False).indices
    uncertain = candidates.gather(1, index[..., None].expand(-1, -1, 2))
    uniform = torch.rand(num_masks, num_points - num_uncertain, 2, device=device, generator=generator)
    return torch.cat((uncertain, uniform), dim=1)
