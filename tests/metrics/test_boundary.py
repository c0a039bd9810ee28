import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from maskformer_hf.metrics import BoundaryAP, BoundaryIoU, boundary_iou
from tests.metrics.test_mask_ap import coco_figures, disks, expected_result, random_case


def plain_boundary(mask, ratio=0.02):
    """Pixel by pixel: in the mask, and with something outside at most d away in both directions."""
    height, width = mask.shape
    d = max(1, round(ratio * math.hypot(height, width)))
    padded = np.pad(mask, d)
    result = np.zeros_like(mask)
    for row, column in zip(*mask.nonzero(), strict=True):
        result[row, column] = not padded[row : row + 2 * d + 1, column : column + 2 * d + 1].all()
    return result


def plain_iou(a, b):
    return (a & b).sum() / (a | b).sum() if (a | b).any() else math.nan


@pytest.mark.parametrize("size", [(40, 60), (130, 90)])
def test_of_masks_equals_a_plain_implementation(size):
    random = np.random.default_rng(0)
    masks, others = disks(random, 6, size, (5, 30)), disks(random, 6, size, (5, 30))
    others[:3] = np.roll(masks[:3], 1, 2)
    masks[5] = others[5] = False
    for ratio in (0.02, 0.05):
        expected = [
            plain_iou(plain_boundary(a, ratio), plain_boundary(b, ratio)) for a, b in zip(masks, others, strict=True)
        ]
        result = boundary_iou(torch.from_numpy(masks), torch.from_numpy(others), ratio)
        assert result.tolist() == pytest.approx(expected, nan_ok=True)
        assert 0 < result[0] < 1


def test_a_shift_by_one_pixel():
    # 10 x 10 pixels in 25 x 25, d = 1: rings of 36 pixels, of which the shift leaves the two long sides but one pixel,
    # and a corner pair of each.
    mask = torch.zeros(25, 25, dtype=torch.bool)
    mask[5:15, 5:15] = True
    shifted = mask.roll(1, 1)
    assert boundary_iou(mask[None], shifted[None]).item() == pytest.approx(18 / 54)
    assert boundary_iou(mask[None], mask[None]).item() == 1


def test_of_class_maps_equals_a_plain_implementation():
    random = np.random.default_rng(1)
    metric = BoundaryIoU(4, ignore_index=200)
    true_counts, unions = np.zeros(4), np.zeros(4)
    intersections = np.zeros(4)
    for size in ((50, 70), (31, 90), (8, 8)):
        maps = np.zeros((2, *size), np.int64)
        for label, mask in zip((1, 2, 1, 2), disks(random, 4, size, (5, 25)), strict=True):
            maps[0][mask] = label
            maps[1][np.roll(mask, 2, 1)] = label
        prediction, reference = maps
        prediction[random.random(size) < 0.01] = 77  # no class
        void = disks(random, 1, size, (4, 9))[0]
        reference[void] = 200
        metric.update(torch.from_numpy(prediction), torch.from_numpy(reference))
        for label in range(4):
            a, b = (plain_boundary((part == label) & ~void) for part in (reference, prediction))
            true_counts[label] += a.sum()
            intersections[label] += (a & b).sum()
            unions[label] += (a | b).sum()
    result = metric.compute({1: "one"})
    expected = [intersections[label] / unions[label] if unions[label] else math.nan for label in range(4)]
    assert [row["boundary_iou"] for row in result["per_class"]] == pytest.approx(expected, nan_ok=True)
    assert [row["pixels"] for row in result["per_class"]] == true_counts.tolist()
    assert math.isnan(expected[3])
    assert result["boundary_iou"] == pytest.approx(np.nanmean(expected))
    assert result["per_class"][1]["label"] == "one"


def test_batches_and_merging_are_as_one_by_one():
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(3, (2, 30, 40), generator=generator)
    references = torch.randint(3, (2, 30, 40), generator=generator)
    batch, one, other = (BoundaryIoU(3) for _ in range(3))
    batch.update(predictions, references)
    one.update(predictions[0], references[0])
    other.update(predictions[1], references[1])
    one.merge(other)
    assert torch.equal(batch.counts, one.counts)
    assert one.counts.any()


class PlainBoundaryEval(COCOeval):
    """pycocotools with the smaller of the two IoUs for what is no crowd."""

    def computeIoU(self, image_id, category_id):
        ious = super().computeIoU(image_id, category_id)
        true, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
        found = sorted(found, key=lambda item: -item["score"])[: self.params.maxDets[-1]]

        def boundary(item):
            return plain_boundary(coco_mask.decode(item["segmentation"]).astype(bool))

        boundaries = [boundary(item) for item in true]
        for row, item in enumerate(found if true else ()):
            own = boundary(item)
            for column, other in enumerate(true):
                if not other["iscrowd"]:
                    ious[row, column] = min(ious[row, column], plain_iou(own, boundaries[column]))
        return ious


def test_boundary_ap_equals_pycocotools_with_plain_boundaries():
    random = np.random.default_rng(2)
    cases = [random_case(random, 2, 8, radii=(4, 20), size=(60, 70)) for _ in range(4)]
    metric = BoundaryAP(2)
    for case in cases:
        metric.update(*case)
    result = metric.compute()
    figures, per_class = expected_result(*coco_figures(cases, 2, kind=PlainBoundaryEval))
    for name, value in figures.items():
        assert result[f"boundary_{name}"] == pytest.approx(value, nan_ok=True), name
    assert [row["boundary_ap"] for row in result["per_class"]] == pytest.approx(per_class)
    assert figures["ap"] < 0.95 * expected_result(*coco_figures(cases, 2))[0]["ap"]


def test_errors():
    metric = BoundaryIoU(3)
    with pytest.raises(ValueError, match="differ in shape"):
        metric.update(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="reference id 3"):
        metric.update(torch.zeros(1, 2), torch.tensor([[0, 3]]))
    assert not metric.counts.any()
