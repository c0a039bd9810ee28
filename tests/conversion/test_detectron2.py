"""Reading the original's checkpoints: names, configurations, and files that mean harm."""

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskformer_hf.conversion.detectron2 import (
    config_from_detectron2,
    convert_state_dict,
    load_detectron2,
    read_checkpoint,
    tensor_names,
)

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


# --- names


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


def test_a_lacking_tensor_is_named(swin_state, swin_config):
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
def test_what_cannot_be_parted_is_named(swin_state, swin_config, shape):
    name = "sem_seg_head.predictor.transformer.decoder.layers.0.self_attn.in_proj_bias"
    with pytest.raises(ValueError, match=r"in_proj_bias of the checkpoint has the shape .* do not part"):
        convert_state_dict({**swin_state, name: torch.zeros(shape)}, swin_config)


def test_a_backbone_the_original_has_not():
    config = config_from_detectron2(dumped(SWIN))
    config.backbone_config.model_type = "convnext"
    with pytest.raises(ValueError, match="no 'convnext' backbone"):
        tensor_names(config)


# --- configuration


def test_configuration_of_a_resnet():
    config = config_from_detectron2(dumped(RESNET))
    assert (config.pixel_decoder, config.feature_size, config.hidden_size, config.num_queries) == ("fpn", 32, 32, 12)
    assert (config.num_labels, config.task, config.freeze_batch_norm) == (7, "semantic", True)
    assert config.backbone_config.hidden_sizes == [24, 48, 96, 192]
    assert config.backbone_config.embedding_size == 16


def test_configuration_of_a_swin():
    config = config_from_detectron2({"MODEL": dumped(SWIN), "INPUT": {"FORMAT": "RGB"}})
    assert (config.pixel_decoder, config.encoder_layers) == ("transformer_fpn", 2)
    assert (config.backbone_config.depths, config.backbone_config.window_size) == ([1, 1, 2, 1], 4)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("SEM_SEG_HEAD", "NORM", "BN"),
        ("SEM_SEG_HEAD", "PIXEL_DECODER_NAME", "SemSegFPN"),
        ("MASK_FORMER", "TRANSFORMER_IN_FEATURE", "res4"),
        ("RESNETS", "DEPTH", 18),
        ("RESNETS", "RES5_DILATION", 2),
        ("RESNETS", "WIDTH_PER_GROUP", 7),
    ],
)
def test_a_setting_that_cannot_be_converted_is_named(section, name, value):
    cfg = dumped(RESNET)
    cfg[section][name] = value
    with pytest.raises(ValueError, match=rf"MODEL\.{section}\.{name} is {value!r}; only .+ can be converted"):
        config_from_detectron2(cfg)


def test_a_setting_that_lacks_is_named():
    cfg = dumped(RESNET)
    del cfg["MASK_FORMER"]["PRE_NORM"]
    with pytest.raises(ValueError, match="has no PRE_NORM"):
        config_from_detectron2(cfg)


def test_the_configuration_beside_a_checkpoint_is_found(tmp_path):
    shutil.copy(RESNET / "model_zoo_style.pkl", tmp_path / "model_final.pkl")
    with pytest.raises(ValueError, match=r"does not say what model it holds.*pass `config`"):
        load_detectron2(tmp_path / "model_final.pkl")
    (tmp_path / "config.yaml").write_text((RESNET / "config.json").read_text())  # JSON is YAML
    model = load_detectron2(tmp_path / "model_final.pkl")
    assert not model.training
    assert model.config.num_labels == 7


# --- files


def write(path: Path, content, protocol: int = 3) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_survive(tmp_path, protocol):
    arrays = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 4), dtype=np.float16),
        "scalar": np.array(2, dtype=np.int64),
    }
    tensors = read_checkpoint(write(tmp_path / "arrays.pkl", {"model": arrays, "__author__": "me"}, protocol))
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].numpy(), array)
        assert tensors[name].shape == array.shape


def test_zoo_file_is_the_state_dict_bit_by_bit():
    """Written by numpy 1, whose module paths numpy 2 has renamed."""
    assert b"numpy.core.multiarray" in (RESNET / "model_zoo_style.pkl").read_bytes()
    state = read_checkpoint(RESNET / "model_zoo_style.pkl")
    assert state["backbone.stem.conv1.weight"].shape == (16, 3, 7, 7)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


class Hostile:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def run_me(path: str):
    Path(path).touch()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: Hostile(run_me, str(path)),
        lambda path: Hostile(exec, f"open({str(path)!r}, 'w')"),
        lambda path: Hostile(getattr, np.ndarray, "tofile"),
        lambda path: Hostile(np.fromfile, str(path)),
        lambda path: Hostile(torch.load, str(path)),
        lambda path: {"model": {"weight": Hostile(run_me, str(path))}},
    ],
)
def test_a_hostile_pickle_runs_nothing(tmp_path, make):
    proof = tmp_path / "ran"
    path = write(tmp_path / "hostile.pkl", make(proof))
    with pytest.raises(ValueError, match=r"hostile\.pkl .* asks for `[\w.]+`.* was not run"):
        read_checkpoint(path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Hostile(run_me, str(proof))))
    assert proof.exists(), "the pickle is harmless and proves nothing"


@pytest.mark.parametrize("name", ["os.system", "multiarray._reconstruct.__globals__", "ndarray.tofile"])
def test_no_way_through_attributes(tmp_path, name):
    """From protocol 4 on, a pickle may ask for attributes of what is allowed."""
    asked = io.BytesIO()
    asked.write(pickle.PROTO + b"\x04")
    for word in ("numpy", name):
        asked.write(pickle.SHORT_BINUNICODE + bytes([len(word)]) + word.encode())
    asked.write(pickle.STACK_GLOBAL + pickle.STOP)
    (tmp_path / "deep.pkl").write_bytes(asked.getvalue())
    with pytest.raises(ValueError, match="was not run"):
        read_checkpoint(tmp_path / "deep.pkl")


def test_arrays_of_objects_are_refused(tmp_path):
    path = write(tmp_path / "objects.pkl", {"model": {"a": np.array([{}], dtype=object)}})
    with pytest.raises(ValueError, match="holds an array of object, and only numbers are read"):
        read_checkpoint(path)


def test_what_is_no_array_is_named(tmp_path):
    path = write(tmp_path / "mixed.pkl", {"model": {"weight": np.zeros(2), "step": 3}})
    with pytest.raises(ValueError, match="these are no arrays: step"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["model_zoo_style.pkl", "state_dict.safetensors"])
def test_a_truncated_file_is_named(tmp_path, name):
    source = (RESNET if name.endswith(".pkl") else SWIN) / name
    (tmp_path / name).write_bytes(source.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=name):
        read_checkpoint(tmp_path / name)


def test_another_kind_of_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"model\.onnx is neither `.pkl` nor `.pth` nor `.safetensors`"):
        read_checkpoint(tmp_path / "model.onnx")


def test_a_checkpoint_of_ones_own_training(tmp_path, swin_state):
    """Which holds what the training needs besides."""
    content = {
        "model": swin_state,
        "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]},
        "iteration": 9,
    }
    torch.save(content, tmp_path / "model_final.pth")
    state = read_checkpoint(tmp_path / "model_final.pth")
    assert state.keys() == swin_state.keys()
    assert all(torch.equal(state[name], value) for name, value in swin_state.items())


@pytest.mark.parametrize("kind", ["hostile", "truncated", "text", "no tensors"])
def test_a_bad_checkpoint_of_ones_own_training(tmp_path, kind):
    path, proof = tmp_path / "model.pth", tmp_path / "ran"
    torch.save({"model": {"weight": Hostile(run_me, str(proof)) if kind == "hostile" else torch.ones(9)}}, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "no tensors":
        torch.save({"model": {"weight": 3}}, path)
    with pytest.raises(ValueError, match=r"model\.pth is no PyTorch file of tensors by name"):
        read_checkpoint(path)
    assert not proof.exists()
    if kind == "hostile":
        torch.load(path, weights_only=False)
        assert proof.exists(), "the file is harmless and proves nothing"
