"""Reading checkpoints of others, and files that mean harm."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskformer_hf.conversion.safe_reader import read_checkpoint

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"
RESNET, SWIN = GOLDEN / "maskformer_r50_fpn", GOLDEN / "maskformer_swin_tenc"


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


def test_a_checkpoint_of_ones_own_training(tmp_path):
    """It also holds what the training needs."""
    swin_state = load_file(SWIN / "state_dict.safetensors")
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
