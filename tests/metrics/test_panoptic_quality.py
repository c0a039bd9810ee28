import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_hf.metrics import PanopticQuality

COCO4 = Path(__file__).parents[1] / "fixtures" / "coco4"


def plain_counts(prediction, reference, num_labels):
    """Segment by segment and by sets of pixels, in exact fractions: IoU sum, TP, FP, FN of each class."""
    counts = [[Fraction(0), 0, 0, 0] for _ in range(num_labels)]
    pixels = {
        name: {
            item["id"]: set(np.flatnonzero(part["segmentation"].ravel() == item["id"]))
            for item in part["segments_info"]
        }
        for name, part in (("predicted", prediction), ("true", reference))
    }
    void = set(np.flatnonzero(reference["segmentation"].ravel() == 0))
    matched_true, matched_predicted = set(), set()
    for true in reference["segments_info"]:
        if true["iscrowd"]:
            continue
        for predicted in prediction["segments_info"]:
            a, b = pixels["true"][true["id"]], pixels["predicted"][predicted["id"]] - void
            if true["label_id"] == predicted["label_id"] and 2 * len(a & b) > len(a | b):
                counts[true["label_id"]][0] += Fraction(len(a & b), len(a | b))
                counts[true["label_id"]][1] += 1
                matched_true.add(true["id"])
                matched_predicted.add(predicted["id"])
    for predicted in prediction["segments_info"]:
        excuse = set(void)
        for true in reference["segments_info"]:
            if true["iscrowd"] and true["label_id"] == predicted["label_id"]:
                excuse |= pixels["true"][true["id"]]
        inside = pixels["predicted"][predicted["id"]]
        if predicted["id"] not in matched_predicted and 2 * len(inside & excuse) <= len(inside):
            counts[predicted["label_id"]][2] += 1
    for true in reference["segments_info"]:
        if not true["iscrowd"] and true["id"] not in matched_true:
            counts[true["label_id"]][3] += 1
    return counts


def random_case(random, num_labels, ids):
    """A reference of rectangles with void and crowd, and a prediction that is it with errors of each kind."""
    height, width = random.integers(20, 40, 2)
    reference = np.zeros((height, width), np.int64)
    segments = []
    for number, index in enumerate(random.permutation(ids)[:9]):
        top, left = random.integers(0, height - 5), random.integers(0, width - 5)
        reference[top : top + random.integers(4, 15), left : left + random.integers(4, 15)] = index
        segments.append(
            {"id": int(index), "label_id": int(random.integers(num_labels)), "iscrowd": int(number % 4 == 0)}
        )
    predicted = np.roll(reference, random.integers(0, 3, 2), (0, 1))
    predicted = np.where(random.random(predicted.shape) < 0.9, predicted, np.roll(predicted, 5, 1))
    found = []
    for item in segments:
        if (predicted == item["id"]).any():
            label = item["label_id"] if random.random() < 0.8 else int(random.integers(num_labels))
            found.append({"id": item["id"], "label_id": label})
    reference[random.random(reference.shape) < 0.1] = 0
    return {"segmentation": predicted, "segments_info": found}, {"segmentation": reference, "segments_info": segments}


@pytest.mark.parametrize("ids", [range(1, 40), range(70_000, 16_000_000, 99_991)], ids=["small ids", "COCO's ids"])
def test_equals_a_plain_implementation(ids):
    random = np.random.default_rng(0)
    metric = PanopticQuality(4, label_ids_to_fuse=[3])
    total = np.zeros((4, 4), object)
    for _ in range(25):
        prediction, reference = random_case(random, 4, list(ids))
        metric.update(prediction, reference)
        total += np.array(plain_counts(prediction, reference, 4), object)
    assert (total[:, 1:].sum(0) > 10).all(), "the cases have matches, false positives and false negatives"
    result = metric.compute({3: "sky"})
    pq = []
    for (iou, tp, fp, fn), row in zip(total, result["per_class"], strict=True):
        assert (row["true_positives"], row["false_positives"], row["false_negatives"]) == (tp, fp, fn)
        pq.append(iou / (tp + Fraction(fp + fn, 2)))
        assert row["pq"] == pytest.approx(float(pq[-1]), rel=1e-12)
        assert row["sq"] * row["rq"] == pytest.approx(row["pq"])
    assert result["pq"] == pytest.approx(float(sum(pq) / 4))
    assert result["pq_things"] == pytest.approx(float(sum(pq[:3]) / 3))
    assert result["pq_stuff"] == pytest.approx(float(pq[3]))
    assert [row["label"] for row in result["per_class"]] == ["0", "1", "2", "sky"]
    assert [row["is_thing"] for row in result["per_class"]] == [True, True, True, False]


def test_photos_of_coco():
    """Truth against truth is 100, and against a shifted truth what the plain implementation says."""
    content = json.loads((COCO4 / "panoptic.json").read_text())
    labels = {item["id"]: label for label, item in enumerate(content["categories"])}
    stuff = [labels[item["id"]] for item in content["categories"] if not item["isthing"]]
    perfect, shifted = PanopticQuality(len(labels), stuff), PanopticQuality(len(labels), stuff)
    total = np.zeros((len(labels), 4), object)
    for annotation in content["annotations"]:
        colors = np.array(Image.open(COCO4 / "panoptic" / annotation["file_name"])).astype(np.int64)
        ids = (colors @ [1, 256, 65536])[::3, ::3]
        segments = [
            {"id": item["id"], "label_id": labels[item["category_id"]], "iscrowd": item["iscrowd"]}
            for item in annotation["segments_info"]
            if (ids == item["id"]).any()
        ]
        truth = {"segmentation": ids, "segments_info": segments}
        perfect.update(truth, truth)
        prediction = {"segmentation": np.roll(ids, 4, 1), "segments_info": segments}
        shifted.update(prediction, truth)
        total += np.array(plain_counts(prediction, truth, len(labels)), object)
    result = perfect.compute()
    assert result["pq"] == result["pq_things"] == result["pq_stuff"] == 1
    torch.testing.assert_close(shifted.counts.T, torch.from_numpy(total.astype(np.float64)))
    assert 0.2 < shifted.compute()["pq"] < 0.95


def image(rows, labels, crowd=()):
    """A map from digits, with the classes of ids 1, 2, ..."""
    segmentation = torch.tensor([[int(digit) for digit in row] for row in rows])
    segments = [
        {"id": index, "label_id": label, "iscrowd": int(index in crowd)} for index, label in enumerate(labels, start=1)
    ]
    return {"segmentation": segmentation, "segments_info": segments}


def test_truth_against_truth_is_100():
    random = np.random.default_rng(1)
    metric = PanopticQuality(4, [0])
    for _ in range(5):
        _, reference = random_case(random, 4, list(range(1, 20)))
        present = [item for item in reference["segments_info"] if (reference["segmentation"] == item["id"]).any()]
        metric.update({**reference, "segments_info": present}, {**reference, "segments_info": present})
    result = metric.compute()
    assert all(result[f"{name}{part}"] == 1 for name in ("pq", "sq", "rq") for part in ("", "_things", "_stuff"))


def test_nothing_predicted_is_0_and_nothing_seen_is_nan():
    metric = PanopticQuality(2, [1])
    metric.update(image(["000"], []), image(["112"], [0, 0]))
    result = metric.compute()
    assert result["pq"] == result["sq"] == result["rq"] == 0
    assert math.isnan(result["pq_stuff"])
    assert math.isnan(result["per_class"][1]["pq"])
    assert math.isnan(PanopticQuality(1).compute()["pq"])


def test_half_is_no_match():
    metric = PanopticQuality(1)
    metric.update(image(["1100"], [0]), image(["1222"], [0, 0]))
    # Segment 1: 1 of 2 pixels; segment 2: 1 of 4.
    assert metric.compute()["per_class"][0]["true_positives"] == 0
    metric.reset()
    metric.update(image(["1110"], [0]), image(["1122"], [0, 0]))
    row = metric.compute()["per_class"][0]
    assert (row["true_positives"], row["sq"]) == (1, pytest.approx(2 / 3))


def test_void_and_crowd_excuse():
    def false_positives(prediction, reference):
        metric = PanopticQuality(2)
        metric.update(prediction, reference)
        return [row["false_positives"] for row in metric.compute()["per_class"]]

    assert false_positives(image(["1111"], [0]), image(["0001"], [1])) == [0, 0]
    assert false_positives(image(["1111"], [0]), image(["0011"], [1])) == [1, 0], "half is not more than half"
    assert false_positives(image(["1111"], [0]), image(["1112"], [0, 1], crowd=[1])) == [0, 0]
    assert false_positives(image(["1111"], [0]), image(["1112"], [1, 1], crowd=[1])) == [1, 0], "another class's crowd"
    assert false_positives(image(["1111"], [0]), image(["1023"], [0, 0, 1], crowd=[1, 2])) == [0, 0]
    # Void is left out of the union: 2 of 2 pixels.
    metric = PanopticQuality(1)
    metric.update(image(["1111"], [0]), image(["1100"], [0]))
    assert metric.compute()["pq"] == 1


def test_known_to_be_nothing_is_no_excuse():
    reference = image(["1100"], [0])
    reference["segmentation"][0, 2:] = -1
    metric = PanopticQuality(1)
    metric.update(image(["1122"], [0, 0]), reference)
    assert metric.compute()["per_class"][0]["false_positives"] == 1
    # -1 is what transformers gives where it finds nothing.
    metric.update({"segmentation": torch.full((1, 4), -1.0), "segments_info": []}, reference)
    assert metric.compute()["per_class"][0]["false_negatives"] == 1


def test_merge_is_as_if_counted_together():
    random = np.random.default_rng(2)
    cases = [random_case(random, 3, list(range(1, 20))) for _ in range(4)]
    together, one, other = (PanopticQuality(3) for _ in range(3))
    for index, case in enumerate(cases):
        together.update(*case)
        (one if index % 2 else other).update(*case)
    one.merge(other)
    torch.testing.assert_close(one.counts, together.counts)


def test_errors():
    metric = PanopticQuality(2)
    good = image(["12"], [0, 1])
    for bad, message in (
        (image(["1", "2"], [0, 1]), "target_sizes"),
        (image(["13"], [0, 1]), "holds id 3"),
        (image(["11"], [0, 1]), r"\[2\] are in segments_info"),
        (image(["12"], [0, 2]), "num_labels is 2"),
        ({"segmentation": good["segmentation"], "segments_info": good["segments_info"] * 2}, "each its own"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(bad, good)
    with pytest.raises(ValueError, match="the reference segmentation holds id 2"):
        metric.update(good, {**good, "segments_info": [good["segments_info"][0], {"id": 9, "label_id": 0}]})
    large = {"segmentation": torch.tensor([[5, 70_000]]), "segments_info": [{"id": 70_000, "label_id": 0}]}
    with pytest.raises(ValueError, match="holds id 5"):
        metric.update(large, good)
    assert not metric.counts.any()
