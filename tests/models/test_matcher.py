"""Matching of queries and targets, against formulas written out in numpy and against trying everything."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from maskformer_hf.models.at_once import AtOnce
from maskformer_hf.models.log_sigmoid import is_bounded, log_sigmoid
from maskformer_hf.models.masks import ProductMasks
from maskformer_hf.models.matcher import match
from maskformer_hf.models.resize import resize_nearest
from tensors import costs_of

WEIGHTS = {"class_weight": 1.5, "mask_weight": 20.0, "dice_weight": 2.0}


def plain_cost(class_logits, mask_logits, masks, labels) -> np.ndarray:
    """(Q, N) for one image, from the paper's formulas, one query and one target at a time, in double precision."""
    class_logits, mask_logits = (np.asarray(x, dtype=np.float64) for x in (class_logits, mask_logits))
    probability = np.exp(class_logits) / np.exp(class_logits).sum(1, keepdims=True)
    result = np.zeros((len(class_logits), len(labels)))
    for q, logits in enumerate(mask_logits):
        p = 1 / (1 + np.exp(-logits))
        for n, target in enumerate(np.asarray(masks, dtype=np.float64)):
            focal = -np.mean(0.25 * target * (1 - p) ** 2 * np.log(p) + 0.75 * (1 - target) * p**2 * np.log(1 - p))
            dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
            result[q, n] = 1.5 * -probability[q, labels[n]] + 20 * focal + 2 * dice
    return result


def predictions(layers=2, images=2, queries=5, classes=4, height=6, width=9):
    torch.manual_seed(0)
    class_logits = 2 * torch.randn(layers, images, queries, classes)
    return class_logits, 3 * torch.randn(layers, images, queries, height, width)


def targets(counts, height=6, width=9, classes=3):
    masks = [torch.rand(n, height, width) > 0.5 for n in counts]
    return masks, [torch.randint(classes, (n,)) for n in counts]


def test_costs_are_those_of_the_formulas():
    class_logits, mask_logits = predictions()
    masks, labels = targets([3, 1])
    costs = costs_of(class_logits, mask_logits, masks, labels, **WEIGHTS)
    assert costs.shape == (2, 2, 5, 3)
    for layer in range(2):
        for image, count in enumerate([3, 1]):
            expected = plain_cost(class_logits[layer, image], mask_logits[layer, image], masks[image], labels[image])
            np.testing.assert_allclose(costs[layer, image, :, :count], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask_term", ["focal", "cross_entropy"])
def test_costs_do_not_depend_on_the_parts_they_are_made_in(mask_term, monkeypatch):
    class_logits, mask_logits = predictions()
    arguments = class_logits, mask_logits, *targets([3, 1], height=24, width=36)
    void = torch.rand(2, 24, 36) < 0.3
    expected = costs_of(*arguments, **WEIGHTS, void=void, mask_term=mask_term)
    # Seven pixels at a time, of 54.
    monkeypatch.setattr("maskformer_hf.models.matcher.VALUES_AT_ONCE", AtOnce(7 * 2 * 5, 7 * 2 * 5))
    costs = costs_of(*arguments, **WEIGHTS, void=void, mask_term=mask_term)
    torch.testing.assert_close(costs, expected)


@pytest.mark.parametrize("mask_term", ["focal", "cross_entropy"])
def test_all_pixels_as_points_give_the_dense_costs(mask_term):
    class_logits, mask_logits = predictions()
    masks, labels = targets([3, 1])
    y, x = torch.meshgrid((torch.arange(6) + 0.5) / 6, (torch.arange(9) + 0.5) / 9, indexing="ij")
    points = torch.stack((x, y), dim=-1).flatten(0, 1).expand(2, 2, -1, -1)
    void = torch.rand(2, 6, 9) < 0.3
    dense, sampled = (
        costs_of(class_logits, mask_logits, masks, labels, **WEIGHTS, void=void, mask_term=mask_term, points_LBP2=p)
        for p in (None, points)
    )
    torch.testing.assert_close(sampled, dense)


def test_cross_entropy_costs_are_those_of_the_formula():
    class_logits, mask_logits = predictions(layers=1, images=1)
    masks, labels = targets([3])
    weights = {"class_weight": 0.0, "mask_weight": 1.0, "dice_weight": 0.0}
    costs = costs_of(class_logits, mask_logits, masks, labels, **weights, mask_term="cross_entropy")[0, 0]
    for q, logits in enumerate(mask_logits[0, 0]):
        for n, target in enumerate(masks[0]):
            expected = F.binary_cross_entropy_with_logits(logits.double(), target.double())
            assert costs[q, n].item() == pytest.approx(expected.item(), rel=1e-5)


def test_targets_are_reduced_to_the_nearest_pixel():
    class_logits, mask_logits = predictions(height=6, width=9)
    masks, labels = targets([2, 2], height=23, width=34)
    small = [F.interpolate(m[:, None].float(), size=(6, 9), mode="nearest")[:, 0].bool() for m in masks]
    costs = [costs_of(class_logits, mask_logits, m, labels, **WEIGHTS) for m in (masks, small)]
    assert torch.equal(*costs)


@pytest.mark.parametrize("size", [(17, 23), (64, 96), (70, 90), (101, 7)])
@pytest.mark.parametrize("small", [(4, 6), (16, 24), (18, 23), (26, 2)])
def test_nearest_pixels_are_those_of_interpolate(size, small):
    masks = torch.rand(2, *size) > 0.5
    expected = F.interpolate(masks[:, None].float(), size=small, mode="nearest")[:, 0]
    assert torch.equal(resize_nearest(masks, small).float(), expected)


def test_cost_of_certain_predictions_is_finite_and_ordered():
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    logits = torch.where(mask, 1000.0, -1000.0)
    mask_logits = torch.cat((logits, -logits), dim=1)[None]
    class_logits = torch.tensor([[[[1000.0, -1000.0], [-1000.0, 1000.0]]]])
    costs = costs_of(class_logits, mask_logits, [mask[0]], [torch.tensor([0])], **WEIGHTS)[0, 0, :, 0]
    assert costs[0].item() == pytest.approx(-1.5)
    assert costs[1].isfinite()
    assert costs[1] > 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_costs_of_half_precision_predictions_are_single_precision(dtype):
    class_logits, mask_logits = predictions()
    masks, labels = targets([3, 1])
    costs = costs_of(class_logits.to(dtype), mask_logits.to(dtype), masks, labels, **WEIGHTS)
    assert costs.dtype == torch.float32
    rounded = costs_of(class_logits.to(dtype).float(), mask_logits.to(dtype).float(), masks, labels, **WEIGHTS)
    assert torch.equal(costs, rounded)


def test_costs_are_single_precision_under_autocast():
    class_logits, mask_logits = predictions()
    masks, labels = targets([3, 1])
    expected = costs_of(class_logits, mask_logits, masks, labels, **WEIGHTS)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=True), torch.autocast("cpu", enabled=False):
        assert torch.equal(costs_of(class_logits, mask_logits, masks, labels, **WEIGHTS), expected)


def cheapest(cost: np.ndarray) -> float:
    """The cost of the best of all assignments of every query or every target, whichever are fewer."""
    cost = cost if cost.shape[0] >= cost.shape[1] else cost.T
    rows, columns = cost.shape
    return min(cost[list(order), range(columns)].sum() for order in permutations(range(rows), columns))


@pytest.mark.parametrize(("queries", "count"), [(5, 3), (4, 4), (3, 5), (6, 1), (1, 4)])
def test_no_other_assignment_is_cheaper(queries, count):
    costs = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, queries, count)).astype(np.float32))
    for layer, images in enumerate(match(costs, [count] * 3)):
        for image, (query, target) in enumerate(images):
            cost = costs[layer, image].double().numpy()
            assert len(set(query)) == len(set(target)) == len(query) == min(queries, count)
            assert list(query) == sorted(query)
            assert cost[query, target].sum() == pytest.approx(cheapest(cost))


def test_images_may_have_no_target():
    class_logits, mask_logits = predictions()
    masks, labels = targets([0, 2])
    matches = match(costs_of(class_logits, mask_logits, masks, labels, **WEIGHTS), [0, 2])
    for layer in matches:
        assert [len(query) for query, _ in layer] == [0, 2]
    masks, labels = targets([0, 0])
    matches = match(costs_of(class_logits, mask_logits, masks, labels, **WEIGHTS), [0, 0])
    assert [len(query) for layer in matches for query, _ in layer] == [0] * 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("counts", [[2, 3], [2, 0], [0, 0]])
@pytest.mark.parametrize("kind", ["classes", "masks"])
def test_predictions_that_are_not_finite_are_named(value, counts, kind):
    class_logits, _ = predictions()
    mask_embeddings = torch.randn(2, 2, 5, 8)
    (class_logits if kind == "classes" else mask_embeddings)[1, 1, 2].fill_(value)
    masks = ProductMasks(mask_embeddings, torch.randn(2, 8, 6, 9))
    costs = costs_of(class_logits, masks, *targets(counts), **WEIGHTS)
    with pytest.raises(ValueError, match=r"decoder layer 1 for image 1 of the batch are not finite"):
        match(costs, counts)


@pytest.mark.parametrize("lowest", [-79, -120])
def test_log_sigmoid_by_the_sigmoid(lowest):
    """Exact to a rounding of 1, or of itself; where the sigmoid is 0 or 1 too; in the memory that it is given."""
    x = torch.cat((torch.linspace(lowest, 120, 4801), torch.tensor([1e4, -1e4 if lowest < -80 else 0])))
    assert is_bounded(x) == (lowest > -80)
    expected = F.logsigmoid(x.double())
    for out in (None, x.clone()):
        own = x.clone() if out is None else out
        actual = log_sigmoid(own, own.sigmoid(), is_bounded(own), out=out)
        assert out is None or actual.data_ptr() == out.data_ptr()
        torch.testing.assert_close(actual.double(), expected, rtol=2e-7, atol=1.2e-7)


def test_not_a_number_is_not_bounded():
    assert not is_bounded(torch.tensor([0.0, float("nan")]))
