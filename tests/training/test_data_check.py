"""The check of the data before the first step, and `maskformer check-data`."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maskformer_hf.cli import app
from maskformer_hf.training import train
from maskformer_hf.training.arguments import ModelArguments
from maskformer_hf.training.data_check import queries_of

RECIPE = """
data: {{root: {data}}}
augmentation: {{short_edge: [48, 64], crop_size: [48, 64]}}
model: {{checkpoint: {checkpoint}}}
optimization: {{learning_rate: 1.0e-4}}
steps: 1
batch_size: 2
"""


@pytest.fixture
def data(shapes, tmp_path):
    return shutil.copytree(shapes, tmp_path / "data")


@pytest.fixture
def recipe(data, tiny_checkpoint, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(data=data, checkpoint=tiny_checkpoint))
    return path


@pytest.fixture
def check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["check-data", *map(str, arguments)])


def damage(data):
    """An id that is no class, in a photo of the training split; and a photo that is no photo."""
    path = data / "train" / "labels" / "2.png"
    ids = np.array(Image.open(path))
    ids[0, 0] = 77
    Image.fromarray(ids).save(path)
    (data / "train" / "images" / "4.png").write_bytes(b"no photo")


def test_training_says_first_what_it_trains_on(recipe, data, tmp_path, capsys):
    shutil.copy(data / "train" / "images" / "1.png", data / "val" / "images" / "0.png")
    train(recipe, output_dir=tmp_path / "run")
    err = capsys.readouterr().err
    assert "train: 6 images, semantic, 3 classes" in err
    assert "validation: 3 images" in err
    assert "1 x photo of validation that is in train too" in err
    assert Image.open(tmp_path / "run" / "data.png").width > 300
    assert Image.open(tmp_path / "run" / "data_validation.png").width > 300
    written = json.loads((tmp_path / "run" / "data.json").read_text())
    assert [split["images"] for split in written["splits"]] == [6, 3]


def test_errors_in_the_data_stop_training_unless_told_otherwise(recipe, data, tmp_path, capsys):
    damage(data)
    with pytest.raises(ValueError, match=r"2 errors, the first: .*2\.png.*77.*data\.check=false"):
        train(recipe, output_dir=tmp_path / "run")
    assert "2 x image or annotation that cannot be read" in capsys.readouterr().err
    # The picture shows what can be read.
    assert (tmp_path / "run" / "data.png").is_file()
    with pytest.raises(ValueError, match=r"77|4\.png") as caught:
        train(recipe, ["data.check=false", "steps=4"], output_dir=tmp_path / "other")
    assert "data.check" not in str(caught.value)
    assert not (tmp_path / "other" / "data.json").exists()


def test_a_resumed_run_checks_nothing(recipe, tmp_path):
    train(recipe, output_dir=tmp_path / "run")
    (tmp_path / "run" / "data.json").unlink()
    train(recipe, ["steps=2"], resume=True, output_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "data.json").exists()


def test_one_process_checks_for_all(recipe, tmp_path, monkeypatch):
    from maskformer_hf.training import data_check

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(data_check, "check_data", None)
    data_check.check_before_training(None, None, None, None)


def test_the_command_prints_a_table_and_writes_picture_and_json(check, data, tmp_path):
    result = check(data, "--sheet", "out/sheet.png", "--json", "out/data.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("train: 6 images, semantic, 3 classes\n")
    assert "\n\nval: 3 images, semantic, 3 classes\n" in result.stdout
    for name in ("ground", "box", "sky"):
        assert result.stdout.count(f"\n  {name} ") == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data.json", "sheet.png", "sheet_val.png"]
    splits = json.loads((tmp_path / "out" / "data.json").read_text())["splits"]
    assert [split["name"] for split in splits] == ["train", "val"]
    assert splits[0]["classes"][2] | {"pixels": 0, "smallest": 0} == {
        "label": "sky", "is_thing": False, "images": 6, "segments": 6, "pixels": 0, "smallest": 0, "lost": 0
    }  # fmt: skip


def test_the_command_names_what_is_wrong_and_fails(check, data):
    damage(data)
    result = check(data, "--split", "train")
    assert result.exit_code == 1
    assert "2.png" in result.stdout
    assert "77" in result.stdout
    assert "4.png" in result.stdout
    assert "Traceback" not in result.output
    assert check(data, "--split", "val").exit_code == 0


def test_splits_and_formats(check, data):
    assert "val: 3 images, 2 of them" in check(data, "--split", "val", "--max-images", 2).stdout
    assert "6 images" in check(data / "train").stdout
    assert "3 images" in check(data, "--split", "val", "--format", "semantic_folder").stdout
    for arguments, message in (
        (("--split", "val", "--format", "yolo"), "val"),
        (("--split", "nothing"), "nothing"),
        (("--format", "jpeg"), "'jpeg'"),
        (("--class-groups", "supercategory"), "supercategory"),
        (("--sheet", "a.docx"), ".docx"),
    ):
        result = check(data, *arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("maskformer: ")
        assert message in result.stderr
    assert "no folder or file 'nowhere'" in check("nowhere").stderr
    assert "--recipe" in check().stderr


def test_a_recipe_says_how_the_data_are_read_and_trained_on(check, data, recipe):
    text = recipe.read_text()
    recipe.write_text(text.replace("root: ", "class_groups: {below: [ground, box], above: [sky]}, root: "))
    result = check("--recipe", recipe)
    assert result.exit_code == 0, result.output
    assert "train: 6 images, semantic, 2 classes" in result.stdout
    assert "validation: 3 images" in result.stdout
    recipe.write_text(text.replace("[48, 64], crop", "[6, 8], crop"))
    ids = np.array(Image.open(data / "val" / "labels" / "0.png"))
    ids[ids == 1] = 0
    ids[21, 21] = 1
    Image.fromarray(ids).save(data / "val" / "labels" / "0.png")
    result = check("--recipe", recipe, "--split", "val")
    assert "train" not in result.stdout.split("\n")[0]
    assert "1 x segment of which no pixel is left at training size" in result.stdout
    assert "segment 2, box, 1 px" in result.stdout
    other = data.parent / "elsewhere"
    data.rename(other)
    assert check("--recipe", recipe).exit_code == 1
    assert check(other, "--recipe", recipe).exit_code == 0


def test_the_number_of_queries_is_that_of_the_model_to_be(tiny_checkpoint):
    assert queries_of(ModelArguments(checkpoint=str(tiny_checkpoint))) == 6
    assert queries_of(ModelArguments(backbone="timm/resnet18", config={"num_queries": 30})) == 30
    assert queries_of(ModelArguments(backbone="timm/resnet18")) == 100
    assert queries_of(ModelArguments(backbone="timm/resnet18", architecture="per_pixel_baseline")) is None
