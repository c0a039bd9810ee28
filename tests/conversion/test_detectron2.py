"""The original's tensors find their place in our models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskformer_hf.conversion.detectron2 import convert_state_dict, load_detectron2
from maskformer_hf.conversion.detectron2_config import config_from_detectron2
from maskformer_hf.conversion.detectron2_names import tensor_names

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"
RESNET, SWIN = GOLDEN / "maskformer_r50_fpn", GOLDEN / "maskformer_swin_tenc"


def dumped(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["MODEL"]


@pytest.fixture(scope="module")
def swin_state() -> dict[str, torch.Tensor]:
    return load_file(SWIN / "state_dict.safetensors")


@pytest.fixture(scope="module")
def swin_config():
    return config_from_detectron2(dumped(SWIN))


def test_both_layouts_of_names_give_the_same(swin_state, swin_config):
    def shorten(name: str) -> str:
        return name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")

    old_layout = {shorten(name): value for name, value in swin_state.items()}
    assert old_layout.keys() != swin_state.keys()
    expected, converted = (convert_state_dict(state, swin_config) for state in (swin_state, old_layout))
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_every_number_of_the_original_is_kept(swin_state, swin_config):
    names = tensor_names(swin_config)
    converted = convert_state_dict(swin_state, swin_config)
    left = sum(swin_state[name].double().sum() for name in names)
    assert sum(value.double().sum() for value in converted.values()) == pytest.approx(left.item())
    assert sum(swin_state[name].numel() for name in names) == sum(value.numel() for value in converted.values())
    ignored = swin_state.keys() - names.keys()
    assert {name.split(".")[-1] for name in ignored} == {"empty_weight", "relative_position_index"}


def test_a_tensor_without_a_place_is_named(swin_state, swin_config):
    with pytest.raises(ValueError, match=r"without a place in the model: sem_seg_head\.predictor\.extra\.weight"):
        convert_state_dict({**swin_state, "sem_seg_head.predictor.extra.weight": torch.zeros(1)}, swin_config)


def test_a_missing_tensor_is_named(swin_state, swin_config):
    state = {name: value for name, value in swin_state.items() if not name.endswith("query_embed.weight")}
    with pytest.raises(ValueError, match=r"the checkpoint lacks: sem_seg_head\.predictor\.query_embed\.weight"):
        convert_state_dict(state, swin_config)


def test_another_size_is_named(swin_state):
    config = config_from_detectron2(
        dumped(SWIN) | {"MASK_FORMER": {**dumped(SWIN)["MASK_FORMER"], "DIM_FEEDFORWARD": 48}}
    )
    with pytest.raises(ValueError, match=r"ffn\.fc1\.weight: \(64, 32\) in the checkpoint, \(48, 32\) in the model"):
        convert_state_dict(swin_state, config)


@pytest.mark.parametrize("shape", [(), (95,)])
def test_what_cannot_be_divided_is_named(swin_state, swin_config, shape):
    name = "sem_seg_head.predictor.transformer.decoder.layers.0.self_attn.in_proj_bias"
    with pytest.raises(ValueError, match=r"in_proj_bias of the checkpoint has the shape .* cannot be divided"):
        convert_state_dict({**swin_state, name: torch.zeros(shape)}, swin_config)


def test_a_backbone_that_the_original_does_not_have():
    config = config_from_detectron2(dumped(SWIN))
    config.backbone_config.model_type = "convnext"
    with pytest.raises(ValueError, match="no 'convnext' backbone"):
        tensor_names(config)


def test_the_configuration_beside_a_checkpoint_is_found(tmp_path):
    shutil.copy(RESNET / "model_zoo_style.pkl", tmp_path / "model_final.pkl")
    with pytest.raises(ValueError, match=r"does not say what model it holds.*pass `config`"):
        load_detectron2(tmp_path / "model_final.pkl")
    (tmp_path / "config.yaml").write_text((RESNET / "config.json").read_text())  # JSON is YAML
    model = load_detectron2(tmp_path / "model_final.pkl")
    assert not model.training
    assert model.config.num_labels == 7
