"""Mask2Former by the recipes, the loop, the evaluation and the commands that MaskFormer has."""

import json

import torch
import yaml
from transformers import AutoBackbone
from typer.testing import CliRunner

from builders import resnet
from maskformer_hf import MaskFormerForUniversalSegmentation
from maskformer_hf.cli import app
from maskformer_hf.presets import MASK2FORMER
from maskformer_hf.training import evaluate_checkpoint, train

SIZES = {
    "feature_size": 32,
    "mask_feature_size": 16,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "ffn_dim": 32,
    "encoder_ffn_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_queries": 6,
    "num_points": 64,
    "task": "semantic",
}


def test_training_and_what_follows(recipe, shapes, tiny_checkpoint, tmp_path):
    """A new one around a backbone: the recipe says which parts. Then evaluated, and a photo segmented."""
    torch.manual_seed(0)
    config = MaskFormerForUniversalSegmentation.config_class.from_pretrained(tiny_checkpoint).backbone_config
    AutoBackbone.from_config(config).save_pretrained(tmp_path / "backbone")
    content = yaml.safe_load(recipe.read_text())
    content["model"] = {"backbone": str(tmp_path / "backbone"), "config": {**MASK2FORMER, **SIZES}}
    content["model"]["image_processor"] = {"size": {"shortest_edge": 48, "longest_edge": 96}}
    recipe.write_text(yaml.safe_dump(content))

    folder = train(recipe, ["steps=40", "evaluate_every=40", "save_every=40"])
    model = MaskFormerForUniversalSegmentation.from_pretrained(folder)
    assert (model.config.pixel_decoder, model.config.transformer_decoder) == ("deformable", "masked")
    assert model.config.id2label == {0: "ground", 1: "box", 2: "sky"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert evaluate_checkpoint(folder, shapes / "val")["mean_iou"] > 0.2

    photo, picture = shapes / "val" / "images" / "0.png", tmp_path / "picture.png"
    result = CliRunner().invoke(app, ["segment", str(photo), "--checkpoint", str(folder), "--output", str(picture)])
    assert result.exit_code == 0, result.output
    assert picture.is_file()
    assert "Mask2Former" in (folder / "README.md").read_text()


def test_fine_tuning_keeps_what_is_known(recipe, tmp_path):
    """From a checkpoint of its own: the classes change, the parts stay."""
    torch.manual_seed(0)
    start = tmp_path / "start"
    config_class = MaskFormerForUniversalSegmentation.config_class
    fields = {**MASK2FORMER, **SIZES, "id2label": {0: "sky", 1: "sea"}, "label2id": {"sky": 0, "sea": 1}}
    model = MaskFormerForUniversalSegmentation(config_class(backbone_config=resnet(8, 16, 16, 16), **fields))
    model.save_pretrained(start)
    (start / "preprocessor_config.json").write_text('{"image_processor_type": "MaskFormerHfImageProcessor"}')
    folder = train(
        recipe,
        [f"model.checkpoint={start}", "model.image_processor.size={shortest_edge: 48, longest_edge: 96}", "steps=2"],
    )
    trained = MaskFormerForUniversalSegmentation.from_pretrained(folder)
    assert trained.config.transformer_decoder == "masked"
    old, new = model.head.class_predictor.weight, trained.head.class_predictor.weight
    assert new.shape[0] == 4
    # "sky", class 0 before and 2 now, started from what it was.
    torch.testing.assert_close(new[2], old[0], rtol=0, atol=0.05)
