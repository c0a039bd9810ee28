"""`maskformer segment` with a checkpoint of videos: coloured frames, or a coloured video, and tracks."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from builders import resnet
from maskformer_hf import MaskFormerForVideoSegmentation, MaskFormerVideoConfig, MaskFormerVideoProcessor
from maskformer_hf.cli import app

NUM_FRAMES, HEIGHT, WIDTH = 5, 41, 63


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Random weights, which are sure of their classes."""
    torch.manual_seed(0)
    config = MaskFormerVideoConfig(
        backbone_config=resnet(8, 8, 8, 8),
        feature_size=32,
        mask_feature_size=16,
        hidden_size=16,
        num_attention_heads=2,
        ffn_dim=16,
        encoder_ffn_dim=16,
        encoder_layers=1,
        decoder_layers=1,
        num_queries=4,
        id2label={0: "cow", 1: "dog"},
        label2id={"cow": 0, "dog": 1},
    )
    model = MaskFormerForVideoSegmentation(config)
    with torch.no_grad():
        model.head.class_predictor.weight.mul_(12)
    folder = tmp_path_factory.mktemp("video_checkpoint")
    model.save_pretrained(folder)
    MaskFormerVideoProcessor(size={"shortest_edge": 32, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    ground = random.integers(0, 255, (5, 8, 3)).astype(np.uint8)
    return [
        Image.fromarray(np.roll(ground, number, axis=1)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        for number in range(NUM_FRAMES)
    ]


@pytest.fixture
def run(tmp_path, monkeypatch, pictures):
    """Runs the command in a folder that holds the folders of frames `clip` and `other`."""
    monkeypatch.chdir(tmp_path)
    for name in ("clip", "other"):
        Path(name).mkdir()
        for number, picture in enumerate(pictures):
            picture.save(f"{name}/{number:03}.png")
    return lambda *arguments: CliRunner().invoke(app, ["segment", *map(str, arguments), "--device", "cpu"])


def check_tracks(record: dict) -> None:
    assert (record["num_frames"], record["height"], record["width"]) == (NUM_FRAMES, HEIGHT, WIDTH)
    assert record["tracks"]
    assert [track["id"] for track in record["tracks"]] == list(range(1, len(record["tracks"]) + 1))
    for track in record["tracks"]:
        assert track["label"] in ("cow", "dog")
        assert 0 <= track["score"] <= 1
        assert len(track["segmentations"]) == NUM_FRAMES
        for mask in filter(None, track["segmentations"]):
            assert coco_mask.decode(mask).shape == (HEIGHT, WIDTH)


def test_a_folder_of_frames_becomes_one(run, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    result = run("clip", "--checkpoint", checkpoint, "--threshold", 0.1, "--output", "overlays")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("overlays").glob("*.png")) == [f"{i:03}.png" for i in range(NUM_FRAMES)]
    record = json.loads(Path("overlays/tracks.json").read_text())
    check_tracks(record)
    for number in range(NUM_FRAMES):
        before, after = (np.asarray(Image.open(f"{folder}/{number:03}.png")) for folder in ("clip", "overlays"))
        assert before.shape == after.shape
        masks = [track["segmentations"][number] for track in record["tracks"]]
        assert (before != after).any() == any(mask is not None for mask in masks)
    header, columns, *rows = result.stdout.splitlines()
    assert header == f"clip ({NUM_FRAMES} frames, {HEIGHT} x {WIDTH}) -> overlays"
    assert columns.split() == ["id", "label", "score", "frames"]
    assert len(rows) == len(record["tracks"])


def test_several_and_json(run, checkpoint):
    result = run("clip", "other", "--checkpoint", checkpoint, "--threshold", 0.1, "--json")
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    assert [record["video"] for record in records] == ["clip", "other"]
    assert records[0]["tracks"] == records[1]["tracks"]
    assert not Path("predictions").exists()

    assert run("clip", "other", "--checkpoint", checkpoint, "--threshold", 0.1).exit_code == 0
    for record in records:
        written = json.loads(Path(f"predictions/{record['video']}/tracks.json").read_text())
        assert written == {**record, "overlay": f"predictions/{record['video']}"}


def test_a_video_file_becomes_one(run, checkpoint):
    av = pytest.importorskip("av")
    assert run("clip", "--checkpoint", checkpoint, "--threshold", 0.1, "--output", "clip.mp4").exit_code == 0
    result = run("clip.mp4", "--checkpoint", checkpoint, "--threshold", 0.1)
    assert result.exit_code == 0, result.output
    for name in ("clip", "result"):
        record = json.loads(Path(f"{name}.json").read_text())
        with av.open(f"{name}.mp4") as container:
            frames = list(container.decode(video=0))
        # H.264 wants even sides.
        assert [(frame.height, frame.width) for frame in frames] == [(HEIGHT + 1, WIDTH + 1)] * NUM_FRAMES
        assert record["num_frames"] == NUM_FRAMES
        assert record["tracks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.mp4"], "there is no file or folder 'nothing.mp4'"),
        (["clip", "--task", "panoptic"], "--task is for photos"),
        (["clip", "--tile-size", "64"], "--tile-size is for photos"),
        (["clip", "--merging", "mask_wise"], "--merging is for photos"),
        (["clip", "--plan", "tiles"], "--plan is for photos"),
        (["clip", "--output", "clip"], "overwritten"),
        (["clip", "--output", "found.png"], "no video format"),
        (["clip", "other", "--output", "found.mp4"], "needs a folder"),
        (["clip", "clip", "--output", "found"], "one name"),
    ],
)
def test_what_does_not_work_is_one_line(run, checkpoint, arguments, message):
    result = run(*arguments, "--checkpoint", checkpoint)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_without_pyav_files_say_what_is_missing(run, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    Path("clip.mp4").write_bytes(b"")
    result = run("clip.mp4", "--checkpoint", checkpoint)
    assert result.exit_code == 1
    assert 'pip install "maskformer-hf[video]"' in result.stderr.splitlines()[-1]


def test_a_checkpoint_of_photos_refuses_a_video(run, tiny_checkpoint):
    result = run("clip.mp4", "--checkpoint", tiny_checkpoint)
    assert result.exit_code == 1
    assert "segments photos" in result.stderr
