"""`maskformer convert` and `load` between the original's file and the model: still what the original computed."""

import json
import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from maskformer_hf import load
from maskformer_hf.cli import app

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"


def convert(source: Path, folder: Path, *options: str):
    result = CliRunner().invoke(app, ["convert", str(source), "--output", str(folder / "converted"), *options])
    assert result.exit_code == 0, result.output
    model, _ = load(folder / "converted", device="cpu")
    return model


def as_in_the_zoo(source: Path, folder: Path) -> Path:
    """A `.pkl` file with the names of the zoo, which has no `pixel_decoder.` in them."""
    if source.suffix == ".pkl":
        return source
    state = {
        name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): value.numpy()
        for name, value in load_file(source).items()
    }
    content = {"model": state, "__author__": "Detectron2 Model Zoo"}
    (folder / "model_final.pkl").write_bytes(pickle.dumps(content, protocol=3))
    return folder / "model_final.pkl"


def test_maskformer(case, request, tmp_path):
    name = request.node.callspec.params["case"]
    [source] = [path for path in (GOLDEN / name).iterdir() if path.stem in ("model_zoo_style", "state_dict")]
    model = convert(as_in_the_zoo(source, tmp_path), tmp_path, "--config", str(GOLDEN / name / "config.json"))
    for run in ("A", "B", "C", "B_div0"):
        with torch.no_grad():
            output = model(case.pixel_values(run))
        for ours, theirs in (("class_queries_logits", "pred_logits"), ("masks_queries_logits", "pred_masks")):
            torch.testing.assert_close(output[ours], case.expected[f"{run}.raw.{theirs}"], rtol=0, atol=2e-4)


def test_heads_are_all_that_is_guessed(case, request, tmp_path):
    """Without the configuration 8 heads are assumed, which is wrong here; set right, the rest is."""
    name = request.node.callspec.params["case"]
    [source] = [path for path in (GOLDEN / name).iterdir() if path.stem in ("model_zoo_style", "state_dict")]
    convert(source, tmp_path)
    path = tmp_path / "converted" / "config.json"
    config = json.loads(path.read_text())
    assert config["num_attention_heads"] == 8
    path.write_text(json.dumps({**config, "num_attention_heads": case.model.config.num_attention_heads}))
    model, _ = load(tmp_path / "converted", device="cpu")
    with torch.no_grad():
        output = model(case.pixel_values("A"))
    torch.testing.assert_close(output.masks_queries_logits, case.expected["A.raw.pred_masks"], rtol=0, atol=2e-4)


def test_per_pixel_baseline_plus(per_pixel_plus, tmp_path):
    folder = GOLDEN / "perpixel_plus_swin"
    source = as_in_the_zoo(folder / "state_dict.safetensors", tmp_path)
    model = convert(source, tmp_path, "--config", str(folder / "config.json"))
    for run in ("B", "C"):
        with torch.no_grad():
            logits = model(per_pixel_plus.pixel_values(run)).logits
        torch.testing.assert_close(logits, per_pixel_plus.expected[f"{run}.raw.stride4_logits"], rtol=0, atol=2e-4)
