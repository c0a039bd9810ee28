"""PEM with the original's weights computes what the original computed.

Tolerances: tests/fixtures/golden/README.md. One thing is meant to differ: a query whose mask is empty attends to the
whole map, as everywhere in this package, and not to its first cell. Tests that compare such an image say so by
`as_original`.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from maskformer_hf.conversion.architecture import infer_config
from maskformer_hf.conversion.detectron2_names import tensor_names
from maskformer_hf.models import transformer_decoder_masked
from maskformer_hf.models.cross_attention_prototype import PrototypeCrossAttention
from maskformer_hf.models.transformer_decoder_masked import MemoryLevel
from maskformer_hf.presets import PEM, PRESETS
from tests.golden.conftest import DEVIATION, GOLDEN, MEAN, load_case

LAYERS = ["aux0", "aux1", "aux2", "aux3", "final"]
LOGITS = {"pred_logits": "class_queries_logits", "pred_masks": "masks_queries_logits"}


@pytest.fixture(scope="module")
def case():
    return load_case("pem_r50", "state_dict.safetensors")


@pytest.fixture
def as_original(monkeypatch):
    """Queries with empty masks are let loose only where all masks of their image are empty. The others have no cell
    left, and the largest of S times minus infinity is the first."""

    def attended_cells(inside_BRS, forced_BES=None):
        return inside_BRS | ~inside_BRS.flatten(1).any(1)[:, None, None]

    monkeypatch.setattr(transformer_decoder_masked, "attended_cells", attended_cells)


def pixel_values(case, run):
    if run == "E":
        return ((case.expected["image.E0"].float() - MEAN) / DEVIATION)[None]
    return case.pixel_values(run)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("run", ["B", "C", "E"])
def test_predictions(case, as_original, run):
    with torch.no_grad():
        outputs = case.model(pixel_values(case, run), output_auxiliary_logits=True)
    layers = [(f"aux{i}.", layer) for i, layer in enumerate(outputs.auxiliary_logits)] if run == "C" else []
    for name, layer in [*layers, ("", outputs)]:
        for theirs, ours in LOGITS.items():
            assert_close(layer[ours], case.expected[f"{run}.raw.{name}{theirs}"])
    assert len(outputs.auxiliary_logits) == 4


def test_images_without_empty_masks_need_no_habit_of_the_original(case):
    with torch.no_grad():
        outputs = [case.model(case.pixel_values(run)) for run in "BC"]
    for theirs, ours in LOGITS.items():
        assert_close(outputs[0][ours], case.expected[f"B.raw.{theirs}"])
        assert_close(outputs[1][ours][:1], case.expected[f"C.raw.{theirs}"][:1])
        # Two masks of the second photo are empty in the first layer, and two in the last.
        assert not torch.allclose(outputs[1][ours][1:], case.expected[f"C.raw.{theirs}"][1:], atol=1e-2)


def test_features(case):
    with torch.no_grad():
        outputs = case.model(case.pixel_values("C"), output_hidden_states=True)
    for level, maps in enumerate(outputs.pixel_decoder_hidden_states):
        assert_close(maps[1:], case.expected[f"C.multi_scale_features.{level}"])
    assert_close(outputs.pixel_decoder_last_hidden_state[1:], case.expected["C.mask_features"])


@pytest.mark.parametrize("run", ["B", "C", "E"])
def test_prototypes(case, as_original, run):
    """The cells that were chosen, and among others those of empty masks."""
    eager = load_case("pem_r50", "state_dict.safetensors").model
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = eager(pixel_values(case, run), output_attentions=True).cross_attentions
    assert len(attentions) == 4
    for layer, weights in enumerate(attentions):
        assert torch.equal(weights.argmax(-1).int(), case.expected[f"{run}.layer{layer}.argmax"])
        assert torch.equal(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.parametrize("target_set", ["t_3_0", "t_2_4", "t_0_0", "t_15_1"])
def test_losses(case, as_original, replay_random_points, target_set):
    record = case.record["losses"][f"C.{target_set}"]
    targets = replay(case, replay_random_points, record, target_set)
    with torch.no_grad():
        outputs = case.model(case.pixel_values("C"), **targets)
    assert_losses(outputs, record)


def assert_losses(outputs, record):
    ours = {name: loss.item() for name, loss in outputs.loss_dict.items()}
    assert ours == pytest.approx(record["losses_unweighted"], rel=1e-4, abs=2e-5)
    assert outputs.loss.item() == pytest.approx(record["total_weighted"], rel=1e-4)


def test_gradients(case, as_original, replay_random_points):
    record = case.record["losses"]["C.t_2_4"]
    targets = replay(case, replay_random_points, record, "t_2_4")
    case.model.zero_grad()
    case.model(case.pixel_values("C"), **targets).loss.backward()
    assert_gradients(case, case.model, "C.t_2_4")
    case.model.zero_grad()


def test_training_with_the_statistics_of_the_batch(case, as_original, replay_random_points):
    """The BatchNorms of both decoders learn them; those of the backbone are frozen."""
    key = "C.t_2_4.bn_train"
    record = case.record["losses"][key]
    targets = replay(case, replay_random_points, record, "t_2_4")
    model = load_case("pem_r50", "state_dict.safetensors").model.train()
    outputs = model(case.pixel_values("C"), **targets)
    assert_losses(outputs, record)
    assert_close(outputs.class_queries_logits, case.expected["bn_train.raw.pred_logits"])
    outputs.loss.backward()
    assert_gradients(case, model, key)
    names, state, compared = tensor_names(model.config), model.state_dict(), 0
    for name, tensor in case.expected.items():
        if name.startswith("bn_train.after."):
            assert_close(state[names[name.removeprefix("bn_train.after.")]], tensor)
            compared += 1
    assert compared == 10


def assert_gradients(case, model, key):
    """The gradient of the weighted total with respect to every parameter."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    names = tensor_names(model.config)
    expected = case.record["gradients"][key]
    largest = max(norm for norm, _ in expected.values())
    for name, (norm, peak) in expected.items():
        parts = (names[name],) if isinstance(names[name], str) else names[name]
        gradient = torch.cat([gradients.pop(part).flatten() for part in parts])
        assert gradient.norm().item() == pytest.approx(norm, rel=5e-3, abs=1e-5 * largest), name
        assert gradient.abs().max().item() == pytest.approx(peak, rel=5e-3, abs=1e-5 * largest), name
    assert all(".backbone." in name for name in gradients)


def replay(case, replay_random_points, record, target_set):
    targets = case.targets("C", target_set)
    matching = [record["matching"][layer] for layer in [LAYERS[-1], *LAYERS[:-1]]]
    replay_random_points(record["seed"], matching, [len(labels) for labels in targets["class_labels"]])
    return targets


# --- the cross-attention alone


@pytest.fixture
def attention(case) -> PrototypeCrossAttention:
    return load_case("pem_r50", "state_dict.safetensors").model.model.transformer_decoder.layers[1].cross_attn


def test_cross_attention_and_its_gradients(case, attention):
    """Three images: no mask is empty, those of queries 2 and 5 are, all are."""
    expected = {name.removeprefix("ca."): tensor for name, tensor in case.expected.items() if name.startswith("ca.")}
    queries, memory = (expected[name].clone().requires_grad_() for name in ("tgt", "memory"))
    inside = expected["memory_mask"].flatten(2) >= 0
    attended = inside | ~inside.flatten(1).any(1)[:, None, None]
    level = MemoryLevel(*(maps.flatten(2).transpose(1, 2) for maps in (memory, memory + expected["pos"])), (5, 6))
    positioned = (queries + expected["query_pos"]).transpose(0, 1)
    update, weights = attention(positioned, level, attended, need_weights=True)
    result = queries.transpose(0, 1) + update
    assert_close(result, expected["out"].transpose(0, 1))
    assert torch.equal(weights.argmax(-1).int(), expected["argmax"])
    result.backward(expected["cotangent"].transpose(0, 1))
    assert_close(queries.grad, expected["grad.tgt"])
    assert_close(memory.grad, expected["grad.memory"])
    theirs = {"cell_proj.norm": "feature_proj.bn", "cell_proj.local": "feature_proj.to_query_3x3"}
    theirs |= {"cell_proj.linear": "feature_proj.out", "query_norm": "query_proj.0", "query_proj": "query_proj.1"}
    for name, parameter in attention.named_parameters():
        part, _, kind = name.rpartition(".")
        known = "alpha" if name == "scale" else f"{theirs.get(part, part.replace('o_proj', 'final'))}.{kind}"
        torch.testing.assert_close(parameter.grad, expected[f"grad.{known}"], rtol=1e-3, atol=2e-4, msg=name)


def test_each_prototype_is_the_most_similar_cell_of_its_mask(case, attention):
    """Written out cell by cell; a query looks at the whole map if its mask is empty."""
    expected = case.expected
    keys = (expected["ca.memory"] + expected["ca.pos"]).flatten(2).transpose(1, 2)
    queries = (expected["ca.tgt"] + expected["ca.query_pos"]).transpose(0, 1)
    inside = expected["ca.memory_mask"].flatten(2) >= 0
    attended = transformer_decoder_masked.attended_cells(inside)
    with torch.no_grad():
        _, weights = attention(queries, MemoryLevel(keys, keys, (5, 6)), attended, need_weights=True)
        cells = F.normalize(attention.cell_proj(keys, (5, 6)), dim=-1).unflatten(-1, (4, 8))
        own = F.normalize(attention.query_proj(attention.query_norm(queries)), dim=-1).unflatten(-1, (4, 8))
    for image in range(3):
        for query in range(12):
            allowed = inside[image, query] if inside[image, query].any() else torch.ones(30, dtype=torch.bool)
            for head in range(4):
                similarity = [float(cells[image, cell, head] @ own[image, query, head]) for cell in range(30)]
                best = max((cell for cell in range(30) if allowed[cell]), key=similarity.__getitem__)
                assert weights[image, head, query].argmax() == best


# --- reading the original's files


def test_the_configuration_is_in_the_tensors():
    config = infer_config(load_file(GOLDEN / "pem_r50" / "state_dict.safetensors"))
    assert {field: getattr(config, field) for field in PEM} == {**PEM, "feature_size": 16, "decoder_layers": 4}
    assert (config.hidden_size, config.mask_feature_size, config.ffn_dim, config.num_queries) == (32, 32, 64, 12)
    assert (config.num_labels, config.freeze_batch_norm) == (7, True)


def test_the_configuration_is_in_the_dump(case):
    config = case.model.config
    fields = {"pixel_decoder": "pem", "cross_attention": "prototype", "feature_size": 16, "pre_norm": True}
    assert {field: getattr(config, field) for field in fields} == fields
    assert json.loads(Path(GOLDEN / "pem_r50" / "config.json").read_text())["MODEL"]["MASK_FORMER"]["DEC_LAYERS"] == 5
    assert config.decoder_layers == 4


def test_presets_are_the_original_size():
    config = PRESETS["pem_resnet50_ade20k"]()
    assert {field: getattr(config, field) for field in PEM} == PEM
    assert (config.hidden_size, config.ffn_dim, config.num_attention_heads, config.num_queries) == (256, 2048, 8, 100)
