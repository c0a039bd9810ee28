"""`transformers.pipeline("image-segmentation")` with our models, and with everybody else's."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ImageSegmentationPipeline, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from builders import tiny_transformers_config
from maskformer_hf import MaskFormerForUniversalSegmentation, MaskFormerImageSegmentationPipeline, predict, register
from maskformer_hf.inference.pipeline import register_pipeline

TASKS = ["semantic", "instance", "panoptic"]


@pytest.fixture(scope="module")
def segmenter(tiny_checkpoint):
    return pipeline("image-segmentation", model=str(tiny_checkpoint), device="cpu")


@pytest.fixture(scope="module")
def photos(photo_paths):
    first, second = (Image.open(path).convert("RGB") for path in photo_paths[:2])
    return [first, second, first.rotate(90, expand=True), second.transpose(Image.Transpose.FLIP_LEFT_RIGHT), first]


def same(left, right):
    assert [segment["label"] for segment in left] == [segment["label"] for segment in right]
    for one, other in zip(left, right, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert (np.asarray(one["mask"]) != np.asarray(other["mask"])).mean() < 1e-4


def test_pipeline_loads_our_classes(segmenter):
    assert type(segmenter) is MaskFormerImageSegmentationPipeline
    assert type(segmenter.model) is MaskFormerForUniversalSegmentation


def test_no_message_that_the_model_is_not_supported(tiny_checkpoint):
    messages = []
    handler = logging.Handler()
    handler.emit = lambda message: messages.append(message.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        pipeline("image-segmentation", model=str(tiny_checkpoint), device="cpu")
    finally:
        logger.removeHandler(handler)
    assert not [message for message in messages if "not supported" in message]


@pytest.mark.parametrize("task", TASKS)
def test_subtasks_give_what_predict_gives(segmenter, tiny_model, tiny_processor, photos, task):
    found = segmenter(photos[0], subtask=task)
    [prediction] = predict(tiny_model, tiny_processor, photos[0], task=task)
    assert len(found) == len(prediction.segments) > 0
    for segment, expected in zip(found, prediction.segments, strict=True):
        assert set(segment) == {"score", "label", "mask"}
        assert segment["label"] == expected["label"]
        assert segment["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert segment["mask"].mode == "L"
        assert segment["mask"].size == photos[0].size
        assert set(np.unique(segment["mask"])) <= {0, 255}
        assert (np.asarray(segment["mask"]) == 255).sum() == expected["area"]


@pytest.mark.parametrize("task", TASKS)
def test_default_subtask_is_what_the_checkpoint_was_trained_for(segmenter, photos, task, monkeypatch):
    monkeypatch.setattr(segmenter.model.config, "task", task)
    same(segmenter(photos[1]), segmenter(photos[1], subtask=task))


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_different_shapes_gives_what_one_at_a_time_gives(segmenter, photos, task):
    together = segmenter(photos, batch_size=4, subtask=task)
    assert len(together) == len(photos)
    assert any(together)
    for photo, segments in zip(photos, together, strict=True):
        same(segmenter(photo, subtask=task), segments)


def test_photos_of_one_shape_run_together(segmenter, photos, monkeypatch):
    seen = []
    forward = segmenter.model.forward

    def spy(pixel_values, **kwargs):
        seen.append(len(pixel_values))
        return forward(pixel_values, **kwargs)

    monkeypatch.setattr(segmenter.model, "forward", spy)
    segmenter([photos[0]] * 6, batch_size=4)
    assert seen == [4, 2]


def test_datasets_and_streams_are_read_as_they_are_needed(segmenter, photos):
    class Photos(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return photos[index]

    results = segmenter(Photos(), batch_size=2)
    assert len(results) == 3
    expected = [segmenter(photo) for photo in photos[:3]]
    for left, right in zip(results, expected, strict=True):
        same(left, right)

    read = []

    def stream():
        for photo in photos[:3]:
            read.append(photo)
            yield photo

    results = segmenter(stream())
    same(next(iter(results)), expected[0])
    assert len(read) < 3


def test_options_reach_the_post_processing(segmenter, tiny_checkpoint, photos):
    options = {"subtask": "panoptic", "threshold": 0.3, "overlap_mask_area_threshold": 0.0}
    fused = sum(len(segments) for segments in segmenter(photos, label_ids_to_fuse=range(4), **options))
    apart = sum(len(segments) for segments in segmenter(photos, label_ids_to_fuse=(), **options))
    assert fused < apart
    assert segmenter(photos[0], subtask="instance", threshold=1.0) == []
    built = pipeline("image-segmentation", model=str(tiny_checkpoint), device="cpu", subtask="instance", threshold=1.0)
    assert built(photos[0]) == []
    with pytest.raises(ValueError, match=r"'panoptic'.*'depth'"):
        segmenter(photos[0], subtask="depth")


def test_paths_and_half_precision(tiny_checkpoint, photo_paths):
    segmenter = pipeline("image-segmentation", model=str(tiny_checkpoint), device="cpu", dtype=torch.bfloat16)
    found = segmenter([str(path) for path in photo_paths], batch_size=2, subtask="semantic")
    assert len(found) == len(photo_paths)
    assert all(found)


@pytest.fixture(scope="module")
def transformers_checkpoint(tmp_path_factory):
    """A tiny model of transformers' own MaskFormer."""
    from transformers import MaskFormerForInstanceSegmentation, MaskFormerImageProcessor

    folder = tmp_path_factory.mktemp("stock")
    config = tiny_transformers_config()
    MaskFormerForInstanceSegmentation(config).save_pretrained(folder)
    MaskFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    return folder


def test_other_models_get_the_stock_pipeline(transformers_checkpoint, photos):
    register()
    stock = pipeline("image-segmentation", model=str(transformers_checkpoint), device="cpu")
    assert type(stock) is ImageSegmentationPipeline
    assert type(stock.model).__module__.startswith("transformers.")
    assert isinstance(stock(photos[0], subtask="semantic"), list)
    # An instance in place of a name as well.
    again = pipeline("image-segmentation", model=stock.model, image_processor=stock.image_processor, device="cpu")
    assert type(again) is ImageSegmentationPipeline


def test_a_pipeline_that_was_registered_before_is_kept_for_other_models(transformers_checkpoint, monkeypatch):
    class Foreign(ImageSegmentationPipeline):
        pass

    entry = PIPELINE_REGISTRY.supported_tasks["image-segmentation"]
    monkeypatch.setitem(entry, "impl", Foreign)
    monkeypatch.setattr(MaskFormerImageSegmentationPipeline, "_stock", ImageSegmentationPipeline)
    register_pipeline()
    register_pipeline()
    assert type(pipeline("image-segmentation", model=str(transformers_checkpoint), device="cpu")) is Foreign
