"""Points of masks: their values, and which ones are chosen."""

import pytest
import torch
from torch.nn import functional as F

from maskformer_hf.models import point_sampling
from maskformer_hf.models.at_once import AtOnce
from maskformer_hf.models.point_sampling import sample_embeddings, sample_points, uncertain_points


def pixel_centres(height: int, width: int) -> torch.Tensor:
    """(height * width, 2), x before y."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_at_pixel_centres_the_pixels_themselves(dtype):
    maps = (torch.rand(3, 5, 8) > 0.5).to(dtype)
    values = sample_points(maps, pixel_centres(5, 8).expand(3, -1, -1))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, maps.flatten(1).float())


@pytest.mark.parametrize("chunk", [1, 200, 2**20])
def test_boolean_masks_as_floating_point_ones(chunk, monkeypatch):
    """Beyond the outermost pixel centres too, where values fade to zero; whatever the number of masks at a time."""
    monkeypatch.setattr(point_sampling, "PIXELS_AT_ONCE", AtOnce(chunk, chunk))
    torch.manual_seed(0)
    masks = torch.rand(4, 13, 7) > 0.4
    points = torch.rand(4, 500, 2) * 1.2 - 0.1
    points[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    expected = F.grid_sample(masks[:, None].float(), 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]
    torch.testing.assert_close(sample_points(masks, points), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(sample_points(masks.float(), points), expected)
    shared = sample_points(masks[None].expand(2, -1, -1, -1), points[:2])
    torch.testing.assert_close(shared, sample_points(masks.float()[None].expand(2, -1, -1, -1), points[:2]))


@pytest.mark.parametrize("num_frames", [1, 3])
def test_embeddings_as_maps(num_frames):
    """At the edges and beyond too, where values fade to zero."""
    torch.manual_seed(0)
    maps = torch.randn(num_frames, 20, 13, 7)
    points = torch.rand(500, 2) * 1.4 - 0.2
    points[:5] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    values = sample_embeddings(maps, points)
    expected = sample_points(maps, points.expand(num_frames, -1, -1))
    torch.testing.assert_close(values.unflatten(0, (num_frames, 500)), expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_logits():
    logits = torch.zeros(1, 4, 4, requires_grad=True)
    sample_points(logits, torch.full((1, 1, 2), 0.5)).sum().backward()
    expected = torch.zeros(1, 4, 4)
    expected[:, 1:3, 1:3] = 0.25
    torch.testing.assert_close(logits.grad, expected)


def test_half_precision_logits_are_read_in_single_precision():
    assert sample_points(torch.ones(1, 4, 4, dtype=torch.bfloat16), torch.full((1, 1, 2), 0.5)).dtype == torch.float32


def test_the_most_uncertain_points_and_some_others():
    logits = torch.linspace(-4, 4, 64).expand(2, 64, 64).contiguous()  # zero in the middle column
    points = uncertain_points(logits, num_points=400, oversample_ratio=3.0, importance_sample_ratio=0.75)
    assert points.shape == (2, 400, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    distance = (points[..., 0] - 0.5).abs()
    # 300 of 1,200: a quarter of the width, an eighth on each side; the other 100 are anywhere. Twice that above and
    # below the outermost pixel centres, where values fade to their half.
    assert distance[:, :300].max() < 0.26
    assert distance[:, 300:].max() > 0.4


def test_the_chosen_ones_are_the_best_of_the_candidates():
    torch.manual_seed(0)
    logits = torch.randn(1, 16, 16)
    points = uncertain_points(logits, 8, 4.0, 1.0, torch.Generator().manual_seed(3))
    candidates = torch.rand(1, 32, 2, generator=torch.Generator().manual_seed(3))
    certainty = sample_points(logits, candidates).abs()
    expected = certainty.sort().values[:, :8]
    torch.testing.assert_close(sample_points(logits, points).abs().sort().values, expected)


@pytest.mark.parametrize("importance", [0.0, 1.0])
def test_extreme_shares(importance):
    assert uncertain_points(torch.randn(2, 8, 8), 10, 1.0, importance).shape == (2, 10, 2)


def test_a_generator_decides():
    logits = torch.randn(2, 8, 8)
    first, second = (uncertain_points(logits, 10, 3.0, 0.75, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, uncertain_points(logits, 10, 3.0, 0.75))
