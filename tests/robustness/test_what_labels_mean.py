"""Labels that teach nothing, or something else than one thinks, are said before training, with file and id."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from maskformer_hf.cli import app
from maskformer_hf.data import CocoInstances, CocoPanoptic, open_dataset
from maskformer_hf.data.inspection import inspect_dataset
from maskformer_hf.data.labelme import labelme
from maskformer_hf.training.data_check import raise_errors
from tests.data.coco_files import HEIGHT, WIDTH, annotation, photo, rectangle, write
from tests.layouts import LAYOUTS
from tests.robustness.test_texts_and_jsons import SQUARE, panoptic, write_labelme

SHAPE = [rectangle(1, 1, 5, 5)]


def found(dataset):
    """The errors and the warnings of a check: what -> examples."""
    report = inspect_dataset(dataset, name="train", progress=False)
    return [{problem.what: problem.examples for problem in problems} for problems in (report.errors, report.warnings)]


def masks(folder, *values):
    """A folder for two classes, whose masks have these values."""
    for name in ("a", "b"):
        photo(folder / f"train/images/{name}.png")
        (folder / "train/labels").mkdir(exist_ok=True)
        ids = np.array(values, dtype=np.uint8)[np.arange(HEIGHT) % len(values)]
        Image.fromarray(ids[:, None].repeat(WIDTH, 1)).save(folder / f"train/labels/{name}.png")
    (folder / "classes.txt").write_text("background\nobject\n")
    return open_dataset(folder, "train")


def test_masks_of_0_and_255(tmp_path):
    errors, warnings = found(masks(tmp_path, 0, 255))
    [(what, examples)] = errors.items()
    assert what.startswith("image of only background and void, as all others are: there is nothing to tell it from.")
    assert "In masks of 0 and 255 the 255 is void; write 1" in what
    assert examples == [str(tmp_path / f"train/images/{name}.png") for name in "ab"]
    assert warnings["class without a segment"] == ["object"]
    report = inspect_dataset(open_dataset(tmp_path, "train"), progress=False)
    with pytest.raises(ValueError, match=r"the data has 2 errors, the first: image of only background and .*a.png"):
        raise_errors([report])


def test_photos_to_measure_on_may_be_of_one_class(tmp_path):
    report = inspect_dataset(masks(tmp_path, 0, 255), name="validation", progress=False)
    assert report.errors == []
    assert "image of only background and void" in report.warnings[-1].what


def test_masks_of_one_class(tmp_path):
    [errors, _] = found(masks(tmp_path, 1))
    assert [*errors] == ["image of object alone, as all others are: there is nothing to tell it from"]
    assert found(masks(tmp_path, 0, 1, 255))[0] == {}
    # Where the rest is known to be nothing, there is something to tell it from.
    LAYOUTS["semantic_folder"](tmp_path / "other")
    data = open_dataset(tmp_path / "other", "train", void_classes=["car"], unlabelled="background")
    assert found(data)[0] == {}


def test_objects_that_are_all_crowds(tmp_path):
    crowds = [annotation(SHAPE, annotation_id=number, iscrowd=1) for number in (4, 5)]
    errors, _ = found(CocoInstances(write(tmp_path, crowds)))
    what = "object that is a crowd (iscrowd 1), as all others are: a crowd is no object to learn from"
    image = tmp_path / "images/a.png"
    assert errors == {what: [f"{image}: segment 1, cat", f"{image}: segment 2, cat"]}
    assert found(CocoInstances(write(tmp_path, [*crowds, annotation(SHAPE)])))[0] == {}
    # Stuff can be learned, but no thing.
    segments = [{"id": 8, "category_id": 3, "iscrowd": 1}, {"id": 9, "category_id": 4}]
    errors, warnings = found(CocoPanoptic(panoptic(tmp_path, segments)))
    assert (errors, [name for name in warnings if "crowd" in name]) == ({}, [what])


def test_data_without_a_segment(tmp_path):
    errors, _ = found(CocoInstances(write(tmp_path, [])))
    assert [*errors] == ["image without a segment, as all others are: there is nothing to learn"]
    LAYOUTS["davis"](tmp_path / "davis")
    for path in (tmp_path / "davis").rglob("*.png"):
        Image.fromarray(np.array(Image.open(path)) * 255).save(path)
    assert [*found(open_dataset(tmp_path / "davis", "train"))[0]] == [*errors]


def test_segments_that_the_png_lacks(tmp_path):
    segments = [{"id": number, "category_id": 3} for number in (7, 8, 9, 10)]
    data = CocoPanoptic(panoptic(tmp_path, segments))
    for _ in range(2):
        errors, warnings = found(data)
        assert errors == {}
        png = tmp_path / "panoptic/a.png"
        assert warnings["segment that the json lists and the PNG lacks"] == [f"{png}: id 7", f"{png}: id 10"]
    # In data sets that are joined, or that have other classes, too.
    LAYOUTS["coco_panoptic"](tmp_path / "other")
    joined = open_dataset(tmp_path, ["panoptic", "panoptic"], task="semantic")
    assert "segment that the json lists and the PNG lacks" in found(joined)[1]
    # The other way round is an error.
    errors, _ = found(CocoPanoptic(panoptic(tmp_path, segments[:2])))
    [[message]] = errors.values()
    assert "has pixels of id 9, which is no segment of this image in" in message


def test_parts_of_stuff_that_the_png_lacks(tmp_path):
    """Segments of one class of stuff are one in a sample, but each of them must be in the PNG."""
    segments = [{"id": 8, "category_id": 4}, {"id": 9, "category_id": 4}, {"id": 77, "category_id": 4}]
    [_, warnings] = found(CocoPanoptic(panoptic(tmp_path, segments)))
    assert warnings["segment that the json lists and the PNG lacks"] == [f"{tmp_path / 'panoptic/a.png'}: id 77"]


STORED = "photo that EXIF turns, with labels for its pixels as they are stored, so that it is seen lying on its side"
UNCLEAR = "photo that EXIF turns or mirrors within its size, so that nothing tells for which pixels its labels are"


def turned_photo(path, orientation, **size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(path, exif=exif, **size)


@pytest.mark.parametrize(
    ("orientation", "size", "annotated", "expected"),
    [
        (6, (20, 30), (20, 30), STORED),
        (6, (20, 30), (30, 20), None),
        (3, (20, 30), (20, 30), UNCLEAR),
        (8, (20, 20), (20, 20), UNCLEAR),
        (1, (20, 30), (20, 30), None),
    ],
)
def test_labels_on_pixels_as_stored(tmp_path, orientation, size, annotated, expected):
    turned_photo(tmp_path / "images/a.png", orientation, height=size[0], width=size[1])
    path = write(tmp_path, [annotation(SHAPE)], height=annotated[0], width=annotated[1])
    [errors, warnings] = found(CocoInstances(path))
    assert errors == {}
    assert {STORED, UNCLEAR} & warnings.keys() == ({expected} if expected else set())
    if expected:
        assert warnings[expected] == [str(tmp_path / "images/a.png")]


def test_labelme_on_pixels_as_stored(tmp_path):
    """Drawn on a photo that is stored lying on its side, by a tool that does not turn it."""
    write_labelme(tmp_path, [SQUARE])
    turned_photo(tmp_path / "train/a.png", 6)
    stored = torch.from_numpy(np.array(Image.open(tmp_path / "train/a.png"))).permute(2, 0, 1)
    data = labelme(tmp_path, "train")
    assert torch.equal(data[0]["image"], stored)
    assert found(data)[1][STORED] == [str(tmp_path / "train/a.png")]
    write_labelme(tmp_path / "turned", [SQUARE], imageHeight=WIDTH, imageWidth=HEIGHT)
    turned_photo(tmp_path / "turned/train/a.png", 6)
    data = labelme(tmp_path / "turned", "train")
    assert torch.equal(data[0]["image"], stored.rot90(-1, (1, 2)))
    assert STORED not in found(data)[1]


def test_check_data_and_train_refuse_what_cannot_teach(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    masks(tmp_path / "photos", 0, 255)
    result = CliRunner().invoke(app, ["check-data", "photos", "--split", "train", "--json", "data.json"])
    assert result.exit_code == 1
    assert "errors\n    2 x image of only background and void" in result.stdout
    [split] = json.loads((tmp_path / "data.json").read_text())["splits"]
    assert split["errors"][0]["count"] == 2
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{root: photos, validation: null}}\nmodel: {{checkpoint: {tiny_checkpoint}}}\nsteps: 1\nbatch_size: 2\n"
        "augmentation: {short_edge: [32, 32], crop_size: [32, 32]}\n"
    )
    result = CliRunner().invoke(app, ["train", "recipe.yaml", "--output", "run"])
    assert result.exit_code == 1
    assert "the data has 2 errors, the first: image of only background and void" in result.stderr
    assert not list((tmp_path / "run").glob("*/model.safetensors"))
    # The next try begins where this one has stopped.
    masks(tmp_path / "photos", 0, 1)
    result = CliRunner().invoke(app, ["train", "recipe.yaml", "--output", "run"])
    assert result.exit_code == 0, result.output
