"""Checkpoints of transformers' own Mask2Former load here, and give what they give there.

Every weight and every statistic is random, so that none is forgotten by being what it was initialised to.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import nn

from builders import STAGES, resnet, swin
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation, MaskFormerModel, load
from maskformer_hf.models.transformers_layout import MASK2FORMER_PARTS

LABELS = ("wall", "sky", "tree", "car", "person", "dog", "boat")
BACKBONES = {
    "swin": swin(32, depths=(2, 2, 2, 2), num_heads=(2, 2, 4, 4), window_size=4, image_size=64, out_features=STAGES),
    "resnet": resnet(
        32, 64, 96, 128, embedding_size=16, depths=(2, 2, 2, 2), layer_type="bottleneck", out_features=STAGES
    ),
}
# What differs from one to the other is the backbone alone, unless the second one has unusual sizes.
VARIANTS = {"swin": {}, "resnet": {"hidden_dim": 96, "pre_norm": True}}
NAMES = ("class_queries_logits", "masks_queries_logits")


def random_model(backbone: str) -> transformers.Mask2FormerForUniversalSegmentation:
    torch.manual_seed(0)
    sizes = {
        "feature_size": 64,
        "mask_feature_size": 32,
        "hidden_dim": 64,
        "num_attention_heads": 4,
        "encoder_layers": 2,
        "encoder_feedforward_dim": 80,
        "dim_feedforward": 96,
        "decoder_layers": 5,
        "num_queries": 12,
        "train_num_points": 100,
    }
    config = transformers.Mask2FormerConfig(
        backbone_config=BACKBONES[backbone],
        no_object_weight=0.2,
        id2label=dict(enumerate(LABELS)),
        label2id={name: label for label, name in enumerate(LABELS)},
        **{**sizes, **VARIANTS[backbone]},
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    if not isinstance(model.model.transformer_module.input_projections, nn.ModuleList):
        # Some versions (5.17) keep them where neither files nor optimizers find them.
        config.hidden_dim = config.feature_size
        model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
            elif isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.normal_(0, 0.1)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        for name, parameter in model.named_parameters():
            if name.endswith(("relative_position_bias_table", "in_proj_bias")):
                parameter.normal_()
            elif "sampling_offsets" in name:
                # Off the map's cells and beyond its edges.
                parameter.normal_(0, 2 if name.endswith("bias") else 0.2)
            elif "attention_weights" in name:
                parameter.normal_(0, 0.3)
        model.class_predictor.weight.mul_(10)
        # Masks of both signs, within which the decoder attends.
        projection = model.model.pixel_level_module.decoder.mask_projection.weight
        nn.init.xavier_uniform_(projection).mul_(0.5)  # what it starts as depends on the version
        projection.sub_(projection.mean(1, keepdim=True))
        embedder = model.model.transformer_module.decoder.mask_predictor.mask_embedder
        for layer in embedder.layers:
            nn.init.xavier_uniform_(layer.layers[0].weight).mul_(2)
            layer.layers[0].bias.zero_()
    return model


@pytest.fixture(scope="module", params=list(BACKBONES))
def theirs(request) -> transformers.Mask2FormerForUniversalSegmentation:
    return random_model(request.param)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    """In the names of the files on the Hub."""
    folder = tmp_path_factory.mktemp(theirs.config.backbone_config.model_type)
    theirs.save_pretrained(folder)
    transformers.Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert "model.transformer_module.decoder.layers.0.cross_attn.in_proj_weight" in file.keys()  # noqa: SIM118
    return folder


@pytest.fixture(scope="module")
def ours(folder) -> MaskFormerForUniversalSegmentation:
    return MaskFormerForUniversalSegmentation.from_pretrained(folder)


@torch.no_grad()
def assert_same_logits(ours, theirs, pixel_values):
    expected, got = theirs(pixel_values, output_auxiliary_logits=True), ours(pixel_values, output_auxiliary_logits=True)
    assert expected.class_queries_logits.std() > 0.5
    assert expected.masks_queries_logits.std() > 0.5
    assert 0.02 < (expected.masks_queries_logits > 0).float().mean() < 0.98
    pairs = zip([*got.auxiliary_logits, got], [*expected.auxiliary_logits, expected], strict=True)
    for layer, their_layer in pairs:
        for name in NAMES:
            torch.testing.assert_close(layer[name], their_layer[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (70, 90), (97, 131), (32, 33)], ids=str)
def test_logits(theirs, ours, size):
    assert_same_logits(ours, theirs, torch.randn(2, 3, *size, generator=torch.manual_seed(1)))


def test_every_weight_is_used_and_found(theirs, folder, tmp_path):
    theirs.save_pretrained(tmp_path / "current", save_original_format=False)
    theirs.model.save_pretrained(tmp_path / "headless")
    for source in (folder, tmp_path / "current"):
        model, info = MaskFormerForUniversalSegmentation.from_pretrained(source, output_loading_info=True)
        assert not any(info.values()), info
        assert_same_logits(model, theirs, torch.randn(1, 3, 64, 96, generator=torch.manual_seed(2)))
    model, info = MaskFormerModel.from_pretrained(tmp_path / "headless", output_loading_info=True)
    assert not any(info.values()), info
    pixel_values = torch.randn(1, 3, 64, 96, generator=torch.manual_seed(3))
    with torch.no_grad():
        got, expected = model(pixel_values), theirs.model(pixel_values)
        normed = theirs.model.transformer_module.decoder.layernorm(expected.transformer_decoder_last_hidden_state)
    torch.testing.assert_close(got.transformer_decoder_last_hidden_state, normed, rtol=0, atol=1e-4)


def test_losses_with_the_same_points(theirs, ours, monkeypatch):
    """Every random point is one of a fixed list, there and here."""
    generator = torch.manual_seed(4)
    pixel_values = torch.randn(2, 3, 64, 96, generator=generator)
    masks = [(torch.rand(n, 64, 96, generator=generator) < 0.3).float() for n in (3, 1)]
    labels = [torch.randint(0, len(LABELS), (n,), generator=generator) for n in (3, 1)]
    points = torch.rand(300, 2, generator=generator)

    def fixed(*size, **_):
        if size == ([],):
            # Some versions (5.17) draw a number for every layer, which they then do not use.
            return torch.zeros([])
        size = size[:-1] if size[-1] == 2 else size
        return points[: size[-1]].expand(*size, 2).clone()

    for module in ("assigners", "point_sampling"):
        monkeypatch.setattr(f"maskformer_hf.models.{module}.uniform_points", fixed)
    monkeypatch.setattr("transformers.models.mask2former.modeling_mask2former.torch.rand", fixed)
    with torch.no_grad():
        expected = theirs(pixel_values, mask_labels=masks, class_labels=labels)
        got = ours(pixel_values, mask_labels=[mask.bool() for mask in masks], class_labels=labels)
    assert len(got.loss_dict) == 3 * 5
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-5, atol=0)


def test_config_is_translated(theirs, folder):
    config = MaskFormerConfig.from_pretrained(folder)
    expected = {
        **MASK2FORMER_PARTS,
        "model_type": "maskformer_hf",
        "feature_size": 64,
        "mask_feature_size": 32,
        "hidden_size": theirs.config.hidden_dim,
        "num_attention_heads": 4,
        "encoder_layers": 2,
        "encoder_levels": 3,
        "encoder_ffn_dim": 80,
        "ffn_dim": 96,
        "decoder_layers": 4,
        "num_queries": 12,
        "dropout": 0.0,
        "pre_norm": theirs.config.pre_norm,
        "num_points": 100,
        "class_weight": 2.0,
        "mask_weight": 5.0,
        "no_object_weight": 0.2,
        "freeze_batch_norm": True,
        "id2label": dict(enumerate(LABELS)),
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert MaskFormerConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert "common_stride" not in config.to_dict()


@pytest.mark.parametrize(
    ("field", "value"),
    [("activation_function", "gelu"), ("common_stride", 8), ("feature_strides", [8, 16, 32, 64])],
)
def test_other_arithmetic_is_refused(folder, tmp_path, field, value):
    written = json.loads((folder / "config.json").read_text())
    written[field] = value
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=f"`{field}` of this checkpoint is"):
        MaskFormerConfig.from_pretrained(tmp_path)


def test_it_is_saved_as_ours(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    again, info = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name


def test_load_takes_the_image_processor_along(folder):
    model, processor = load(folder, device="cpu")
    assert model.config.transformer_decoder == "masked"
    assert (processor.size["shortest_edge"], processor.round_to_divisor) == (64, True)
