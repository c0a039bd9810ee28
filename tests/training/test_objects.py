"""Training on instances and on panoptic segments."""

import json

import pytest
import torch
from torchvision import tv_tensors

from maskformer_hf.data import VOID, planes_from_masks
from maskformer_hf.models.image_processing_maskformer import MaskFormerHfImageProcessor
from maskformer_hf.models.modeling_maskformer import MaskFormerHfForUniversalSegmentation
from maskformer_hf.training import loop, train_model
from maskformer_hf.training.arguments import read_recipe
from maskformer_hf.training.model_folder import ImageCounts, training_record
from maskformer_hf.training.recipe_data import label_fields
from maskformer_hf.training.recipe_model import build_model, build_processor


class Boxes:
    """Two bright boxes a picture, which touch; in panoptic data on a ground under a sky, with a strip of void.

    The last picture has no object, and the first a crowd.
    """

    def __init__(self, task):
        self.task = task
        panoptic = task == "panoptic"
        self.id2label = {0: "ground", 1: "box", 2: "sky"} if panoptic else {0: "box"}
        self.label_ids_to_fuse = [0, 2] if panoptic else []

    def __len__(self):
        return 4

    def __getitem__(self, index):
        boxes = torch.zeros(2, 48, 64, dtype=torch.bool)
        boxes[0, 20:40, 5 + 4 * index : 22 + 4 * index] = True
        boxes[1, 20:40, 22 + 4 * index : 36 + 4 * index] = True
        if index == 3:
            boxes[:] = False
        sky = torch.zeros(1, 48, 64, dtype=torch.bool)
        sky[:, :12] = True
        image = torch.full((3, 48, 64), 40, dtype=torch.uint8)
        image[2, sky[0]] = 200
        image[0, boxes[0]], image[1, boxes[1]] = 220, 220
        if self.task == "panoptic":
            ground = ~(sky | boxes.any(0))
            ground[..., -3:] = False
            masks, labels = torch.cat((ground, boxes, sky)), torch.tensor([0, 1, 1, 2])
        else:
            masks, labels = boxes, torch.tensor([0, 0])
        planes = planes_from_masks(masks)
        if self.task == "panoptic":
            planes[0, 12:, -3:] = VOID
        is_crowd = torch.zeros(len(labels), dtype=torch.bool)
        is_crowd[1] = index == 0
        return {
            "image": tv_tensors.Image(image),
            "planes": tv_tensors.Mask(planes),
            "labels": labels,
            "is_crowd": is_crowd,
            "name": f"picture {index}",
        }


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_training(recipe, tmp_path, task):
    data = Boxes(task)
    settings = read_recipe(recipe, ["steps=40", "save_every=40", "void_masks=true", "augmentation.crop_size=[48, 80]"])
    torch.manual_seed(0)
    model = build_model(settings.model, label_fields(data))
    folder = train_model(model, build_processor(settings.model, model.config), data, None, settings)

    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    config = MaskFormerHfForUniversalSegmentation.from_pretrained(folder).config
    assert config.task == task
    assert config.id2label == data.id2label
    assert config.label_ids_to_fuse == data.label_ids_to_fuse
    assert MaskFormerHfImageProcessor.from_pretrained(folder).label_ids_to_fuse == data.label_ids_to_fuse


def test_the_recipe_may_know_better(recipe):
    arguments = read_recipe(recipe, ["model.config.label_ids_to_fuse=[2]", "model.config.task=semantic"]).model
    config = build_model(arguments, label_fields(Boxes("panoptic"))).config
    assert (config.task, config.label_ids_to_fuse) == ("semantic", [2])
    assert build_processor(arguments, config).label_ids_to_fuse == [2]


class Nothing(Boxes):
    """No picture has an object."""

    def __getitem__(self, index):
        return super().__getitem__(3)


def test_batches_without_objects(recipe, tmp_path):
    settings = read_recipe(recipe, ["steps=2", "void_masks=true"])
    data = Nothing("instance")
    model = build_model(settings.model, label_fields(data))
    train_model(model, build_processor(settings.model, model.config), data, None, settings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["loss_mask"] for line in lines] == [0, 0]


@pytest.mark.parametrize("void_masks", [False, True])
def test_void_masks_reach_the_model_where_wanted(recipe, monkeypatch, void_masks):
    step = loop.training_step
    void_pixels = []

    def watch(accelerator, model, optimizer, batches, max_gradient_norm):
        void_pixels.extend(int(batch["void_masks"].sum()) for batch in batches if "void_masks" in batch)
        return step(accelerator, model, optimizer, batches, max_gradient_norm)

    monkeypatch.setattr(loop, "training_step", watch)
    settings = read_recipe(recipe, ["steps=2", f"void_masks={void_masks}"])
    data = Boxes("panoptic")
    model = build_model(settings.model, label_fields(data))
    train_model(model, build_processor(settings.model, model.config), data, None, settings)
    assert bool(void_pixels) is void_masks
    assert all(void_pixels)


def test_several_splits_are_named_in_the_record(recipe):
    settings = read_recipe(recipe, ["data.train=[panoptic, more]", "data.validation=val"])
    record = training_record(settings, ImageCounts(3), step=1, evaluation=None)
    assert (record["data"]["training"], record["data"]["validation"]) == ("panoptic + more", "val")
