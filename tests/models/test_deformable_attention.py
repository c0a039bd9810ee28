"""Deformable attention: its two ways of reading maps are one, and both are the definition."""

import importlib.util
import inspect
import sys
import types

import pytest
import torch
import transformers.integrations

from maskformer_hf.models import deformable_attention
from maskformer_hf.models.deformable_attention import (
    DeformableAttention,
    GridSampling,
    plan_sampling,
    sample_bags,
)
from maskformer_hf.models.deformable_attention import sample_grids as sample_grids_by

HEADS, POINTS, WIDTH = 2, 4, 8
# Odd sizes, and maps of a single row or column, which have no neighbours.
MAPS = {
    "three maps": [(2, 3), (4, 5), (7, 9)],
    "single cells": [(1, 1), (1, 2), (3, 1)],
    "one map": [(3, 4)],
    "four maps": [(1, 2), (2, 3), (3, 5), (6, 9)],
}


def inputs(sizes, seed=0, whole=False):
    """Values of two images, positions in and around the maps (on cells if `whole`), and weights."""
    generator = torch.manual_seed(seed)
    num_cells = sum(height * width for height, width in sizes)
    columns = HEADS * len(sizes) * POINTS
    values = torch.randn(2, num_cells, WIDTH, generator=generator)
    x, y = 12 * torch.rand(2, 2, num_cells, columns, generator=generator) - 2.5
    if whole:
        x, y = x.round(), y.round()
    weights = torch.randn(2, num_cells, columns, generator=generator)
    return [part.requires_grad_() for part in (values, x, y, weights)]


def by_definition(values, x, y, weights, sizes):
    """The weighted sum of values that are interpolated between four cells, one number after the other."""
    result = torch.zeros_like(values)
    starts = [sum(height * width for height, width in sizes[:level]) for level in range(len(sizes))]
    for image, cell, column in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).tolist():
        head, level = column // (len(sizes) * POINTS), column // POINTS % len(sizes)
        height, width = sizes[level]
        channels = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        left, top = int(x[image, cell, column].floor()), int(y[image, cell, column].floor())
        for row in (top, top + 1):
            for col in (left, left + 1):
                if 0 <= row < height and 0 <= col < width:
                    share = (1 - (x[image, cell, column] - col).abs()) * (1 - (y[image, cell, column] - row).abs())
                    value = values[image, starts[level] + row * width + col, channels]
                    result[image, cell, channels] += weights[image, cell, column] * share * value
    return result


def sample_grids(*arguments):
    return sample_grids_by(*arguments, GridSampling())


def run(function, parts, sizes):
    return function(*parts, plan_sampling(sizes, HEADS, POINTS, torch.device("cpu")), HEADS)


@pytest.mark.parametrize("function", [sample_bags, sample_grids])
@pytest.mark.parametrize("maps", ["three maps", "single cells"])
def test_definition(function, maps):
    parts = inputs(MAPS[maps])
    with torch.no_grad():
        expected = by_definition(*parts, MAPS[maps])
        torch.testing.assert_close(run(function, parts, MAPS[maps]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("maps", MAPS)
def test_both_ways_have_the_same_gradients(maps):
    gradients = []
    for function in (sample_bags, sample_grids):
        parts = inputs(MAPS[maps], seed=1)
        result = run(function, parts, MAPS[maps])
        gradients.append([result.detach(), *torch.autograd.grad(result.square().sum(), parts)])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_gradients_at_whole_positions():
    """Where all points of a new model are, on their own map: the derivative is that from the right, not 0."""
    sizes = [(8, 9)]
    values, x, y, weights = inputs(sizes, seed=2, whole=True)
    slope = torch.randn(values.shape, generator=torch.manual_seed(3))
    inside = (x >= 0) & (x <= 8) & (y >= 0) & (y <= 7)
    assert inside.float().mean() > 0.3

    def gradient(x, y, of):
        result = run(sample_bags, (values, x, y, weights), sizes)
        return torch.autograd.grad((result * slope).sum(), of)[0][inside]

    # Between two cells the derivative along their axis is the same everywhere.
    right, below = ((part + 0.25).detach().requires_grad_() for part in (x, y))
    for got, expected in (
        (gradient(x, y, x), gradient(right, y, right)),
        (gradient(x, y, y), gradient(x, below, below)),
    ):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_new_heads_look_into_directions_of_their_own():
    attention = DeformableAttention(32, num_heads=8, num_levels=3, num_points=4)
    attention.init_weights()
    offsets = attention.sampling_offsets.bias.view(8, 3, 4, 2)
    assert torch.equal(offsets[:, 0], offsets[:, 2])
    distances = offsets.abs().amax(-1)[:, 0]
    torch.testing.assert_close(distances, torch.arange(1.0, 5.0).expand(8, 4))
    torch.testing.assert_close(offsets[0, 0, 2], torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(offsets[3, 0, 0], torch.tensor([-1.0, 1.0]))
    for part in (attention.sampling_offsets.weight, attention.attention_weights.weight, attention.v_proj.bias):
        assert torch.count_nonzero(part) == 0


def test_positions_of_half_precision_are_exact():
    """A bfloat16 has no number between 64 and 64.5."""
    sizes = [(1, 200)]
    torch.manual_seed(3)
    attention = DeformableAttention(WIDTH, HEADS, 1, POINTS)
    attention.init_weights()
    # All points at their cell, so that values come through unchanged.
    attention.sampling_offsets.bias.data.zero_()
    states = torch.randn(1, 200, WIDTH).bfloat16()
    plan = plan_sampling(sizes, HEADS, POINTS, torch.device("cpu"))
    half = attention.bfloat16()
    with torch.no_grad():
        got, weights = half(states, torch.zeros(200, WIDTH).bfloat16(), plan, need_weights=True)
        expected = half.o_proj(half.v_proj(states))
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)
    assert weights.shape == (1, HEADS, 200, POINTS)


def test_a_kernel_may_take_the_place_of_grid_sampling(monkeypatch):
    """As the `kernels` library does it: by the name that transformers knows one by, with its own forward, of which it
    checks the signature. It then gets what the original's CUDA extension takes."""
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    names = []
    monkeypatch.setattr(
        transformers.integrations,
        "use_kernel_forward_from_hub",
        lambda name: lambda layer: names.append((name, layer.__name__)) or layer,
    )
    spec = importlib.util.spec_from_file_location("deformable_attention", deformable_attention.__file__)
    # Dataclasses and named tuples look their module up.
    monkeypatch.setitem(sys.modules, spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules[spec.name])
    assert names == [("MultiScaleDeformableAttention", "GridSampling")]
    ours, theirs = (inspect.signature(layer.forward) for layer in (GridSampling, MultiScaleDeformableAttention))
    assert [(item.name, item.kind) for item in ours.parameters.values()] == [
        (item.name, item.kind) for item in theirs.parameters.values()
    ]

    calls = []

    def kernel(self, *arguments):
        calls.append(arguments)
        return theirs_layer(*arguments)

    theirs_layer = MultiScaleDeformableAttention()
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)  # a CPU would take the other way
    torch.manual_seed(0)
    sizes = [(2, 3), (4, 5)]
    attention = DeformableAttention(WIDTH, HEADS, len(sizes), POINTS).eval()
    attention.init_weights()
    plan = plan_sampling(sizes, HEADS, POINTS, torch.device("cpu"))
    states = torch.randn(3, 26, WIDTH)
    expected = attention(states, torch.zeros(26, WIDTH), plan)[0]
    attention.grid_sampling.forward = types.MethodType(kernel, attention.grid_sampling)
    result = attention(states, torch.zeros(26, WIDTH), plan)[0]
    torch.testing.assert_close(result, expected)
    [(value, shapes, numbers, starts, locations, weights, step)] = calls
    assert (value.shape, locations.shape) == ((3, 26, HEADS, WIDTH // HEADS), (3, 26, HEADS, 2, POINTS, 2))
    assert (shapes.tolist(), numbers, starts.tolist(), step) == ([[2, 3], [4, 5]], sizes, [0, 6], 3)
    torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(3, 26, HEADS))
    # The second cell of the first map, the first point of the first head: one cell to the right of it, on each map.
    torch.testing.assert_close(locations[0, 1, 0, :, 0], torch.tensor([[1.5 / 3 + 1 / 3, 0.25], [0.5 + 1 / 5, 0.25]]))
