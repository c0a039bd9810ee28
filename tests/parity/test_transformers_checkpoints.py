"""Checkpoints of transformers' own MaskFormer load here, and give what they give there.

The models are small, but of the real parts; every weight and every statistic is random, so that none is forgotten by
being what it was initialised to.
"""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from builders import STAGES, resnet, swin
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation, MaskFormerModel
from maskformer_hf.models.transformers_layout import IGNORED_WEIGHTS

LABELS = ("wall", "sky", "tree", "car", "person", "dog", "boat")
BACKBONES = {
    "swin": swin(32, depths=(2, 2, 2, 2), num_heads=(2, 2, 4, 4), window_size=4, image_size=64),
    "resnet": resnet(
        32, 64, 96, 128, embedding_size=16, depths=(2, 2, 2, 2), layer_type="bottleneck", out_features=STAGES
    ),
}
SIZES = [(64, 96), (70, 90), (97, 131)]


def random_model(backbone: str) -> transformers.MaskFormerForInstanceSegmentation:
    torch.manual_seed(0)
    decoder = transformers.DetrConfig(
        d_model=64, decoder_layers=3, decoder_ffn_dim=96, decoder_attention_heads=4, num_queries=12
    )
    config = transformers.MaskFormerConfig(
        backbone_config=BACKBONES[backbone],
        decoder_config=decoder,
        fpn_feature_size=64,
        mask_feature_size=32,
        no_object_weight=0.2,
        id2label=dict(enumerate(LABELS)),
        label2id={name: label for label, name in enumerate(LABELS)},
    )
    model = transformers.MaskFormerForInstanceSegmentation(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
            elif getattr(module, "bias", None) is not None:
                module.bias.normal_(0, 0.1)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        for name, parameter in model.named_parameters():
            if name.endswith("relative_position_bias_table") or "queries_embedder" in name:
                parameter.normal_()
        # Logits that differ from query to query, as trained ones do.
        model.class_predictor.weight.mul_(10)
    return model


@pytest.fixture(scope="module", params=list(BACKBONES))
def theirs(request) -> transformers.MaskFormerForInstanceSegmentation:
    return random_model(request.param)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    """In the names of the files on the Hub, which transformers still saves (`self_attn.out_proj`, `fc1`)."""
    folder = tmp_path_factory.mktemp(theirs.config.backbone_config.model_type)
    theirs.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert "model.transformer_module.decoder.layers.0.self_attn.out_proj.weight" in file.keys()  # noqa: SIM118
    return folder


@pytest.fixture(scope="module")
def ours(folder) -> MaskFormerForUniversalSegmentation:
    return MaskFormerForUniversalSegmentation.from_pretrained(folder)


def assert_nothing_is_left_over(info):
    assert not any(info.values()), info


@torch.no_grad()
def assert_same_logits(ours, theirs, pixel_values, tolerance=1e-4, **inputs):
    expected, got = theirs(pixel_values, **inputs), ours(pixel_values, **inputs)
    assert expected.class_queries_logits.std() > 0.5
    assert expected.masks_queries_logits.std() > 0.1
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", SIZES)
def test_logits(theirs, ours, size):
    assert_same_logits(ours, theirs, torch.randn(2, 3, *size, generator=torch.manual_seed(1)))


def test_logits_of_a_padded_batch(theirs, ours):
    pixel_values = torch.randn(2, 3, 96, 96, generator=torch.manual_seed(2))
    pixel_mask = torch.ones(2, 96, 96, dtype=torch.int64)
    pixel_mask[0, 70:] = pixel_mask[1, :, 65:] = 0
    assert_same_logits(ours, theirs, pixel_values * pixel_mask[:, None], pixel_mask=pixel_mask)


@pytest.mark.parametrize("num_targets", [(3, 2), (0, 4), (0, 0), (15, 1)], ids=str)
def test_loss(theirs, ours, num_targets):
    generator = torch.manual_seed(3)
    pixel_values = torch.randn(2, 3, 70, 90, generator=generator)
    masks = [(torch.rand(n, 70, 90, generator=generator) < 0.3).float() for n in num_targets]
    labels = [torch.randint(0, len(LABELS), (n,), generator=generator) for n in num_targets]
    with torch.no_grad():
        expected = theirs(pixel_values, mask_labels=masks, class_labels=labels)
        got = ours(pixel_values, mask_labels=[mask.bool() for mask in masks], class_labels=labels)
    assert set(got.loss_dict) == {"loss_ce", "loss_mask", "loss_dice"}
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-5, atol=0)


def test_every_weight_is_used_and_found(folder):
    ours, info = MaskFormerForUniversalSegmentation.from_pretrained(folder, output_loading_info=True)
    assert_nothing_is_left_over(info)
    saved = load_file(folder / "model.safetensors")
    depths = sum(BACKBONES["swin"]["depths"])
    ignored = {"swin": 1 + 2 + depths, "resnet": 1}[ours.config.backbone_config.model_type]
    assert len(saved) - ignored == len(ours.state_dict())
    assert len(IGNORED_WEIGHTS) == 3


def test_current_weight_names(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, save_original_format=False)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "model.transformer_module.decoder.layers.0.mlp.fc1.weight" in names
    assert "model.transformer_module.decoder.layers.0.self_attn.o_proj.weight" in names
    ours, info = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert_nothing_is_left_over(info)
    assert_same_logits(ours, theirs, torch.randn(1, 3, 64, 96))


def test_sharded(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ours, info = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert_nothing_is_left_over(info)
    assert_same_logits(ours, theirs, torch.randn(1, 3, 64, 96))


def test_pytorch_model_bin(theirs, folder, tmp_path):
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    ours, info = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert_nothing_is_left_over(info)
    assert_same_logits(ours, theirs, torch.randn(1, 3, 64, 96))


def test_config_json_of_the_first_versions(folder, tmp_path):
    """They wrote every field a configuration could have, and Swin under its own name, without its output features."""
    written = json.loads((folder / "config.json").read_text())
    backbone = written["backbone_config"]
    for name in ("out_features", "out_indices", "stage_names"):
        if backbone["model_type"] != "resnet":
            backbone.pop(name)
    if backbone["model_type"] == "maskformer-swin":
        backbone |= {"model_type": "swin", "path_norm": True}
    for part in (backbone, written["decoder_config"]):
        part |= {"add_cross_attention": False, "num_beams": 1, "top_k": 50, "torch_dtype": None}
    written |= {"torch_dtype": "float32", "transformers_version": "4.25.0.dev0", "backbone": None}
    written["decoder_config"] |= {"scale_embedding": False, "backbone": "resnet50", "use_pretrained_backbone": True}
    written["decoder_config"].pop("backbone_config")
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = MaskFormerConfig.from_pretrained(tmp_path)
    assert config.to_dict().keys() <= {*MaskFormerConfig.from_pretrained(folder).to_dict(), "_commit_hash"}
    assert config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"]


def test_config_is_translated(folder):
    config = MaskFormerConfig.from_pretrained(folder)
    expected = {
        "model_type": "maskformer_hf",
        "feature_size": 64,
        "mask_feature_size": 32,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "ffn_dim": 96,
        "decoder_layers": 3,
        "num_queries": 12,
        "pixel_decoder": "fpn",
        "use_auxiliary_loss": False,
        "no_object_weight": 0.2,
        "freeze_batch_norm": True,
        "id2label": dict(enumerate(LABELS)),
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.architectures is None
    assert MaskFormerConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("activation_function", "gelu", "activation_function.*'gelu'"), ("auxiliary_loss", True, "auxiliary_loss.*True")],
)
def test_other_arithmetic_is_refused(folder, tmp_path, field, value, message):
    written = json.loads((folder / "config.json").read_text())
    written["decoder_config"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=message):
        MaskFormerConfig.from_pretrained(tmp_path)


def test_a_configuration_object_of_transformers(theirs, folder):
    ours = MaskFormerForUniversalSegmentation.from_pretrained(folder, config=theirs.config)
    assert_same_logits(ours, theirs, torch.randn(1, 3, 64, 96))


def test_a_weight_too_many_or_too_few_is_reported(folder, tmp_path, caplog):
    state = load_file(folder / "model.safetensors")
    state["model.transformer_module.decoder.layers.0.gate.weight"] = torch.ones(1)
    del state["model.transformer_module.queries_embedder.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    transformers.utils.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING, logger="transformers"):
            _, info = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    finally:
        transformers.utils.logging.disable_propagation()
    assert set(info["unexpected_keys"]) == {"model.transformer_module.decoder.layers.0.gate.weight"}
    assert set(info["missing_keys"]) == {"model.transformer_decoder.query_position.weight"}
    assert "gate.weight" in caplog.text
    assert "query_position.weight" in caplog.text


def test_the_model_without_heads(theirs, folder, tmp_path):
    theirs.model.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 64, 96)
    for source in (folder, tmp_path):
        ours, info = MaskFormerModel.from_pretrained(source, output_loading_info=True)
        assert not info["missing_keys"]
        assert all(key.startswith("head.") for key in info["unexpected_keys"])
        with torch.no_grad():
            got, expected = ours(pixel_values), theirs.model(pixel_values)
        for name in ("transformer_decoder_last_hidden_state", "pixel_decoder_last_hidden_state"):
            torch.testing.assert_close(got[name], expected[name], rtol=0, atol=1e-4)
    _, info = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert all(key.startswith("head.") for key in info["missing_keys"])


def test_it_is_saved_as_ours(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert all(name.startswith(("model.backbone.", "model.pixel_", "model.transf", "head.")) for name in names)
    assert not any("_module" in name for name in names)
    again, info = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert_nothing_is_left_over(info)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "maskformer_hf"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(folder, ours, dtype):
    half = MaskFormerForUniversalSegmentation.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {getattr(torch, dtype)}
    pixel_values = torch.randn(1, 3, 64, 96, generator=torch.manual_seed(4))
    with torch.no_grad():
        expected, got = ours(pixel_values), half(pixel_values)
    for name in ("class_queries_logits", "masks_queries_logits"):
        difference = (got[name].float() - expected[name]).abs().mean() / expected[name].abs().mean()
        assert difference < {"bfloat16": 0.1, "float16": 0.02}[dtype]


def test_attentions(folder, ours):
    eager = MaskFormerForUniversalSegmentation.from_pretrained(folder, attn_implementation="eager")
    pixel_values = torch.randn(2, 3, 70, 90, generator=torch.manual_seed(5))
    with torch.no_grad():
        expected, got = ours(pixel_values), eager(pixel_values, output_attentions=True)
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)
    assert [tuple(weights.shape) for weights in got.decoder_attentions] == [(2, 4, 12, 12)] * 3
    assert [tuple(weights.shape) for weights in got.cross_attentions] == [(2, 4, 12, 9)] * 3
    for weights in got.decoder_attentions + got.cross_attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_other_labels(folder, ours, caplog):
    """Labels are matched by name: here three stay, two of which have moved."""
    names = ["road", "person", "sky", "boat"]
    with caplog.at_level(logging.WARNING):
        model = MaskFormerForUniversalSegmentation.from_pretrained(folder, id2label=dict(enumerate(names)))
    assert "Kept: no-object, person, sky, boat." in caplog.text
    assert "Re-initialised, hence to be trained: road." in caplog.text
    old, new = ours.head.class_predictor, model.head.class_predictor
    former = [LABELS.index(name) for name in names[1:]] + [len(LABELS)]
    assert torch.equal(new.weight[1:], old.weight[former])
    assert torch.equal(new.bias[1:], old.bias[former])
    assert torch.equal(model.model.transformer_decoder.norm.weight, ours.model.transformer_decoder.norm.weight)
