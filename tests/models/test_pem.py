"""PEM's parts, together and each with the others."""

from typing import Any, ClassVar

import pytest
import torch

from builders import convnext, random_model, tiny_config
from maskformer_hf import MaskFormerConfig
from maskformer_hf.models import deformable_convolution
from maskformer_hf.models.interfaces import Ask
from maskformer_hf.models.pixel_decoder_pem import DeformableConvolution
from tests.models.contract import NUM_LAYERS, Mask2FormerContract, ModelContract


class TestPEM(Mask2FormerContract):
    fields: ClassVar[dict[str, Any]] = {"pixel_decoder": "pem", "cross_attention": "prototype", "pre_norm": True}
    num_encoder_attentions = 0


class TestPrototypeOnFPN(ModelContract):
    fields: ClassVar[dict[str, Any]] = {"transformer_decoder": "masked", "cross_attention": "prototype"}
    num_predictions = NUM_LAYERS + 1


def test_the_pixel_decoder_feeds_a_detr_decoder_and_a_backbone_that_rounds_down():
    model = random_model(tiny_config(pixel_decoder="pem", backbone_config=convnext(), feature_size=20))
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 97, 131))
    assert outputs.masks_queries_logits.shape[-2:] == (24, 32)


def test_pixel_embeddings_are_never_negative():
    model = random_model(tiny_config(pixel_decoder="pem"))
    with torch.no_grad():
        encoded = model.model.encode(torch.randn(2, 3, 64, 96), Ask())
    assert encoded.pixels.embeddings.min() == 0
    assert encoded.pixels.embeddings.max() > 0


def test_a_deformable_convolution_starts_as_half_a_plain_one():
    convolution = random_model(tiny_config(pixel_decoder="pem")).model.pixel_decoder.convolutions[0]
    maps = torch.randn(2, 32, 7, 9)
    with torch.no_grad():
        expected = (0.5 * convolution.convolution(maps)).clamp(min=0)
        torch.testing.assert_close(convolution(maps), expected, rtol=1e-4, atol=1e-4)


def test_the_prototypes_of_clips_are_found_in_all_frames():
    model = random_model(tiny_config("video", cross_attention="prototype"), attn_implementation="eager")
    with torch.no_grad():
        clip = torch.randn(1, 3, 3, 64, 96)
        outputs = model(clip, output_attentions=True)
    assert outputs.cross_attentions[0].shape[-1] == 3 * 2 * 3
    assert outputs.masks_queries_logits.shape[2] == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cross_attention": "prototype"}, "needs masks to look within: .* got 'detr'"),
        ({"pixel_decoder": "pem", "feature_size": 15}, "needs an even `feature_size`, got 15"),
        ({"pixel_decoder": "pem", "inference_encoder_layers": 1}, "`pixel_decoder='pem'` has no encoder to leave"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskFormerConfig(**fields)


def test_one_image_has_no_statistics_of_its_mean():
    model = random_model(tiny_config(pixel_decoder="pem")).train()
    with pytest.raises(ValueError, match="train with at least 2 images in each process, got 1"):
        model(torch.randn(1, 3, 64, 96))


def test_without_torchvision_a_deformable_convolution_is_the_same(monkeypatch):
    """Also where it looks outside of the map."""
    convolution = DeformableConvolution(8).eval()
    with torch.no_grad():
        convolution.places.weight.normal_(std=0.5)
        convolution.places.bias.normal_(std=4)
    maps = [torch.randn(2, 8, 5, 7, generator=torch.manual_seed(3)).requires_grad_() for _ in range(2)]
    expected = convolution(maps[0])
    monkeypatch.setattr(deformable_convolution, "deform_conv2d", None)
    actual = convolution(maps[1])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    for result in (expected, actual):
        result.square().sum().backward()
    torch.testing.assert_close(maps[1].grad, maps[0].grad, rtol=1e-3, atol=1e-3)
