"""`predict`: what goes in, what comes out, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_hf import predict
from maskformer_hf.models.image_geometry import image_geometries
from maskformer_hf.models.semantic import semantic_scores

TASKS = ["semantic", "instance", "panoptic"]


@pytest.fixture(scope="module")
def photos(photo_paths):
    """Five photos of three shapes, so that batches of the same padded size are not neighbours."""
    first, second = (Image.open(path).convert("RGB") for path in photo_paths[:2])
    return [first, second, first.rotate(90, expand=True), second.transpose(Image.Transpose.FLIP_LEFT_RIGHT), first]


def same(left, right):
    """Two predictions agree but for what another order of sums changes."""
    assert left.task == right.task
    assert left.size == right.size
    assert [s["label"] for s in left.segments] == [s["label"] for s in right.segments]
    np.testing.assert_allclose(
        [s["score"] for s in left.segments], [s["score"] for s in right.segments], rtol=0, atol=1e-4
    )
    for one, other in ((left.segmentation, right.segmentation), (left.masks, right.masks)):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.shape == other.shape
            assert (one != other).float().mean() < 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_an_image_gives_the_same_answer_alone_or_in_company(tiny_model, tiny_processor, photos, task):
    together = predict(tiny_model, tiny_processor, photos, task=task, batch_size=3)
    assert len(together) == len(photos)
    for photo, prediction in zip(photos, together, strict=True):
        [alone] = predict(tiny_model, tiny_processor, photo, task=task)
        assert prediction.size == (photo.height, photo.width)
        same(alone, prediction)


def test_batches_hold_one_padded_size(tiny_model, tiny_processor, photos, monkeypatch):
    seen = []
    forward = tiny_model.forward

    def spy(pixel_values, **kwargs):
        seen.append(tuple(pixel_values.shape))
        return forward(pixel_values, **kwargs)

    monkeypatch.setattr(tiny_model, "forward", spy)
    predict(tiny_model, tiny_processor, photos, batch_size=2)
    assert sorted(shape[0] for shape in seen) == [1, 2, 2]
    assert len(set(seen)) == 3


def test_every_kind_of_image_gives_the_same(tiny_model, tiny_processor, photo_paths):
    path = photo_paths[0]
    photo = Image.open(path).convert("RGB")
    array = np.array(photo)
    kinds = [path, str(path), photo, array, torch.from_numpy(array).permute(2, 0, 1)]
    expected, *others = predict(tiny_model, tiny_processor, kinds, task="panoptic")
    assert len(others) == 4
    assert expected.segments
    for other in others:
        same(expected, other)


def test_semantic_segments_describe_the_map(tiny_model, tiny_processor, photos):
    [prediction] = predict(tiny_model, tiny_processor, photos[0], task="semantic")
    assert prediction.segmentation.shape == prediction.size
    assert len(prediction.segments) >= 2
    assert sum(segment["area"] for segment in prediction.segments) == photos[0].width * photos[0].height
    areas = [segment["area"] for segment in prediction.segments]
    assert areas == sorted(areas, reverse=True)
    for segment in prediction.segments:
        assert segment["id"] == segment["label_id"]
        assert segment["label"] == tiny_model.config.id2label[segment["label_id"]]
        assert prediction.mask(segment).sum() == segment["area"]


def test_semantic_score_is_the_mean_share_of_the_class(tiny_model, tiny_processor, photos):
    inputs = tiny_processor(images=[photos[0]], return_tensors="pt")
    with torch.no_grad():
        outputs = tiny_model(**inputs)
    size = (photos[0].height, photos[0].width)
    scores = semantic_scores(
        outputs.class_queries_logits[0], outputs.masks_queries_logits[0], image_geometries(outputs, [size])[0]
    )
    [prediction] = predict(tiny_model, tiny_processor, photos[0], task="semantic")
    for segment in prediction.segments:
        share = (scores[segment["label_id"]] / scores.sum(0))[prediction.mask(segment)].mean().item()
        assert segment["score"] == pytest.approx(share, abs=0.02)


def test_panoptic_segments_describe_the_map(tiny_model, tiny_processor, photos):
    [prediction] = predict(tiny_model, tiny_processor, photos[0], task="panoptic", threshold=0.3)
    assert prediction.segments
    areas = [segment["area"] for segment in prediction.segments]
    assert areas == sorted(areas, reverse=True)
    ids = [segment["id"] for segment in prediction.segments]
    assert set(prediction.segmentation.unique().tolist()) - {0} == set(ids)
    for segment in prediction.segments:
        assert prediction.mask(segment).sum() == segment["area"]
    stuff = [segment["label"] for segment in prediction.segments if segment["label_id"] in (0, 1)]
    assert len(stuff) == len(set(stuff))


def test_stuff_and_thresholds_of_the_config_can_be_overruled(tiny_model, tiny_processor, photos):
    options = {"task": "panoptic", "threshold": 0.3, "overlap_mask_area_threshold": 0.0}
    fused = predict(tiny_model, tiny_processor, photos, **options)
    apart = predict(tiny_model, tiny_processor, photos, label_ids_to_fuse=(), **options)
    all_fused = predict(tiny_model, tiny_processor, photos, label_ids_to_fuse=range(4), **options)
    counts = [sum(len(p.segments) for p in predictions) for predictions in (all_fused, fused, apart)]
    assert counts == sorted(counts)
    assert counts[0] < counts[2]
    assert not predict(tiny_model, tiny_processor, photos[0], task="panoptic", threshold=1.0)[0].segments
    nothing = predict(tiny_model, tiny_processor, photos[0], task="instance", threshold=1.0)[0]
    assert nothing.masks.shape == (0, photos[0].height, photos[0].width)


def test_a_checkpoint_may_leave_out_duplicates(tiny_model, tiny_processor, photos, monkeypatch):
    [everything] = predict(tiny_model, tiny_processor, photos[:1], task="instance", threshold=0.0)
    monkeypatch.setattr(tiny_model.config, "duplicate_iou", 0.2)
    [some] = predict(tiny_model, tiny_processor, photos[:1], task="instance", threshold=0.0)
    assert 0 < len(some.segments) < len(everything.segments)
    for number, segment in enumerate(some.segments):
        for other in some.segments[:number]:
            mask, better = some.mask(segment), some.mask(other)
            assert segment["label_id"] != other["label_id"] or (mask & better).sum() <= 0.2 * (mask | better).sum()


def test_instances_are_things_with_boxes_and_scores_in_order(tiny_model, tiny_processor, photos):
    [prediction] = predict(tiny_model, tiny_processor, photos[0], task="instance", threshold=0.1)
    assert prediction.segmentation is None
    assert prediction.masks.shape == (len(prediction.segments), photos[0].height, photos[0].width)
    assert prediction.segments
    scores = [segment["score"] for segment in prediction.segments]
    assert scores == sorted(scores, reverse=True)
    for segment in prediction.segments:
        assert segment["label"] in ("car", "person")
        mask = prediction.mask(segment)
        assert mask.sum() == segment["area"]
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert segment["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_task_is_what_the_checkpoint_was_trained_for(tiny_model, tiny_processor, photos, monkeypatch):
    for task in TASKS:
        monkeypatch.setattr(tiny_model.config, "task", task)
        assert predict(tiny_model, tiny_processor, photos[0])[0].task == task
    with pytest.raises(ValueError, match=r"'semantic', 'instance', 'panoptic'.*'depth'"):
        predict(tiny_model, tiny_processor, photos[0], task="depth")


def test_target_sizes(tiny_model, tiny_processor, photos):
    small, other = predict(tiny_model, tiny_processor, photos[:2], task="semantic", target_sizes=[(40, 50), (30, 20)])
    assert small.size == small.segmentation.shape == (40, 50)
    assert other.size == other.segmentation.shape == (30, 20)
    with pytest.raises(ValueError, match="more images than the 1"):
        predict(tiny_model, tiny_processor, photos[:2], target_sizes=[(40, 50)])


def test_predict_leaves_the_model_as_it_was(tiny_model, tiny_processor, photos):
    tiny_model.train()
    try:
        [first] = predict(tiny_model, tiny_processor, photos[0], task="semantic")
        assert tiny_model.training
    finally:
        tiny_model.eval()
    same(first, predict(tiny_model, tiny_processor, photos[0], task="semantic")[0])


def test_predict_leaves_frozen_layers_frozen(tiny_model, tiny_processor, photos):
    tiny_model.train()
    frozen = tiny_model.head.eval()
    try:
        predict(tiny_model, tiny_processor, photos[0], task="semantic")
        assert tiny_model.training
        assert not any(module.training for module in frozen.modules())
    finally:
        tiny_model.eval()


def test_unknown_options_are_named(tiny_model, tiny_processor, photos):
    with pytest.raises(ValueError, match=r"'treshold'.*threshold, mask_threshold"):
        predict(tiny_model, tiny_processor, photos[0], treshold=0.5)
    expected = predict(tiny_model, tiny_processor, photos[0], task="panoptic")[0]
    same(expected, predict(tiny_model, tiny_processor, photos[0], task="panoptic", mask_threshold=None)[0])


def test_an_image_is_turned_upright(tiny_model, tiny_processor, photo_paths, tmp_path):
    photo = Image.open(photo_paths[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to see it upright
    photo.save(tmp_path / "turned.png", exif=exif)
    [prediction] = predict(tiny_model, tiny_processor, tmp_path / "turned.png", task="semantic")
    assert prediction.size == (photo.width, photo.height)


def test_images_that_cannot_be_read_are_named(tiny_model, tiny_processor, photo_paths, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    data = photo_paths[0].read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    for name, message in (
        ("none.jpg", "no file"),
        ("text.jpg", "no image"),
        ("half.jpg", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            predict(tiny_model, tiny_processor, tmp_path / name)
        assert name in str(caught.value)


def test_a_number_of_channels_the_model_has_not_is_refused(tiny_model, tiny_processor):
    with pytest.raises(ValueError, match=r"\(40, 40, 5\).*3 channels"):
        predict(tiny_model, tiny_processor, np.zeros((40, 40, 5), np.uint8))
