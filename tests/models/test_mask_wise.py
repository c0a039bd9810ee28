"""Mask-wise merging: the block engine against the plain formula, and small cases that one can work out."""

import pytest
import torch

from builders import tiny_config
from logits import GEOMETRIES, as_outputs, confident, example, named_geometry, rectangle
from maskformer_hf import MaskFormerImageProcessor
from maskformer_hf.models import block_grid
from maskformer_hf.models.image_geometry import ImageGeometry
from maskformer_hf.models.panoptic_mask_wise import (
    Candidates,
    best_classes,
    fewest_pixels,
    mask_wise_segmentation,
    paint,
    plain_paint,
)
from maskformer_hf.models.result_options import ResultOptions
from maskformer_hf.models.results import results_of


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("name", GEOMETRIES)
class TestAgainstPlainFormula:
    @pytest.mark.parametrize(
        ("threshold", "mask_threshold", "overlap", "stuff"),
        [(0.0, 0.5, 0.0, {}), (0.3, 0.5, 0.6, {"stuff_threshold": 0.5}), (0.2, 0.8, 0.3, {})],
    )
    def test_paint(self, name, smooth, threshold, mask_threshold, overlap, stuff):
        (height, width), geometry = named_geometry(name)
        class_logits, mask_logits = example(height=height, width=width, smooth=smooth, seed=1)
        options = ResultOptions(
            "panoptic",
            threshold,
            mask_threshold,
            overlap,
            label_ids_to_fuse={0, 2},
            stuff_overlap_mask_area_threshold=0.2,
            **stuff,
        )
        candidates = best_classes(class_logits)
        # The same mask as another class: only one of the two keeps its pixels, or both share them if `overlap` is 0.
        candidates = Candidates(*(torch.cat([values, values[:2]]) for values in candidates))
        candidates.labels[-2:] = 5
        candidates.scores[-2:] *= 0.9
        expected, expected_records = plain_paint(candidates, mask_logits, geometry, options)
        result, records = paint(candidates, mask_logits, geometry, options)
        assert (result.dtype, result.shape) == (torch.int32, geometry.target_size)
        # The edge of a mask is where the last digit decides.
        assert (result != expected).sum() <= 4
        for record, wanted in zip(records, expected_records, strict=True):
            assert record["score"] == pytest.approx(wanted["score"], abs=2e-3 if wanted["area"] < 20 else 1e-4)
            assert abs(record["area"] - wanted["area"]) <= 2
            assert record["area"] == (result == record["id"]).sum()
            assert {**record, "score": 0, "area": 0} == {**wanted, "score": 0, "area": 0}

    def test_cutting_into_strips_changes_nothing(self, name, smooth, monkeypatch):
        (height, width), geometry = named_geometry(name)
        class_logits, mask_logits = example(height=height, width=width, smooth=smooth, seed=2)
        options = ResultOptions("panoptic", 0.1, label_ids_to_fuse={0})
        whole, records = mask_wise_segmentation(class_logits, mask_logits, geometry, options)
        monkeypatch.setattr(block_grid, "CPU_TEMPORARY_NUMEL", 3000)
        parts, again = mask_wise_segmentation(class_logits, mask_logits, geometry, options)
        assert torch.equal(parts, whole)
        assert [record["area"] for record in again] == [record["area"] for record in records]


SIZE = ImageGeometry((8, 10), (8, 10), (8, 10))


def merged(labels, masks, probability=0.9, **options):
    logits = confident(labels, 3, probability)
    options = ResultOptions("panoptic", **{"threshold": 0.1, "label_ids_to_fuse": {2}, **options})
    return mask_wise_segmentation(logits, torch.stack(masks), SIZE, options)


class TestSmallCases:
    def test_the_score_is_that_of_the_paper(self):
        """A mask of 12 pixels with m = sigmoid(2): the class score times the square of 12 m / 13."""
        _, [record] = merged([0], [rectangle(8, 10, 0, 0, 3, 4, value=2.0)])
        m = torch.tensor(2.0).sigmoid().item()
        assert record["score"] == pytest.approx(0.9 * (12 * m / 13) ** 2, abs=1e-6)
        assert record["area"] == 12

    def test_the_sharper_mask_is_painted_first(self):
        """Its score is larger, though the classes are equally sure and the other mask is larger."""
        blurred, sharp = rectangle(8, 10, 0, 0, 8, 5, value=1.0), rectangle(8, 10, 0, 3, 8, 7)
        result, records = merged([0, 1], [blurred, sharp], overlap_mask_area_threshold=0.5)
        assert [record["label_id"] for record in records] == [1, 0]
        assert [record["area"] for record in records] == [32, 24]
        assert (result[:, 3:7] == 1).all()
        assert (result[:, :3] == 2).all()
        assert (result[:, 7:] == 0).all()

    def test_a_mask_of_which_too_little_is_left_goes_whole(self):
        masks = [rectangle(8, 10, 0, 0, 8, 5), rectangle(8, 10, 0, 1, 8, 6)]
        # A fifth of the second one is left.
        _, records = merged([0, 1], masks, overlap_mask_area_threshold=0.2)
        assert [record["area"] for record in records] == [40, 8]
        result, records = merged([0, 1], masks, overlap_mask_area_threshold=0.21)
        assert [record["area"] for record in records] == [40]
        assert (result[:, 5:] == 0).all()

    def test_stuff_is_fused_and_has_thresholds_of_its_own(self):
        masks = [rectangle(8, 10, 0, 0, 4, 4), rectangle(8, 10, 4, 4, 8, 8), rectangle(8, 10, 0, 8, 8, 10)]
        result, records = merged([2, 2, 0], masks)
        found = {record["label_id"]: (record["was_fused"], record["area"]) for record in records}
        assert found == {2: (True, 32), 0: (False, 16)}
        assert sorted(result.unique().tolist()) == [0, 1, 2]
        _, records = merged([2, 2, 0], masks, stuff_threshold=0.95)
        assert [record["label_id"] for record in records] == [0]
        _, records = merged([2, 2, 0], masks, threshold=0.95, stuff_threshold=0.1)
        assert [record["label_id"] for record in records] == [2]
        overlapping = [rectangle(8, 10, 0, 0, 8, 5), rectangle(8, 10, 0, 2, 8, 7, value=4.0)]
        for share, kept in ((0.4, [0, 2]), (0.5, [0])):
            _, records = merged([0, 2], overlapping, 0.9, stuff_overlap_mask_area_threshold=share)
            assert [record["label_id"] for record in records] == kept

    def test_equal_scores_keep_the_order_of_the_queries(self):
        same = Candidates(torch.full((2,), 0.9), torch.tensor([1, 0]), torch.tensor([0, 0]))
        masks = rectangle(8, 10, 0, 0, 4, 10)[None]
        for order in ([0, 1], [1, 0]):
            _, [record] = paint(same.part(torch.tensor(order)), masks, SIZE, ResultOptions("panoptic", 0.1))
            assert record["label_id"] == same.labels[order[0]]

    def test_nothing_found(self):
        for labels, value in (([-1], 8.0), ([0], -8.0)):
            result, records = merged(labels, [rectangle(8, 10, 0, 0, 8, 10, value=value)])
            assert records == []
            assert (result == 0).all()
            assert result.shape == (8, 10)

    def test_disjoint_masks_give_what_argmax_gives(self):
        masks = [rectangle(8, 10, 0, 0, 8, 5), rectangle(8, 10, 0, 5, 8, 10)]
        outputs = as_outputs(confident([0, 1], 3), torch.stack(masks), padded_sizes=[[8, 10]])
        (ours,) = results_of(outputs, ResultOptions("panoptic", merging="mask_wise"))
        (theirs,) = results_of(outputs, ResultOptions("panoptic"))
        assert torch.equal(ours.segmentation, theirs.segmentation)
        assert len(ours.segments) == 2


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 1.0])
def test_fewest_pixels_is_what_division_says(share):
    for area in range(1, 200):
        fewest = fewest_pixels(area, share)
        assert fewest / area >= share
        assert fewest == 1 or (fewest - 1) / area < share


class TestOptions:
    def test_another_merging_than_the_checkpoints_has_its_papers_threshold(self):
        config = tiny_config(object_mask_threshold=0.7, stuff_object_mask_threshold=0.6)
        own = ResultOptions.of(config, "panoptic")
        assert (own.merging, own.threshold, own.stuff_threshold) == ("argmax", 0.7, 0.6)
        other = ResultOptions.of(config, "panoptic", merging="mask_wise")
        assert (other.threshold, other.stuff_threshold) == (0.3, None)
        assert ResultOptions.of(config, "panoptic", merging="mask_wise", threshold=0.4).threshold == 0.4
        assert ResultOptions.of(config, "panoptic", merging="argmax") == own
        config = tiny_config(panoptic_merging="mask_wise", object_mask_threshold=0.25)
        assert ResultOptions.of(config, "panoptic").threshold == 0.25
        assert ResultOptions.of(config, "panoptic", merging="argmax").threshold == 0.8

    def test_thresholds_of_stuff_hold_for_argmax_too(self):
        masks = torch.stack([rectangle(8, 10, 0, 0, 8, 5), rectangle(8, 10, 0, 5, 8, 10)])
        outputs = as_outputs(confident([0, 2], 3, 0.9), masks)
        for options, labels in (
            ({}, [0, 2]),
            ({"stuff_threshold": 0.95}, [0]),
            ({"threshold": 0.95, "stuff_threshold": 0.5}, [2]),
        ):
            options = ResultOptions("panoptic", **{"label_ids_to_fuse": {2}, **options})
            (result,) = results_of(outputs, options)
            assert [segment["label_id"] for segment in result.segments] == labels

    def test_the_processor_takes_it_and_carries_it(self):
        masks = [rectangle(16, 16, 0, 0, 16, 10, value=1.0), rectangle(16, 16, 0, 5, 16, 16)]
        outputs = as_outputs(confident([0, 1], 3), torch.stack(masks))
        given = MaskFormerImageProcessor().post_process_panoptic_segmentation(outputs, merging="mask_wise")
        own = MaskFormerImageProcessor(
            panoptic_merging="mask_wise", object_mask_threshold=0.3
        ).post_process_panoptic_segmentation(outputs)
        plain = MaskFormerImageProcessor().post_process_panoptic_segmentation(outputs)
        assert given[0]["segments_info"] == own[0]["segments_info"] != plain[0]["segments_info"]
        assert torch.equal(given[0]["segmentation"], own[0]["segmentation"])
