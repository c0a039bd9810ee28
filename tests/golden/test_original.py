"""Our model with the original's weights computes what the original computed.

Tolerances: tests/fixtures/golden/README.md.
"""

import pytest
import torch

from maskformer_hf.conversion.detectron2_names import tensor_names
from maskformer_hf.models.matcher import match
from tensors import costs_of

RUNS = ("A", "B", "C", "B_div0")
TARGET_SETS = [f"{run}.{targets}" for run in ("A", "C") for targets in ("t_3_0", "t_2_4", "t_0_0", "t_15_1")]


def assert_close(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("run", RUNS)
def test_predictions(case, run):
    with torch.no_grad():
        output = case.model(case.pixel_values(run))
    assert_close(output.class_queries_logits, case.expected[f"{run}.raw.pred_logits"])
    assert_close(output.masks_queries_logits, case.expected[f"{run}.raw.pred_masks"])


def test_auxiliary_predictions(case):
    """One for each decoder layer but the last, and through the decoder's LayerNorm."""
    with torch.no_grad():
        output = case.model(case.pixel_values("C"), output_auxiliary_logits=True)
    assert len(output.auxiliary_logits) == 2
    for i, layer in enumerate(output.auxiliary_logits):
        assert_close(layer["class_queries_logits"], case.expected[f"C.raw.aux{i}.pred_logits"])
        assert_close(layer["masks_queries_logits"], case.expected[f"C.raw.aux{i}.pred_masks"])


@pytest.mark.parametrize("run", ["C", "B_div0"])
def test_features(case, run):
    with torch.no_grad():
        output = case.model(case.pixel_values(run), output_hidden_states=True)
    ours = {f"{run}.backbone.res{i + 2}": feature for i, feature in enumerate(output.encoder_hidden_states)}
    ours[f"{run}.mask_features"] = output.pixel_decoder_last_hidden_state
    ours[f"{run}.transformer_encoder_features"] = output.pixel_decoder_hidden_states[0]
    compared = [name for name in ours if name in case.expected]
    assert len(compared) >= {"C": 5, "B_div0": 2}[run]
    for name in compared:
        assert_close(ours[name][-1:], case.expected[name])


@pytest.mark.parametrize("key", TARGET_SETS)
def test_losses(case, key):
    run, target_set = key.split(".")
    with torch.no_grad():
        output = case.model(case.pixel_values(run), **case.targets(run, target_set))
    record = case.record["losses"][key]
    ours = {name: loss.item() for name, loss in output.loss_dict.items()}
    assert ours == pytest.approx(record["losses_unweighted"], rel=1e-4, abs=2e-5)
    assert output.loss.item() == pytest.approx(record["total_weighted"], rel=1e-4)
    if target_set == "t_0_0":
        assert [loss for name, loss in ours.items() if not name.startswith("loss_ce")] == [0.0] * 6


@pytest.mark.parametrize("key", TARGET_SETS)
def test_matching(case, key):
    run, target_set = key.split(".")
    targets = case.targets(run, target_set)
    with torch.no_grad():
        output = case.model(case.pixel_values(run), output_auxiliary_logits=True)
    layers = {f"aux{i}": layer for i, layer in enumerate(output.auxiliary_logits)} | {"final": output}
    costs = costs_of(
        torch.stack([layer["class_queries_logits"] for layer in layers.values()]),
        torch.stack([layer["masks_queries_logits"] for layer in layers.values()]),
        targets["mask_labels"],
        targets["class_labels"],
        class_weight=case.model.config.class_weight,
        mask_weight=case.model.config.mask_weight,
        dice_weight=case.model.config.dice_weight,
    )
    matches = match(costs, [len(labels) for labels in targets["class_labels"]])
    names = list(layers)
    record = case.record["losses"][key]["matching"]
    assert len(record) == len(names) * len(targets["class_labels"])
    for entry in record:
        layer, image = names.index(entry["layer"]), entry["image"]
        queries, indices = matches[layer][image]
        assert queries.tolist() == entry["query"]
        assert indices.tolist() == entry["target"]
        count = len(targets["class_labels"][image])
        if count:
            expected = case.expected[f"{key}.cost.{entry['layer']}.{image}.total"]
            torch.testing.assert_close(costs[layer, image, :, :count], expected, rtol=0, atol=5e-5)


def test_gradients(case):
    """Gradients are those of the weighted total, for every parameter."""
    case.model.zero_grad()
    case.model(case.pixel_values("C"), **case.targets("C", "t_3_0")).loss.backward()
    gradients = {name: parameter.grad for name, parameter in case.model.named_parameters()}
    case.model.zero_grad()
    names = tensor_names(case.model.config)
    record = case.record["gradients"]["C.t_3_0"]
    largest = max(norm for norm, _ in record.values())
    for name, (norm, peak) in record.items():
        targets = (names[name],) if isinstance(names[name], str) else names[name]
        gradient = torch.cat([gradients.pop(target).flatten() for target in targets])
        assert gradient.norm().item() == pytest.approx(norm, rel=5e-3, abs=1e-5 * largest), name
        assert gradient.abs().max().item() == pytest.approx(peak, rel=5e-3, abs=1e-5 * largest), name
    assert not gradients, "parameters that the original has not"
