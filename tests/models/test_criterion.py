"""The loss, against formulas written out in numpy; what it refuses; and two processes against one."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from builders import resnet
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation
from maskformer_hf.models.at_once import AtOnce
from maskformer_hf.models.criterion import Criterion
from maskformer_hf.models.loss_terms import DiceLoss, FocalLoss, Pixels
from maskformer_hf.models.masks import ProductMasks
from maskformer_hf.models.matcher import match
from tensors import LargestTensor, costs_of, criterion_with, loss_of

NUM_LABELS = 3


class CriterionOfLogits:
    """A criterion that is called with the logits of one set of predictions."""

    def __init__(self, criterion: Criterion):
        self.criterion = criterion

    def __call__(self, *arguments):
        return loss_of(self.criterion, *arguments)

    def train(self):
        self.criterion.train()
        return self

    def eval(self):
        self.criterion.eval()
        return self


def focal_loss(*values):
    return FocalLoss()(Pixels(*values)).sum()


def dice_loss(*values):
    return DiceLoss()(Pixels(*values)).sum()


def make_criterion(**changes) -> CriterionOfLogits:
    fields = {
        "num_labels": NUM_LABELS,
        "class_weight": 1.5,
        "mask_weight": 20.0,
        "dice_weight": 2.0,
        "no_object_weight": 0.1,
        "mask_loss": "dense",
        "num_points": 64,
        "oversample_ratio": 3.0,
        "importance_sample_ratio": 0.75,
    }
    return CriterionOfLogits(criterion_with(**{**fields, **changes})).eval()


def predictions(layers=2, images=2, queries=6, height=8, width=12):
    torch.manual_seed(0)
    class_logits = 2 * torch.randn(layers, images, queries, NUM_LABELS + 1)
    return class_logits, 3 * torch.randn(layers, images, queries, height, width)


def targets(counts, height=32, width=48):
    generator = torch.Generator().manual_seed(1)
    masks = [torch.rand(count, height, width, generator=generator) > 0.5 for count in counts]
    return masks, [torch.randint(NUM_LABELS, (count,), generator=generator) for count in counts]


# --- formulas


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def plain_focal(logits: np.ndarray, target: np.ndarray) -> float:
    p = sigmoid(logits)
    return -np.mean(np.where(target, 0.25 * (1 - p) ** 2 * np.log(p), 0.75 * p**2 * np.log(1 - p)))


def plain_dice(logits: np.ndarray, target: np.ndarray) -> float:
    p = sigmoid(logits)
    return 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)


def plain_losses(class_logits, mask_logits, masks, labels) -> dict[str, float]:
    """The terms of one layer: image by image, query by query, in double precision."""
    weighted, weights, focal, dice = 0.0, 0.0, 0.0, 0.0
    cost_weights = {"class_weight": 1.5, "mask_weight": 20.0, "dice_weight": 2.0}
    costs = costs_of(class_logits[None], mask_logits[None], masks, labels, **cost_weights)
    matches = match(costs, [len(x) for x in labels])[0]
    for image, (query, target) in enumerate(matches):
        classes = dict(zip(query.tolist(), labels[image][torch.from_numpy(target)].tolist(), strict=True))
        for q, logits in enumerate(class_logits[image].double().numpy()):
            label, weight = classes.get(q, NUM_LABELS), 1.0 if q in classes else 0.1
            weighted -= weight * (logits[label] - np.log(np.exp(logits).sum()))
            weights += weight
        for q, t in zip(query, target, strict=True):
            mask = masks[image][t].numpy()
            large = F.interpolate(mask_logits[image, q].double()[None, None], mask.shape, mode="bilinear")[0, 0].numpy()
            focal += plain_focal(large, mask)
            dice += plain_dice(large, mask)
    num_masks = max(sum(len(x) for x in labels), 1)
    return {"loss_ce": weighted / weights, "loss_mask": focal / num_masks, "loss_dice": dice / num_masks}


@pytest.mark.parametrize("counts", [[3, 1], [0, 2], [0, 0], [8, 1]])
def test_losses_are_those_of_the_formulas(counts):
    class_logits, mask_logits = predictions()
    masks, labels = targets(counts)
    total, losses = make_criterion()(class_logits, mask_logits, masks, labels)
    expected = {f"{name}_0": x for name, x in plain_losses(class_logits[0], mask_logits[0], masks, labels).items()}
    expected |= plain_losses(class_logits[1], mask_logits[1], masks, labels)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5, abs=1e-7)
    weights = {"loss_ce": 1.5, "loss_mask": 20.0, "loss_dice": 2.0}
    weighted = sum(weights[name.removesuffix("_0")] * value for name, value in expected.items())
    assert total.item() == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_focal_and_dice_of_certain_predictions(dtype):
    target = torch.zeros(1, 100, dtype=torch.bool)
    target[:, :40] = True
    right = torch.where(target, 200.0, -200.0)
    assert focal_loss(right, target.to(dtype)).item() == 0
    assert dice_loss(right, target.to(dtype)).item() == pytest.approx(0, abs=1e-6)
    wrong = -right
    assert focal_loss(wrong, target.to(dtype)).item() == pytest.approx(200 * (0.25 * 0.4 + 0.75 * 0.6))
    assert dice_loss(wrong, target.to(dtype)).item() == pytest.approx(1 - 1 / 101)


def test_focal_and_dice_of_boolean_and_floating_point_targets():
    torch.manual_seed(0)
    logits, target = 5 * torch.randn(4, 50), torch.rand(4, 50) > 0.5
    for loss in (focal_loss, dice_loss):
        torch.testing.assert_close(loss(logits, target), loss(logits, target.float()))


def test_a_pixel_of_half_weight_is_half_a_pixel():
    torch.manual_seed(0)
    logits, target = torch.randn(3, 20), torch.rand(3, 20) > 0.5
    for loss in (focal_loss, dice_loss):
        halves = loss(logits.repeat(1, 2), target.repeat(1, 2), torch.full((3, 40), 0.5))
        torch.testing.assert_close(halves, loss(logits, target))


def test_gradients_are_those_of_the_formulas():
    """Focal and dice loss, by finite differences in double precision."""
    torch.manual_seed(0)
    logits = torch.randn(2, 10, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 10) > 0.5
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, target), logits)
    assert torch.autograd.gradcheck(lambda x: dice_loss(x, target), logits)


# --- targets of every number and kind


def test_without_targets_only_the_classes_are_trained():
    class_logits, mask_logits = (x.requires_grad_() for x in predictions())
    masks, labels = targets([0, 0])
    total, losses = make_criterion()(class_logits, mask_logits, masks, labels)
    assert losses["loss_mask"].item() == losses["loss_dice_0"].item() == 0
    total.backward()
    assert class_logits.grad.abs().max() > 0
    # A gradient of zero and not none: DDP waits for every parameter.
    assert mask_logits.grad is not None
    assert mask_logits.grad.abs().max() == 0


def test_more_targets_than_queries_are_warned_about_once(caplog):
    criterion = make_criterion()
    masks, labels = targets([9, 1])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            total, _ = criterion(*predictions(), masks, labels)
    assert total.isfinite()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "An image has 9 targets but the model only 6 queries"
    ]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_masks_of_other_types_are_the_same(dtype):
    masks, labels = targets([3, 1])
    expected, _ = make_criterion()(*predictions(), masks, labels)
    total, _ = make_criterion()(*predictions(), [mask.to(dtype) for mask in masks], labels)
    assert torch.equal(total, expected)


# --- errors


@pytest.mark.parametrize("label", [-1, NUM_LABELS, 255])
def test_a_label_out_of_range_is_named(label):
    masks, labels = targets([3, 2])
    labels[1][1] = label
    with pytest.raises(ValueError, match=rf"Image 1 of the batch has class label {label}, but the model knows 0 to 2"):
        make_criterion()(*predictions(), masks, labels)


@pytest.mark.parametrize("value", [2, 255, -1, 0.5, float("nan")])
def test_a_value_that_is_no_mask_is_named(value):
    masks, labels = targets([3, 2])
    masks = [mask.float() for mask in masks]
    masks[1][0, 5, 5] = value
    with pytest.raises(ValueError, match=r"Masks of image 1 of the batch hold the value (2|255|-1|0\.5|nan)"):
        make_criterion()(*predictions(), masks, labels)


@pytest.mark.parametrize("counts", [[3, 2], [3, 0], [0, 0]])
def test_predictions_that_are_not_finite_are_named(counts):
    class_logits, mask_logits = predictions()
    mask_logits[0, 1, 2, 3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"decoder layer 0 for image 1 of the batch are not finite"):
        make_criterion()(class_logits, mask_logits, *targets(counts))


def test_sizes_that_disagree_are_named():
    masks, labels = targets([3, 2])
    with pytest.raises(ValueError, match=r"Masks of image 1 have size \(30, 48\), those of image 0 \(32, 48\)"):
        make_criterion()(*predictions(), [masks[0], masks[1][:, :30]], labels)
    with pytest.raises(ValueError, match=r"Image 0 of the batch has 3 masks but 2 class labels"):
        make_criterion()(*predictions(), masks, [labels[0][:2], labels[1]])
    with pytest.raises(ValueError, match=r"one entry for each of the 2 images, got 1 and 2"):
        make_criterion()(*predictions(), masks[:1], labels)


def test_masks_of_another_size_than_the_images_are_named():
    """Stretching them would train on masks that are shifted against the images."""
    masks, labels = targets([2], height=60, width=90)
    with pytest.raises(
        ValueError, match=r"Masks of image 0 .* size \(60, 90\), `pixel_values` \(64, 96\): pad the masks"
    ):
        tiny_model()(torch.zeros(1, 3, 64, 96), mask_labels=masks, class_labels=labels)


# --- numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_predictions_are_single_precision(dtype):
    class_logits, mask_logits = (x.to(dtype) for x in predictions())
    masks, labels = targets([3, 1])
    with torch.autocast("cpu", dtype=dtype):
        total, losses = make_criterion()(class_logits, mask_logits, masks, labels)
    expected, _ = make_criterion()(class_logits.float(), mask_logits.float(), masks, labels)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert torch.equal(total, expected)


# --- losses on points


def look_at(points_P2: torch.Tensor, monkeypatch):
    """Sampled losses see these points of every mask, in place of random ones."""
    monkeypatch.setattr(
        "maskformer_hf.models.mask_losses.uncertain_points",
        lambda logits, *_: points_P2.expand(len(logits), -1, -1),
    )


def test_all_pixels_as_points_give_the_dense_loss(monkeypatch):
    arguments = *predictions(height=32, width=48), *targets([3, 1])
    y, x = torch.meshgrid((torch.arange(32) + 0.5) / 32, (torch.arange(48) + 0.5) / 48, indexing="ij")
    look_at(torch.stack((x, y), dim=-1).flatten(0, 1), monkeypatch)
    dense_total, dense = make_criterion()(*arguments)
    total, losses = make_criterion(mask_loss="points")(*arguments)
    assert losses.keys() == dense.keys()
    torch.testing.assert_close(total, dense_total)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, dense[name])


def test_points_of_flat_predictions_give_the_dense_loss(monkeypatch):
    """Where all logits of a mask are equal and its target is full, it does not matter where one looks."""
    look_at(0.25 + 0.5 * torch.rand(500, 2), monkeypatch)  # near the edge, values fade to zero
    mask_logits = torch.tensor([-1.0, 0.5, 2.0, -2.0, 1.0, 0.0])[:, None, None].expand(1, 2, 6, 8, 12)
    masks = [torch.ones(count, 32, 48, dtype=torch.bool) for count in (1, 2)]
    arguments = predictions(layers=1)[0], mask_logits, masks, [torch.tensor([0]), torch.tensor([1, 2])]
    _, dense = make_criterion()(*arguments)
    _, losses = make_criterion(mask_loss="points")(*arguments)
    torch.testing.assert_close(losses["loss_mask"], dense["loss_mask"])
    # The 1 above and below the line weighs less the more points there are.
    torch.testing.assert_close(losses["loss_dice"], dense["loss_dice"], rtol=0, atol=2e-3)


def test_random_points_come_near_the_dense_loss():
    """With no preference for uncertain ones, many points are a fair sample of the dense loss."""
    class_logits, mask_logits = predictions(layers=1, height=8, width=12)
    smooth = F.interpolate(mask_logits[0], size=(4, 6), mode="area")[None]
    masks = [torch.zeros(2, 32, 48, dtype=torch.bool) for _ in range(2)]
    for image, mask in enumerate(masks):
        mask[0, :, : 20 + image], mask[1, 10:, 30:] = True, True
    arguments = class_logits, smooth, masks, [torch.tensor([0, 1])] * 2
    _, dense = make_criterion()(*arguments)
    criterion = make_criterion(mask_loss="points", num_points=20_000, oversample_ratio=1, importance_sample_ratio=0)
    _, losses = criterion(*arguments)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(dense[name].item(), rel=0.1)


def test_evaluation_does_not_move_and_training_does():
    criterion = make_criterion(mask_loss="points")
    arguments = *predictions(), *targets([3, 1])
    assert criterion(*arguments)[0] == criterion(*arguments)[0]
    state = torch.get_rng_state()
    criterion(*arguments)
    assert torch.equal(torch.get_rng_state(), state), "an evaluation must not change what is random elsewhere"
    criterion.train()
    assert criterion(*arguments)[0] != criterion(*arguments)[0]


# --- cross-entropy, clips, compilation


@pytest.mark.parametrize("mask_loss", ["dense", "points"])
def test_cross_entropy_in_place_of_focal_loss(mask_loss, monkeypatch):
    """Constant predictions of full targets lose log(1 + e^-x), wherever one looks; other terms do not change."""
    look_at(0.25 + 0.5 * torch.rand(500, 2), monkeypatch)
    class_logits, mask_logits = predictions(layers=1)[0], torch.full((1, 2, 6, 8, 12), 0.7)
    masks, labels = [torch.ones(1, 32, 48, dtype=torch.bool)] * 2, [torch.tensor([0]), torch.tensor([1])]
    focal, cross_entropy = (
        make_criterion(mask_loss=mask_loss, mask_term=term)(class_logits, mask_logits, masks, labels)[1]
        for term in ("focal", "cross_entropy")
    )
    assert cross_entropy["loss_mask"].item() == pytest.approx(np.log1p(np.exp(-0.7)), rel=1e-5)
    assert focal["loss_mask"].item() == pytest.approx(0.25 * sigmoid(-0.7) ** 2 * np.log1p(np.exp(-0.7)), rel=1e-5)
    for term in ("loss_ce", "loss_dice"):
        assert focal[term] == cross_entropy[term]


@pytest.mark.parametrize("matching", ["dense", "points"])
@pytest.mark.parametrize("counts", [[3, 1], [0, 2], [8, 1]])
def test_clips_of_equal_frames_are_images(counts, matching):
    """T equal frames have the costs of one; each is a mask of the loss, which is not divided by T."""
    class_logits, mask_logits = predictions()
    masks, labels = targets(counts)
    void = torch.zeros(2, 32, 48, dtype=torch.bool)
    void[:, 20:] = True
    # The 1 above and below the line of the dice cost weighs less in a clip.
    criterion = make_criterion(matching=matching, mask_term="cross_entropy", dice_weight=0.0)
    _, image = criterion(class_logits, mask_logits, masks, labels, void)
    clip_logits, clip_void = (
        mask_logits[:, :, :, None].expand(-1, -1, -1, 3, -1, -1),
        void[:, None].expand(-1, 3, -1, -1),
    )
    clip_masks = [mask[:, None].expand(-1, 3, -1, -1) for mask in masks]
    _, clip = criterion(class_logits, clip_logits, clip_masks, labels, clip_void)
    for name, loss in image.items():
        factor = 1 if name.startswith("loss_ce") else 3
        assert clip[name].item() == pytest.approx(factor * loss.item(), rel=1e-5), name


@pytest.mark.parametrize("mask_loss", ["dense", "points"])
def test_gradients_reach_the_matched_masks_only(mask_loss):
    class_logits, mask_logits = predictions()
    mask_logits.requires_grad_()
    make_criterion(mask_loss=mask_loss)(class_logits, mask_logits, *targets([3, 1]))[0].backward()
    assert (mask_logits.grad.flatten(3).abs().amax(-1) > 0).sum((0, 1, 2)) == 2 * 4


@pytest.mark.parametrize("num_frames", [None, 2])
@pytest.mark.parametrize("counts", [[3, 1], [0, 2], [0, 0], [8, 1]])
def test_losses_of_embeddings_are_those_of_their_products(counts, num_frames):
    """And so are the gradients, of embeddings that are mixtures."""
    torch.manual_seed(0)
    frames = () if num_frames is None else (num_frames,)
    leaves = torch.randn(2, 2, 6, 5), torch.randn(2, *frames, 5, 8, 12)
    masks, labels = targets(counts)
    if num_frames:
        masks = [mask[:, None].expand(-1, num_frames, -1, -1) for mask in masks]
    results = []
    for given in (False, True):
        embeddings = [x.clone().requires_grad_() for x in leaves]
        if given:
            total, losses = make_criterion()(predictions()[0], ProductMasks(*embeddings), masks, labels)
        else:
            mask_logits = torch.einsum("lbqc,b...chw->lbq...hw", *embeddings)
            total, losses = make_criterion()(predictions()[0], mask_logits, masks, labels)
        results.append(({name: loss.detach() for name, loss in losses.items()}, torch.autograd.grad(total, embeddings)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mask_loss", ["dense", "points"])
@pytest.mark.parametrize("matching", ["dense", "points"])
def test_mask_logits_of_unmatched_queries_never_exist_as_a_whole(mask_loss, matching, monkeypatch):
    monkeypatch.setattr("maskformer_hf.models.matcher.VALUES_AT_ONCE", AtOnce(2**12, 2**12))
    monkeypatch.setattr("maskformer_hf.models.dense_workspace.PIXELS_AT_ONCE", AtOnce(2**12, 2**12))
    layers, queries, channels, size = 3, 50, 4, 64
    embeddings = torch.randn(layers, 1, queries, channels), torch.randn(1, channels, size, size)
    embeddings = [x.requires_grad_() for x in embeddings]
    criterion = make_criterion(mask_loss=mask_loss, matching=matching)
    class_logits = torch.randn(layers, 1, queries, NUM_LABELS + 1)
    with LargestTensor() as largest:
        total, _ = criterion(class_logits, ProductMasks(*embeddings), *targets([2], size, size))
        total.backward()
    assert largest.numel < layers * queries * size * size / 6


class Predictions(torch.nn.Module):
    """As little of a model as can be trained."""

    def __init__(self, criterion: CriterionOfLogits):
        super().__init__()
        self.criterion = criterion
        self.class_logits, self.mask_logits = (torch.nn.Parameter(x) for x in predictions())

    def forward(self, scale: torch.Tensor, masks, labels) -> torch.Tensor:
        return self.criterion(scale * self.class_logits, scale * self.mask_logits, masks, labels)[0] * scale


@pytest.mark.parametrize("mask_loss", ["dense", "points"])
def test_a_compiled_model_trains(mask_loss):
    model = Predictions(make_criterion(mask_loss=mask_loss))
    arguments = torch.tensor(2.0), *targets([3, 1])
    expected = model(*arguments)
    gradients = torch.autograd.grad(expected, [model.class_logits, model.mask_logits])
    compiled = torch.compile(model, backend="aot_eager")(*arguments)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled, [model.class_logits, model.mask_logits]), gradients)


# --- several processes


def tiny_model() -> MaskFormerForUniversalSegmentation:
    torch.manual_seed(0)
    config = MaskFormerConfig(
        backbone_config=resnet(8, 8, 16, 16),
        feature_size=32,
        mask_feature_size=16,
        hidden_size=16,
        num_attention_heads=2,
        ffn_dim=32,
        decoder_layers=2,
        num_queries=6,
        num_labels=NUM_LABELS,
        dropout=0.0,
    )
    return MaskFormerForUniversalSegmentation(config).train()


# Targets of the four images: two a process, and the processes have very different numbers.
COUNTS = [4, 2, 0, 1]


def batch(images: slice) -> dict:
    generator = torch.Generator().manual_seed(2)
    pixel_values = torch.randn(len(COUNTS), 3, 64, 96, generator=generator)
    masks, labels = targets(COUNTS, 64, 96)
    return {"pixel_values": pixel_values[images], "mask_labels": masks[images], "class_labels": labels[images]}


def run_process(rank: int, folder: str):
    """Two steps under DDP, which fails in the second one where a parameter got no gradient in the first."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = DistributedDataParallel(tiny_model())
    own = batch(slice(2 * rank, 2 * rank + 2))
    for _ in range(2):
        model.zero_grad()
        output = model(**own)
        output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    losses = {name: loss.detach() for name, loss in output.loss_dict.items()}
    torch.save((output.loss.detach(), losses, gradients), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one_with_the_joined_batch(tmp_path: Path):
    """Their mean loss, each of its terms and the gradients; transformers' own loss grows with the number of GPUs."""
    multiprocessing.start_processes(run_process, (str(tmp_path),), nprocs=2, start_method="spawn")
    (loss_0, terms_0, gradients), (loss_1, terms_1, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    model = tiny_model()
    output = model(**batch(slice(None)))
    output.loss.backward()
    torch.testing.assert_close((loss_0 + loss_1) / 2, output.loss.detach())
    assert terms_0.keys() == output.loss_dict.keys()
    for name, term in output.loss_dict.items():
        torch.testing.assert_close((terms_0[name] + terms_1[name]) / 2, term.detach())
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5 * float(largest))


@pytest.mark.parametrize("mask_loss", ["dense", "points"])
def test_what_is_predicted_in_void_does_not_matter_if_void_is_left_out(mask_loss):
    """Row 13 of what transformers' users suffer: void trains as background of every mask. Here that is a choice."""
    criterion = make_criterion(mask_loss=mask_loss, num_points=4000, importance_sample_ratio=0.0).eval()
    class_logits, mask_logits = predictions()
    masks, labels = targets([2, 3])
    void = torch.zeros(2, 32, 48, dtype=torch.bool)
    void[:, :, 24:] = True
    masks = [mask & ~void[0] for mask in masks]
    changed = mask_logits.clone()
    # One cell further, because the cells on both sides of the border are interpolated.
    changed[..., 7:] = 20.0

    def losses(logits, void_masks):
        return criterion(class_logits, logits, masks, labels, void_masks)[1]

    kept, moved = losses(mask_logits, void), losses(changed, void)
    for name in kept.keys() - {"loss_ce", "loss_ce_0"}:
        assert kept[name] == pytest.approx(moved[name].item(), rel=1e-4), name
    assert losses(mask_logits, None)["loss_mask"] < 0.5 * losses(changed, None)["loss_mask"]


def test_without_void_the_mask_losses_are_those_of_the_picture_without_it():
    criterion = make_criterion()
    class_logits, mask_logits = predictions(images=1, width=12)
    # Constant over the last cells, so that a crop interpolates as the whole does.
    mask_logits[..., 5:] = mask_logits[..., 5:6]
    [masks], labels = targets([3])
    void = torch.zeros(1, 32, 48, dtype=torch.bool)
    void[:, :, 24:] = True
    masks = masks & ~void[0]
    _, whole = criterion(class_logits, mask_logits, [masks], labels, void)
    _, cropped = criterion(class_logits, mask_logits[..., :6], [masks[..., :24]], labels)
    for name in cropped.keys() - {"loss_ce", "loss_ce_0"}:
        assert whole[name] == pytest.approx(cropped[name].item(), rel=1e-5), name


def test_what_is_found_in_void_is_not_taught_to_be_nothing():
    """Unmatched, and more than half of its mask in void: no gradient of the class. Not so without void masks."""
    criterion = make_criterion()
    class_logits, mask_logits = predictions(layers=1, images=1, queries=4)
    class_logits.requires_grad_()
    void = torch.zeros(1, 32, 48, dtype=torch.bool)
    void[:, :, 24:] = True
    target = torch.zeros(1, 32, 48, dtype=torch.bool)
    target[:, :16, :24] = True
    mask_logits[:] = -20.0
    mask_logits[0, 0, 0, :4, :6] = 20.0  # the target
    mask_logits[0, 0, 1, :, 5:] = 20.0  # one column of seven labelled
    mask_logits[0, 0, 2, :, 3:9] = 20.0  # half and half
    labels = [torch.tensor([1])]

    def gradients(void_masks):
        loss = criterion(class_logits, mask_logits, [target], labels, void_masks)[0]
        return torch.autograd.grad(loss, class_logits)[0][0, 0].abs().sum(-1)

    assert (gradients(void) > 0).tolist() == [True, False, True, True]
    assert (gradients(None) > 0).all()


def test_half_of_a_mask_is_counted_exactly_under_autocast():
    """501 of 1,001 pixels lie where it counts; bfloat16 would make 500 of them."""
    criterion = make_criterion()
    class_logits, mask_logits = predictions(layers=1, images=1, queries=2, height=32, width=48)
    class_logits.requires_grad_()
    pixel = torch.arange(32 * 48).view(1, 32, 48)
    target, void = pixel >= 1400, (pixel >= 501) & (pixel < 1001)
    mask_logits[0, 0, 0] = torch.where(target[0], 20.0, -20.0)
    mask_logits[0, 0, 1] = torch.where(pixel[0] < 1001, 20.0, -20.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(class_logits, mask_logits, [target], [torch.tensor([1])], void)[0]
    assert (torch.autograd.grad(loss, class_logits)[0][0, 0].abs().sum(-1) > 0).all()
