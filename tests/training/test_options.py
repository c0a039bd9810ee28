"""Gradient checkpointing and torch.compile: the same training, in less memory or less time."""

import json

import pytest
import torch

from builders import resnet, swin, timm_backbone
from maskformer_hf.models.configuration_maskformer import MaskFormerHfConfig
from maskformer_hf.models.modeling_maskformer import MaskFormerHfForUniversalSegmentation
from maskformer_hf.training import train
from maskformer_hf.training.model_setup import enable_gradient_checkpointing

BACKBONES = {
    "resnet": resnet(32, 32, 64, 64, embedding_size=16, depths=(2, 2, 2, 2), layer_type="bottleneck"),
    "swin": swin(16, depths=(2, 2, 6, 2), num_heads=(1, 2, 2, 4), window_size=4, image_size=224),
    "timm": timm_backbone("resnet10t"),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_gradient_checkpointing_keeps_less_and_changes_nothing(name):
    if name == "timm":
        pytest.importorskip("timm")
    config = MaskFormerHfConfig(
        backbone_config=BACKBONES[name],
        feature_size=32,
        mask_feature_size=32,
        hidden_size=32,
        ffn_dim=64,
        decoder_layers=1,
        num_queries=3,
    )
    torch.manual_seed(0)
    model = MaskFormerHfForUniversalSegmentation(config).train()
    pixel_values = torch.randn(1, 3, 96, 128)
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    losses, gradients, bytes_kept = [], [], []
    for checkpointing in (False, True):
        if checkpointing:
            enable_gradient_checkpointing(model)
        kept = 0
        model.zero_grad()
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            outputs = model(
                pixel_values, mask_labels=[torch.ones(1, 96, 128, dtype=torch.bool)], class_labels=[torch.tensor([1])]
            )
        outputs.loss.backward()
        losses.append(outputs.loss.item())
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        bytes_kept.append(kept)
    assert losses[0] == losses[1]
    for expected, gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert bytes_kept[1] < 0.8 * bytes_kept[0]


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_training_with_gradient_checkpointing_is_the_same(recipe, tmp_path):
    options = ["steps=3", "data.validation=null"]
    train(recipe, options, output_dir=tmp_path / "without")
    train(recipe, [*options, "gradient_checkpointing=true"], output_dir=tmp_path / "with")
    assert losses(tmp_path / "with") == pytest.approx(losses(tmp_path / "without"), rel=1e-3)


@pytest.mark.slow
def test_compiled_training_is_the_same(recipe, tmp_path):
    # The compiled network draws other numbers for dropout.
    options = ["steps=3", "evaluate_every=3", "model.config.dropout=0.0"]
    train(recipe, options, output_dir=tmp_path / "without")
    folder = train(recipe, [*options, "compile=true"], output_dir=tmp_path / "with")
    with_, without = ((tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("with", "without"))
    for line, other in zip(map(json.loads, with_), map(json.loads, without), strict=True):
        key = "loss" if "loss" in other else "val_mean_iou"
        assert line[key] == pytest.approx(other[key], rel=0.02)
    MaskFormerHfForUniversalSegmentation.from_pretrained(folder)
