"""Mask2Former's matching and losses on points, of images and of clips, at the original's predictions.

Tolerances: tests/fixtures/golden/README.md.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from maskformer_hf.models.loss_terms import CrossEntropyLoss, DiceLoss, Pixels
from maskformer_hf.models.matcher import match
from maskformer_hf.models.point_sampling import sample_points
from tensors import costs_of, criterion_with, loss_of

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"
LAYERS = ["aux0", "aux1", "aux2", "aux3", "final"]
NUM_LABELS = 7
FIELDS = {
    "num_labels": NUM_LABELS,
    "class_weight": 2.0,
    "mask_weight": 5.0,
    "dice_weight": 5.0,
    "no_object_weight": 0.1,
    "mask_loss": "points",
    "num_points": 200,
    "oversample_ratio": 3.0,
    "importance_sample_ratio": 0.75,
    "mask_term": "cross_entropy",
    "matching": "points",
}
PADDED_SIZE = 96
IMAGE_SETS = ["C.t_3_0", "C.t_2_4", "C.t_0_0", "C.t_15_1"]
VIDEO_SETS = ["v_3_2", "v_3_0", "v_0_0", "v_15_1"]


class Case:
    """Predictions of the layers (L, 2, ...), and what the original made of them."""

    def __init__(self, name: str):
        folder = GOLDEN / "point_losses"
        self.name = name
        self.record = json.loads((folder / f"{name}.json").read_text())
        self.expected = load_file(folder / f"{name}.safetensors")
        self.layers = LAYERS if name == "image" else ["final"]
        names = [("C.raw" if layer == "final" else f"C.raw.{layer}") for layer in self.layers]
        names = names if name == "image" else ["train.raw"]
        self.class_logits = torch.stack([self.expected[f"{layer}.pred_logits"] for layer in names])
        self.mask_logits = torch.stack([self.expected[f"{layer}.pred_masks"] for layer in names])
        self.inputs = load_file(GOLDEN / "inputs.safetensors") if name == "image" else self.expected

    def targets(self, key: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        masks = [self.inputs[f"target.{key}.{image}.masks"].bool() for image in range(2)]
        padded = [F.pad(m, (0, PADDED_SIZE - m.shape[-1], 0, PADDED_SIZE - m.shape[-2])) for m in masks]
        return padded, [self.inputs[f"target.{key}.{image}.labels"] for image in range(2)]

    def stored_points(self, key: str) -> torch.Tensor:
        """(L, B, P, 2)"""
        points = [[self.expected[f"{key}.match_points.{layer}.{image}"] for image in range(2)] for layer in self.layers]
        return torch.stack([torch.stack(images) for images in points])


def keys(*image_and_video: list[str]) -> list[tuple[str, str]]:
    return [(name, key) for name, names in zip(("image", "video"), image_and_video, strict=True) for key in names]


@pytest.mark.parametrize(("name", "key"), keys(["C.t_3_0", "C.t_2_4"], ["v_3_2"]))
def test_costs_at_the_stored_points(name, key):
    case = Case(name)
    masks, labels = case.targets(key)
    costs = costs_of(
        case.class_logits,
        case.mask_logits,
        masks,
        labels,
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        mask_term="cross_entropy",
        points_LBP2=case.stored_points(key),
    )
    matches = match(costs, [len(x) for x in labels])
    compared = 0
    for layer, layer_name in enumerate(case.layers):
        for image, count in enumerate(map(len, labels)):
            queries, targets = case.record[key]["matching"][layer_name][image]
            assert [x.tolist() for x in matches[layer][image]] == [queries, targets]
            if count:
                expected = case.expected[f"{key}.cost.{layer_name}.{image}.total"]
                torch.testing.assert_close(costs[layer, image, :, :count], expected, rtol=0, atol=5e-5)
                compared += 1
    assert compared == {"C.t_3_0": 5, "C.t_2_4": 10, "v_3_2": 2}[key]


@pytest.mark.parametrize(("name", "key"), keys(["C.t_2_4"], ["v_3_2"]))
def test_losses_at_the_stored_points(name, key):
    """Rows of the stored points are matched masks (and their frames) by image, queries ascending."""
    case = Case(name)
    masks, labels = case.targets(key)
    for layer, layer_name in enumerate(case.layers):
        logits, targets = [], []
        for image, (query, target) in enumerate(case.record[key]["matching"][layer_name]):
            logits.append(case.mask_logits[layer, image, query])
            targets.append(masks[image][target])
        logits, targets = torch.cat(logits), torch.cat(targets)
        if name == "video":
            logits, targets = logits.flatten(0, 1), targets.flatten(0, 1)
        points = case.expected[f"{key}.loss_points.{layer_name}"]
        values = Pixels(sample_points(logits, points), sample_points(targets, points))
        suffix = layer_name.replace("aux", "_").removeprefix("final")
        expected = case.record[key]["losses_unweighted"]
        num_targets = sum(map(len, labels))
        assert (CrossEntropyLoss()(values).sum() / num_targets).item() == pytest.approx(
            expected[f"loss_mask{suffix}"], rel=1e-5
        )
        assert (DiceLoss()(values).sum() / num_targets).item() == pytest.approx(
            expected[f"loss_dice{suffix}"], rel=1e-5
        )


@pytest.mark.parametrize(("name", "key"), keys(IMAGE_SETS, VIDEO_SETS))
def test_the_whole_loss_with_the_random_numbers_of_the_original(name, key, replay_random_points):
    case = Case(name)
    masks, labels = case.targets(key)
    criterion = criterion_with(**FIELDS).train()
    record = case.record[key]
    original_order = [case.layers[-1], *case.layers[:-1]]
    replay_random_points(
        record["seed"],
        [record["matching"][layer] for layer in original_order],
        [len(x) for x in labels],
        num_frames=1 if name == "image" else case.mask_logits.shape[3],
    )
    total, losses = loss_of(criterion, case.class_logits, case.mask_logits, masks, labels)
    ours = {name: loss.item() for name, loss in losses.items()}
    assert ours == pytest.approx(record["losses_unweighted"], rel=1e-5, abs=2e-5)
    if name == "image":
        assert total.item() == pytest.approx(record["total_weighted"], rel=1e-5)


def test_one_frame_is_an_image():
    """Clips of one frame have the costs and losses of images, at the same random points."""
    case = Case("image")
    masks, labels = case.targets("C.t_2_4")
    criterion = criterion_with(**FIELDS).train()
    results = []
    for frames in (False, True):
        torch.manual_seed(0)
        mask_logits = case.mask_logits.unsqueeze(3) if frames else case.mask_logits
        own_masks = [m[:, None] if frames else m for m in masks]
        results.append(loss_of(criterion, case.class_logits, mask_logits, own_masks, labels))
    (total, losses), (other_total, other_losses) = results
    assert torch.equal(total, other_total)
    assert all(torch.equal(losses[name], other_losses[name]) for name in losses)
