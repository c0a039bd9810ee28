import subprocess
import sys

import evaluate
import numpy as np
import pytest
import torch

from maskformer_hf.metrics import BoundaryAP, BoundaryIoU, MaskAP, MeanIoU, PanopticQuality
from maskformer_hf.metrics.evaluate_metrics import (
    BoundaryAPMetric,
    BoundaryIoUMetric,
    MaskAPMetric,
    MeanIoUMetric,
    PanopticQualityMetric,
)
from tests.metrics.test_mask_ap import random_case as random_masks
from tests.metrics.test_panoptic_quality import random_case as random_segments


def random_maps(random, num_labels, _):
    size = random.integers(10, 30, 2)
    return random.integers(0, num_labels, size), random.integers(0, num_labels, size)


CASES = [
    (MeanIoUMetric, MeanIoU, random_maps),
    (BoundaryIoUMetric, BoundaryIoU, random_maps),
    (PanopticQualityMetric, PanopticQuality, lambda random, k, _: random_segments(random, k, list(range(1, 30)))),
    (MaskAPMetric, MaskAP, random_masks),
    (BoundaryAPMetric, BoundaryAP, random_masks),
]


@pytest.mark.parametrize(("kind", "measure", "make_case"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_gives_what_the_measure_gives(kind, measure, make_case):
    random = np.random.default_rng(0)
    cases = [make_case(random, 3, 7) for _ in range(5)]
    expected = measure(3)
    for prediction, reference in cases:
        expected.update(
            *(part if isinstance(part, dict) else torch.from_numpy(part) for part in (prediction, reference))
        )
    names = {0: "a", 1: "b", 2: "c"}
    wanted = str(expected.compute(names))
    metric = kind(3, id2label=names)
    assert isinstance(metric, evaluate.Metric)
    predictions, references = zip(*cases, strict=True)
    metric.add_batch(predictions=predictions[:2], references=references[:2])
    metric.add(prediction=predictions[2], reference=references[2])
    assert len(metric) == 3
    assert str(metric.compute(predictions=predictions[3:], references=references[3:])) == wanted
    assert len(metric) == 0
    # It has begun anew.
    assert str(metric.compute(predictions=predictions, references=references)) == wanted
    assert set(metric.features) == {"predictions", "references"}
    assert metric.inputs_description in metric.add_batch.__doc__


def test_combine():
    maps = torch.randint(3, (2, 4, 20, 20), generator=torch.Generator().manual_seed(0))
    metrics = evaluate.combine([MeanIoUMetric(3), BoundaryIoUMetric(3)])
    metrics.add_batch(predictions=maps[0], references=maps[1])
    result = metrics.compute()
    assert 0 < result["mean_iou"] < 1
    assert 0 < result["boundary_iou"] < 1


@pytest.mark.slow
def test_nothing_is_written_and_nothing_is_fetched(tmp_path):
    """In a process with a home of its own and without network."""
    code = """
import socket, torch
def refuse(*arguments): raise AssertionError("network")
socket.socket.connect = refuse
from maskformer_hf.metrics.evaluate_metrics import MeanIoUMetric
metric = MeanIoUMetric(3)
maps = torch.zeros(2, 8, 8, dtype=torch.uint8)
metric.add_batch(predictions=maps, references=maps)
print(metric.compute()["mean_iou"])
"""
    environment = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "cache"), "PATH": ""}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == "1.0", result.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_errors():
    metric = MeanIoUMetric(3)
    maps = torch.zeros(2, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="no image"):
        metric.compute()
    with pytest.raises(ValueError, match="2 predictions and 1"):
        metric.add_batch(predictions=maps, references=maps[:1])
    with pytest.raises(ValueError, match="predictions and references"):
        metric.add_batch(predictions=maps)
    with pytest.raises(ValueError, match="num_labels"):
        metric.compute(predictions=maps, references=maps, num_labels=3)
    with pytest.raises(ValueError, match="weights"):
        metric.add(prediction=maps[0], reference=maps[0], weights=None)
