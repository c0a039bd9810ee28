"""`load`: which checkpoints are found, what they become, and what is refused."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import maskformer_hf
from builders import STAGES, resnet, tiny_transformers_config
from maskformer_hf import bundled_checkpoints, load, predict


@pytest.fixture(scope="module")
def photo(photo_paths):
    return Image.open(photo_paths[0]).convert("RGB")


def test_load_gives_float32_and_evaluation_mode(tiny_checkpoint, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "half")
    tiny = {name: weight.half() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(tiny, folder / "model.safetensors", metadata={"format": "pt"})
    model, _ = load(folder, device="cpu")
    assert model.dtype == torch.float32
    assert not model.training
    assert not any(parameter.dtype != torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16])
def test_half_precision_finds_about_the_same(tiny_checkpoint, photo, dtype):
    exact = predict(*load(tiny_checkpoint, "cpu"), photo, task="semantic")[0]
    model, processor = load(tiny_checkpoint, "cpu", dtype)
    assert model.dtype in (torch.bfloat16, torch.float16)
    half = predict(model, processor, photo, task="semantic")[0]
    assert (exact.segmentation != half.segmentation).float().mean() < 0.1


def test_a_checkpoint_of_transformers_is_loaded(tmp_path, photo):
    from transformers import MaskFormerForInstanceSegmentation, MaskFormerImageProcessor

    config = tiny_transformers_config(backbone_config=resnet(8, 8, 8, 8, out_features=STAGES))
    MaskFormerForInstanceSegmentation(config).save_pretrained(tmp_path)
    MaskFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(tmp_path)
    model, processor = load(tmp_path, "cpu")
    assert isinstance(model, maskformer_hf.MaskFormerForUniversalSegmentation)
    assert predict(model, processor, photo, task="semantic")[0].size == (photo.height, photo.width)


def test_bundled_checkpoints_are_folders():
    for name, folder in bundled_checkpoints().items():
        assert folder.name == name
        assert (folder / "config.json").is_file()


@pytest.mark.parametrize("name", ["nonsense", "./nonsense", "/nonsense/model", "a/b/c", "org/"])
def test_an_unknown_name_lists_the_bundled_ones(name):
    with pytest.raises(ValueError, match="no checkpoint") as caught:
        load(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    for bundled in bundled_checkpoints():
        assert bundled in str(caught.value)


def damage_config(folder, content):
    (folder / "config.json").write_text(content)


def drop_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["head.class_predictor.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def poison_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights["head.class_predictor.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def impossible_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pixel_decoder": "pyramid"}))


DAMAGES = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "no JSON": (lambda folder: damage_config(folder, "{"), "no valid JSON"),
    "a list": (lambda folder: damage_config(folder, "[1, 2]"), "model_type.*list"),
    "no model": (lambda folder: damage_config(folder, '{"a": 1}'), "model_type.*None"),
    "another model": (lambda folder: damage_config(folder, '{"model_type": "bert"}'), "model_type.*bert"),
    "an impossible config": (impossible_config, "pixel_decoder.*pyramid"),
    "truncated weights": (truncate, "truncated"),
    "a missing weight": (drop_weight, "head.class_predictor.weight"),
    "a weight that is NaN": (poison_weight, "head.class_predictor.weight.*not finite"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
    "no processor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_clear_message(tiny_checkpoint, tmp_path, damage):
    inflict, message = DAMAGES[damage]
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "damaged")
    inflict(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_device_and_dtype(tiny_checkpoint):
    with pytest.raises(ValueError, match="device 'toaster'"):
        load(tiny_checkpoint, device="toaster")
    with pytest.raises(ValueError, match=r"float32.*'int8'"):
        load(tiny_checkpoint, dtype="int8")
