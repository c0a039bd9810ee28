"""What holds for data in every format: it is found, gives valid samples, and can be sent to worker processes."""

import pickle

import datasets
import pytest
import torch

from layouts import HEIGHT, LAYOUTS, SQUARE, WIDTH
from maskformer_hf.data import FORMATS, VOID, Collator, binary_masks, is_streamed, open_dataset
from maskformer_hf.data.open import find_format

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
