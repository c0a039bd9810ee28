"""Mask2Former-VIS by a recipe: clips in, a model that `predict_video` takes out; and models of photos on its frames."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from builders import resnet, tiny_config
from maskformer_hf import load, predict_video
from maskformer_hf.cli import app
from maskformer_hf.data import open_dataset, videos_in
from maskformer_hf.models.image_processing_maskformer import MaskFormerHfImageProcessor
from maskformer_hf.models.modeling_maskformer import MaskFormerHfForUniversalSegmentation
from maskformer_hf.models.modeling_video import MaskFormerHfForVideoSegmentation
from maskformer_hf.models.video_processing_maskformer import MaskFormerHfVideoProcessor
from maskformer_hf.training import evaluate_checkpoint, train
from maskformer_hf.training.arguments import read_recipe
from maskformer_hf.training.evaluation import evaluate

RECIPES = Path(__file__).parents[2] / "recipes"
SIZE, NUM_FRAMES = (48, 64), 6
# Where the square is in the first frame, and how far it moves in each.
SQUARES = {"left": (10, 40, -5), "right": (24, 4, 6)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """DAVIS's folders: a bright square that crosses noise, to the left in one clip, to the right in the other."""
    root = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, (top, left, step) in SQUARES.items():
            for kind in ("JPEGImages", "Annotations"):
                (root / split / kind / name).mkdir(parents=True)
            for frame in range(NUM_FRAMES):
                mask = np.zeros(SIZE, np.uint8)
                mask[top : top + 16, left + step * frame : left + step * frame + 18] = 1
                pixels = random.integers(0, 90, (*SIZE, 3), dtype=np.uint8)
                pixels[mask > 0] += np.array([160, 90, 20], np.uint8)
                Image.fromarray(pixels).save(root / split / "JPEGImages" / name / f"{frame:05}.png")
                Image.fromarray(mask).save(root / split / "Annotations" / name / f"{frame:05}.png")
    return root


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    """A tiny Mask2Former of images, from which models of videos start."""
    torch.manual_seed(0)
    backbone = resnet(16, 16, 32, 32, embedding_size=16)
    widths = {"mask_feature_size": 32, "ffn_dim": 64, "encoder_ffn_dim": 64, "decoder_layers": 3}
    config = tiny_config("mask2former", backbone_config=backbone, **widths, num_points=256, task="instance")
    folder = tmp_path_factory.mktemp("mask2former")
    MaskFormerHfForUniversalSegmentation(config).save_pretrained(folder)
    MaskFormerHfImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(clips, mask2former, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
data: {{root: {clips}, frames: 3, frame_range: 4}}
augmentation: {{short_edge: [44, 56], crop_size: [48, 64], color_jitter: false}}
model: {{architecture: mask2former_vis, checkpoint: {mask2former}}}
optimization: {{learning_rate: 2e-3, backbone_multiplier: 1, max_gradient_norm: 1}}
steps: 4
batch_size: 2
log_every: 1
save_every: 2
evaluate_every: 2
export_weights: last
output_dir: {tmp_path / "run"}
"""
    )
    return path


def history(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_recipe_trains_a_model_of_videos(recipe, clips, tmp_path):
    folder = train(recipe)
    run = tmp_path / "run"
    losses = [line for line in history(run) if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2, 3, 4]
    assert all(term in losses[0] for term in ("loss_ce", "loss_mask", "loss_dice"))
    validations = [line for line in history(run) if "val_ap" in line]
    assert [line["step"] for line in validations] == [2, 4]
    assert {"val_j", "val_flicker", "val_videos"} <= validations[0].keys()
    with Image.open(run / "validation-000004.png") as picture:
        assert picture.width > 3 * SIZE[1]
    assert json.loads((run / "data.json").read_text())["splits"][0]["images"] == 2 * NUM_FRAMES

    model, processor = load(folder)
    assert type(model) is MaskFormerHfForVideoSegmentation
    assert type(processor) is MaskFormerHfVideoProcessor
    assert model.config.id2label == {0: "object"}
    assert processor.size["shortest_edge"] == 48
    frames = sorted((clips / "val" / "JPEGImages" / "left").iterdir())
    found = predict_video(model, processor, frames, threshold=0)
    assert found.num_frames == NUM_FRAMES
    shown = found.frame(2)
    assert [segment["score"] for segment in shown.segments] == sorted(
        (segment["score"] for segment in shown.segments), reverse=True
    )
    for segment in shown.segments:
        [track] = [track for track in found.tracks if track["id"] == segment["track"]]
        assert torch.equal(shown.mask(segment), found.mask(track, 2))
        rows, columns = torch.nonzero(shown.mask(segment), as_tuple=True)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert segment["box"] == [int(side) for side in box]


def test_a_step_reads_as_many_frames_as_the_recipe_says(recipe, monkeypatch):
    shapes = []
    forward = MaskFormerHfForVideoSegmentation.forward

    def spy(self, pixel_values, *args, **kwargs):
        if self.training:
            shapes.append(tuple(pixel_values.shape))
            assert pixel_values.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        return forward(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(MaskFormerHfForVideoSegmentation, "forward", spy)
    train(recipe, ["steps=1", "data.frames=4", "data.validation=null", "channels_last=true", "void_masks=true"])
    assert shapes == [(2, 4, 3, 64, 64)]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_run_repeats_an_uninterrupted_one(recipe, tmp_path, precision):
    settings = ["data.validation=null", f"mixed_precision={precision}"]
    train(recipe, settings, output_dir=tmp_path / "whole")
    # A poly schedule depends on the number of steps.
    train(recipe, [*settings, "steps=2", "optimization.schedule=step"], output_dir=tmp_path / "parts")
    train(recipe, [*settings, "optimization.schedule=step"], output_dir=tmp_path / "step")
    train(recipe, [*settings, "optimization.schedule=step"], resume=True, output_dir=tmp_path / "parts")
    losses = {
        name: [line["loss"] for line in history(tmp_path / name) if "loss" in line]
        for name in ("whole", "parts", "step")
    }
    assert losses["parts"] == losses["step"]
    assert losses["whole"][0] == losses["step"][0]


def test_a_model_of_photos_trains_on_the_frames(recipe, tmp_path):
    folder = train(recipe, ["model.architecture=null", "steps=2"])
    model, _ = load(folder)
    assert type(model) is MaskFormerHfForUniversalSegmentation
    [line] = [line for line in history(tmp_path / "run") if "val_ap" in line]
    assert line["val_method"] == "single frames"


def test_what_a_model_of_videos_cannot_be_trained_or_measured_on(recipe, clips, shapes, mask2former, tmp_path):
    for setting in (f"data.root={shapes}", "data.class_groups={thing: [object]}", "data.train=[train, val]"):
        settings = [setting, "data.check=false", "data.validation=null"]
        with pytest.raises(ValueError, match="a model of videos trains on videos as they are"):
            train(recipe, settings)
    with pytest.raises(ValueError, match=r"data\.frames is 0; it must be at least 1"):
        read_recipe(recipe, ["data.frames=0"])
    with pytest.raises(ValueError, match="a preset has its own architecture"):
        read_recipe(recipe, ["model.checkpoint=null", "model.backbone=x", "model.preset=maskformer_resnet50_ade20k"])
    model = MaskFormerHfForVideoSegmentation.from_pretrained(mask2former, num_labels=1)
    for data in (open_dataset(shapes, "val"), open_dataset(clips, "val", task="semantic")):
        with pytest.raises(ValueError, match="a model of videos is measured on videos as they are"):
            evaluate(model, MaskFormerHfVideoProcessor(), data)
    model.save_pretrained(tmp_path)
    MaskFormerHfVideoProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model of videos is measured on videos as they are"):
        evaluate_checkpoint(tmp_path, shapes / "val")


def test_the_frames_are_looked_at_before_training(recipe, tmp_path):
    arguments = ["check-data", "--recipe", str(recipe), "--sheet", str(tmp_path / "sheet.png")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"train: {2 * NUM_FRAMES} images, instance, 1 class" in result.output
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize(("year", "steps", "decay"), [(2019, 6000, 4000), (2021, 8000, 5500)])
def test_the_papers_trainings(year, steps, decay, clips, mask2former, tmp_path):
    """Schedule and sizes of the original's configurations, and two steps of it on tiny clips."""
    path = RECIPES / f"youtube_vis_{year}" / "mask2former_swin_tiny.yaml"
    recipe = read_recipe(path)
    assert (recipe.steps, recipe.batch_size, recipe.data.frames, recipe.data.frame_range) == (steps, 16, 2, 20)
    optimization = recipe.optimization
    assert optimization.schedule == "step"
    assert [round(share * steps) for share in optimization.milestones] == [decay]
    rates = (optimization.learning_rate, optimization.weight_decay, optimization.backbone_multiplier)
    assert rates == (1e-4, 0.05, 0.1)
    assert optimization.max_gradient_norm == 0.01
    assert set(recipe.augmentation.short_edge) == {360, 480}
    small = {"data.root": clips, "model.checkpoint": mask2former, "data.workers": 0}
    small |= {"augmentation.short_edge": [48, 48, 64], "steps": 2, "batch_size": 2, "log_every": 1}
    folder = train(path, [f"{key}={value}" for key, value in small.items()], output_dir=tmp_path / "run")
    assert [line["step"] for line in history(tmp_path / "run")] == [1, 2]
    _, processor = load(folder)
    assert dict(processor.size)["shortest_edge"] == 480


@pytest.mark.parametrize("name", ["video", "frames"])
def test_the_recipes_of_davis(name, clips, tmp_path):
    """They start from a bundled checkpoint, and differ in what they see of the clips alone."""
    recipe, other = (read_recipe(RECIPES / "davis" / f"{name}.yaml") for name in ("video", "frames"))
    assert recipe.batch_size * recipe.data.frames == other.batch_size
    assert (recipe.optimization, recipe.augmentation, recipe.steps) == (
        other.optimization,
        other.augmentation,
        other.steps,
    )
    small = {"data.root": clips, "augmentation.short_edge": [48, 64], "augmentation.crop_size": [64, 64], "steps": 2}
    small |= {"batch_size": 2, "log_every": 1, "data.validation": "null"}
    path = RECIPES / "davis" / f"{name}.yaml"
    folder = train(path, [f"{key}={value}" for key, value in small.items()], output_dir=tmp_path / "run")
    model, _ = load(folder)
    assert (model.config.kind == "clip") == (name == "video")
    assert model.config.id2label == {0: "object"}


@pytest.mark.slow
def test_two_clips_are_learned_by_heart(recipe, clips, tmp_path):
    """From random weights; then objects are found in whole videos, as one track each, and their worst frames drawn."""
    settings = ["steps=150", "save_every=150", "evaluate_every=150", "augmentation.short_edge=[48, 48]"]
    folder = train(recipe, settings)
    losses = [line["loss"] for line in history(tmp_path / "run") if "loss" in line]
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])
    output = tmp_path / "evaluation.json"
    arguments = ["evaluate", str(folder), str(clips), "--split", "train", "--output", str(output)]
    arguments += ["--worst", "1", "--picture", str(tmp_path / "worst.png")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(output.read_text())
    assert figures["j"] > 0.85
    assert figures["ap50"] == 1
    assert figures["flicker"] < 0.05
    assert (tmp_path / "worst.png").is_file()
    assert [row["index"] for row in figures["per_image"]] == [NUM_FRAMES // 2, NUM_FRAMES + NUM_FRAMES // 2]
    model, processor = load(folder)
    for paths in videos_in(open_dataset(clips, "train")).frame_paths:
        found = predict_video(model, processor, paths, window=4, overlap=2)
        assert len(found.tracks) == 1
        assert all(found.tracks[0]["segmentations"])
