"""Every script in examples/ runs as it stands, with a tiny checkpoint in place of the bundled one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


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
    assert len(scripts) == 3
    for script in scripts:
        assert f'"{script}",' in source, script


def test_every_photo_has_its_terms():
    terms = (EXAMPLES / "PHOTOS.md").read_text(encoding="utf-8")
    photos = [path.name for suffix in ("jpg", "png") for path in EXAMPLES.glob(f"*.{suffix}")]
    assert len(photos) >= 2
    for photo in photos:
        assert f"`{photo}`" in terms, photo


def test_segment_photo(run, tiny_checkpoint, photo_paths, tmp_path):
    result = run("segment_photo.py", photo_paths[0], "result.png", tiny_checkpoint)
    assert result.returncode == 0, result.stderr
    assert "of the photo" in result.stdout
    assert Image.open(tmp_path / "result.png").height >= Image.open(photo_paths[0]).height


def test_pipeline_many_photos(run, tiny_checkpoint, photo_paths, tmp_path):
    result = run("pipeline_many_photos.py", tiny_checkpoint, *photo_paths)
    assert result.returncode == 0, result.stderr
    for path in photo_paths:
        assert str(path) in result.stdout
    masks = list((tmp_path / "masks").rglob("*.png"))
    assert masks


def test_train_on_own_photos(run, tiny_checkpoint, photo_paths, tmp_path):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "own" / split / kind).mkdir(parents=True)
        for index in range(2):
            labels = np.repeat(np.arange(4, dtype=np.uint8), 16)[None].repeat(64, 0)
            Image.fromarray(labels).save(tmp_path / "own" / split / "labels" / f"{index}.png")
            colors = np.random.default_rng(index).integers(0, 255, (4, 3), dtype=np.uint8)
            Image.fromarray(colors[labels]).save(tmp_path / "own" / split / "images" / f"{index}.png")
    (tmp_path / "own" / "classes.txt").write_text("sky\nroad\ncar\nperson\n")
    result = run(
        "train_on_own_photos.py", "own", photo_paths[0], f"model.checkpoint={tiny_checkpoint}", "steps=2",
        "evaluate_every=2", "batch_size=2", "augmentation.crop_size=[64,64]", "augmentation.short_edge=[64,96]",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "mine" / "model" / "config.json").is_file()
    assert result.stdout.splitlines()[-1].startswith("[")
