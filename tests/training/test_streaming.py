"""Training on streamed data: by a recipe, and resumed."""

import json

import datasets
import pytest
import yaml

from layouts import LAYOUTS
from maskformer_hf.data import is_streamed
from maskformer_hf.training import evaluate_checkpoint, train
from maskformer_hf.training.arguments import read_recipe
from maskformer_hf.training.recipe_data import open_data


@pytest.fixture
def streamed_recipe(tmp_path, tiny_checkpoint):
    """Trains four steps on the first of two splits that `save_to_disk` wrote, which is streamed."""
    LAYOUTS["datasets"](tmp_path / "data")
    recipe = {
        "data": {"root": str(tmp_path / "data"), "format": "datasets_streaming"},
        "augmentation": {"short_edge": [48, 64], "crop_size": [32, 48]},
        "model": {"checkpoint": str(tiny_checkpoint)},
        "optimization": {"learning_rate": 1.0e-3},
        "steps": 4,
        "batch_size": 1,
        "log_every": 1,
        "save_every": 2,
        "evaluate_every": 4,
        "output_dir": str(tmp_path / "whole"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def losses(folder):
    lines = [yaml.safe_load(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_stream_is_trained_on_and_resumed(streamed_recipe, tmp_path, caplog):
    model = train(streamed_recipe)
    record = yaml.safe_load((model / "training.json").read_text())
    assert record["data"]["training_images"] is None
    assert record["evaluation"]["images"] == record["data"]["validation_images"] == 1
    assert "streamed images for training" in (model / "README.md").read_text()
    # The check before training takes its first rows.
    reports = yaml.safe_load((tmp_path / "whole" / "data.json").read_text())["splits"]
    assert [report["name"] for report in reports] == ["train", "validation"]

    stopped = tmp_path / "stopped"
    train(streamed_recipe, ["steps=2", "optimization.schedule=step"], output_dir=stopped)
    train(streamed_recipe, ["optimization.schedule=step"], output_dir=stopped, resume=True)
    train(streamed_recipe, ["optimization.schedule=step"], output_dir=tmp_path / "uninterrupted")
    expected = losses(tmp_path / "uninterrupted")
    assert len(expected) == 4
    assert losses(stopped) == pytest.approx(expected, rel=1e-6)


def test_what_is_measured_on_is_not_streamed(streamed_recipe):
    training, validation = open_data(read_recipe(streamed_recipe).data)
    assert is_streamed(training)
    assert validation is not None
    assert not is_streamed(validation)
    assert len(validation) == 1


def test_columns_that_a_recipe_names(streamed_recipe, tmp_path):
    """Two columns could be the labels, and nothing says their classes; what is measured later is read alike."""
    folder = tmp_path / "ambiguous"
    loaded = datasets.load_from_disk(str(tmp_path / "data"))
    ambiguous = loaded.map(lambda row: {"drawn": row["image"]}).rename_columns({"label": "ids", "image": "photo"})
    ambiguous.save_to_disk(folder)
    settings = [f"data.root={folder}", "steps=2", "data.format=datasets"]
    with pytest.raises(ValueError, match=r"pass label_column=\.\.\., in a recipe under data\.options"):
        train(streamed_recipe, settings, output_dir=tmp_path / "unclear")
    options = "data.options={image_column: photo, label_column: ids, id2label: {0: road, 1: car}, void_ids: [255]}"
    model = train(streamed_recipe, [*settings, options], output_dir=tmp_path / "clear")
    record = json.loads((model / "training.json").read_text())
    assert record["recipe"]["data"]["options"]["label_column"] == "ids"
    result = evaluate_checkpoint(model, folder, format="datasets", split="val")
    assert [row["label"] for row in result["per_class"]] == ["road", "car"]
    assert result["mean_iou"] == pytest.approx(record["evaluation"]["mean_iou"], abs=1e-6)
