"""Mask2Former with the original's weights computes what the original computed.

Tolerances: tests/fixtures/golden/README.md.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskformer_hf.conversion.detectron2_names import tensor_names
from maskformer_hf.models.result_options import ResultOptions
from maskformer_hf.models.results import results_of

FIXTURES = Path(__file__).parent.parent / "fixtures"
POINT_LOSSES = FIXTURES / "golden" / "point_losses"
RESULTS = FIXTURES / "golden_post_processing" / "mask2former_swin.npz"
LAYERS = ["aux0", "aux1", "aux2", "aux3", "final"]


@pytest.fixture(scope="module")
def case(mask2former):
    return mask2former


@pytest.fixture(scope="module")
def predictions() -> dict[str, torch.Tensor]:
    """The original's predictions of run C, which its losses were made of as well."""
    return load_file(POINT_LOSSES / "image.safetensors")


def assert_close(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("run", ["A", "B", "C", "B_div0"])
def test_predictions(case, predictions, run):
    with torch.no_grad():
        output = case.model(case.pixel_values(run))
    expected = predictions if run == "C" else case.expected
    assert_close(output.class_queries_logits, expected[f"{run}.raw.pred_logits"])
    assert_close(output.masks_queries_logits, expected[f"{run}.raw.pred_masks"])


def test_auxiliary_predictions(case, predictions):
    """One of the learned queries, and one of every decoder layer but the last."""
    with torch.no_grad():
        output = case.model(case.pixel_values("C"), output_auxiliary_logits=True)
    assert len(output.auxiliary_logits) == 4
    for i, layer in enumerate(output.auxiliary_logits):
        assert_close(layer["class_queries_logits"], predictions[f"C.raw.aux{i}.pred_logits"])
        assert_close(layer["masks_queries_logits"], predictions[f"C.raw.aux{i}.pred_masks"])


def test_features(case):
    with torch.no_grad():
        output = case.model(case.pixel_values("C"), output_hidden_states=True)
    ours = {f"C.backbone.res{i + 2}": feature for i, feature in enumerate(output.encoder_hidden_states)}
    ours |= {f"C.multi_scale_features.{i}": level for i, level in enumerate(output.pixel_decoder_hidden_states)}
    ours["C.mask_features"] = output.pixel_decoder_last_hidden_state
    compared = [name for name in ours if name in case.expected]
    assert len(compared) == 3 + 3 + 1
    for name in compared:
        assert_close(ours[name][-1:], case.expected[name])


@pytest.mark.parametrize("target_set", ["t_3_0", "t_2_4", "t_0_0", "t_15_1"])
def test_losses(case, replay_random_points, target_set):
    record = json.loads((POINT_LOSSES / "image.json").read_text())[f"C.{target_set}"]
    targets = replay(case, replay_random_points, record, target_set)
    with torch.no_grad():
        output = case.model(case.pixel_values("C"), **targets)
    ours = {name: loss.item() for name, loss in output.loss_dict.items()}
    assert ours == pytest.approx(record["losses_unweighted"], rel=1e-4, abs=2e-5)
    assert output.loss.item() == pytest.approx(record["total_weighted"], rel=1e-4)


def test_gradients(case, replay_random_points):
    """Gradients are those of the weighted total, for every parameter."""
    record = json.loads((POINT_LOSSES / "image.json").read_text())["C.t_3_0"]
    targets = replay(case, replay_random_points, record, "t_3_0")
    case.model.zero_grad()
    case.model(case.pixel_values("C"), **targets).loss.backward()
    gradients = {name: parameter.grad for name, parameter in case.model.named_parameters()}
    case.model.zero_grad()
    names = tensor_names(case.model.config)
    expected = case.record["gradients"]["C.t_3_0"]
    largest = max(norm for norm, _ in expected.values())
    for name, (norm, peak) in expected.items():
        parts = (names[name],) if isinstance(names[name], str) else names[name]
        gradient = torch.cat([gradients.pop(part).flatten() for part in parts])
        assert gradient.norm().item() == pytest.approx(norm, rel=5e-3, abs=1e-5 * largest), name
        assert gradient.abs().max().item() == pytest.approx(peak, rel=5e-3, abs=1e-5 * largest), name
    assert not gradients, "parameters that the original has not"


def replay(case, replay_random_points, record, target_set):
    targets = case.targets("C", target_set)
    matching = [record["matching"][layer] for layer in [LAYERS[-1], *LAYERS[:-1]]]
    replay_random_points(record["seed"], matching, [len(labels) for labels in targets["class_labels"]])
    return targets


@pytest.mark.parametrize("run", ["A", "B", "C"])
def test_panoptic_and_instance_results(case, run):
    """From the photo to segments, which keep only pixels of their own mask, and to the ten best things."""
    with np.load(RESULTS) as stored:
        expected = dict(stored)
    meta = json.loads(str(expected["meta"]))
    stuff = sorted(set(range(7)) - set(meta["things"]))
    sizes = [tuple(size) for size in meta["runs"][run]["target_sizes"]]
    with torch.no_grad():
        outputs = case.model(case.pixel_values(run))
    outputs.image_sizes = torch.tensor(meta["runs"][run]["image_sizes"])
    compared = 0
    for key, records in meta["runs"][run]["panoptic"].items():
        thresholds, image = key.split("panoptic_")[1].rsplit(".", 1)
        threshold, overlap = (float(part) for part in thresholds.split("_"))
        options = ResultOptions.of(
            case.model.config,
            "panoptic",
            threshold=threshold,
            overlap_mask_area_threshold=overlap,
            label_ids_to_fuse=stuff,
        )
        result = results_of(outputs, options, sizes)[int(image)]
        found = sorted((segment["id"], segment["label_id"]) for segment in result.segments)
        assert found == sorted(map(tuple, records))
        assert (result.segmentation.numpy() != expected[key].astype(np.int32)).sum() <= 3
        compared += len(records)
    assert compared > 0
    options = ResultOptions.of(case.model.config, "instance", threshold=0.0, label_ids_to_fuse=stuff, max_instances=10)
    for image, result in enumerate(results_of(outputs, options, sizes)):
        name = f"{run}.inst_with_panoptic_on.{image}"
        masks = np.unpackbits(expected[f"{name}.pred_masks"], axis=-1)[..., : sizes[image][1]].astype(bool)
        order = [i for i in np.argsort(-expected[f"{name}.scores"], kind="stable") if masks[i].any()]
        assert len(result.segments) == len(order)
        for segment, mask, i in zip(result.segments, result.masks, order, strict=True):
            assert segment["score"] == pytest.approx(expected[f"{name}.scores"][i], abs=1e-4)
            assert segment["label_id"] == expected[f"{name}.pred_classes"][i]
            assert (mask.numpy() != masks[i]).sum() <= 3
