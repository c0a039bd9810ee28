"""Values of masks at points, and the choice of the points (PointRend, https://arxiv.org/abs/1912.08193)."""

import math

import torch
from torch.nn import functional as F

from .at_once import AtOnce

# Pixels of boolean masks that are copied to floats at a time: a bound on memory.
PIXELS_AT_ONCE = AtOnce(cpu=2**20, other=2**24)


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
    grid_N1P2 = points_NP2[:, None].mul(2).sub_(1)
    if masks_NHW.is_floating_point():
        values_NC1P = F.grid_sample(masks_NCHW.float(), grid_N1P2, align_corners=False)
    else:
        values_NC1P = _sample_boolean(masks_NCHW, grid_N1P2)
    return values_NC1P.reshape(num_maps, *shared, points_NP2.shape[1])


def _sample_boolean(masks_NCHW: torch.Tensor, grid_N1P2: torch.Tensor) -> torch.Tensor:
    """`F.grid_sample` by copies of a few masks at a time: on a CPU even a copy for a single layer's points is many
    times as fast as to gather the corners of all points and to mix them."""
    num_channels, height, width = masks_NCHW.shape[1:]
    at_once = PIXELS_AT_ONCE.on(masks_NCHW.device)
    num_maps = max(1, at_once // (num_channels * height * width))
    values = []
    for maps, grid in zip(masks_NCHW.split(num_maps), grid_N1P2.split(num_maps), strict=True):
        # As bytes: a CPU makes floats of them much faster than of booleans.
        channels = maps.view(torch.uint8).split(max(1, at_once // (height * width)), dim=1)
        values.append(torch.cat([F.grid_sample(part.float(), grid, align_corners=False) for part in channels], dim=1))
    return torch.cat(values)


def sample_embeddings(pixels_TChw: torch.Tensor, points_P2: torch.Tensor) -> torch.Tensor:
    """What `sample_points` reads of all frames at the same points, (T P, C).

    On a CPU a point is a bag of four rows of channels: of hundreds of channels, and maps that are `torch.channels_last`
    in memory, twice as fast as `grid_sample`.
    """
    num_frames, num_channels, height, width = pixels_TChw.shape
    if pixels_TChw.device.type != "cpu":
        values_TCP = sample_points(pixels_TChw, points_P2.expand(num_frames, -1, -1))
        return values_TCP.transpose(1, 2).flatten(0, 1)
    size = torch.tensor([width, height])
    position_P12 = (points_P2 * size - 0.5)[:, None]
    around_42 = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    cell_P42 = position_P12.floor().long() + around_42
    weight_P4 = (1 - (position_P12 - cell_P42).abs()).prod(-1)
    weight_P4 *= ((cell_P42 >= 0) & (cell_P42 < size)).all(-1)
    cell_P42 = cell_P42.clamp(min=torch.zeros_like(size), max=size - 1)
    index_P4 = cell_P42[..., 1] * width + cell_P42[..., 0]
    frame_T11 = torch.arange(num_frames)[:, None, None]
    return F.embedding_bag(
        (frame_T11 * (height * width) + index_P4).flatten(0, 1),
        pixels_TChw.permute(0, 2, 3, 1).reshape(-1, num_channels),
        per_sample_weights=weight_P4.repeat(num_frames, 1),
        mode="sum",
    )


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
    certainty = sample_points(mask_logits_Nhw, candidates).abs_()
    # A loss is a sum over the points: their order does not matter, and sorting them costs as much as finding them.
    index = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices
    uncertain = _gather_points(candidates, index)
    uniform = uniform_points(num_masks, num_points - num_uncertain, device=device, generator=generator)
    return torch.cat((uncertain, uniform), dim=1)


def _gather_points(points_NPd: torch.Tensor, index_Np: torch.Tensor) -> torch.Tensor:
    """The points that are chosen of each mask, (N, p, d)."""
    if points_NPd.shape[-1] == 2:
        # x and y as one number of twice their size, which is gathered several times as fast as pairs are.
        pairs_NP = points_NPd.view(torch.int64)[..., 0]
        return pairs_NP.gather(1, index_Np)[..., None].view(torch.float32)
    return points_NPd.gather(1, index_Np[..., None].expand(-1, -1, points_NPd.shape[-1]))
