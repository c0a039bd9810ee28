"""`maskformer segment` with a checkpoint of photos: what it prints, writes and refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.cli.command_line import one_line_error


@pytest.fixture
def segment(run, tiny_checkpoint):
    return lambda *arguments: run("segment", *arguments, "--checkpoint", tiny_checkpoint, "--device", "cpu")


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
    once_more = segment("photos", "--output", "photos/drawn", "--overwrite")
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
    whole_masks = json.loads(segment(photo_paths[0], "--json", "--merging", "mask_wise").stdout)
    scores = [entry["score"] for entry in whole_masks[0]["segments"]]
    assert scores == sorted(scores, reverse=True)
    assert scores != [entry["score"] for entry in default[0]["segments"]]


def test_a_large_photo_is_cut_into_tiles(segment, photo_paths):
    whole = segment(photo_paths[0], "--json", "--task", "semantic")
    tiled = segment(photo_paths[0], "--json", "--task", "semantic", "--tile-size", 200)
    assert "Tiles: 100%" in tiled.stderr
    assert whole.stderr == ""
    [one], [other] = json.loads(whole.stdout), json.loads(tiled.stdout)
    assert (one["height"], one["width"]) == (other["height"], other["width"])
    assert sum(entry["area"] for entry in other["segments"]) == one["height"] * one["width"]


def test_a_plan_is_chosen(segment, photo_paths):
    """`whole` never cuts, whatever the size of tiles."""
    expected = segment(photo_paths[0], "--json", "--task", "semantic")
    whole = segment(photo_paths[0], "--json", "--task", "semantic", "--tile-size", 200, "--plan", "whole")
    assert whole.stderr == ""
    assert json.loads(whole.stdout) == json.loads(expected.stdout)
    tiled = segment(photo_paths[0], "--json", "--task", "semantic", "--tile-size", 200, "--plan", "tiles")
    assert "Tiles: 100%" in tiled.stderr


@pytest.mark.parametrize("tiles", [(), ("--tile-size", 200)])
def test_a_limit_of_pixels_is_lifted(run, tiny_checkpoint, photo_paths, monkeypatch, tiles):
    photo = photo_paths[0]
    width, height = Image.open(photo).size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10000)
    arguments = ("segment", photo, "--json", "--task", "semantic", "--checkpoint", tiny_checkpoint, *tiles)
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert f"{photo} has {width * height:,} pixels" in refused.stderr
    assert "--max-pixels on the command line" in refused.stderr
    [record] = json.loads(run(*arguments, "--max-pixels", width * height).stdout)
    assert (record["width"], record["height"]) == (width, height)


MISTAKES = {
    "no such file": (["nothing.jpg"], "no file 'nothing.jpg'"),
    "an empty folder": (["empty"], "'empty' holds no images"),
    "a file for several": (["{photo}", "{other}", "--output", "one.png"], "'one.png' is a file"),
    "no image format": (["{photo}", "--output", "result.docx"], ".docx is no image format"),
    "an unknown checkpoint": (["{photo}", "--checkpoint", "nonsense"], "no checkpoint 'nonsense'"),
    "an unknown device": (["{photo}", "--device", "toaster"], "device 'toaster'"),
    "an unknown dtype": (["{photo}", "--dtype", "int3"], "'bfloat16'"),
    "an unknown plan": (["{photo}", "--plan", "mosaic"], "--plan must be one of ['whole', 'tiles'], got 'mosaic'"),
    "an unknown merging": (
        ["{photo}", "--merging", "glue"],
        "--merging must be one of ['argmax', 'mask_wise'], got 'glue'",
    ),
    "a merging of no panoptic result": (
        ["{photo}", "--merging", "mask_wise", "--task", "semantic"],
        "--merging is for panoptic results, and the task is semantic",
    ),
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


def test_fewer_layers_are_run(segment, photo_paths):
    found = [
        json.loads(segment(photo_paths[0], "--json", "--task", "semantic", *layers).stdout)
        for layers in ((), ("--inference-layers", "1"))
    ]
    assert found[0][0]["segments"] != found[1][0]["segments"]
    result = segment(photo_paths[0], "--json", "--inference-layers", "99")
    assert "`inference_layers` must be 1 to `decoder_layers`=" in one_line_error(result)
