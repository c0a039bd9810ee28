"""Denoising queries compute what the original MP-Former computed, in all settings that were stored.

Only the transformer decoder and the heads are MP-Former's own, so they start from the original's pixel embeddings and
memory. Tolerances: tests/fixtures/golden/README.md.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskformer_hf import MaskFormerForUniversalSegmentation
from maskformer_hf.conversion.detectron2_config import config_from_detectron2
from maskformer_hf.conversion.detectron2_names import tensor_names
from maskformer_hf.models import query_source_denoising
from maskformer_hf.models.interfaces import Ask, Encoded, PixelDecoderOutput
from maskformer_hf.models.transformer_decoder_masked import MaskedTransformerDecoder, attended_cells

FOLDER = Path(__file__).parent.parent / "fixtures" / "golden" / "mpformer_r50"
RECORD = json.loads((FOLDER / "expected.json").read_text())
DUMP = json.loads((FOLDER / "config.json").read_text())
PREDICTOR = "sem_seg_head.predictor."
LAYERS = ["final", "aux0", "aux1", "aux2", "aux3", "aux4"]
NUM_CELLS = [9, 36, 144]
NUM_CLASSES, NUM_HEADS, NUM_POINTS = 7, 8, 200
SIZES = {"C0": (64, 96), "C1": (70, 60)}


@pytest.fixture(scope="module")
def stored() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "expected.safetensors")


def unpacked(stored, name: str, width: int) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(stored[name].numpy(), axis=-1)[..., :width].astype(bool))


def targets_of(stored, target_set: str) -> dict[str, list[torch.Tensor]]:
    masks, labels = [], []
    for image in range(2):
        name = f"target.C.{target_set}.{image}"
        mask = unpacked(stored, f"{name}.masks", int(stored[f"{name}.masks.width"]))
        masks.append(torch.nn.functional.pad(mask, (0, 96 - mask.shape[-1], 0, 96 - mask.shape[-2])))
        labels.append(stored[f"{name}.labels"])
    return {"mask_labels": masks, "class_labels": labels}


def model_of(stored, setting: str) -> MaskFormerForUniversalSegmentation:
    dump = json.loads(json.dumps(DUMP))
    for name, value in DUMP["SETTINGS"][setting].items():
        section, field = name.split(".")
        dump["MODEL"][section][field] = value
    torch.manual_seed(0)
    model = MaskFormerForUniversalSegmentation(config_from_detectron2(dump)).train()
    state = model.state_dict()
    names = {name: own for name, own in tensor_names(model.config).items() if name.startswith(PREDICTOR)}
    assert names.keys() == {name for name in stored if name.startswith(PREDICTOR)}
    for name, own in names.items():
        parts = (own,) if isinstance(own, str) else own
        for part, value in zip(parts, stored[name].chunk(len(parts)), strict=True):
            state[part].copy_(value)
    levels = tuple(stored[f"C.multi_scale_features.{level}"] for level in range(3))
    encoded = Encoded((), PixelDecoderOutput(stored["C.mask_features"], levels))
    model.model.encode = lambda pixel_values, ask: encoded
    model.model.hidden_states = lambda encoded, decoded, ask: {}
    return model


def replay(monkeypatch, record: dict, setting: str, counts: list[int]):
    """Makes noise and points those that the original drew after `torch.manual_seed(seed)`.

    It draws noise for each target of each group, then label noise, then noise after every layer; then for each layer,
    the last one first, the points of matching, of the matched masks and of the denoising queries.
    """
    settings = DUMP["SETTINGS"][setting]
    groups, num_rows = record["groups"], record["groups"] * sum(counts)
    heads = (NUM_HEADS,) if settings["MASK_FORMER.HEAD_DN"] else ()
    torch.manual_seed(record["seed"])
    noise, labels = [], []
    if num_rows:
        noise.append(torch.rand(num_rows, *heads, NUM_CELLS[0]))
        if settings["MASK_FORMER.LB_NOISE_RATIO"] > 0:
            noise.insert(0, torch.rand(num_rows))
            chosen = noise[0] < settings["MASK_FORMER.LB_NOISE_RATIO"]
            labels.append(torch.zeros(num_rows, dtype=torch.int64))
            labels[0][chosen] = torch.randint(NUM_CLASSES, (int(chosen.sum()),))
        last = 5 if settings["MASK_FORMER.ALL_LY_DN"] else 3
        noise += [torch.rand(num_rows, *heads, NUM_CELLS[(layer + 1) % 3]) for layer in range(last)]
    offsets = np.cumsum([0, *counts])
    matched_at, looked_at, denoised_at = [], [], []
    # The original's rows of denoising queries: image, group, target. Ours: image, target, group.
    rows = [
        offset * groups + group * count + target
        for offset, count in zip(offsets, counts, strict=False)
        for target in range(count)
        for group in range(groups)
    ]
    num_candidates, num_uniform = 3 * NUM_POINTS, NUM_POINTS - int(0.75 * NUM_POINTS)
    for layer in LAYERS:
        images = record["matching"][layer]
        matched_at.append(torch.cat([torch.rand(1, NUM_POINTS, 2) for _ in images]))
        order = np.array(
            [t + offset for (_, own), offset in zip(images, offsets, strict=False) for t in own], dtype=int
        )
        for count in (num_candidates, num_uniform):
            looked_at.append(torch.rand(len(order), count, 2)[order.argsort()])
        if num_rows:
            for count in (num_candidates, num_uniform):
                denoised_at.append(torch.rand(num_rows, count, 2)[rows])
    points = iter(looked_at + denoised_at) if sum(counts) else iter(())
    first_layer_first = torch.stack(matched_at[1:] + matched_at[:1])
    noise_draws, label_draws = iter(noise), iter(labels)

    def draw(shape, device):
        values = next(noise_draws)
        assert values.shape == tuple(shape)
        return values

    monkeypatch.setattr("maskformer_hf.models.assigners.uniform_points", lambda *size, **_: first_layer_first)
    monkeypatch.setattr("maskformer_hf.models.point_sampling.uniform_points", lambda *size, **_: next(points))
    monkeypatch.setattr(query_source_denoising, "draw", draw)
    monkeypatch.setattr(query_source_denoising, "draw_labels", lambda chosen, num_labels: next(label_draws))


def run(stored, monkeypatch, case: str):
    _, target_set, setting = case.split(".")
    record, targets = RECORD["losses"][case], targets_of(stored, target_set)
    model = model_of(stored, setting)
    replay(monkeypatch, record, setting, [len(labels) for labels in targets["class_labels"]])
    return model, model(torch.zeros(2, 3, 96, 96), **targets), record


@pytest.mark.parametrize("case", RECORD["losses"])
def test_losses(stored, monkeypatch, case):
    _, outputs, record = run(stored, monkeypatch, case)
    ours = {}
    for name, value in outputs.loss_dict.items():
        name = name if not name.startswith("dn_") else f"{name[3:]}_dn"
        base, _, layer = name.removesuffix("_dn").rpartition("_")
        is_auxiliary = layer.isdigit()
        if name.endswith("_dn") and is_auxiliary:
            name = f"{base}_dn_{layer}"
        ours[name] = value.item()
    expected = record["losses_unweighted"]
    if not record["groups"]:
        # Without a target the original has zeros, we have no class term.
        expected = {name: value for name, value in expected.items() if "loss_ce_dn" not in name}
    assert ours == pytest.approx(expected, rel=1e-4, abs=2e-5)
    assert outputs.loss.item() == pytest.approx(record["total_weighted"], rel=1e-4)


@pytest.mark.parametrize("case", ["C.t_2_4.off", "C.t_2_4.noise", "C.t_0_0.off", "C.t_15_1.off"])
def test_gradients(stored, monkeypatch, case):
    model, outputs, _ = run(stored, monkeypatch, case)
    outputs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    names = tensor_names(model.config)
    largest = RECORD["gradients"][f"{case}.largest"]
    for name, (norm, peak) in RECORD["gradients"][case].items():
        parts = (names[name],) if isinstance(names[name], str) else names[name]
        gradient = torch.cat([gradients[part].flatten() for part in parts])
        assert gradient.norm().item() == pytest.approx(norm, rel=5e-3, abs=1e-5 * largest), name
        assert gradient.abs().max().item() == pytest.approx(peak, rel=5e-3, abs=1e-5 * largest), name


@pytest.mark.parametrize("setting", ["noise", "head_dn", "first3"])
def test_what_denoising_queries_look_at(stored, monkeypatch, setting):
    """Cell by cell, in every layer."""
    seen = []
    original = MaskedTransformerDecoder.forward

    def cells(inside, forced):
        seen.append(attended_cells(inside, forced))
        return seen[-1]

    monkeypatch.setattr("maskformer_hf.models.transformer_decoder_masked.attended_cells", cells)
    case = f"C.t_2_4.{setting}"
    _, _, record = run(stored, monkeypatch, case)
    assert MaskedTransformerDecoder.forward is original
    assert len(seen) == 5
    for layer, attended in enumerate(seen):
        blocked = unpacked(stored, f"{case}.cross_attn_mask.{layer}", NUM_CELLS[layer % 3])
        num_extra = record["groups"] * record["max_num"]
        assert torch.equal(~attended[..., :num_extra, :], blocked[..., :num_extra, :])
        assert (~attended != blocked).float().mean() < 1e-3


def test_denoising_queries_and_their_predictions(stored, monkeypatch):
    model, _, record = run(stored, monkeypatch, "C.t_2_4.noise")
    targets = targets_of(stored, "t_2_4")
    replay(monkeypatch, record, "noise", [2, 4])
    made = model._targets(torch.zeros(2, 3, 96, 96), *targets.values(), None, None)
    ask = Ask(every_layer=True)
    encoded = model.model.encode(None, ask)
    extra = model._extra_queries(made, encoded, ask)
    assert torch.equal(extra.features, stored["C.t_2_4.noise.query0"][:, :12])
    mask = ~stored["C.t_2_4.noise.self_attn_mask"].bool()
    assert torch.equal(extra.attended, mask)
    denoising, own = model.head(model.model.decode(encoded, ask, extra), encoded, ask)
    close = {"rtol": 0, "atol": 2e-4}
    torch.testing.assert_close(denoising.class_logits[-1], stored["C.t_2_4.noise.dn.final.pred_logits"], **close)
    torch.testing.assert_close(denoising.masks.layer(-1), stored["C.t_2_4.noise.dn.final.pred_masks"], **close)
    torch.testing.assert_close(own.class_logits[-1], stored["C.raw.pred_logits"], **close)
