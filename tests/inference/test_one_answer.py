"""A checkpoint and a photo give the same segments, whichever way they are asked for."""

from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, pipeline

from maskformer_hf import bundled_checkpoints, load, predict
from maskformer_hf.data.sample import planes_from_masks
from maskformer_hf.training.evaluation import evaluate

PHOTOS = {"street": "street.jpg", "nuclei": "nuclei.webp", "everyday": "plaza.jpg"}
EXAMPLES = Path(__file__).parents[2] / "examples"


def of_predict(name, photo):
    """The pipeline and the processor see photos whole, and so does `predict` here."""
    model, processor = load(name, "cpu")
    [prediction] = predict(model, processor, photo, tile_size=0)
    return [(segment["label"], segment["score"], prediction.mask(segment).numpy()) for segment in prediction.segments]


def of_pipeline(name, photo):
    segmenter = pipeline("image-segmentation", model=str(bundled_checkpoints()[name]), device="cpu")
    return [(segment["label"], segment["score"], np.asarray(segment["mask"]) > 0) for segment in segmenter(photo)]


def of_processor(name, photo):
    """With no argument but the size of the photo, from a model and a processor that were loaded one by one. Semantic
    maps have no scores."""
    folder = bundled_checkpoints()[name]
    model = AutoModelForUniversalSegmentation.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(images=photo, return_tensors="pt"))
    read = getattr(processor, f"post_process_{model.config.task}_segmentation")
    [result] = read(outputs, target_sizes=[(photo.height, photo.width)])
    labels = model.config.id2label
    if model.config.task == "semantic":
        return [(labels[index], None, (result == index).numpy()) for index in result.unique().tolist()]
    masks = result["masks"] if model.config.task == "instance" else [
        result["segmentation"] == segment["id"] for segment in result["segments_info"]
    ]  # fmt: skip
    return [
        (labels[segment["label_id"]], segment["score"], mask.numpy())
        for segment, mask in zip(result["segments_info"], masks, strict=True)
    ]


WAYS = {"predict": of_predict, "pipeline": of_pipeline, "processor": of_processor}


@cache
def segments(way, name):
    """Label, score and mask of each segment."""
    return WAYS[way](name, Image.open(EXAMPLES / PHOTOS[name]).convert("RGB"))


@pytest.mark.parametrize(("one", "other"), list(combinations(WAYS, 2)))
@pytest.mark.parametrize("name", PHOTOS)
def test_every_way_finds_the_same(name, one, other):
    ones, others = segments(one, name), list(segments(other, name))
    assert len(ones) == len(others) >= 5
    for label, score, mask in ones:
        differences = [
            (mask != other_mask).mean() if other_label == label else 1.0 for other_label, _, other_mask in others
        ]
        # `predict` runs on channels-last memory, which adds in another order: a pixel here and there may flip.
        assert min(differences) < 1e-4
        _, other_score, _ = others.pop(int(np.argmin(differences)))
        if score is not None and other_score is not None:
            assert score == pytest.approx(other_score, abs=1e-4)


class Found:
    """A data set of one photo, annotated with what `predict` finds in it."""

    def __init__(self, photo, prediction, config):
        self.task = prediction.task
        self.id2label = config.id2label
        self.label_ids_to_fuse = [] if prediction.task == "instance" else config.label_ids_to_fuse or []
        masks = torch.stack([prediction.mask(segment) for segment in prediction.segments])
        self.sample = {
            "image": tv_tensors.Image(np.array(photo).transpose(2, 0, 1)),
            "planes": tv_tensors.Mask(planes_from_masks(masks)),
            "labels": torch.tensor([segment["label_id"] for segment in prediction.segments]),
            "is_crowd": torch.zeros(len(masks), dtype=torch.bool),
            "name": "photo",
        }

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.sample


@pytest.mark.parametrize("name", PHOTOS)
def test_evaluate_measures_what_predict_finds(name):
    photo = Image.open(EXAMPLES / PHOTOS[name]).convert("RGB")
    model, processor = load(name, "cpu")
    processor.tile_size = None
    [prediction] = predict(model, processor, photo)
    # The usual 100 detections would leave out queries of a model with more.
    options = {"max_detections": max(100, model.config.num_queries), "progress": False}
    result = evaluate(model, processor, Found(photo, prediction, model.config), **options)
    assert result["task"] == model.config.task
    assert result["score"] == pytest.approx(1, abs=1e-6)
