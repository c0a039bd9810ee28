"""Checkpoints on the Hub outlive the code that wrote them: our classes load them, and the code beside them runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from maskformer_hf import load
from tests.hub.saved_before import answers_of

BEFORE = Path(__file__).parent.parent / "fixtures" / "remote_code_before"
NAMES = ("mask2former", "maskformer", "per_pixel", "video")


def assert_same_answers(found: dict, segments: dict, name: str):
    expected = load_file(BEFORE / name / "expected.safetensors")
    assert found.keys() == {*expected, "pixel_values"}
    for key, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[key], value, atol=1e-4, rtol=1e-4)
        else:
            # Another processor may add in another order, and flip a pixel that lies on an outline.
            assert found[key].shape == value.shape
            assert (found[key] != value).float().mean() < 1e-3, key
    expected_segments = json.loads((BEFORE / name / "expected.json").read_text())
    assert segments.keys() == expected_segments.keys()
    for task, records in expected_segments.items():
        assert [record["label_id"] for record in segments[task]] == [record["label_id"] for record in records]
        scores = [record["score"] for record in segments[task]]
        assert scores == pytest.approx([record["score"] for record in records], abs=1e-4)


def test_there_is_something_to_compare():
    segments = {name: json.loads((BEFORE / name / "expected.json").read_text()) for name in NAMES}
    assert {name: {task: len(records) for task, records in found.items()} for name, found in segments.items()} == {
        "mask2former": {"panoptic": 4, "instance": 2},
        "maskformer": {"panoptic": 4, "instance": 2},
        "per_pixel": {},
        "video": {"instance": 4},
    }


@pytest.fixture(params=NAMES)
def folder(request, tmp_path) -> Path:
    """A repository as it was pushed: a checkpoint, and the code beside it."""
    folder = shutil.copytree(BEFORE / request.param, tmp_path / request.param)
    for path in (BEFORE / "code").glob("*.py"):
        shutil.copy(path, folder)
    return folder


def test_our_classes_take_the_weights(folder):
    model, processor = load(folder, "cpu")
    assert type(model).__module__.startswith("maskformer_hf.")
    assert_same_answers(*answers_of(model, processor, BEFORE / "photo.png"), folder.name)


@pytest.mark.slow
def test_its_own_code_runs_without_the_package(folder, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    script, result = Path(__file__).parent / "saved_before.py", tmp_path / "found.safetensors"
    run = subprocess.run(
        [sys.executable, str(script), str(result), str(folder), str(BEFORE / "photo.png")],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    with safe_open(result, "pt") as file:
        segments = json.loads(file.metadata()["segments"])
    assert_same_answers(load_file(result), segments, folder.name)
