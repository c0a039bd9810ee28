"""Panoptic SegFormer with the original's weights computes what the original computed, behind the backbone.

Tolerances: tests/fixtures/golden/README.md.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation
from maskformer_hf.conversion.segformer import RELEASED_NAMES, convert_segformer, segformer_names
from maskformer_hf.models import criterion_segformer
from maskformer_hf.models.modeling_maskformer import padding_of
from maskformer_hf.models.result_options import ResultOptions
from maskformer_hf.models.results import results_of
from maskformer_hf.presets import PANOPTIC_SEGFORMER

FOLDER = Path(__file__).parent.parent / "fixtures" / "golden" / "panoptic_segformer_r50"
RECORD = json.loads((FOLDER / "expected.json").read_text())
RUNS = RECORD["runs"]
# Those with padding.
PADDED = ("P", "C")
STUFF = [4, 5, 6]
SIZES = {
    "num_labels": 7,
    "label_ids_to_fuse": STUFF,
    "feature_size": 32,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "thing_mask_layers": 2,
    "stuff_mask_layers": 3,
    "encoder_norm_groups": 8,
    "num_queries": 12,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def stored() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module", params=["current", "released"])
def model(stored, request) -> MaskFormerForUniversalSegmentation:
    """In evaluation mode; what its backbone gives is the original's for the run that is set."""
    backbone = {"model_type": "resnet", "embedding_size": 6, "hidden_sizes": [24, 48, 96, 192]}
    torch.manual_seed(0)
    model = MaskFormerForUniversalSegmentation(
        MaskFormerConfig(backbone_config=backbone, **{**PANOPTIC_SEGFORMER, **SIZES})
    )
    own = model.state_dict()
    state = {name: stored.get(name, own.get(target)) for name, target in segformer_names(model.config).items()}
    if request.param == "released":
        for old, new in RELEASED_NAMES.items():
            state = {old + name.removeprefix(new) if name.startswith(new) else name: x for name, x in state.items()}
    model.load_state_dict(convert_segformer(state, model.config))
    return model.eval()


def inputs(model, stored, run: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images whose size alone matters, and their mask if there is padding."""
    features = tuple(stored[f"{run}.backbone.{level}"] for level in range(3))
    model.model.backbone.forward = lambda pixel_values: features
    height, width = RUNS[run]["padded_size"]
    sizes = RUNS[run]["image_sizes"]
    pixel_mask = torch.zeros(len(sizes), height, width, dtype=torch.int64)
    for mask, (own_height, own_width) in zip(pixel_mask, sizes, strict=True):
        mask[:own_height, :own_width] = 1
    return torch.zeros(len(sizes), 3, height, width), pixel_mask if run in PADDED else None


def targets_of(stored, name: str, size: list[int]) -> dict[str, list[torch.Tensor]]:
    packed, width = stored[f"target.{name}.masks"], int(stored[f"target.{name}.masks.width"])
    masks = torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1)[..., :width].astype(bool))
    masks = F.pad(masks, (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))
    return {"mask_labels": [masks], "class_labels": [stored[f"target.{name}.labels"]]}


def sets_of(model, stored, run: str):
    images, pixel_mask = inputs(model, stored, run)
    ask = model.model.ask(images, True)._replace(padding=padding_of(pixel_mask))
    with torch.no_grad():
        encoded = model.model.encode(images, ask)
        return encoded, model.head(model.model.decode(encoded, ask), encoded, ask)


@pytest.mark.parametrize("run", RUNS)
def test_predictions(model, stored, run):
    encoded, (location, stuff, result) = sets_of(model, stored, run)
    close = {"rtol": 0, "atol": 1e-4}
    if f"{run}.memory" in stored:
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in encoded.pixels.memory[::-1]], dim=1)
        torch.testing.assert_close(memory, stored[f"{run}.memory"], **close)
    torch.testing.assert_close(location.boxes, stored[f"{run}.box"], rtol=0, atol=1e-5)
    torch.testing.assert_close(location.class_logits[..., :4], stored[f"{run}.cls"], **close)
    for layer, name in ((0, "block0"), (-1, "block2")):
        torch.testing.assert_close(stuff.class_logits[layer, ..., 0], stored[f"{run}.stuff.cls.{name}"], **close)
    for layer, name in ((0, "block0"), (-1, "tail")):
        torch.testing.assert_close(stuff.masks.layer(layer), stored[f"{run}.stuff.mask.{name}"], **close)
    for image in range(len(result.class_logits[0])):
        things = location.masks.of(image, torch.arange(12))
        torch.testing.assert_close(things[1], stored[f"{run}.things.mask.block1"][image], **close)
        torch.testing.assert_close(things[-1], stored[f"{run}.things.mask.tail"][image], **close)
        values = result.masks.image(-1, image, slice(None)) / 8 + 0.5
        torch.testing.assert_close(values[:12], stored[f"{run}.things.mask.tail"][image], **close)
        torch.testing.assert_close(values[12:], stored[f"{run}.stuff.mask.tail"][image], **close)
        torch.testing.assert_close(result.masks.layer(-1)[image] / 8 + 0.5, values, **close)


def test_masks_are_attention_before_the_softmax(model, stored):
    """The exposed logits are the scaled products of queries and keys."""
    _, (location, _, _) = sets_of(model, stored, "A")
    decoder = location.masks.decoder
    with torch.no_grad():
        queries, _ = decoder(location.masks.things_BQC, location.masks.cells, every_layer=False)
        logits = decoder.last.logits(queries[-1], location.masks.cells)
    expected = stored["A.things.attn_logits.tail"].permute(0, 3, 1, 2)
    torch.testing.assert_close(logits[:, :, : expected.shape[2]], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("threshold", ["q0.25", "mixed"])
@pytest.mark.parametrize("run", RUNS)
def test_panoptic_results(model, stored, run, threshold):
    images, pixel_mask = inputs(model, stored, run)
    with torch.no_grad():
        outputs = model(images, pixel_mask=pixel_mask, lazy_masks=True)
    # The original stretches padded frames, too, to the size of the result.
    outputs.image_sizes = outputs.padded_sizes
    things, stuff, covered_things, covered_stuff = RECORD["thresholds"][threshold]
    options = ResultOptions.of(
        model.config,
        "panoptic",
        threshold=things,
        stuff_threshold=stuff,
        overlap_mask_area_threshold=1 - covered_things,
        stuff_overlap_mask_area_threshold=1 - covered_stuff,
        max_instances=10,
    )
    for image, result in enumerate(results_of(outputs, options, RUNS[run]["target_sizes"])):
        segments = RECORD["segments"][f"{run}.{image}.{threshold}"]
        assert [segment["label_id"] for segment in result.segments] == [label for label, _, _ in segments]
        for segment, (_, score, _) in zip(result.segments, segments, strict=True):
            assert segment["score"] == pytest.approx(score, abs=1e-4)
        painted = torch.full(result.segmentation.shape, 15 * 16)
        number = 0
        for segment in result.segments:
            number += not segment["was_fused"]
            own = 0 if segment["was_fused"] else number
            painted[result.segmentation == segment["id"]] = segment["label_id"] * 16 + own
        assert (painted != stored[f"{run}.{image}.panoptic_{threshold}"].long()).sum() <= 3


@pytest.mark.parametrize("run", RUNS)
def test_instances(model, stored, run):
    images, pixel_mask = inputs(model, stored, run)
    with torch.no_grad():
        outputs = model(images, pixel_mask=pixel_mask)
    outputs.image_sizes = outputs.padded_sizes
    options = ResultOptions.of(model.config, "instance", threshold=0.0, max_instances=10)
    for image, result in enumerate(results_of(outputs, options, RUNS[run]["target_sizes"])):
        scores, labels = stored[f"{run}.{image}.bbox"][:, 4], stored[f"{run}.{image}.labels"]
        found = [(segment["label_id"], segment["score"]) for segment in result.segments]
        expected = [(label, score) for label, score in zip(labels.tolist(), scores.tolist(), strict=True) if score > 0]
        assert [label for label, _ in found] == [label for label, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)


WEIGHTS = {"class": 2.0, "box": 5.0, "giou": 2.0, "dice": 2.0}
TERMS = {"cls": "class", "bbox": "box", "iou": "giou"}


def our_name(name: str) -> tuple[str, float] | None:
    """Our name of one of the original's terms and its weight; None for what it trains with weight 0."""
    layer, _, term = name.rpartition(".")
    suffix = f"_{layer[1:]}" if layer else ""
    term = term.removeprefix("loss_")
    if term.startswith("mask_"):
        return f"{term.split('_')[1].removesuffix('s')}_loss_dice{suffix}", WEIGHTS["dice"]
    if term.startswith("cls_stuff"):
        return f"stuff_loss_class{suffix}", 2 * WEIGHTS["class"]
    if term.endswith("_f"):
        return None
    return f"loss_{TERMS[term]}{suffix}", WEIGHTS[TERMS[term]]


def step(model, stored, item: str):
    record = RECORD["train"][item]
    images, pixel_mask = inputs(model, stored, record["run"])
    targets = targets_of(stored, record["targets"], RUNS[record["run"]]["padded_size"])
    return model.train()(images, pixel_mask=pixel_mask, **targets), record


@pytest.mark.parametrize("item", RECORD["train"])
def test_losses_and_matching(model, stored, item, monkeypatch):
    found = []
    original = criterion_segformer.match
    monkeypatch.setattr(criterion_segformer, "match", lambda *given: found.append(original(*given)) or found[-1])
    outputs, record = step(model, stored, item)
    model.eval()
    expected = {name: value for name, value in record["losses"].items() if name != "total"}
    named = {our_name(name): value for name, value in expected.items() if our_name(name) is not None}
    assert {name for name, _ in named} == outputs.loss_dict.keys()
    for (name, weight), value in named.items():
        assert weight * outputs.loss_dict[name].item() == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert outputs.loss.item() == pytest.approx(record["losses"]["total"], rel=1e-4)

    location, *second = found
    names = ["loc0", "loc1", "filter"]
    ours = {name: layer[0] for name, layer in zip(names, location, strict=True)}
    for name, (query, target) in ours.items():
        assert query.tolist() == record["matching"][name]["query"]
        assert target.tolist() == record["matching"][name]["target"]
    if second:
        [[[(query, target)]]] = second
        assert ours["filter"][0][query].tolist() == record["matching"]["with_mask"]["query"]
        assert target.tolist() == record["matching"]["with_mask"]["target"]


@pytest.mark.parametrize("item", ["A_3_2", "B_0_3", "B_15_1", "P_4_2"])
def test_gradients(model, stored, item):
    model.zero_grad()
    outputs, _ = step(model, stored, item)
    outputs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.eval()
    names = segformer_names(model.config)
    largest = RECORD["gradients"][f"{item}.largest"]
    for name, (norm, peak) in RECORD["gradients"][item].items():
        parts = (names[name],) if isinstance(names[name], str) else names[name]
        gradient = torch.cat([gradients[part].flatten() for part in parts])
        assert gradient.norm().item() == pytest.approx(norm, rel=5e-3, abs=1e-5 * largest), name
        assert gradient.abs().max().item() == pytest.approx(peak, rel=5e-3, abs=1e-5 * largest), name


@pytest.mark.parametrize("case", RECORD["two_processes"])
def test_two_processes(model, stored, case, monkeypatch):
    """Each divides by the averages over both."""
    things, stuff, _ = RECORD["two_processes"][case]["normalisers"]
    monkeypatch.setattr(
        criterion_segformer, "average_over_processes", lambda sums: sums.copy_(torch.tensor([things, stuff]))
    )
    for rank in RECORD["two_processes"][case]["ranks"]:
        images, _ = inputs(model, stored, rank["run"])
        targets = targets_of(stored, rank["targets"], RUNS[rank["run"]]["padded_size"])
        with torch.no_grad():
            loss = model.train()(images, **targets).loss
        model.eval()
        assert loss.item() == pytest.approx(rank["total"], rel=1e-4)
