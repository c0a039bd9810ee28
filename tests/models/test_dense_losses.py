"""Losses of all pixels of a few masks at a time, against the same losses of maps upsampled as a whole."""

import pytest
import torch

from maskformer_hf.models import dense_workspace
from maskformer_hf.models.at_once import AtOnce
from maskformer_hf.models.dense_losses import DenseTerms, dense_losses, plain_dense_losses
from tensors import LargestTensor


def plain_losses(logits_LMhw, targets_MHW, terms, valid_BHW=None, image_M=None):
    """Mask term and dice loss of each mask by the plain formula, with gradients of each."""
    valid_MHW = None if valid_BHW is None else valid_BHW[image_M]
    weights = ((1.0, 0.0), (0.0, 1.0))
    alone = [DenseTerms(terms.mask_term, *weight) for weight in weights]
    return [plain_dense_losses(logits_LMhw, targets_MHW, one, valid_MHW)[0] for one in alone]


def example(small, large, with_void=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, *small, generator=generator, dtype=dtype)
    valid, image = None, None
    if with_void:
        valid, image = torch.rand(2, *large, generator=generator) > 0.3, torch.tensor([0, 0, 1, 1, 1])
        valid[1, : large[0] // 2] = False
    targets = torch.rand(5, *large, generator=generator) > 0.5
    targets[2] = False
    return logits.requires_grad_(), targets, valid, image


def small_parts(monkeypatch, chunk=2**8):
    monkeypatch.setattr(dense_workspace, "PIXELS_AT_ONCE", AtOnce(chunk, chunk))
    monkeypatch.setattr(dense_workspace, "ROWS_PER_BAND", 8)
    monkeypatch.setattr(dense_workspace, "COLUMNS_PER_BAND", 16)


@pytest.mark.parametrize("with_void", [False, True])
@pytest.mark.parametrize("mask_term", ["focal", "cross_entropy"])
@pytest.mark.parametrize(
    ("small", "large"),
    [
        ((16, 24), (64, 96)),
        ((18, 23), (70, 90)),
        ((12, 9), (48, 35)),
        ((7, 9), (7, 9)),
        ((1, 3), (4, 12)),
        ((20, 20), (13, 50)),
    ],
)
def test_the_same_as_of_whole_maps(small, large, mask_term, with_void, monkeypatch):
    """Values and gradients, with factor 4, odd sizes, no upsampling and reduction."""
    small_parts(monkeypatch)
    logits, targets, valid, image = example(small, large, with_void)
    terms = DenseTerms(mask_term, 3.0, 0.5)
    weighted, *ours = dense_losses(logits, targets, terms, valid, image)
    plain = plain_losses(logits, targets, terms, valid, image)
    for actual, expected in zip(ours, plain, strict=True):
        assert not actual.requires_grad
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    expected = 3 * plain[0] + 0.5 * plain[1]
    torch.testing.assert_close(weighted, expected, rtol=1e-12, atol=1e-12)
    factors = torch.randn_like(weighted)
    gradients = [torch.autograd.grad((factors * losses).sum(), logits)[0] for losses in (weighted, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mask_term", ["focal", "cross_entropy"])
@pytest.mark.parametrize("with_void", [False, True])
def test_gradients_are_those_of_finite_differences(mask_term, with_void, monkeypatch):
    small_parts(monkeypatch)
    logits, targets, valid, image = example((3, 4), (12, 15), with_void)
    terms = DenseTerms(mask_term, 0.7, 1.3)
    assert torch.autograd.gradcheck(lambda x: dense_losses(x, targets, terms, valid, image)[0], logits)


@pytest.mark.parametrize(
    ("chunk", "at_once", "num_layers"),
    [(2**14, (1, 2), 3), (2**16, (3, 3), 3), (2**16, (3, 2), 2)],
    ids=["fewer layers last", "fewer masks last", "of two layers"],
)
@pytest.mark.parametrize("with_gradients", [True, False])
def test_the_last_part_may_be_smaller(with_gradients, chunk, at_once, num_layers, monkeypatch):
    """The last masks and layers are fewer than the others, and the rows no multiple of a band's."""
    monkeypatch.setattr(dense_workspace, "PIXELS_AT_ONCE", AtOnce(chunk, chunk))
    logits, targets, valid, image = example((18, 24), (70, 96), with_void=True)
    logits = torch.cat((logits, logits.flip(3)))[:num_layers].detach().requires_grad_(with_gradients)
    workspace = dense_workspace.make_workspace(logits, targets)
    assert (workspace.num_masks, workspace.num_layers) == at_once
    weighted, *ours = dense_losses(logits, targets, DenseTerms("focal"), valid, image)
    plain = plain_losses(logits, targets, DenseTerms("focal"), valid, image)
    for actual, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    if with_gradients:
        gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (weighted, sum(plain))]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_autocast_changes_nothing():
    logits, targets, _, _ = example((16, 16), (64, 64), dtype=torch.float32)
    expected = dense_losses(logits, targets, DenseTerms("focal"))
    with torch.autocast("cpu", torch.bfloat16):
        actual = dense_losses(logits, targets, DenseTerms("focal"))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("mask_term", ["focal", "cross_entropy"])
def test_single_precision(mask_term):
    logits, targets, _, _ = example((32, 32), (128, 128), dtype=torch.float32)
    _, *ours = dense_losses(logits, targets, DenseTerms(mask_term))
    plain = plain_losses(logits.double(), targets, DenseTerms(mask_term))
    for actual, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-7)


def test_certain_predictions():
    targets = torch.zeros(1, 8, 8, dtype=torch.bool)
    targets[:, :, :4] = True
    right = torch.where(targets, 200.0, -200.0)[None].requires_grad_()
    for logits, cross_entropy, dice in ((right, 0.0, 0.0), (-right, 200.0, 1 - 1 / 65)):
        weighted, loss, dice_of_mask = dense_losses(logits, targets, DenseTerms("cross_entropy"))
        assert loss.item() == cross_entropy
        assert dice_of_mask.item() == pytest.approx(dice, abs=1e-6)
        (gradient,) = torch.autograd.grad(weighted.sum(), right)
        assert gradient.isfinite().all()


def test_without_gradients_nothing_is_kept():
    logits, targets, _, _ = example((8, 8), (32, 32))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss, *_ = dense_losses(logits.detach(), targets, DenseTerms("focal"))
        assert not loss.requires_grad
        assert kept == []
        dense_losses(logits, targets, DenseTerms("focal"))
        assert sum(kept) == logits.numel()


def test_one_mask_at_a_time_exists_at_its_full_size(monkeypatch):
    monkeypatch.setattr(dense_workspace, "PIXELS_AT_ONCE", AtOnce(2**12, 2**12))
    logits, targets, _, _ = example((64, 64), (256, 256), dtype=torch.float32)
    with LargestTensor() as whole:
        sum(x.sum() for x in plain_losses(logits, targets, DenseTerms("focal"))).backward()
    with LargestTensor() as parts:
        dense_losses(logits, targets, DenseTerms("focal"))[0].sum().backward()
    assert whole.numel >= 2 * targets.numel()
    # Four maps of it, in one piece.
    assert parts.numel <= 4 * targets[0].numel()
