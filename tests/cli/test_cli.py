"""The `maskformer` command: what it prints, writes and refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import maskformer_hf
from maskformer_hf.cli import app


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in an empty folder; gives the result with stdout and stderr apart."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def segment(run, tiny_checkpoint):
    return lambda *arguments: run("segment", *arguments, "--checkpoint", tiny_checkpoint, "--device", "cpu")


def one_line_error(result) -> str:
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("maskformer: ")
    return lines[0]


def test_a_photo_gives_a_picture_and_a_table(segment, photo_paths, tmp_path):
    result = segment(photo_paths[0], "--output", "out.png", "--task", "semantic")
    assert result.exit_code == 0, result.output
    photo, picture = Image.open(photo_paths[0]), Image.open(tmp_path / "out.png")
    assert picture.size > photo.size or picture.height > photo.height
    header, columns, *rows = result.stdout.splitlines()
    assert str(photo_paths[0]) in header
    assert "out.png" in header
    assert columns.split() == ["label", "score", "area", "share"]
    assert rows
    areas = 0
    for row in rows:
        label, score, area, _, share = row.split()
        assert label in ("sky", "road", "car", "person")
        assert 0 <= float(score) <= 1
        areas += int(area.replace(",", ""))
        assert float(share.rstrip("%")) <= 100
    assert areas == photo.width * photo.height
    assert result.stderr == ""


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_json_describes_every_segment(segment, photo_paths, tmp_path, task):
    result = segment(photo_paths[0], "--json", "--task", task)
    assert result.exit_code == 0, result.output
    [record] = json.loads(result.stdout)
    height, width = record["height"], record["width"]
    assert (width, height) == Image.open(photo_paths[0]).size
    assert record["task"] == task
    assert record["picture"] is None
    assert list(tmp_path.iterdir()) == []
    assert record["segments"]
    for entry in record["segments"]:
        assert {"id", "label_id", "label", "score", "area", "mask"} <= set(entry)
        assert ("box" in entry) == (task == "instance")
        assert entry["mask"]["size"] == [height, width]
        assert np.asarray(coco_mask.decode(entry["mask"])).sum() == entry["area"]


def test_several_photos_and_folders_show_progress_and_give_one_picture_each(segment, photo_paths, tmp_path):
    folder = tmp_path / "photos" / "inner"
    folder.mkdir(parents=True)
    shutil.copy(photo_paths[0], folder.parent / "one.jpg")
    # The same name in another folder, and another suffix: neither may write over the first.
    shutil.copy(photo_paths[1], folder / "one.jpg")
    Image.open(photo_paths[1]).save(folder / "one.png")
    (folder / "notes.txt").write_text("no photo")
    result = segment("photos", photo_paths[1], "--output", "drawn", "--json")
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    assert len(records) == 4
    pictures = sorted(path.name for path in (tmp_path / "drawn").glob("*.png"))
    assert pictures == sorted([f"{photo_paths[1].stem}.png", "one.png", "one_2.png", "one_3.png"])
    for record in records:
        assert json.loads(Path(record["picture"]).with_suffix(".json").read_text()) == record
    assert "Segmenting: 100%" in result.stderr
    # What was written is not taken for a photo, even inside the folder of photos.
    again = segment("photos", "--output", "photos/drawn")
    once_more = segment("photos", "--output", "photos/drawn")
    assert again.stdout.count("->") == once_more.stdout.count("->") == 3


def test_where_pictures_go_when_nothing_is_said(segment, photo_paths, tmp_path):
    assert segment(photo_paths[0]).exit_code == 0
    assert (tmp_path / "result.png").is_file()
    assert segment(*photo_paths[:2]).exit_code == 0
    assert len(list((tmp_path / "predictions").glob("*.png"))) == 2
    assert segment(photo_paths[0], "--output", "fresh/").exit_code == 0
    assert (tmp_path / "fresh" / f"{photo_paths[0].stem}.png").is_file()


def test_a_broken_image_is_named_and_the_others_are_done(segment, photo_paths, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(photo_paths[0].read_bytes()[:3000])
    result = segment("broken.jpg", photo_paths[0], "missing.jpg", photo_paths[1], "--output", "drawn")
    assert result.exit_code == 1
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2
    messages = [line for line in result.stderr.splitlines() if line.startswith("maskformer: ")]
    assert len(messages) == 3
    assert "broken.jpg" in messages[0]
    assert "missing.jpg" in messages[1]
    assert "2 of 4" in messages[2]
    assert result.stdout.count("->") == 2
    assert "Traceback" not in result.output


def test_options_that_change_the_answer(segment, photo_paths):
    default = json.loads(segment(photo_paths[0], "--json").stdout)
    assert default[0]["task"] == "panoptic"
    half = json.loads(segment(photo_paths[0], "--json", "--dtype", "bfloat16").stdout)
    assert [entry["score"] for entry in default[0]["segments"]] != [entry["score"] for entry in half[0]["segments"]]


def test_a_large_photo_is_cut_into_tiles(segment, photo_paths):
    whole = segment(photo_paths[0], "--json", "--task", "semantic")
    tiled = segment(photo_paths[0], "--json", "--task", "semantic", "--tile-size", 200)
    assert "Tiles: 100%" in tiled.stderr
    assert whole.stderr == ""
    [one], [other] = json.loads(whole.stdout), json.loads(tiled.stdout)
    assert (one["height"], one["width"]) == (other["height"], other["width"])
    assert sum(entry["area"] for entry in other["segments"]) == one["height"] * one["width"]


MISTAKES = {
    "no such file": (["nothing.jpg"], "no file 'nothing.jpg'"),
    "an empty folder": (["empty"], "'empty' holds no images"),
    "a file for several": (["{photo}", "{other}", "--output", "one.png"], "'one.png' is a file"),
    "no image format": (["{photo}", "--output", "result.docx"], ".docx is no image format"),
    "an unknown checkpoint": (["{photo}", "--checkpoint", "nonsense"], "no checkpoint 'nonsense'"),
    "an unknown device": (["{photo}", "--device", "toaster"], "device 'toaster'"),
    "an unknown dtype": (["{photo}", "--dtype", "int3"], "'bfloat16'"),
    "over the photo": (["copy.png", "--output", "copy.png"], "overwritten"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(run, tiny_checkpoint, photo_paths, tmp_path, mistake):
    (tmp_path / "empty").mkdir()
    Image.open(photo_paths[0]).save(tmp_path / "copy.png")
    arguments, message = MISTAKES[mistake]
    arguments = [str(a).format(photo=photo_paths[0], other=photo_paths[1]) for a in arguments]
    if "--checkpoint" not in arguments:
        arguments += ["--checkpoint", str(tiny_checkpoint)]
    assert message in one_line_error(run("segment", *arguments))


def test_an_unknown_task_is_a_usage_error(run, photo_paths):
    result = run("segment", photo_paths[0], "--task", "depth")
    assert result.exit_code == 2
    assert "semantic" in result.stderr


def test_a_broken_checkpoint_is_one_line(run, tiny_checkpoint, photo_paths, tmp_path):
    for name, content in (("config.json", b"{"), ("model.safetensors", b"1234")):
        folder = shutil.copytree(tiny_checkpoint, tmp_path / f"broken {name}")
        (folder / name).write_bytes(content)
        assert name.split(".")[0] in one_line_error(run("segment", photo_paths[0], "--checkpoint", folder))


def test_version(run):
    assert run("--version").stdout.split() == ["maskformer-hf", maskformer_hf.__version__]


def test_help_names_every_command_and_gives_examples(run):
    for command in ("segment", "train", "evaluate"):
        assert command in run("--help").stdout
        assert f"maskformer {command}" in run(command, "--help").stdout.split("Examples:")[1]


@pytest.mark.parametrize("entry", ["script", "module"])
def test_help_does_not_wait_for_torch(entry):
    script = str(Path(sys.executable).with_name("maskformer"))
    command = [script] if entry == "script" else [sys.executable, "-m", "maskformer_hf"]
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    result = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, env=environment)
    assert "segment" in result.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "maskformer_hf.cli" in imported
    assert not imported & {"torch", "transformers", "numpy", "PIL"}


def test_the_installed_script_segments(tiny_checkpoint, photo_paths, tmp_path):
    script = Path(sys.executable).with_name("maskformer")
    result = subprocess.run(
        [script, "segment", photo_paths[0], "--checkpoint", tiny_checkpoint, "--output", "out.png"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "score" in result.stdout
    assert (tmp_path / "out.png").is_file()


def write_data(root: Path, names=("sky", "road", "car", "person")):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for index in range(2):
            labels = np.repeat(np.arange(4, dtype=np.uint8), 16)[None].repeat(64, 0)
            Image.fromarray(labels).save(root / split / "labels" / f"{index}.png")
            colors = np.random.default_rng(index).integers(0, 255, (4, 3), dtype=np.uint8)
            Image.fromarray(colors[labels]).save(root / split / "images" / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    return root


def test_evaluate(run, tiny_checkpoint, tmp_path):
    data = write_data(tmp_path / "data")
    table = run("evaluate", tiny_checkpoint, data / "val", "--device", "cpu")
    assert table.exit_code == 0, table.output
    assert "mean IoU" in table.stdout
    result = run("evaluate", tiny_checkpoint, data / "val", "--json", "--output", "scores.json", "--device", "cpu")
    scores = json.loads(result.stdout)
    assert 0 <= scores["mean_iou"] <= 1
    assert json.loads((tmp_path / "scores.json").read_text())["mean_iou"] == scores["mean_iou"]


def test_evaluate_draws_the_worst_images(run, tiny_checkpoint, tmp_path):
    data = write_data(tmp_path / "data")
    options = ("--split", "val", "--worst", "1", "--picture", "bad.png", "--boundary", "--device", "cpu")
    result = run("evaluate", tiny_checkpoint, data, *options)
    assert result.exit_code == 0, result.output
    assert "boundary IoU" in result.stdout
    assert "Saved bad.png" in result.stdout
    one = Image.open(tmp_path / "bad.png")
    result = run("evaluate", tiny_checkpoint, data / "val", "--worst", "2", "--json", "--device", "cpu")
    assert [row["index"] for row in json.loads(result.stdout)["per_image"]] == [0, 1]
    assert Image.open(tmp_path / "worst.png").height > 1.5 * one.height


def test_evaluate_instances_and_panoptic_segments(run, tiny_checkpoint, tmp_path):
    """One folder, two jsons: objects in two of four classes, and segments in all of them."""
    names = ("sky", "road", "car", "person")
    categories = [
        {"id": index, "name": name, "isthing": int(index > 1), "supercategory": "stuff" if index < 2 else "thing"}
        for index, name in enumerate(names)
    ]
    image = {"id": 1, "file_name": "1.png", "height": 48, "width": 64}
    (tmp_path / "panoptic").mkdir()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "1.png")
    ids = np.repeat(np.arange(4, dtype=np.uint8), 16)[None].repeat(48, 0) + 1
    Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1)).save(tmp_path / "panoptic" / "1.png")
    segments = [
        {"id": index + 1, "category_id": index, "area": 768, "bbox": [16 * index, 0, 16, 48], "iscrowd": 0}
        for index in range(4)
    ]
    panoptic = [{"image_id": 1, "file_name": "1.png", "segments_info": segments}]
    (tmp_path / "panoptic.json").write_text(
        json.dumps({"images": [image], "categories": categories, "annotations": panoptic})
    )
    outlines = [[16 * index, 0, 16 * index + 16, 0, 16 * index + 16, 48, 16 * index, 48] for index in range(4)]
    instances = [
        {**segment, "image_id": 1, "segmentation": [outline]}
        for segment, outline in zip(segments[2:], outlines[2:], strict=True)
    ]
    (tmp_path / "instances.json").write_text(
        json.dumps({"images": [image], "categories": categories[2:], "annotations": instances})
    )
    common = (tiny_checkpoint, "--device", "cpu", "--json")
    expected = {"panoptic.json": ("panoptic", "pq", 4), "instances.json": ("instance", "ap", 2)}
    for file, (task, score_name, num_classes) in expected.items():
        result = run("evaluate", *common[:1], tmp_path / file, *common[1:])
        assert result.exit_code == 0, result.output
        figures = json.loads(result.stdout)
        assert (figures["task"], figures["score_name"], len(figures["per_class"])) == (task, score_name, num_classes)
        table = run("evaluate", tiny_checkpoint, tmp_path / file, "--device", "cpu").stdout
        assert {"panoptic": "things", "instance": "AR at 100"}[task] in table
    result = run("evaluate", *common[:1], tmp_path, "--format", "coco_panoptic", "--task", "semantic", *common[1:])
    assert json.loads(result.stdout)["score_name"] == "mean_iou", result.output
    # A checkpoint that was trained on groups of classes says so.
    grouped = shutil.copytree(tiny_checkpoint, tmp_path / "grouped")
    config = json.loads((grouped / "config.json").read_text())
    config |= {"id2label": {"0": "stuff", "1": "thing"}, "label2id": {"stuff": 0, "thing": 1}, "label_ids_to_fuse": [0]}
    (grouped / "config.json").write_text(json.dumps(config))
    weights = load_file(grouped / "model.safetensors")
    weights = {name: part[[0, 1, 4]] if "class_predictor" in name else part for name, part in weights.items()}
    save_file(weights, grouped / "model.safetensors", metadata={"format": "pt"})
    arguments = ("evaluate", grouped, tmp_path / "panoptic.json", "--device", "cpu", "--json")
    assert "class_groups" in one_line_error(run(*arguments))
    result = run(*arguments, "--class-groups", "supercategory")
    assert [row["label"] for row in json.loads(result.stdout)["per_class"]] == ["stuff", "thing"]
    groups = {"stuff": ["sky", "road"], "thing": ["car", "person"]}
    (grouped / "training.json").write_text(json.dumps({"recipe": {"data": {"class_groups": groups}}}))
    assert json.loads(run(*arguments).stdout)["pq"] == json.loads(result.stdout)["pq"]


def test_evaluate_mistakes(run, tiny_checkpoint, tmp_path):
    assert "nowhere" in one_line_error(run("evaluate", tiny_checkpoint, "nowhere"))
    assert "say which split" in one_line_error(run("evaluate", tiny_checkpoint, "me/photos", "--format", "datasets"))
    assert "no checkpoint 'nonsense'" in one_line_error(run("evaluate", "nonsense", tmp_path))
    data = write_data(tmp_path / "data", names=("sky", "road", "car", "bus"))
    common = ("evaluate", tiny_checkpoint, data / "val", "--device", "cpu")
    assert "'bus'" in one_line_error(run(*common))
    assert "semantic" in one_line_error(run(*common, "--task", "panoptic"))
    assert "class_groups" in one_line_error(run(*common, "--class-groups", "kind"))
    assert "'yolo'" in one_line_error(run(*common, "--format", "nothing"))
    assert "no image format" in one_line_error(run(*common, "--worst", "2", "--picture", "worst.txt"))
    assert "--worst" in one_line_error(run(*common, "--picture", "worst.png"))
    result = run("evaluate", tiny_checkpoint, data, "--split", "test", "--device", "cpu")
    assert result.exit_code == 1
    assert "Looked for:\n  semantic_folder: " in result.stderr


RECIPE = """
data: {{root: {data}}}
augmentation: {{short_edge: [64, 64], crop_size: [64, 64]}}
model:
  checkpoint: {checkpoint}
optimization: {{learning_rate: 1.0e-4}}
steps: 2
batch_size: 2
save_every: 1
evaluate_every: 2
"""


def test_train_and_resume(run, tiny_checkpoint, tmp_path, photo_paths):
    data = write_data(tmp_path / "data")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(data=data, checkpoint=tiny_checkpoint))
    result = run("train", "recipe.yaml", "--output", "run", "--set", "steps=1", "--set", "evaluate_every=1")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("Saved")
    result = run("train", "recipe.yaml", "--output", "run", "--resume")
    assert result.exit_code == 0, result.output
    assert run("segment", photo_paths[0], "--checkpoint", tmp_path / "run" / "model").exit_code == 0


def test_train_mistakes(run, tmp_path):
    assert "nothing.yaml" in one_line_error(run("train", "nothing.yaml"))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(data="data", checkpoint="nowhere"))
    assert "stepz" in one_line_error(run("train", "recipe.yaml", "--set", "stepz=1"))
    assert "data" in one_line_error(run("train", "recipe.yaml"))
