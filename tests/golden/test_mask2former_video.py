"""Mask2Former-VIS with the original's weights computes what the original computed.

Tolerances: tests/fixtures/golden/README.md.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from maskformer_hf import MaskFormerForVideoSegmentation, MaskFormerVideoProcessor
from maskformer_hf.conversion.detectron2 import load_detectron2
from maskformer_hf.conversion.detectron2_names import tensor_names
from maskformer_hf.models.position_encoding import clip_position_encoding

FOLDER = Path(__file__).parent.parent / "fixtures" / "golden" / "mask2former_video_swin"
LAYERS = ["aux0", "aux1", "aux2", "aux3", "final"]
RUNS = ["V2", "V2odd", "V3"]
TRAINING_BATCH = ["T0", "T1"]
# The original's photos come normalised and are never resized.
PROCESSOR = MaskFormerVideoProcessor(do_resize=False, num_labels=7)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((FOLDER / "expected.json").read_text())


@pytest.fixture(scope="module")
def model() -> MaskFormerForVideoSegmentation:
    model = load_detectron2(FOLDER / "state_dict.safetensors")
    assert isinstance(model, MaskFormerForVideoSegmentation)
    return model


def assert_close(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


def unpack(bits: torch.Tensor, width: int) -> np.ndarray:
    return np.unpackbits(bits.numpy(), axis=-1)[..., :width].astype(bool)


def test_position_encoding(expected):
    encoding = clip_position_encoding(3, 4, 6, 32, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(encoding[None], expected["pos3d_1x3x4x6"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_predictions_and_results(model, expected, record, run):
    """From frames to the ten best tubes, of which the original says no order."""
    with torch.no_grad():
        outputs = model(**PROCESSOR(expected[f"video.{run}"], return_tensors="pt"), output_auxiliary_logits=True)
    assert_close(outputs.class_queries_logits, expected[f"{run}.raw.pred_logits"])
    assert_close(outputs.masks_queries_logits, expected[f"{run}.raw.pred_masks"])
    for layer, logits in enumerate(outputs.auxiliary_logits):
        if f"{run}.raw.aux{layer}.pred_logits" in expected:
            assert_close(logits["class_queries_logits"], expected[f"{run}.raw.aux{layer}.pred_logits"])
            assert_close(logits["masks_queries_logits"], expected[f"{run}.raw.aux{layer}.pred_masks"])
    original = record["runs"][run]
    size = tuple(original["size"] or expected[f"video.{run}"].shape[-2:])
    (result,) = PROCESSOR.post_process_instance_segmentation(outputs, target_sizes=[size])
    masks = unpack(expected[f"{run}.video.pred_masks"], size[1])
    order = np.argsort(-np.array(original["scores"]))
    assert result["masks"].shape == (10, len(expected[f"video.{run}"]), *size)
    for segment, mask, index in zip(result["segments_info"], result["masks"].numpy(), order, strict=True):
        assert segment["score"] == pytest.approx(original["scores"][index], abs=1e-4)
        assert segment["label_id"] == original["labels"][index]
        assert (mask != masks[index]).sum() <= 3


@pytest.mark.parametrize("target_set", ["v_3_2", "v_15_1"])
def test_targets(expected, record, target_set):
    """Objects in no frame are left out; the class is told where the object is seen, in whichever frame."""
    clips = [expected[f"video.{name}"] for name in TRAINING_BATCH]
    batch = PROCESSOR(clips, *targets(expected, target_set), return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 2, 3, 96, 96)
    for clip, prepared in enumerate(record["prepared_targets"][target_set]):
        assert batch["class_labels"][clip].tolist() == prepared["labels"]
        assert batch["mask_labels"][clip].shape[1:] == (2, 96, 96)
        assert batch["mask_labels"][clip].flatten(2).sum(-1).tolist() == prepared["mask_area"]


def targets(expected, target_set) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Masks (N, T, H, W), and classes (N, T) with -1 where the original says that an object is absent."""
    masks, labels = [], []
    for clip, name in enumerate(TRAINING_BATCH):
        stored = f"target.{target_set}.{clip}"
        width = expected[f"video.{name}"].shape[-1]
        masks.append(torch.from_numpy(unpack(expected[f"{stored}.masks"], width)))
        ids = expected[f"{stored}.ids"]
        labels.append(torch.where(ids >= 0, expected[f"{stored}.labels"][:, None], -1))
    assert any(bool((classes < 0).any()) for classes in labels)
    return masks, labels


def test_losses_and_gradients(model, expected, record, replay_random_points):
    """Gradients are those of the weighted total, for every parameter."""
    losses = record["losses"]["v_3_2"]
    clips = [expected[f"video.{name}"] for name in TRAINING_BATCH]
    batch = PROCESSOR(clips, *targets(expected, "v_3_2"), return_tensors="pt")
    matching = [losses["matching"][layer] for layer in [LAYERS[-1], *LAYERS[:-1]]]
    replay_random_points(losses["seed"], matching, [len(labels) for labels in batch["class_labels"]], num_frames=2)
    model.zero_grad()
    output = model(**batch)
    ours = {name: loss.item() for name, loss in output.loss_dict.items()}
    assert ours == pytest.approx(losses["losses_unweighted"], rel=1e-4, abs=2e-5)
    assert output.loss.item() == pytest.approx(losses["total_weighted"], rel=1e-4)
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    names = tensor_names(model.config)
    largest = max(norm for norm, _ in record["gradients"]["v_3_2"].values())
    for name, (norm, peak) in record["gradients"]["v_3_2"].items():
        parts = (names[name],) if isinstance(names[name], str) else names[name]
        gradient = torch.cat([gradients.pop(part).flatten() for part in parts])
        assert gradient.norm().item() == pytest.approx(norm, rel=5e-3, abs=1e-5 * largest), name
        assert gradient.abs().max().item() == pytest.approx(peak, rel=5e-3, abs=1e-5 * largest), name
    assert not gradients, "parameters that the original has not"


def test_padding_is_that_of_the_original(expected):
    batch = PROCESSOR([expected["video.T0"], expected["video.T1"]], return_tensors="pt")
    frame = (expected["video.T1"][1].float() / 255 - torch.tensor(PROCESSOR.image_mean)[:, None, None]) / torch.tensor(
        PROCESSOR.image_std
    )[:, None, None]
    padded = F.pad(frame, (0, 36, 0, 26))
    torch.testing.assert_close(batch["pixel_values"][1, 1], padded, rtol=0, atol=1e-5)
    assert batch["pixel_mask"][1, 1].sum() == 70 * 60
