import math

import numpy as np
import pytest
import torch

from maskformer_hf.metrics import MeanIoU


def plain_mean_iou(predictions, references, num_labels, ignore_index):
    """Class by class over all maps, by sets of pixels."""
    predictions, references = np.concatenate(predictions, None), np.concatenate(references, None)
    predictions, references = predictions[references != ignore_index], references[references != ignore_index]
    ious = []
    for label in range(num_labels):
        union = ((predictions == label) | (references == label)).sum()
        ious.append(((predictions == label) & (references == label)).sum() / union if union else math.nan)
    present = [label for label in range(num_labels) if (references == label).any()]
    accuracies = [(predictions[references == label] == label).mean() for label in present]
    weighted = sum((references == label).mean() * ious[label] for label in present)
    return ious, (predictions == references).mean(), np.mean(accuracies), weighted


def test_equals_a_plain_implementation():
    random = np.random.default_rng(0)
    metric = MeanIoU(7)
    predictions, references = [], []
    for size in ((5, 9), (31, 17), (1, 1), (24, 24)):
        reference = random.integers(0, 6, size)  # class 6 is absent unless predicted
        prediction = np.where(random.random(size) < 0.6, reference, random.integers(0, 5, size))
        prediction[random.random(size) < 0.05] = 255  # no class
        reference[random.random(size) < 0.2] = 255
        metric.update(torch.from_numpy(prediction), torch.from_numpy(reference))
        predictions.append(prediction.ravel())
        references.append(reference.ravel())
    result = metric.compute({0: "zero"})
    ious, accuracy, mean_accuracy, weighted = plain_mean_iou(predictions, references, 7, 255)
    np.testing.assert_allclose([item["iou"] for item in result["per_class"]], ious)
    assert math.isnan(ious[6])
    assert result["mean_iou"] == pytest.approx(np.nanmean(ious))
    assert result["pixel_accuracy"] == pytest.approx(accuracy)
    assert result["mean_accuracy"] == pytest.approx(mean_accuracy)
    assert result["frequency_weighted_iou"] == pytest.approx(weighted)
    assert [item["label"] for item in result["per_class"]] == ["zero", "1", "2", "3", "4", "5", "6"]


def test_iou_is_not_recall():
    # https://github.com/huggingface/evaluate/issues/421: where the reference's void is dropped from the union as well
    metric = MeanIoU(2)
    metric.update(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 1]))
    result = metric.compute()
    assert [item["iou"] for item in result["per_class"]] == pytest.approx([1 / 3, 1 / 3])
    assert [item["accuracy"] for item in result["per_class"]] == pytest.approx([1, 1 / 3])
    assert result["frequency_weighted_iou"] == pytest.approx(1 / 3)


def test_predicting_void_is_no_excuse():
    metric = MeanIoU(2, ignore_index=9)
    metric.update(torch.tensor([9, 0, 1]), torch.tensor([0, 0, 9]))
    result = metric.compute()
    assert result["per_class"][0]["iou"] == 0.5
    assert math.isnan(result["per_class"][1]["iou"])
    assert result["mean_iou"] == 0.5


def test_nothing_seen_is_nan():
    result = MeanIoU(3).compute()
    assert all(math.isnan(result[name]) for name in ("mean_iou", "pixel_accuracy", "frequency_weighted_iou"))


def test_errors():
    metric = MeanIoU(3)
    with pytest.raises(ValueError, match="differ in shape"):
        metric.update(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="reference id 3"):
        metric.update(torch.zeros(2), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="reference id -1"):
        metric.update(torch.zeros(2), torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="reference id 3"):
        metric.update(torch.tensor([0, 2**40]), torch.tensor([255, 3]))
    assert int(metric.confusion.sum()) == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64, torch.float32])
def test_any_type_and_any_number_for_void(dtype):
    random = np.random.default_rng(1)
    predictions, references = torch.from_numpy(random.integers(0, 6, (2, 40, 50)))
    voids = [200] if dtype is torch.uint8 else [6, 60_000]
    voids += [-1, -100] if dtype.is_signed else []
    voids += [2**40] if dtype is torch.int64 else []
    expected = MeanIoU(5, ignore_index=5)
    expected.update(predictions, references)
    for void in voids:
        metric = MeanIoU(5, ignore_index=void)
        metric.update(
            torch.where(predictions == 5, void, predictions).to(dtype),
            torch.where(references == 5, void, references).to(dtype),
        )
        assert torch.equal(metric.confusion, expected.confusion), void


def test_batches_and_merging_are_as_one_by_one():
    maps = torch.randint(3, (2, 2, 8, 9), generator=torch.Generator().manual_seed(0))
    batch, one, other = MeanIoU(3), MeanIoU(3), MeanIoU(3)
    batch.update(*maps)
    one.update(maps[0, 0], maps[1, 0])
    other.update(maps[0, 1], maps[1, 1])
    one.merge(other)
    assert torch.equal(one.confusion, batch.confusion)
