"""Post-processing against the plain form, which computes every score of every query at every pixel."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from packaging.version import Version
from pycocotools import mask as coco_mask
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Mask2FormerImageProcessor as TheirMask2FormerProcessor
from transformers import MaskFormerImageProcessor as TheirProcessor

from maskformer_hf import MaskFormerImageProcessor
from maskformer_hf.models import post_processing
from maskformer_hf.models.post_processing import (
    ImageGeometry,
    encode_coco_rle,
    flatten_instances,
    image_geometries,
    instance_segmentation,
    panoptic_segmentation,
    semantic_scores,
    semantic_segmentation,
    without_duplicates,
)

# Claims about transformers are checked against the version that they were made of.
THEIRS_AS_DESCRIBED = Version(transformers.__version__).release[:2] == (5, 23)

# Two scores this close may change places between two ways of adding the same numbers.
NEAR_TIE = 3e-5


def plain_logits(mask_logits, geometry):
    """(Q, H, W): resized to the padded size, cropped, resized to the target size."""
    padded = F.interpolate(mask_logits[None].float(), size=geometry.padded_size, mode="bilinear", align_corners=False)
    image = padded[..., : geometry.image_size[0], : geometry.image_size[1]]
    return F.interpolate(image, size=geometry.target_size, mode="bilinear", align_corners=False)[0]


def plain_semantic_scores(class_logits, mask_logits, geometry, resize="logits"):
    at = geometry if resize == "logits" else geometry._replace(target_size=geometry.image_size)
    masks = plain_logits(mask_logits, at).sigmoid()
    scores = torch.einsum("qk,qhw->khw", class_logits.float().softmax(-1)[:, :-1], masks)
    if resize == "scores":
        scores = F.interpolate(scores[None], size=geometry.target_size, mode="bilinear", align_corners=False)[0]
    return scores


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


def example(queries=20, classes=7, height=18, width=23, seed=0, smooth=True):
    """Queries, one in three of them without an object, with smooth masks of both signs, or with noise."""
    generator = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(queries, classes + 1, generator=generator) * 2
    class_logits[torch.arange(queries), torch.randint(classes, (queries,), generator=generator)] += 4
    class_logits[::3, -1] += 6
    if smooth:
        coarse = torch.randn(1, queries, max(2, height // 5), max(2, width // 5), generator=generator) * 6
        mask_logits = F.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    else:
        mask_logits = torch.randn(queries, height, width, generator=generator) * 4
    return class_logits, mask_logits


# (mask size, padded size, image size, target size)
GEOMETRIES = {
    "stride 4": ((16, 24), (64, 96), (64, 96), (64, 96)),
    "cropped": ((24, 24), (96, 96), (70, 60), (70, 60)),
    "odd sizes": ((18, 23), (70, 90), (70, 90), (70, 90)),
    "cropped and enlarged": ((24, 24), (96, 96), (70, 90), (84, 108)),
    "cropped and reduced": ((24, 24), (96, 96), (70, 90), (31, 17)),
    "much enlarged": ((6, 5), (24, 20), (23, 17), (133, 250)),
    "much reduced": ((40, 30), (160, 120), (150, 120), (7, 5)),
    "one pixel": ((12, 12), (48, 48), (40, 40), (1, 1)),
    "one cell": ((1, 1), (4, 4), (3, 2), (9, 11)),
    "one row": ((1, 30), (4, 120), (1, 119), (1, 119)),
    "mask finer than input": ((40, 40), (20, 20), (17, 20), (17, 20)),
    "tall and narrow": ((50, 2), (200, 8), (199, 5), (398, 10)),
}


def named_geometry(name):
    mask_size, *sizes = GEOMETRIES[name]
    return mask_size, ImageGeometry(*sizes)


def as_outputs(class_logits, mask_logits, **sizes):
    if class_logits.ndim == 2:
        class_logits, mask_logits = class_logits[None], mask_logits[None]
    sizes = {name: torch.tensor(value) for name, value in sizes.items()}
    return SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=mask_logits, **sizes)


def confident(labels, num_labels, probability=0.99):
    """Class logits that give each query its label with this probability; -1 is no-object."""
    other = (1 - probability) / num_labels
    logits = torch.full((len(labels), num_labels + 1), other).log()
    logits[torch.arange(len(labels)), torch.tensor(labels)] = torch.tensor(probability).log()
    return logits


def rectangle(height, width, top, left, bottom, right, value=8.0):
    logits = torch.full((height, width), -value)
    logits[top:bottom, left:right] = value
    return logits


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("name", GEOMETRIES)
class TestAgainstPlainForm:
    def test_semantic(self, name, smooth):
        (height, width), geometry = named_geometry(name)
        class_logits, mask_logits = example(height=height, width=width, smooth=smooth)
        for resize in ("logits", "scores"):
            expected = plain_semantic_scores(class_logits, mask_logits, geometry, resize)
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
        result, records = panoptic_segmentation(
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
        result = instance_segmentation(
            class_logits, mask_logits, geometry, threshold=threshold, mask_threshold=mask_threshold, top_k=top_k
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


class TestStrips:
    @pytest.mark.parametrize("name", ["cropped and enlarged", "much reduced", "odd sizes"])
    def test_cutting_into_strips_changes_nothing(self, name, monkeypatch):
        (height, width), geometry = named_geometry(name)
        class_logits, mask_logits = example(height=height, width=width)

        def everything():
            panoptic, records = panoptic_segmentation(class_logits, mask_logits, geometry, threshold=0.3)
            return [
                semantic_segmentation(class_logits, mask_logits, geometry),
                semantic_segmentation(class_logits, mask_logits, geometry, resize="scores"),
                panoptic,
                *instance_segmentation(class_logits, mask_logits, geometry, threshold=0.1),
            ], records

        whole, whole_records = everything()
        for budget in (1, 3000, 40000):
            monkeypatch.setattr(post_processing, "CPU_BUDGET", budget)
            parts, records = everything()
            assert records == whole_records
            for part, expected in zip(parts, whole, strict=True):
                torch.testing.assert_close(part, expected, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("cells", [1, 3, 5])
    def test_size_of_blocks_changes_nothing(self, cells, monkeypatch):
        (height, width), geometry = named_geometry("cropped and enlarged")
        class_logits, mask_logits = example(height=height, width=width)
        semantic = semantic_segmentation(class_logits, mask_logits, geometry)
        panoptic = panoptic_segmentation(class_logits, mask_logits, geometry, threshold=0.3)
        monkeypatch.setattr(post_processing, "CELLS_PER_BLOCK", cells)
        assert torch.equal(semantic_segmentation(class_logits, mask_logits, geometry), semantic)
        again = panoptic_segmentation(class_logits, mask_logits, geometry, threshold=0.3)
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
            for task in (semantic_segmentation, panoptic_segmentation):
                with Watch() as watch:
                    task(class_logits, mask_logits, geometry)
                copies[task, queries] = watch.copies
                assert watch.largest <= 3 * post_processing.CPU_BUDGET
                assert watch.largest < queries * size[0] * size[1] / 2
        assert copies[panoptic_segmentation, 90] == copies[panoptic_segmentation, 30]
        assert copies[semantic_segmentation, 90] <= copies[semantic_segmentation, 30] + 2  # one a strip


class TestEdgeCases:
    geometry = ImageGeometry((32, 32), (32, 32), (32, 32))

    def test_ties_go_to_the_first(self):
        mask = rectangle(8, 8, 0, 0, 8, 8, value=60.0)  # float32 probability of exactly 1
        class_logits = confident([1, 0, 1], 2)
        segmentation, records = panoptic_segmentation(class_logits, mask.expand(3, 8, 8), self.geometry)
        assert [record["label_id"] for record in records] == [1]
        assert (segmentation == 1).all()
        even = confident([0, 1], 2)
        assert (semantic_segmentation(even, mask.expand(2, 8, 8), self.geometry) == 0).all()

    def test_ratio_equal_to_the_threshold_is_kept(self):
        # Query 1 is covered by query 0 on exactly a fifth of its pixels.
        over = rectangle(8, 10, 0, 0, 8, 2, value=40.0)
        under = rectangle(8, 10, 0, 0, 8, 10, value=30.0)
        geometry = ImageGeometry((8, 10), (8, 10), (8, 10))
        class_logits = confident([0, 1], 2)
        class_logits[0] *= 1.5
        for overlap, expected in ((0.8, 2), (0.81, 1)):
            _, records = panoptic_segmentation(
                class_logits, torch.stack([over, under]), geometry, overlap_mask_area_threshold=overlap
            )
            assert len(records) == expected

    def test_nothing_but_no_object(self):
        class_logits, mask_logits = confident([-1, -1], 3), torch.randn(2, 8, 8)
        segmentation, records = panoptic_segmentation(class_logits, mask_logits, self.geometry)
        assert segmentation.shape == (32, 32)
        assert segmentation.dtype == torch.int32
        assert not segmentation.any()
        assert records == []
        instances = instance_segmentation(class_logits, mask_logits, self.geometry)
        assert instances.masks.shape == (0, 32, 32)
        assert instances.boxes.shape == (0, 4)
        flat, drawn = flatten_instances(instances)
        assert not flat.any()
        assert drawn.shape == (0,)
        assert encode_coco_rle(instances.masks) == []
        assert semantic_segmentation(class_logits, mask_logits, self.geometry).shape == (32, 32)

    def test_empty_masks_are_no_segments(self):
        mask_logits = torch.stack([torch.full((8, 8), -9.0), rectangle(8, 8, 2, 2, 6, 6)])
        class_logits = confident([0, 1], 2)
        assert instance_segmentation(class_logits, mask_logits, self.geometry).labels.tolist() == [1]
        # A weak mask that wins everywhere is no segment either, for its own mask is empty.
        assert panoptic_segmentation(class_logits[:1], mask_logits[:1], self.geometry)[1] == []

    def test_mask_threshold_at_its_ends(self):
        class_logits, mask_logits = confident([0], 2), rectangle(8, 8, 2, 2, 6, 6)[None]
        everything = instance_segmentation(class_logits, mask_logits, self.geometry, threshold=0, mask_threshold=0)
        assert everything.masks.all()
        assert len(instance_segmentation(class_logits, mask_logits, self.geometry, mask_threshold=1).masks) == 0
        with pytest.raises(ValueError, match=r"mask_threshold=1.5"):
            instance_segmentation(class_logits, mask_logits, self.geometry, mask_threshold=1.5)

    def test_one_query_of_two_classes(self):
        class_logits = torch.tensor([[2.0, 1.9, -5.0]])
        instances = instance_segmentation(class_logits, rectangle(8, 8, 1, 1, 5, 7)[None], self.geometry, threshold=0.1)
        assert instances.labels.tolist() == [0, 1]
        assert torch.equal(instances.masks[0], instances.masks[1])

    @pytest.mark.parametrize("duplicate_iou", [0.0, 0.3, 0.6])
    def test_duplicates(self, duplicate_iou):
        class_logits, mask_logits = example(queries=30, classes=2, height=8, width=8)

        def found():
            return instance_segmentation(class_logits, mask_logits, self.geometry, threshold=0.1)

        everything = found()
        kept: list[int] = []
        for index, (mask, label) in enumerate(zip(everything.masks, everything.labels, strict=True)):
            ious = [
                (mask & everything.masks[other]).sum() / (mask | everything.masks[other]).sum()
                for other in kept
                if everything.labels[other] == label
            ]
            if not any(iou > duplicate_iou for iou in ious):
                kept.append(index)
        assert 1 < len(kept) < len(everything.masks)
        result = without_duplicates(found(), duplicate_iou)
        for part, expected in zip(result, everything, strict=True):
            assert torch.equal(part, expected[kept])
        outputs = as_outputs(class_logits, mask_logits)
        processor = MaskFormerImageProcessor()
        records = [
            processor.post_process_instance_segmentation(
                outputs, 0.1, target_sizes=[(32, 32)], return_binary_maps=True, **options
            )[0]["segments_info"]
            for options in ({}, {"duplicate_iou": duplicate_iou})
        ]
        assert [len(part) for part in records] == [len(everything.masks), len(kept)]

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_finite(self, value):
        for which in range(2):
            class_logits, mask_logits = example(height=8, width=8)
            (class_logits, mask_logits)[which][0, 0] = value
            class_logits[0, 1] += 20  # the query has to be among those that are looked at
            for task in (semantic_segmentation, panoptic_segmentation, instance_segmentation):
                with pytest.raises(ValueError, match=r"NaN or infinity; check the weights"):
                    task(class_logits, mask_logits, self.geometry)

    def test_gradients_and_inference_tensors_are_no_obstacle(self):
        class_logits, mask_logits = example(height=8, width=8)
        expected = semantic_segmentation(class_logits, mask_logits, self.geometry)
        assert torch.equal(
            semantic_segmentation(class_logits.requires_grad_(), mask_logits.requires_grad_(), self.geometry), expected
        )
        with torch.inference_mode():
            tensors = class_logits * 1, mask_logits * 1
        assert torch.equal(semantic_segmentation(*tensors, self.geometry), expected)
        panoptic_segmentation(*tensors, self.geometry)
        instance_segmentation(*tensors, self.geometry)

    def test_inputs_are_left_alone(self):
        class_logits, mask_logits = example(height=8, width=8)
        copies = class_logits.clone(), mask_logits.clone()
        for task in (semantic_segmentation, panoptic_segmentation, instance_segmentation):
            task(class_logits, mask_logits, self.geometry)
        assert torch.equal(class_logits, copies[0])
        assert torch.equal(mask_logits, copies[1])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_dtypes_are_computed_in_float32(self, dtype):
        (height, width), geometry = named_geometry("cropped and enlarged")
        class_logits, mask_logits = (tensor.to(dtype) for tensor in example(height=height, width=width))
        wide = class_logits.float(), mask_logits.float()
        assert torch.equal(
            semantic_segmentation(class_logits, mask_logits, geometry), semantic_segmentation(*wide, geometry)
        )
        assert torch.equal(
            panoptic_segmentation(class_logits, mask_logits, geometry)[0], panoptic_segmentation(*wide, geometry)[0]
        )
        for part, expected in zip(
            instance_segmentation(class_logits, mask_logits, geometry),
            instance_segmentation(*wide, geometry),
            strict=True,
        ):
            assert torch.equal(part, expected)

    def test_autocast_does_not_reach_inside(self):
        (height, width), geometry = named_geometry("stride 4")
        logits = example(height=height, width=width)
        expected = semantic_segmentation(*logits, geometry)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(semantic_segmentation(*logits, geometry), expected)
            assert semantic_scores(*logits, geometry).dtype == torch.float32

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    @pytest.mark.parametrize("name", ["cropped and enlarged", "much reduced"])
    def test_cuda(self, name):
        (height, width), geometry = named_geometry(name)
        logits = example(height=height, width=width)
        on_device = [tensor.cuda() for tensor in logits]
        semantic = semantic_segmentation(*on_device, geometry)
        assert semantic.is_cuda
        assert (semantic.cpu() != semantic_segmentation(*logits, geometry)).float().mean() < 1e-3
        panoptic, records = panoptic_segmentation(*on_device, geometry, threshold=0.3)
        expected, expected_records = panoptic_segmentation(*logits, geometry, threshold=0.3)
        assert (panoptic.cpu() != expected).float().mean() < 1e-3
        assert [r["label_id"] for r in records] == [r["label_id"] for r in expected_records]
        instances = instance_segmentation(*on_device, geometry, threshold=0.1)
        assert instances.masks.is_cuda
        torch.testing.assert_close(
            instances.scores.cpu(), instance_segmentation(*logits, geometry, threshold=0.1).scores, atol=1e-4, rtol=0
        )
        assert flatten_instances(instances)[0].is_cuda
        assert len(encode_coco_rle(instances.masks)) == len(instances.masks)


class TestGeometry:
    def test_defaults_without_sizes(self):
        outputs = as_outputs(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5, 6))
        assert image_geometries(outputs) == [ImageGeometry((20, 24), (20, 24), (20, 24))] * 2

    def test_sizes_of_outputs_and_targets(self):
        outputs = as_outputs(
            torch.zeros(2, 3, 4), torch.zeros(2, 3, 5, 6), image_sizes=[[18, 24], [20, 9]], padded_sizes=[[20, 24]] * 2
        )
        assert [geometry.target_size for geometry in image_geometries(outputs)] == [(18, 24), (20, 9)]
        for targets in ([(30, 31), (40, 41)], torch.tensor([[30, 31], [40, 41]]), np.array([[30, 31], [40, 41]])):
            assert image_geometries(outputs, targets)[1] == ImageGeometry((20, 24), (20, 9), (40, 41))

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            ([(4, 4)], r"target_sizes has 1 entries for 2 images"),
            ([(4, 4), (0, 4)], r"target_sizes\[1\] is \(0, 4\)"),
            ([(4, 4, 3), (4, 4)], r"target_sizes\[0\]"),
            ([(4.5, 4), (4, 4)], r"target_sizes\[0\]"),
        ],
    )
    def test_wrong_targets(self, targets, message):
        outputs = as_outputs(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5, 6))
        with pytest.raises(ValueError, match=message):
            image_geometries(outputs, targets)

    def test_image_larger_than_its_canvas(self):
        outputs = as_outputs(torch.zeros(1, 3, 4), torch.zeros(1, 3, 5, 6), image_sizes=[[21, 24]])
        with pytest.raises(ValueError, match=r"Image 0: image size \(21, 24\) is larger"):
            image_geometries(outputs)

    def test_unknown_order(self):
        with pytest.raises(ValueError, match=r"resize='probabilities'"):
            semantic_segmentation(
                torch.zeros(1, 2), torch.zeros(1, 4, 4), ImageGeometry((4, 4), (4, 4), (4, 4)), resize="probabilities"
            )


class TestProcessorMethods:
    processor = MaskFormerImageProcessor(label_ids_to_fuse=[0])
    things = as_outputs(
        confident([1, 2], 3),
        torch.stack([rectangle(16, 16, 2, 2, 10, 10), rectangle(16, 16, 6, 6, 14, 14, value=6.0)]),
    )

    def test_as_the_pipeline_calls_them(self):
        arguments = {
            "threshold": 0.9,
            "mask_threshold": 0.5,
            "overlap_mask_area_threshold": 0.5,
            "target_sizes": [(64, 64)],
        }
        for name in ("panoptic", "instance"):
            result = getattr(self.processor, f"post_process_{name}_segmentation")(self.things, **arguments)[0]
            assert len(result["segments_info"]) == 2
            for segment in result["segments_info"]:
                assert {"id", "label_id", "was_fused", "score"} <= set(segment)
                assert ((result["segmentation"] == segment["id"]) * 255).numpy().any()
        semantic = self.processor.post_process_semantic_segmentation(self.things, target_sizes=[(64, 64)])[0].numpy()
        assert set(np.unique(semantic)) <= {0, 1, 2}

    def test_positional_arguments_are_those_of_transformers(self):
        first = self.processor.post_process_instance_segmentation(self.things, 0.5, 0.5, 0.8, [(20, 30)], False, True)[
            0
        ]
        assert first["segmentation"].shape == (2, 20, 30)
        panoptic = self.processor.post_process_panoptic_segmentation(self.things, 0.5, 0.5, 0.8, {1, 2}, [(20, 30)])[0]
        assert all(segment["was_fused"] for segment in panoptic["segments_info"])
        scores = self.processor.post_process_semantic_segmentation(self.things, [(20, 30)], True)[0]
        assert scores.segmentation_scores.shape == (3, 20, 30)
        assert torch.equal(scores.segmentation, scores.segmentation_scores.argmax(0))

    def test_labels_to_fuse_come_from_the_processor(self):
        outputs = as_outputs(
            confident([0, 0, 1], 2),
            torch.stack([rectangle(8, 8, 0, 0, 3, 8), rectangle(8, 8, 5, 0, 8, 8), rectangle(8, 8, 3, 0, 5, 8)]),
        )
        saved = self.processor.post_process_panoptic_segmentation(outputs)[0]["segments_info"]
        assert [(segment["label_id"], segment["was_fused"]) for segment in saved] == [(0, True), (1, False)]
        none = self.processor.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=set())[0]["segments_info"]
        assert [segment["label_id"] for segment in none] == [0, 0, 1]
        # Stuff is no instance.
        instances = self.processor.post_process_instance_segmentation(outputs)[0]
        assert [segment["label_id"] for segment in instances["segments_info"]] == [1]
        instances = self.processor.post_process_instance_segmentation(outputs, label_ids_to_fuse=())[0]
        assert len(instances["segments_info"]) == 3

    def test_both_forms_at_once(self):
        with pytest.raises(ValueError, match="exclude each other"):
            self.processor.post_process_instance_segmentation(
                self.things, return_coco_annotation=True, return_binary_maps=True
            )

    def test_better_scores_lie_on_top(self):
        result = self.processor.post_process_instance_segmentation(self.things, overlap_mask_area_threshold=0.5)[0]
        masks, flat = result["masks"], result["segmentation"]
        assert result["segments_info"][0]["label_id"] == 1  # surer pixels
        assert (masks[0] & masks[1]).any()
        assert (flat[masks[0]] == 1).all()
        assert (flat[masks[1] & ~masks[0]] == 2).all()
        assert not flat[~masks.any(0)].any()
        assert result["segments_info"][1]["box"] == tuple(result["boxes"][1].tolist())


class TestDefectsOfTransformers:
    """Rows of the list of defects found in transformers 5.23; each assertion about it holds for that version."""

    ours = MaskFormerImageProcessor()
    theirs = TheirProcessor()

    def test_3_padding_is_not_stretched_into_the_image(self):
        # A full-frame object of a 64x64 image, which shares a batch with one of 64x128.
        logits = torch.full((1, 1, 16, 32), -9.0)
        logits[..., :16] = 9.0
        outputs = as_outputs(confident([0], 1)[None], logits, image_sizes=[[64, 64]], padded_sizes=[[64, 128]])
        for name in ("panoptic", "instance"):
            ours = getattr(self.ours, f"post_process_{name}_segmentation")(outputs, target_sizes=[(64, 64)])[0]
            assert (ours["segmentation"] == 1).float().mean() > 0.97
            if THEIRS_AS_DESCRIBED:
                theirs = getattr(self.theirs, f"post_process_{name}_segmentation")(outputs, target_sizes=[(64, 64)])[0]
                own = (
                    theirs["masks"] if "masks" in theirs else theirs["segmentation"] == theirs["segments_info"][0]["id"]
                )
                # Their panoptic map paints everything (row 6), so only the instance shows the stretching.
                if name == "instance":
                    assert own.float().mean() == pytest.approx(0.5, abs=0.02)

    def test_4_small_objects_keep_their_shape(self):
        """The Mask2Former processor goes through 384x384 squares; ellipses of radius 8 in 1024x2048 show it."""
        rows, columns = torch.meshgrid(torch.arange(1024.0), torch.arange(2048.0), indexing="ij")
        truth = ((rows - 500) / 8) ** 2 + ((columns - 903) / 8) ** 2 <= 1
        distance = 8 - ((rows - 500) ** 2 + (columns - 903) ** 2).sqrt()
        logits = F.interpolate(distance[None, None], size=(256, 512), mode="area")
        outputs = as_outputs(confident([0], 1)[None], logits)

        def iou(mask):
            return ((mask & truth).sum() / (mask | truth).sum()).item()

        mask = self.ours.post_process_instance_segmentation(outputs, threshold=0, target_sizes=[(1024, 2048)])[0][
            "masks"
        ]
        assert iou(mask[0]) > 0.9
        if THEIRS_AS_DESCRIBED:
            theirs = TheirMask2FormerProcessor().post_process_instance_segmentation(
                outputs, threshold=0, target_sizes=[(1024, 2048)], return_binary_maps=True
            )[0]["segmentation"]
            assert iou(theirs[0].bool()) < 0.8

    def test_5_ids_are_unique(self):
        stripes = torch.stack([rectangle(16, 16, 4 * index, 0, 4 * index + 4, 16) for index in range(4)])
        outputs = as_outputs(confident([0, 1, 0, 1], 2), stripes)
        result = self.ours.post_process_panoptic_segmentation(outputs, label_ids_to_fuse={0})[0]
        assert [(s["id"], s["label_id"]) for s in result["segments_info"]] == [(1, 0), (2, 1), (3, 1)]
        middle = result["segmentation"][8::16, 32].tolist()
        assert middle == [1, 2, 1, 3]
        if THEIRS_AS_DESCRIBED:
            theirs = self.theirs.post_process_panoptic_segmentation(outputs, label_ids_to_fuse={0})[0]
            assert [segment["id"] for segment in theirs["segments_info"]] == [1, 2, 1, 2]

    def test_6_good_segments_stay_and_the_rest_is_void(self):
        # Class score 0.6 and mask probability 0.73: their product is below one half.
        weak = as_outputs(confident([0], 1, probability=0.6), rectangle(8, 8, 0, 0, 8, 8, value=1.0)[None])
        assert len(self.ours.post_process_panoptic_segmentation(weak)[0]["segments_info"]) == 1
        # One small segment: beyond its mask, Mask2Former's form leaves void.
        alone = as_outputs(confident([0], 1), rectangle(8, 8, 2, 2, 4, 4)[None])
        ours = self.ours.post_process_panoptic_segmentation(alone, intersect_with_mask=True)[0]["segmentation"]
        assert ours[0, 0] == 0
        assert (ours == 1).sum() < 150
        # Void is 0 and the map holds whole numbers, also when there is nothing.
        nothing = as_outputs(confident([-1], 1), torch.zeros(1, 8, 8))
        for name in ("panoptic", "instance"):
            result = getattr(self.ours, f"post_process_{name}_segmentation")(nothing)[0]["segmentation"]
            assert result.dtype == torch.int32
            assert not result.any()
        if THEIRS_AS_DESCRIBED:
            assert self.theirs.post_process_panoptic_segmentation(weak)[0]["segments_info"] == []
            theirs = self.theirs.post_process_panoptic_segmentation(alone)[0]["segmentation"]
            assert (theirs == 1).all()
            theirs = self.theirs.post_process_panoptic_segmentation(nothing)[0]["segmentation"]
            assert theirs.dtype == torch.float32
            assert (theirs == -1).all()

    def test_10_thresholds_of_instances_have_an_effect(self):
        ramp = torch.linspace(-9, 9, 16).expand(1, 16, 16)
        areas = [
            self.ours.post_process_instance_segmentation(as_outputs(confident([0], 1), ramp), mask_threshold=value)[0][
                "segments_info"
            ][0]["area"]
            for value in (0.1, 0.5, 0.99)
        ]
        assert areas[0] > areas[1] > areas[2]
        outputs = as_outputs(*example(height=16, width=16))
        every = self.ours.post_process_instance_segmentation(outputs, 0.3, overlap_mask_area_threshold=0.0)[0]
        few = self.ours.post_process_instance_segmentation(outputs, 0.3, overlap_mask_area_threshold=0.9)[0]
        assert len(few["segments_info"]) < len(every["segments_info"])
        for segment, mask in zip(few["segments_info"], few["masks"], strict=True):
            assert (few["segmentation"] == segment["id"]).sum() >= 0.9 * mask.sum()
        if THEIRS_AS_DESCRIBED:
            maps = [
                self.theirs.post_process_instance_segmentation(outputs, 0.3, *thresholds)[0]["segmentation"]
                for thresholds in ((0.5, 0.8), (0.99, 0.1))
            ]
            assert torch.equal(*maps)

    def test_11_overlapping_instances_are_all_there(self):
        inner, outer = rectangle(16, 16, 4, 4, 8, 8, value=12.0), rectangle(16, 16, 0, 0, 14, 14, value=3.0)
        class_logits = torch.cat([confident([0], 2, 0.99), confident([1], 2, 0.95)])
        outputs = as_outputs(class_logits, torch.stack([inner, outer]))
        ours = self.ours.post_process_instance_segmentation(outputs, return_binary_maps=True)[0]
        assert ours["segmentation"].shape == (2, 64, 64)
        assert (ours["segmentation"][0] & ~ours["segmentation"][1]).sum() == 0
        flat = self.ours.post_process_instance_segmentation(outputs)[0]
        assert (flat["segmentation"] == 1).sum() == ours["segmentation"][0].sum()  # not painted over
        nothing = as_outputs(confident([-1], 1), torch.zeros(1, 8, 8))
        empty = self.ours.post_process_instance_segmentation(nothing, return_binary_maps=True)[0]["segmentation"]
        assert empty.shape == (0, 32, 32)
        assert empty.dtype == torch.bool
        if THEIRS_AS_DESCRIBED:
            theirs = self.theirs.post_process_instance_segmentation(outputs)[0]
            visible = {s["label_id"]: (theirs["segmentation"] == s["id"]).sum() for s in theirs["segments_info"]}
            assert visible[0] == 0  # the later, weaker one lies over it
            theirs = self.theirs.post_process_instance_segmentation(nothing, return_binary_maps=True)[0]
            assert theirs["segmentation"].ndim == 2

    def test_12_run_lengths_are_those_of_pycocotools(self):
        outputs = as_outputs(*example(height=16, width=20))
        encoded = self.ours.post_process_instance_segmentation(outputs, 0.3, return_coco_annotation=True)[0]
        assert len(encoded["segmentation"]) == len(encoded["segments_info"]) == len(encoded["masks"]) > 2
        for rle, mask, segment in zip(encoded["segmentation"], encoded["masks"], encoded["segments_info"], strict=True):
            assert rle["size"] == [64, 80]
            assert isinstance(rle["counts"], str)
            assert np.array_equal(coco_mask.decode(rle), mask.numpy())
            assert coco_mask.area(rle) == segment["area"]
            x, y, width, height = coco_mask.toBbox(rle)
            assert (x, y, x + width, y + height) == segment["box"]
        if THEIRS_AS_DESCRIBED:
            theirs = self.theirs.post_process_instance_segmentation(outputs, 0.3, return_coco_annotation=True)[0]
            assert isinstance(theirs["segmentation"][0], list)
            # The background is one of theirs.
            flat = self.theirs.post_process_instance_segmentation(outputs, 0.3)[0]["segmentation"]
            assert len(theirs["segmentation"]) == len(flat.unique())
