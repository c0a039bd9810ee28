"""What holds for data in every format: it is found, gives valid samples, and can be sent to worker processes."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from layouts import HEIGHT, LAYOUTS, SQUARE, WIDTH
from maskformer_hf.data import (
    FORMATS,
    VOID,
    CocoInstances,
    Collator,
    binary_masks,
    from_datasets,
    is_streamed,
    open_dataset,
)
from maskformer_hf.data.open import find_format

COCO4 = Path(__file__).parent.parent / "fixtures/coco4"
ONLY_IF_ASKED_FOR = {"coco_instances_and_stuff", "datasets_streaming"}
TASKS = {
    "ade20k": ("semantic", "instance", "panoptic"),
    "cityscapes": ("semantic", "instance", "panoptic"),
    "mapillary": ("semantic", "instance", "panoptic"),
}


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    LAYOUTS[request.param](tmp_path / "data")
    return request.param, tmp_path / "data"


def test_every_format_is_tested():
    assert LAYOUTS.keys() | {"datasets_streaming"} == FORMATS.keys()


def test_formats_are_told_apart(layout):
    name, root = layout
    for split in ("train", "val"):
        if name in ONLY_IF_ASKED_FOR:
            assert find_format(root, split) != name
        else:
            assert find_format(root, split) == name


def test_samples_are_valid(layout):
    name, root = layout
    for task in TASKS.get(name, (None,)):
        data = open_dataset(root, "train", format=name, task=task)
        assert len(data) == 2
        assert list(data.id2label) == list(range(len(data.id2label)))
        assert set(data.label_ids_to_fuse) <= set(data.id2label)
        for sample in (data[0], pickle.loads(pickle.dumps(data))[1]):
            assert sample["image"].shape == (3, HEIGHT, WIDTH)
            assert sample["image"].dtype == torch.uint8
            planes = sample["planes"]
            assert planes.shape[1:] == (HEIGHT, WIDTH)
            assert planes.dtype == torch.int32
            assert planes.min() >= VOID
            assert planes.max() == len(sample["labels"]) == len(sample["is_crowd"])
            assert set(sample["labels"].tolist()) <= set(data.id2label)
            masks = binary_masks(sample)
            assert masks.flatten(1).any(1).all()
            # The object is a segment of its own in all of them.
            square = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
            square[SQUARE] = True
            found = [
                int(label) for label, mask in zip(sample["labels"], masks, strict=True) if torch.equal(mask, square)
            ]
            assert len(found) == 1
            if data.task != "semantic":
                assert found[0] not in data.label_ids_to_fuse
            assert isinstance(sample["name"], str)
        batch = Collator([0.5] * 3, [0.5] * 3)([data[0], data[1]])
        assert [masks.shape[1:] for masks in batch["mask_labels"]] == [(HEIGHT, WIDTH)] * 2


def test_photos_in_two_splits_come_once(layout):
    name, root = layout
    data = open_dataset(root, ["train", "val", "train"], format=name)
    # A saved table does not say which files its photos were.
    assert len(data) == (5 if name == "datasets" else 3)


def test_streaming_is_one_of_the_formats(tmp_path):
    LAYOUTS["datasets"](tmp_path)
    assert is_streamed(open_dataset(tmp_path, "train", format="datasets_streaming"))


def test_an_outline_is_the_same_mask_in_every_format(tmp_path, monkeypatch):
    """The polygons of a COCO json, written as YOLO's and labelme's files and as a table."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    coco = CocoInstances(COCO4 / "instances.json")
    content = json.loads((COCO4 / "instances.json").read_text())
    names = [category["name"] for category in sorted(content["categories"], key=lambda item: item["id"])]
    label_of_category = {category["id"]: names.index(category["name"]) for category in content["categories"]}
    (tmp_path / "data.yaml").write_text(f"train: images\nnames: {json.dumps(names)}\n")
    (tmp_path / "labels.txt").write_text("\n".join(names))
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").symlink_to(Path(coco.image_folder).resolve())
    (tmp_path / "labelme").mkdir()
    rows = []
    for image in content["images"]:
        height, width = image["height"], image["width"]
        stem = Path(image["file_name"]).stem
        annotations = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        shapes, lines, objects = [], [], []
        for number, item in enumerate(annotations):
            if item["iscrowd"]:
                continue
            label = label_of_category[item["category_id"]]
            for part in item["segmentation"]:
                points = np.reshape(part, (-1, 2))
                shapes.append({"label": names[label], "points": points.tolist(), "group_id": number})
            shares = (np.reshape(item["segmentation"][0], (-1, 2)) / [width, height]).ravel().tolist()
            if len(item["segmentation"]) == 1:  # YOLO has no parts
                lines.append(" ".join(map(repr, [label, *shares])))
            objects.append({"segmentation": item["segmentation"], "category_id": label})
        (tmp_path / f"labels/{stem}.txt").write_text("\n".join(lines))
        labelme = {"shapes": shapes, "imagePath": f"../images/{image['file_name']}", "imageHeight": height}
        (tmp_path / f"labelme/{stem}.json").write_text(json.dumps({**labelme, "imageWidth": width}))
        rows.append({"image": str(tmp_path / "images" / image["file_name"]), "objects": objects})
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())

    yolo = open_dataset(tmp_path, "train", format="yolo")
    drawn = open_dataset(tmp_path, "labelme", format="labelme")
    tabled = from_datasets(table, id2label=dict(enumerate(names)))
    where = {Path(path).name: place for place, path in enumerate(coco.image_paths)}
    count = 0
    for data in (yolo, drawn, tabled):
        for index in range(len(data)):
            path = rows[index]["image"] if data is tabled else data.image_paths[index]
            sample, expected = data[index], coco[where[Path(path).name]]
            assert torch.equal(sample["image"], expected["image"])
            outlined = [place for place, is_crowd in enumerate(expected["is_crowd"].tolist()) if not is_crowd]
            if data is yolo:
                annotations = [item for item in content["annotations"] if item["image_id"] == int(Path(path).stem)]
                outlined = [place for place in outlined if len(annotations[place]["segmentation"]) == 1]
            assert sample["labels"].tolist() == expected["labels"][outlined].tolist()
            different = (binary_masks(sample) != binary_masks(expected)[outlined]).flatten(1).sum(1)
            # A share times the width is not always the number of pixels it was made of, to the last digit.
            assert different.max() <= (3 if data is yolo else 0)
            count += len(outlined)
    assert count == 65 + 65 + 62
