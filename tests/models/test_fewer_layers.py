"""Models that run fewer layers at inference than they were trained with."""

import pytest
import torch

from builders import random_model, tiny_config
from maskformer_hf import PerPixelBaselineConfig, load, predict
from maskformer_hf.models.interfaces import Ask

KINDS = ("maskformer", "mask2former", "video")
LOGITS = ("class_queries_logits", "masks_queries_logits")


def model_of(kind="mask2former", **fields):
    return random_model(tiny_config(kind, **{"decoder_layers": 4, "encoder_layers": 3, "dropout": 0.0, **fields}))


def images(kind="mask2former"):
    frames = (2,) if kind == "video" else ()
    return torch.randn(2, *frames, 3, 64, 96, generator=torch.manual_seed(1))


def targets(kind="mask2former"):
    frames = (2,) if kind == "video" else ()
    masks = torch.zeros(2, *frames, 64, 96, dtype=torch.bool)
    masks[0, ..., :32, :] = masks[1, ..., 40:] = True
    return {"mask_labels": [masks, masks[:1]], "class_labels": [torch.tensor([2, 0]), torch.tensor([1])]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_a_model_stopped_after_n_layers_predicts_what_its_auxiliary_prediction_n_is(kind, layers):
    model = model_of(kind)
    first = 0 if kind == "maskformer" else 1  # the learned queries are a prediction of their own
    with torch.no_grad():
        whole = model(images(kind), output_auxiliary_logits=True)
        model.config.inference_layers = layers
        stopped = model(images(kind))
    expected = [*whole.auxiliary_logits, whole][layers - 1 + first]
    for name in LOGITS:
        torch.testing.assert_close(stopped[name], expected[name], rtol=0, atol=1e-6)
    assert layers == 4 or not torch.allclose(stopped[LOGITS[0]], whole[LOGITS[0]])


def test_all_layers_are_trained():
    """Bit for bit as without it."""
    losses, gradients = [], []
    for stop in (None, 1):
        model = model_of(inference_layers=stop, inference_encoder_layers=stop).train()
        torch.manual_seed(2)
        outputs = model(images(), **targets())
        outputs.loss.backward()
        losses.append(outputs.loss_dict)
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert losses[0] == losses[1]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", ["mask2former", "video"])
def test_exits_of_the_encoder_are_trained_and_left_at(kind):
    """An exit computes the loss of the model that is left there, and its loss has its weight."""
    model, plain = model_of(kind, encoder_exits=[0.0, 0.25]), model_of(kind)
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.train()
    encoded = model.model.encode(images(kind), model.model.ask(images(kind)))
    [early] = encoded.pixels.exits
    assert (early.weight, encoded.pixels.weight) == (0.25, 1.0)
    plain.config.inference_encoder_layers = 2
    stopped = plain.model.encode(images(kind), plain.model.ask(images(kind))).pixels
    torch.testing.assert_close(early.embeddings, stopped.embeddings)
    for level, expected in zip(early.memory, stopped.memory, strict=True):
        torch.testing.assert_close(level, expected)
    outputs = model(images(kind), **targets(kind))
    own = {name for name in outputs.loss_dict if not name.startswith("exit")}
    assert outputs.loss_dict.keys() - own == {f"exit1_{name}" for name in own}
    weights = {"ce": model.config.class_weight, "mask": model.config.mask_weight, "dice": model.config.dice_weight}
    total = sum(
        (0.25 if name.startswith("exit1_") else 1.0) * weights[name.removeprefix("exit1_").split("_")[1]] * value
        for name, value in outputs.loss_dict.items()
    )
    torch.testing.assert_close(outputs.loss, total)
    outputs.loss.backward()
    # Nothing of it is left at inference.
    with torch.no_grad():
        assert not model.eval().model.encode(images(kind), Ask()).pixels.exits


def test_predict_and_load_stop_early(tiny_checkpoint, tiny_model, tiny_processor, photo_paths):
    last = tiny_model.config.decoder_layers
    assert last > 1
    expected = predict(tiny_model, tiny_processor, photo_paths[0], task="semantic", inference_layers=1)
    assert tiny_model.config.inference_layers is None
    model, processor = load(tiny_checkpoint, device="cpu", inference_layers=1)
    assert model.config.inference_layers == 1
    stopped = predict(model, processor, photo_paths[0], task="semantic")
    torch.testing.assert_close(stopped[0].segmentation, expected[0].segmentation)
    assert [segment["score"] for segment in stopped[0].segments] == pytest.approx(
        [segment["score"] for segment in expected[0].segments], abs=1e-5
    )
    again = predict(model, processor, photo_paths[0], task="semantic", inference_layers=last)
    whole = predict(tiny_model, tiny_processor, photo_paths[0], task="semantic")
    assert [segment["score"] for segment in again[0].segments] == pytest.approx(
        [segment["score"] for segment in whole[0].segments], abs=1e-5
    )


def test_a_number_of_layers_that_there_is_not(tiny_checkpoint, tiny_model, tiny_processor, photo_paths):
    last = tiny_model.config.decoder_layers
    with pytest.raises(ValueError, match=f"`inference_layers` must be 1 to `decoder_layers`={last}, .* got 99"):
        predict(tiny_model, tiny_processor, photo_paths[0], inference_layers=99)
    assert tiny_model.config.inference_layers is None
    with pytest.raises(ValueError, match=r"cannot be loaded: `inference_layers` must be 1 to .* got 99"):
        load(tiny_checkpoint, device="cpu", inference_layers=99)


def test_a_per_pixel_baseline_without_a_decoder_has_none_to_stop():
    with pytest.raises(ValueError, match=r"no transformer decoder to stop early: .* got 1"):
        PerPixelBaselineConfig(inference_layers=1)
    with pytest.raises(ValueError, match="A per-pixel baseline trains no earlier exits"):
        PerPixelBaselineConfig(pixel_decoder="deformable", encoder_exits=[1.0] * 5)
    model = random_model(tiny_config("per_pixel", transformer_decoder="detr", decoder_layers=3, inference_layers=2))
    with torch.no_grad():
        stopped = model(images()).logits
        model.config.inference_layers = None
        layers = model(images(), output_auxiliary_logits=True).auxiliary_logits
    torch.testing.assert_close(stopped, layers[1], rtol=0, atol=1e-5)
