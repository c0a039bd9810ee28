import contextlib
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskformer_hf.metrics import MaskAP
from maskformer_hf.metrics.run_lengths import as_rles, rles_of_crops, rles_of_map

COCO4 = Path(__file__).parents[1] / "fixtures" / "coco4"


def coco_figures(cases, num_labels, max_detections=100, kind=COCOeval):
    """Precision and recall of pycocotools for (prediction, reference) of each image."""
    images, annotations, results = [], [], []
    for index, (prediction, reference) in enumerate(cases):
        true_rles = as_rles(reference["masks"])
        images.append({"id": index, "height": 0, "width": 0})  # asked for and not used
        areas = reference.get("areas", [float(coco_mask.area(rle)) for rle in true_rles])
        for rle, label, area, crowd in zip(true_rles, reference["labels"], areas, reference["is_crowd"], strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # COCOeval takes id 0 for no match
                    "image_id": index,
                    "category_id": int(label),
                    "segmentation": rle,
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
        for rle, label, score in zip(
            as_rles(prediction["masks"]), prediction["labels"], prediction["scores"], strict=True
        ):
            results.append({"image_id": index, "category_id": int(label), "segmentation": rle, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": label} for label in range(num_labels)],
        }
        truth.createIndex()
        found = truth.loadRes(results)
        evaluator = kind(truth, found, "segm")
        evaluator.params.maxDets = [1, 10, max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def expected_result(precision, recall):
    """The figures of `MaskAP.compute` from COCOeval's arrays (T, R, K, A, M) and (T, K, A, M), where -1 is NaN."""

    def mean(values):
        return values[values > -1].mean() if (values > -1).any() else math.nan

    return {
        "ap": mean(precision[..., 0, -1]),
        "ap50": mean(precision[0, ..., 0, -1]),
        "ap75": mean(precision[5, ..., 0, -1]),
        "ap_small": mean(precision[..., 1, -1]),
        "ap_medium": mean(precision[..., 2, -1]),
        "ap_large": mean(precision[..., 3, -1]),
        "ar_1": mean(recall[..., 0, 0]),
        "ar_10": mean(recall[..., 0, 1]),
        "ar": mean(recall[..., 0, -1]),
        "ar_small": mean(recall[..., 1, -1]),
        "ar_medium": mean(recall[..., 2, -1]),
        "ar_large": mean(recall[..., 3, -1]),
    }, [mean(precision[:, :, label, 0, -1]) for label in range(precision.shape[2])]


def disks(random, count, size, radii):
    rows, columns = np.ogrid[: size[0], : size[1]]
    centers, radius = random.random((count, 2)) * size, random.uniform(*radii, count)
    return (rows - centers[:, :1, None]) ** 2 + (columns - centers[:, 1:, None]) ** 2 < radius[:, None, None] ** 2


def random_case(random, num_labels, count, radii=(4, 70), size=(150, 170)):
    """Overlapping disks, crowds among them; predicted: some of them shifted, twice, of another class, and false ones.

    Scores have one decimal, so that many are equal.
    """
    masks = disks(random, count, size, radii)
    labels = random.integers(0, num_labels, count)
    reference = {"masks": masks, "labels": labels, "is_crowd": random.random(count) < 0.2}
    parts = [np.roll(masks, random.integers(0, 4, 2), (1, 2)), masks[::2], disks(random, count // 3, size, radii)]
    predicted = np.concatenate(parts)
    found_labels = np.concatenate((labels, labels[::2], random.integers(0, num_labels, count // 3)))
    wrong = random.random(len(predicted)) < 0.1
    found_labels = np.where(wrong, random.integers(0, num_labels, len(predicted)), found_labels)
    keep = predicted.any((1, 2)) & (random.random(len(predicted)) < 0.8)
    scores = random.random(len(predicted)).round(1)
    return {"masks": predicted[keep], "scores": scores[keep], "labels": found_labels[keep]}, reference


def check(cases, num_labels, max_detections=100):
    metric = MaskAP(num_labels, max_detections=max_detections)
    for prediction, reference in cases:
        metric.update(prediction, reference)
    result = metric.compute()
    figures, per_class = expected_result(*coco_figures(cases, num_labels, max_detections))
    assert {name: result[name] for name in figures} == pytest.approx(figures, nan_ok=True, rel=1e-12)
    assert [row["ap"] for row in result["per_class"]] == pytest.approx(per_class, nan_ok=True, rel=1e-12)
    return result


def test_equals_pycocotools_on_random_masks():
    random = np.random.default_rng(0)
    cases = [random_case(random, 3, int(random.integers(0, 25))) for _ in range(12)]
    result = check(cases, 4)
    assert 0.2 < result["ap"] < 0.9
    assert math.isnan(result["per_class"][3]["ap"]), "class 3 is predicted and has no objects"


def test_equals_pycocotools_on_many_objects():
    random = np.random.default_rng(1)
    cases = [random_case(random, 1, count, radii=(2, 6)) for count in (130, 180)]
    few = check(cases, 1)
    many = check(cases, 1, max_detections=400)
    assert many["ar"] > few["ar"] + 0.1, "100 detections are not enough here"
    assert (few["max_detections"], many["max_detections"]) == (100, 400)


def test_equals_pycocotools_on_photos_of_coco():
    """Polygons, a crowd, and areas as the json has them; what is predicted are the shifted objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(COCO4 / "instances.json")
    random = np.random.default_rng(0)
    labels = {category: label for label, category in enumerate(sorted(truth.getCatIds()))}
    cases = []
    for image in truth.getImgIds():
        annotations = truth.loadAnns(truth.getAnnIds(image))
        masks = np.stack([truth.annToMask(item) for item in annotations]).astype(bool)
        reference = {
            "masks": masks,
            "labels": np.array([labels[item["category_id"]] for item in annotations]),
            "is_crowd": np.array([item["iscrowd"] for item in annotations], bool),
            "areas": [item["area"] for item in annotations],
        }
        shifted = np.roll(masks, random.integers(0, 5, 2), (1, 2))
        cases.append(
            ({"masks": shifted, "labels": reference["labels"], "scores": random.random(len(masks))}, reference)
        )
    assert sum(case[1]["is_crowd"].sum() for case in cases) == 1
    assert 0.2 < check(cases, len(labels))["ap"] < 0.9


def test_areas_decide_the_size():
    random = np.random.default_rng(2)
    prediction, reference = random_case(random, 2, 20)
    areas = reference["masks"].sum((1, 2)) * random.uniform(0.3, 3, 20)
    changed = check([(prediction, {**reference, "areas": areas})], 2)
    assert changed["ap_medium"] != check([(prediction, reference)], 2)["ap_medium"]


def test_truth_against_truth_is_1():
    reference = random_case(np.random.default_rng(3), 2, 15)[1]
    reference["is_crowd"][:] = False
    metric = MaskAP(2)
    metric.update({**reference, "scores": np.linspace(0, 1, 15)}, reference)
    assert metric.compute()["ap"] == metric.compute()["ar"] == 1


def test_empty_images_and_nothing_seen():
    nothing = {"masks": torch.zeros(0, 5, 5, dtype=torch.bool), "scores": [], "labels": [], "is_crowd": []}
    metric = MaskAP(1)
    metric.update(nothing, nothing)
    assert math.isnan(metric.compute()["ap"])
    one = {"masks": torch.ones(1, 5, 5, dtype=torch.bool), "labels": [0], "is_crowd": [False]}
    metric.update(nothing, one)
    assert metric.compute()["ap"] == 0
    # Worse than a false detection elsewhere: precision is 1/2 wherever recall is reached.
    cases = [({**one, "scores": [0.9]}, nothing), ({**one, "scores": [0.5]}, one), (nothing, nothing)]
    assert check(cases, 1)["ap"] == pytest.approx(0.5)


def test_processes_and_order_do_not_matter():
    random = np.random.default_rng(4)
    cases = [random_case(random, 2, 12) for _ in range(6)]
    together, parts = MaskAP(2), [MaskAP(2), MaskAP(2)]
    for case in cases:
        together.update(*case)
    for index in (5, 0, 3, 1, 4, 2):
        parts[index % 2].update(*cases[index], image_id=index)
    parts[1].merge(parts[0])
    assert str(parts[1].compute()) == str(together.compute())
    assert sum(part.nbytes for record in together.detections for part in record[1:]) < 60 * 30 * 6


def test_run_lengths_of_a_map_are_those_of_its_masks():
    random = np.random.default_rng(5)
    segmentation = random.integers(-1, 9, (13, 17)) * (random.random((13, 17)) < 0.7)
    masks = segmentation == np.arange(1, 11)[:, None, None]
    assert not masks[8:].any(), "two segments have no pixel"
    rles = rles_of_map(torch.from_numpy(segmentation), 10)
    assert rles == as_rles(masks)
    assert rles_of_map(torch.ones(3, 4, dtype=torch.int32), 1) == as_rles(np.ones((1, 3, 4), bool))
    assert rles_of_map(torch.zeros(3, 4, dtype=torch.int32), 0) == []
    # As in COCO's json of crowds.
    assert as_rles([{"size": [2, 3], "counts": [1, 2, 3]}]) == as_rles(np.array([[[0, 1, 0], [1, 0, 0]]], bool))


def test_run_lengths_of_crops_are_those_of_whole_masks():
    random = np.random.default_rng(6)
    masks = random.random((40, 6, 9)) < np.linspace(0.05, 1.2, 40)[:, None, None]
    crops, corners = [], []
    for mask in masks:
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        top, bottom = (rows[0], rows[-1] + 1) if len(rows) else (0, 0)
        left, right = (columns[0], columns[-1] + 1) if len(columns) else (0, 0)
        crops.append(mask[top:bottom, left:right])
        corners.append((top, left))
    assert rles_of_crops(crops, corners, (6, 9)) == as_rles(masks)
    assert rles_of_crops([], [], (6, 9)) == []


def test_errors():
    metric = MaskAP(2)
    one = {"masks": torch.ones(1, 4, 5, dtype=torch.bool), "scores": [0.5], "labels": [1]}
    for prediction, message in (
        ({**one, "scores": [0.5, 0.6]}, "1 predicted masks, 2 scores"),
        ({**one, "labels": [2]}, "predicted labels are"),
        ({**one, "scores": [math.nan]}, "NaN"),
        ({**one, "masks": torch.ones(1, 5, 5)}, "target_sizes"),
        ({**one, "masks": torch.ones(4, 5)}, r"\(N, H, W\)"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(prediction, one)
    assert not metric.detections
    assert not metric.num_objects.any()
