"""A frozen vision transformer trains its heads, resumes bit for bit, and changes nothing of itself."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from builders import random_model, tiny_config, vit
from maskformer_hf import MaskFormerForUniversalSegmentation, MaskFormerImageProcessor
from maskformer_hf.training import train
from maskformer_hf.training.arguments import read_recipe
from maskformer_hf.training.checkpointing import numbered_folders


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    config = tiny_config(
        "mask2former",
        backbone_config=vit("dinov2"),
        backbone_pyramid="simple",
        freeze_backbone=True,
        task="semantic",
    )
    random_model(config).save_pretrained(folder)
    MaskFormerImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    return folder


def body_of(folder):
    weights = load_file(folder / "model.safetensors")
    return {name: weight for name, weight in weights.items() if ".backbone.body." in name}


def test_train_and_resume(recipe, frozen, tmp_path):
    overrides = [f"model.checkpoint={frozen}", "gradient_checkpointing=true", "steps=4", "evaluate_every=4"]
    whole = train(recipe, overrides, output_dir=tmp_path / "whole")
    [*_, checkpoint] = numbered_folders(tmp_path / "whole", "checkpoint-")
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)
    trained = sum(len(group["params"]) for group in optimizer["param_groups"])
    model = MaskFormerForUniversalSegmentation.from_pretrained(whole)
    assert len(optimizer["state"]) == trained
    assert trained == sum(weight.requires_grad for weight in model.parameters()) < len(list(model.parameters()))
    before, after = body_of(frozen), body_of(whole)
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    heads = [
        name for name in load_file(frozen / "model.safetensors") if name not in before and "class_pred" not in name
    ]
    old, new = load_file(frozen / "model.safetensors"), load_file(whole / "model.safetensors")
    assert sum(not torch.equal(old[name], new[name]) for name in heads) > 0.9 * len(heads)

    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoint-000004")
    resumed = train(recipe, overrides, output_dir=tmp_path / "parts", resume=True)
    again = load_file(resumed / "model.safetensors")
    assert again.keys() == new.keys()
    assert all(torch.equal(weight, again[name]) for name, weight in new.items())


def test_the_frozen_part_in_half_precision(recipe, frozen):
    folder = train(recipe, [f"model.checkpoint={frozen}", "frozen_dtype=bfloat16", "steps=2"])
    before, after = body_of(frozen), body_of(folder)
    assert all(torch.equal(weight.bfloat16(), after[name]) for name, weight in before.items())
    model = MaskFormerForUniversalSegmentation.from_pretrained(folder)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_fewer_bits_of_a_trained_backbone_are_refused(recipe, frozen):
    overrides = [f"model.checkpoint={frozen}", "frozen_dtype=bfloat16", "model.config.freeze_backbone=false"]
    assert read_recipe(recipe, overrides).frozen_dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"frozen_dtype is 'bfloat16', but the backbone is trained: set model.config"):
        train(recipe, overrides)
