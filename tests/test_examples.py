"""Every script in examples/ runs as it stands, with a tiny checkpoint in place of the bundled one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image

from maskformer_hf import MaskFormerForUniversalSegmentation, MaskFormerImageProcessor
from maskformer_hf.training import train

EXAMPLES = Path(__file__).parent.parent / "examples"
LABELS = ("sky", "road", "car", "person")  # of the tiny checkpoint


@pytest.fixture
def run(tmp_path):
    def run(script, *arguments):
        return subprocess.run(
            [sys.executable, EXAMPLES / script, *map(str, arguments)],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip

    return run


def test_every_script_is_run_by_a_test():
    source = Path(__file__).read_text(encoding="utf-8")
    scripts = [path.name for path in EXAMPLES.glob("*.py")]
    assert len(scripts) == 5
    for script in scripts:
        assert f'"{script}",' in source, script


def test_every_photo_has_its_terms():
    terms = (EXAMPLES / "PHOTOS.md").read_text(encoding="utf-8")
    photos = [path.name for suffix in ("jpg", "png") for path in EXAMPLES.glob(f"*.{suffix}")]
    assert len(photos) >= 2
    for photo in photos:
        assert f"`{photo}`" in terms, photo


@pytest.mark.slow
def test_segment_photo(run, tiny_checkpoint, photo_paths, tmp_path):
    result = run("segment_photo.py", photo_paths[0], "result.png", tiny_checkpoint)
    assert result.returncode == 0, result.stderr
    assert "of the photo" in result.stdout
    assert Image.open(tmp_path / "result.png").height >= Image.open(photo_paths[0]).height


@pytest.mark.slow
def test_pipeline_many_photos(run, tiny_checkpoint, photo_paths, tmp_path):
    result = run("pipeline_many_photos.py", tiny_checkpoint, *photo_paths)
    assert result.returncode == 0, result.stderr
    for path in photo_paths:
        assert str(path) in result.stdout
    masks = list((tmp_path / "masks").rglob("*.png"))
    assert masks


@pytest.fixture
def own_photos(tmp_path) -> Path:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "own" / split / kind).mkdir(parents=True)
        for index in range(2):
            labels = np.repeat(np.arange(4, dtype=np.uint8), 16)[None].repeat(64, 0)
            Image.fromarray(labels).save(tmp_path / "own" / split / "labels" / f"{index}.png")
            colors = np.random.default_rng(index).integers(0, 255, (4, 3), dtype=np.uint8)
            Image.fromarray(colors[labels]).save(tmp_path / "own" / split / "images" / f"{index}.png")
    (tmp_path / "own" / "classes.txt").write_text("\n".join(LABELS) + "\n")
    return tmp_path / "own"


@pytest.fixture
def checkpoint_without_dropout(tmp_path, tiny_model, tiny_processor) -> Path:
    config = type(tiny_model.config).from_dict({**tiny_model.config.to_dict(), "dropout": 0.0})
    torch.manual_seed(0)
    MaskFormerForUniversalSegmentation(config).save_pretrained(tmp_path / "start")
    tiny_processor.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@pytest.mark.slow
def test_train_on_own_photos(run, own_photos, tiny_checkpoint, photo_paths, tmp_path):
    result = run(
        "train_on_own_photos.py", own_photos, photo_paths[0], f"model.checkpoint={tiny_checkpoint}", "steps=2",
        "evaluate_every=2", "batch_size=2", "augmentation.crop_size=[64,64]", "augmentation.short_edge=[64,96]",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "mine" / "model" / "config.json").is_file()
    assert result.stdout.splitlines()[-1].startswith("[")


SIZES = ("--batch-size", "2", "--short-edge", "64", "96", "--crop-size", "64", "64")


@pytest.mark.slow
def test_train_with_trainer(run, own_photos, checkpoint_without_dropout, tmp_path):
    """Its first two losses and gradient norms are those of `maskformer train`."""
    result = run(
        "train_with_trainer.py", own_photos, "--checkpoint", checkpoint_without_dropout, "--steps", "4", *SIZES,
        "--output", "trainer",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    history = json.loads((tmp_path / "trainer" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    theirs = [line for line in history if "loss" in line]
    evaluations = [line for line in history if "eval_loss" in line]
    assert len(theirs) == len(evaluations) == 4
    assert 0 <= evaluations[-1]["eval_mean_iou"] <= evaluations[-1]["eval_pixel_accuracy"] <= 1
    MaskFormerForUniversalSegmentation.from_pretrained(tmp_path / "trainer")
    MaskFormerImageProcessor.from_pretrained(tmp_path / "trainer")

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
data: {{root: {own_photos}, validation: null}}
augmentation: {{short_edge: [64, 96], crop_size: [64, 64]}}
model: {{checkpoint: {checkpoint_without_dropout}}}
optimization: {{learning_rate: 1e-4, max_gradient_norm: 0.01}}
steps: 4
batch_size: 2
seed: 42
log_every: 1
"""
    )
    train(recipe, output_dir=tmp_path / "ours")
    ours = [json.loads(line) for line in (tmp_path / "ours" / "log.jsonl").read_text().splitlines()]
    for step in range(2):
        assert theirs[step]["loss"] == pytest.approx(ours[step]["loss"], rel=1e-4)
        assert theirs[step]["grad_norm"] == pytest.approx(ours[step]["gradient_norm"], rel=1e-4)


@pytest.mark.slow
def test_lora(run, own_photos, checkpoint_without_dropout, tmp_path):
    arguments = ("--checkpoint", checkpoint_without_dropout, "--steps", "25", *SIZES)
    result = run("lora.py", own_photos, *arguments, "--output", "lora")
    assert result.returncode == 0, result.stderr
    first, *steps = [line for line in result.stdout.splitlines() if line.startswith(("training ", "step "))]
    trained, total = (int(word) for word in first.split() if word.isdigit())
    assert 0 < trained < 0.15 * total
    losses = [float(line.rsplit(" ", 1)[1]) for line in steps]

    base = MaskFormerForUniversalSegmentation.from_pretrained(checkpoint_without_dropout)
    start = {name: weight.clone() for name, weight in base.state_dict().items()}
    merged = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path / "lora" / "model").eval()
    changed = {name for name, weight in merged.state_dict().items() if not torch.equal(weight, start[name])}
    assert {name.split(".")[0] for name in changed} == {"model", "head"}
    assert all("transformer_decoder" in name and "_attn" in name for name in changed if name.startswith("model."))
    assert merged.config.id2label == dict(enumerate(LABELS))

    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    adapted = PeftModel.from_pretrained(base, tmp_path / "lora" / "adapter").eval()
    with torch.no_grad():
        ours, theirs = merged(pixels), adapted(pixels)
    torch.testing.assert_close(ours.masks_queries_logits, theirs.masks_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.class_queries_logits, theirs.class_queries_logits, rtol=1e-4, atol=1e-4)
    assert losses[1] < losses[0]
