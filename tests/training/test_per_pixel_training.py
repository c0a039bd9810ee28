"""The per-pixel baselines by the recipes, the loop and the evaluation that MaskFormer has."""

import json

import pytest
import torch
from transformers import AutoBackbone

from maskformer_hf import PerPixelBaseline, PerPixelBaselineConfig
from maskformer_hf.models.image_processing_maskformer import MaskFormerHfImageProcessor
from maskformer_hf.models.modeling_maskformer import MaskFormerHfForUniversalSegmentation
from maskformer_hf.training import evaluate_checkpoint, train
from maskformer_hf.training.arguments import ModelArguments
from maskformer_hf.training.recipe_model import build_model


@pytest.mark.parametrize("transformer_decoder", [None, "detr"])
def test_training(recipe, shapes, tiny_checkpoint, tmp_path, transformer_decoder):
    torch.manual_seed(0)
    maskformer = MaskFormerHfForUniversalSegmentation.config_class.from_pretrained(tiny_checkpoint)
    names = ("backbone_config", "feature_size", "mask_feature_size", "hidden_size", "num_attention_heads", "ffn_dim")
    config = PerPixelBaselineConfig(
        **{name: getattr(maskformer, name) for name in names},
        decoder_layers=2,
        transformer_decoder=transformer_decoder,
    )
    PerPixelBaseline(config).save_pretrained(tmp_path / "start")
    MaskFormerHfImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(tmp_path / "start")

    overrides = [f"model.checkpoint={tmp_path / 'start'}", "steps=30", "evaluate_every=30", "save_every=30"]
    folder = train(recipe, overrides)
    model = PerPixelBaseline.from_pretrained(folder)
    assert model.config.transformer_decoder == transformer_decoder
    assert model.config.id2label == {0: "ground", 1: "box", 2: "sky"}
    assert model.config.num_queries == 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert all("loss_sem_seg" in line for line in lines if "loss" in line)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    result = evaluate_checkpoint(folder, shapes / "val")
    assert 0.3 < result["mean_iou"] <= 1


def test_a_new_one_on_a_backbone(tiny_checkpoint, tmp_path):
    torch.manual_seed(0)
    config = MaskFormerHfForUniversalSegmentation.config_class.from_pretrained(tiny_checkpoint).backbone_config
    backbone = AutoBackbone.from_config(config)
    backbone.save_pretrained(tmp_path)
    fields = {"feature_size": 32, "mask_feature_size": 16, "hidden_size": 32, "num_attention_heads": 2, "ffn_dim": 32}
    arguments = ModelArguments(
        backbone=str(tmp_path), architecture="per_pixel_baseline", config={**fields, "transformer_decoder": "detr"}
    )
    model = build_model(arguments, {"id2label": {0: "a", 1: "b"}})
    assert type(model) is PerPixelBaseline
    assert model.config.num_queries == 2
    for name, weight in backbone.state_dict().items():
        assert torch.equal(model.model.backbone.body.state_dict()[name], weight), name
    with pytest.raises(ValueError, match=r"model\.config has no field transformer_decoders; did you mean"):
        build_model(ModelArguments(backbone=str(tmp_path), config={"transformer_decoders": "detr"}), {})
