"""The boundary loss and its distances, equal to those of the paper's code; and as a term of a model's loss."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from builders import random_model, tiny_config
from maskformer_hf.data.collate import Collator
from maskformer_hf.models.assembly import target_maps_of
from maskformer_hf.models.boundary_loss import BoundaryLoss, signed_distance
from maskformer_hf.models.loss_terms import Pixels

FOLDER = Path(__file__).parent.parent / "fixtures" / "golden"
NUMBERS = load_file(FOLDER / "boundary_loss.safetensors")
RECORD = json.loads((FOLDER / "boundary_loss.json").read_text())
# A class that is everywhere has no outline. The original measures to a pixel beyond the corner.
EVERYWHERE = {"2d_full_class": 1}


def loss_of_masks(logits_NX, distances, **fields) -> torch.Tensor:
    maps = {"signed_distance": distances.flatten(1)}
    return BoundaryLoss()(Pixels(logits_NX.flatten(1), distances.flatten(1) < 0, maps=maps, **fields))


@pytest.mark.parametrize("case", RECORD["cases"])
def test_distances_and_losses_are_the_original_ones(case):
    labels, probs, expected = (NUMBERS[f"{case}.{name}"] for name in ("labels", "probs", "dist"))
    masks = labels == torch.arange(len(expected)).view(-1, *[1] * labels.dim())
    distances = signed_distance(masks)
    everywhere = EVERYWHERE.get(case)
    for label, (got, distance) in enumerate(zip(distances, expected, strict=True)):
        if label == everywhere:
            assert masks[label].all()
            assert got.count_nonzero() == 0
        else:
            torch.testing.assert_close(got, distance, rtol=0, atol=1e-6)
    losses = loss_of_masks(probs[0].double().logit(), distances.double())
    for classes, value in RECORD["cases"][case]["classes"].items():
        chosen = [int(label) for label in classes.split(",")]
        if everywhere not in chosen:
            assert losses[chosen].mean().item() == pytest.approx(value, rel=1e-5)


def test_binary_masks_and_their_gradient():
    logits, targets, expected, gradient = (
        NUMBERS[f"binary_masks.{name}"] for name in ("logits", "targets", "dist", "grad_of_sum")
    )
    distances = signed_distance(targets.bool())
    torch.testing.assert_close(distances, expected, rtol=0, atol=1e-6)
    logits.requires_grad_()
    losses = loss_of_masks(logits, distances)
    torch.testing.assert_close(losses, torch.tensor(RECORD["per_mask"]), rtol=1e-5, atol=1e-6)
    losses.sum().backward()
    torch.testing.assert_close(logits.grad, gradient, rtol=1e-5, atol=1e-8)


def test_a_square():
    """Outside the distance to it, inside one less than that to the outside; no mask does better than the square."""
    mask = torch.zeros(1, 11, 11, dtype=torch.bool)
    mask[0, 3:8, 3:8] = True
    distance = signed_distance(mask)
    assert distance[0, 5].tolist() == [3, 2, 1, 0, -1, -2, -1, 0, 1, 2, 3]
    assert distance[0, 0, 0].item() == pytest.approx(18**0.5)
    best = loss_of_masks((mask.double() - 0.5) * 100, distance.double())
    assert best.item() == pytest.approx(distance.clamp(max=0).mean().item())
    others = torch.rand(50, 11, 11, generator=torch.manual_seed(0)).double() - 0.5
    assert (loss_of_masks(100 * others, distance.double().expand(50, -1, -1)) > best).all()


def test_it_grows_over_training():
    logits, distances = torch.zeros(1, 4), torch.ones(1, 4)
    values = [loss_of_masks(logits, distances, progress=progress).item() for progress in (0.0, 0.5, 1.0)]
    assert values == pytest.approx([0.005, 0.2525, 0.5])


def test_pixels_that_do_not_count():
    valid = torch.tensor([[True, True, False, False]])
    distances = torch.tensor([[1.0, 2, 100, 100]])
    assert loss_of_masks(torch.zeros(1, 4), distances, valid=valid).item() == pytest.approx(0.75)


@pytest.mark.parametrize("kind", ["maskformer", "mask2former"])
def test_a_model_learns_by_it(kind):
    model = random_model(tiny_config(kind, loss_terms={"boundary": 0.5}, dropout=0.0)).train()
    images = torch.randn(2, 3, 64, 96, generator=torch.manual_seed(1))
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, :32] = masks[1, :, 40:] = True
    targets = {"mask_labels": [masks, masks[:0]], "class_labels": [torch.tensor([2, 0]), torch.tensor([]).long()]}
    with pytest.raises(ValueError, match=r"The loss needs `target_maps` \['signed_distance'\]"):
        model(images, **targets)
    maps = {
        name: [make(part) for part in targets["mask_labels"]] for name, make in target_maps_of(model.config).items()
    }
    outputs = model(images, **targets, target_maps=maps)
    weights = {"loss_ce": model.config.class_weight, "loss_mask": model.config.mask_weight}
    weights |= {"loss_dice": model.config.dice_weight, "loss_boundary": 0.5}
    assert {name for name in outputs.loss_dict if not name[-1].isdigit()} == weights.keys()
    total = sum(weights[name.rstrip("_0123456789")] * value for name, value in outputs.loss_dict.items())
    torch.testing.assert_close(outputs.loss, total)
    outputs.loss.backward()
    model.training_progress = 0.0
    start = model(images, **targets, target_maps=maps).loss_dict
    if kind == "maskformer":  # without random points
        assert start["loss_boundary"].item() == pytest.approx(
            0.01 * outputs.loss_dict["loss_boundary"].item(), rel=1e-4
        )


def test_the_collator_makes_the_distances():
    config = tiny_config(loss_terms={"boundary": 1.0})
    collate = Collator([0.5] * 3, [0.5] * 3, size=(32, 32), target_maps=target_maps_of(config))
    planes = torch.zeros(1, 20, 24, dtype=torch.int32)
    planes[0, 4:9, 5:14] = 1
    sample = {
        "image": torch.zeros(3, 20, 24, dtype=torch.uint8),
        "planes": planes,
        "labels": torch.tensor([1]),
        "is_crowd": torch.tensor([False]),
    }
    batch = collate([sample])
    [masks], [distances] = batch["mask_labels"], batch["target_maps"]["signed_distance"]
    assert masks.shape == distances.shape == (1, 32, 32)
    assert torch.equal(distances, signed_distance(F.pad(masks[:, :20, :24], (0, 8, 0, 12))))
    assert distances.max() > 10
