"""The block engine against the plain form, which computes every score of every query at every pixel."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from logits import GEOMETRIES, NEAR_TIE, example, instances_of, named_geometry, panoptic_of
from maskformer_hf.models import block_grid
from maskformer_hf.models.block_masks import masks_above, plain_masks_above
from maskformer_hf.models.image_geometry import ImageGeometry, plain_logits
from maskformer_hf.models.panoptic import find_winners, plain_winners
from maskformer_hf.models.semantic import (
    per_pixel_scores,
    per_pixel_segmentation,
    plain_semantic_scores,
    semantic_scores,
    semantic_segmentation,
)


def plain_panoptic(
    class_logits, mask_logits, geometry, threshold, mask_threshold, overlap, label_ids_to_fuse, intersect_with_mask
):
    """Also returns, per pixel, how far the best query is ahead of the second."""
    scores, labels = class_logits.float().softmax(-1).max(-1)
    kept = (labels != class_logits.shape[-1] - 1) & (scores > threshold)
    segmentation = torch.zeros(geometry.target_size, dtype=torch.int32)
    if not kept.any():
        return segmentation, [], torch.ones(geometry.target_size)
    scores, labels = scores[kept], labels[kept]
    masks = plain_logits(mask_logits, geometry)[kept].sigmoid()
    weighted = scores[:, None, None] * masks
    winner = weighted.argmax(0)
    records, stuff = [], {}
    for query in range(len(scores)):
        won, own = winner == query, masks[query] >= mask_threshold
        painted = won & own if intersect_with_mask else won
        if won.sum() == 0 or own.sum() == 0 or painted.sum() == 0:
            continue
        if won.sum().item() / own.sum().item() < overlap:
            continue
        label = labels[query].item()
        if label in stuff:
            record = stuff[label]
        else:
            record = {
                "id": len(records) + 1,
                "label_id": label,
                "was_fused": label in label_ids_to_fuse,
                "score": scores[query].item(),
                "area": 0,
            }
            records.append(record)
            if label in label_ids_to_fuse:
                stuff[label] = record
        record["area"] += int(painted.sum())
        segmentation[painted] = record["id"]
    best = weighted.topk(min(2, len(scores)), dim=0).values
    return segmentation, records, best[0] - best[-1] if len(best) > 1 else torch.ones(geometry.target_size)


def plain_instances(class_logits, mask_logits, geometry, threshold, mask_threshold, top_k):
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    class_scores, pair = probabilities.flatten().topk(min(top_k, probabilities.numel()))
    masks = plain_logits(mask_logits, geometry).sigmoid()
    found = []
    for score, index in zip(class_scores, pair.tolist(), strict=True):
        mask = masks[index // probabilities.shape[1]]
        inside = mask > mask_threshold
        if inside.any() and (score := score * mask[inside].mean()) >= threshold:
            found.append((score.item(), index % probabilities.shape[1], inside))
    return sorted(found, key=lambda instance: -instance[0])


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("name", GEOMETRIES)
class TestAgainstPlainForm:
    def test_semantic(self, name, smooth):
        (height, width), geometry = named_geometry(name)
        class_logits, mask_logits = example(height=height, width=width, smooth=smooth)
        for resize in ("logits", "scores"):
            expected = plain_semantic_scores(class_logits, mask_logits, geometry, resize=resize)
            scores = semantic_scores(class_logits, mask_logits, geometry, resize=resize)
            torch.testing.assert_close(scores, expected, atol=NEAR_TIE, rtol=1e-5)
            result = semantic_segmentation(class_logits, mask_logits, geometry, resize=resize)
            assert result.dtype == torch.int64
            assert result.shape == geometry.target_size
            best = expected.topk(2, dim=0).values
            clear = best[0] - best[1] > NEAR_TIE
            assert clear.float().mean() > 0.95
            assert torch.equal(result[clear], expected.argmax(0)[clear])

    @pytest.mark.parametrize("intersect_with_mask", [False, True])
    @pytest.mark.parametrize(
        ("threshold", "mask_threshold", "overlap"), [(0.0, 0.5, 0.0), (0.5, 0.5, 0.3), (0.3, 0.9, 0.5), (0.3, 0.1, 0.8)]
    )
    def test_panoptic(self, name, smooth, threshold, mask_threshold, overlap, intersect_with_mask):
        (height, width), geometry = named_geometry(name)
        class_logits, mask_logits = example(height=height, width=width, smooth=smooth, seed=1)
        stuff = {0, 2}
        expected, expected_records, lead = plain_panoptic(
            class_logits, mask_logits, geometry, threshold, mask_threshold, overlap, stuff, intersect_with_mask
        )
        result, records = panoptic_of(
            class_logits,
            mask_logits,
            geometry,
            threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_mask_area_threshold=overlap,
            label_ids_to_fuse=stuff,
            intersect_with_mask=intersect_with_mask,
        )
        assert result.dtype == torch.int32
        clear = lead > NEAR_TIE
        assert clear.float().mean() > 0.95
        if intersect_with_mask:
            # The edge of a mask is a second place where the last digit decides.
            assert (result != expected)[clear].sum() <= 2
        else:
            assert torch.equal(result[clear], expected[clear])
        for record, wanted in zip(records, expected_records, strict=True):
            assert abs(record["area"] - wanted["area"]) <= 2 + int((~clear).sum())
            assert record["area"] == (result == record["id"]).sum()
            assert record["score"] == pytest.approx(wanted["score"], abs=1e-5)
            assert {**record, "score": 0, "area": 0} == {**wanted, "score": 0, "area": 0}

    @pytest.mark.parametrize(
        ("threshold", "mask_threshold", "top_k"), [(0.0, 0.5, 10), (0.5, 0.5, 100), (0.2, 0.8, 50)]
    )
    def test_instance(self, name, smooth, threshold, mask_threshold, top_k):
        (height, width), geometry = named_geometry(name)
        class_logits, mask_logits = example(height=height, width=width, smooth=smooth, seed=2)
        expected = plain_instances(class_logits, mask_logits, geometry, threshold, mask_threshold, top_k)
        result = instances_of(
            class_logits, mask_logits, geometry, threshold=threshold, mask_threshold=mask_threshold, max_instances=top_k
        )
        assert len(result.scores) == len(expected)
        assert result.masks.dtype == torch.bool
        assert result.masks.shape == (len(expected), *geometry.target_size)
        for index, (score, label, mask) in enumerate(expected):
            assert result.scores[index].item() == pytest.approx(score, abs=2e-5)
            assert result.labels[index] == label
            assert (result.masks[index] != mask).sum() <= 1
            rows, columns = result.masks[index].nonzero().unbind(1)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert result.boxes[index].tolist() == box
            assert result.areas[index] == result.masks[index].sum()


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("name", GEOMETRIES)
class TestEngine:
    """Each thing that the engine decides, beside its plain formula of the same arguments."""

    def test_plain_formula(self, name, smooth):
        (height, width), geometry = named_geometry(name)
        _, mask_logits = example(height=height, width=width, smooth=smooth)
        padded = F.interpolate(mask_logits[None], size=geometry.padded_size, mode="bilinear", align_corners=False)
        image = padded[..., : geometry.image_size[0], : geometry.image_size[1]]
        expected = F.interpolate(image, size=geometry.target_size, mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(plain_logits(mask_logits, geometry), expected)

    def test_winners(self, name, smooth):
        (height, width), geometry = named_geometry(name)
        class_logits, mask_logits = example(height=height, width=width, smooth=smooth, seed=3)
        scores = class_logits.softmax(-1).amax(-1)
        for limit in (-2.0, 0.0, 1.5):
            found = find_winners(scores, mask_logits, geometry, limit)
            expected = plain_winners(scores, mask_logits, geometry, limit)
            assert (found.ids != expected.ids).sum() <= 2
            assert (found.mask_areas - expected.mask_areas).abs().max() <= 1

    def test_masks_above(self, name, smooth):
        (height, width), geometry = named_geometry(name)
        _, mask_logits = example(height=height, width=width, smooth=smooth, seed=4)
        for limit in (-2.0, 0.0, 1.5):
            found = masks_above(mask_logits, geometry, limit)
            masks, areas, probability_sums = plain_masks_above(mask_logits, geometry, limit)
            drawn = found.draw(list(range(len(mask_logits))))
            assert (drawn != masks).flatten(1).sum(1).max() <= 1
            assert (found.areas - areas).abs().max() <= 1
            torch.testing.assert_close(found.probability_sums, probability_sums, atol=1.0, rtol=1e-5)
            assert torch.equal(found.areas, drawn.sum((1, 2)))

    def test_class_logits_of_pixels(self, name, smooth):
        (height, width), geometry = named_geometry(name)
        _, logits = example(height=height, width=width, smooth=smooth, seed=5)
        scores = per_pixel_scores(logits, geometry)
        assert torch.equal(scores, plain_logits(logits, geometry))
        best = scores.topk(2, dim=0).values
        clear = best[0] - best[1] > NEAR_TIE
        assert clear.float().mean() > 0.95
        assert torch.equal(per_pixel_segmentation(logits, geometry)[clear], scores.argmax(0)[clear])


class TestStrips:
    @pytest.mark.parametrize("name", ["cropped and enlarged", "much reduced", "odd sizes"])
    def test_cutting_into_strips_changes_nothing(self, name, monkeypatch):
        (height, width), geometry = named_geometry(name)
        class_logits, mask_logits = example(height=height, width=width)

        def everything():
            panoptic, records = panoptic_of(class_logits, mask_logits, geometry, threshold=0.3)
            return [
                semantic_segmentation(class_logits, mask_logits, geometry),
                semantic_segmentation(class_logits, mask_logits, geometry, resize="scores"),
                panoptic,
                *instances_of(class_logits, mask_logits, geometry, threshold=0.1),
            ], records

        whole, whole_records = everything()
        for numel in (1, 3000, 40000):
            monkeypatch.setattr(block_grid, "CPU_TEMPORARY_NUMEL", numel)
            parts, records = everything()
            assert records == whole_records
            for part, expected in zip(parts, whole, strict=True):
                torch.testing.assert_close(part, expected, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("cells", [1, 3, 5])
    def test_size_of_blocks_changes_nothing(self, cells, monkeypatch):
        (height, width), geometry = named_geometry("cropped and enlarged")
        class_logits, mask_logits = example(height=height, width=width)
        semantic = semantic_segmentation(class_logits, mask_logits, geometry)
        panoptic = panoptic_of(class_logits, mask_logits, geometry, threshold=0.3)
        monkeypatch.setattr(block_grid, "CELLS_PER_BLOCK", cells)
        assert torch.equal(semantic_segmentation(class_logits, mask_logits, geometry), semantic)
        again = panoptic_of(class_logits, mask_logits, geometry, threshold=0.3)
        assert torch.equal(again[0], panoptic[0])
        assert again[1] == panoptic[1]

    def test_no_full_size_stack_and_no_synchronisation_per_query(self):
        """The largest tensor stays far below (classes, H, W), and host copies do not grow with the queries."""

        class Watch(TorchDispatchMode):
            largest = 0
            copies = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                if func is torch.ops.aten._local_scalar_dense.default:
                    self.copies += 1
                for tensor in result if isinstance(result, (tuple, list)) else [result]:
                    if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes():
                        self.largest = max(self.largest, tensor.numel())
                return result

        size = (384, 512)
        geometry = ImageGeometry(size, size, size)
        copies = {}
        for queries in (30, 90):
            class_logits, mask_logits = example(queries, 60, 96, 128)
            for task in (semantic_segmentation, panoptic_of):
                with Watch() as watch:
                    task(class_logits, mask_logits, geometry)
                copies[task, queries] = watch.copies
                assert watch.largest <= 3 * block_grid.CPU_TEMPORARY_NUMEL
                assert watch.largest < queries * size[0] * size[1] / 2
        assert copies[panoptic_of, 90] == copies[panoptic_of, 30]
        assert copies[semantic_segmentation, 90] <= copies[semantic_segmentation, 30] + 2  # one a strip
