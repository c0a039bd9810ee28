"""Trackers and the picture of validation predictions."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskformer_hf import MaskFormerForUniversalSegmentation
from maskformer_hf.cli import main
from maskformer_hf.data import SemanticFolder, planes_from_masks
from maskformer_hf.models.image_processing_maskformer import MaskFormerHfImageProcessor
from maskformer_hf.training import tracking, train
from maskformer_hf.training.comparison import GAP, PANEL_WIDTH
from maskformer_hf.training.tracking import validation_picture


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / "trackers" / "maskformer"))
    accumulator.Reload()
    return accumulator


def test_tensorboard_has_what_the_log_has(recipe, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["maskformer", "train", str(recipe), "--report-to", "tensorboard"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    tracked = events(run)
    terms = ("loss", "loss_mask", "loss_dice", "loss_ce", "gradient_norm")
    for name in (*terms, "learning_rate", "images_per_second", "memory_gib"):
        written = [(event.step, event.value) for event in tracked.Scalars(f"training/{name}")]
        logged = [(line["step"], line[name]) for line in lines if name in line]
        assert [step for step, _ in written] == [step for step, _ in logged] == [1, 2, 3, 4, 5, 6]
        assert [value for _, value in written] == pytest.approx([value for _, value in logged], rel=1e-6)
    evaluated = [(line["step"], line["val_mean_iou"]) for line in lines if "val_mean_iou" in line]
    assert [(event.step, pytest.approx(event.value)) for event in tracked.Scalars("validation/mean_iou")] == evaluated
    assert [event.step for event in tracked.Images("validation/predictions")] == [4, 6]
    [text] = tracked.Tensors("recipe/text_summary")
    assert b"crop_size" in text.tensor_proto.string_val[0]


def test_a_resumed_run_replaces_what_it_repeats(recipe, tmp_path):
    settings = ["report_to=[tensorboard]", "data.validation=null", "save_every=4"]
    train(recipe, [*settings, "steps=5"])
    (tmp_path / "run" / "checkpoint-000005").rename(tmp_path / "away")
    train(recipe, settings, resume=True)
    assert [event.step for event in events(tmp_path / "run").Scalars("training/loss")] == [1, 2, 3, 4, 5, 6]


def test_errors_name_the_tracker_and_the_remedy(recipe, monkeypatch):
    with pytest.raises(ValueError, match=r"report_to names 'tensorbord'; choose among .*tensorboard"):
        train(recipe, report_to=["tensorbord"])
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(ValueError, match=r"report_to names 'comet_ml', whose .* not installed: pip install comet-ml"):
        train(recipe, ["report_to=[comet_ml]"])


def test_every_evaluation_leaves_a_picture(recipe, shapes, tmp_path):
    train(recipe)
    pictures = [Image.open(tmp_path / "run" / f"validation-00000{step}.png") for step in (4, 6)]
    assert sorted(path.name for path in (tmp_path / "run").glob("validation*.png")) == [
        "validation-000004.png",
        "validation-000006.png",
    ]
    first, second = (np.asarray(picture).astype(int) for picture in pictures)
    assert first.shape[1] == second.shape[1] == 3 * (PANEL_WIDTH + GAP)
    # Photos and annotations are the same ones at every evaluation.
    height = 3 * (PANEL_WIDTH * 48 // 64 + GAP)
    assert (first[:height, : 2 * PANEL_WIDTH] == second[:height, : 2 * PANEL_WIDTH]).all()
    photo = Image.open(shapes / "val" / "images" / "0.png").resize((PANEL_WIDTH, PANEL_WIDTH * 48 // 64))
    assert np.abs(first[: photo.height, :PANEL_WIDTH] - np.asarray(photo)).mean() < 1


class Objects:
    """Two photos with two objects each, which overlap."""

    id2label = {0: "ground", 1: "box"}  # noqa: RUF012

    def __init__(self, task: str):
        self.task = task
        self.label_ids_to_fuse = [0] if task == "panoptic" else []

    def __len__(self):
        return 2

    def __getitem__(self, index):
        masks = torch.zeros(2, 40, 60, dtype=torch.bool)
        masks[0, 5:25, 5:30] = masks[1, 15:35, 20:50] = True
        return {
            "image": torch.full((3, 40, 60), 60 + 60 * index, dtype=torch.uint8),
            "planes": planes_from_masks(masks),
            "labels": torch.tensor([0, 1]),
            "is_crowd": torch.zeros(2, dtype=torch.bool),
            "name": f"photo {index}",
        }


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_the_picture_of_each_task(tiny_checkpoint, shapes, task):
    model = MaskFormerForUniversalSegmentation.from_pretrained(tiny_checkpoint).train()
    processor = MaskFormerHfImageProcessor.from_pretrained(tiny_checkpoint)
    dataset = SemanticFolder(shapes / "val") if task == "semantic" else Objects(task)
    picture = validation_picture(model, processor, dataset)
    assert model.training
    assert picture.width == 3 * (PANEL_WIDTH + GAP)
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 10
