"""What is read from logits, where it could go wrong: ties, thresholds, empty masks, values, dtypes, sizes."""

import numpy as np
import pytest
import torch

from logits import as_outputs, confident, example, instances_of, named_geometry, panoptic_of, rectangle
from maskformer_hf import MaskFormerImageProcessor
from maskformer_hf.models.coco_rle import encode_coco_rle
from maskformer_hf.models.image_geometry import ImageGeometry, image_geometries
from maskformer_hf.models.instances import flatten_masks, without_duplicates
from maskformer_hf.models.semantic import semantic_scores, semantic_segmentation


class TestEdgeCases:
    geometry = ImageGeometry((32, 32), (32, 32), (32, 32))

    def test_ties_go_to_the_first(self):
        mask = rectangle(8, 8, 0, 0, 8, 8, value=60.0)  # float32 probability of exactly 1
        class_logits = confident([1, 0, 1], 2)
        segmentation, records = panoptic_of(class_logits, mask.expand(3, 8, 8), self.geometry)
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
            _, records = panoptic_of(
                class_logits, torch.stack([over, under]), geometry, overlap_mask_area_threshold=overlap
            )
            assert len(records) == expected

    def test_nothing_but_no_object(self):
        class_logits, mask_logits = confident([-1, -1], 3), torch.randn(2, 8, 8)
        segmentation, records = panoptic_of(class_logits, mask_logits, self.geometry)
        assert segmentation.shape == (32, 32)
        assert segmentation.dtype == torch.int32
        assert not segmentation.any()
        assert records == []
        instances = instances_of(class_logits, mask_logits, self.geometry)
        assert instances.masks.shape == (0, 32, 32)
        assert instances.boxes.shape == (0, 4)
        flat, drawn = flatten_masks(instances.masks, instances.boxes)
        assert not flat.any()
        assert drawn.shape == (0,)
        assert encode_coco_rle(instances.masks) == []
        assert semantic_segmentation(class_logits, mask_logits, self.geometry).shape == (32, 32)

    def test_empty_masks_are_no_segments(self):
        mask_logits = torch.stack([torch.full((8, 8), -9.0), rectangle(8, 8, 2, 2, 6, 6)])
        class_logits = confident([0, 1], 2)
        assert instances_of(class_logits, mask_logits, self.geometry).labels.tolist() == [1]
        # A weak mask that wins everywhere is no segment either, for its own mask is empty.
        assert panoptic_of(class_logits[:1], mask_logits[:1], self.geometry)[1] == []

    def test_mask_threshold_at_its_ends(self):
        class_logits, mask_logits = confident([0], 2), rectangle(8, 8, 2, 2, 6, 6)[None]
        everything = instances_of(class_logits, mask_logits, self.geometry, threshold=0, mask_threshold=0)
        assert everything.masks.all()
        assert len(instances_of(class_logits, mask_logits, self.geometry, mask_threshold=1).masks) == 0
        with pytest.raises(ValueError, match=r"`mask_threshold` must be a number from 0 to 1, got 1.5"):
            instances_of(class_logits, mask_logits, self.geometry, mask_threshold=1.5)

    def test_one_query_of_two_classes(self):
        class_logits = torch.tensor([[2.0, 1.9, -5.0]])
        instances = instances_of(class_logits, rectangle(8, 8, 1, 1, 5, 7)[None], self.geometry, threshold=0.1)
        assert instances.labels.tolist() == [0, 1]
        assert torch.equal(instances.masks[0], instances.masks[1])

    @pytest.mark.parametrize("duplicate_iou", [0.0, 0.3, 0.6])
    def test_duplicates(self, duplicate_iou):
        class_logits, mask_logits = example(queries=30, classes=2, height=8, width=8)

        def found():
            return instances_of(class_logits, mask_logits, self.geometry, threshold=0.1)

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
            for task in (semantic_segmentation, panoptic_of, instances_of):
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
        panoptic_of(*tensors, self.geometry)
        instances_of(*tensors, self.geometry)

    def test_inputs_are_left_alone(self):
        class_logits, mask_logits = example(height=8, width=8)
        copies = class_logits.clone(), mask_logits.clone()
        for task in (semantic_segmentation, panoptic_of, instances_of):
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
        assert torch.equal(panoptic_of(class_logits, mask_logits, geometry)[0], panoptic_of(*wide, geometry)[0])
        for part, expected in zip(
            instances_of(class_logits, mask_logits, geometry),
            instances_of(*wide, geometry),
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
        panoptic, records = panoptic_of(*on_device, geometry, threshold=0.3)
        expected, expected_records = panoptic_of(*logits, geometry, threshold=0.3)
        assert (panoptic.cpu() != expected).float().mean() < 1e-3
        assert [r["label_id"] for r in records] == [r["label_id"] for r in expected_records]
        instances = instances_of(*on_device, geometry, threshold=0.1)
        assert instances.masks.is_cuda
        torch.testing.assert_close(
            instances.scores.cpu(), instances_of(*logits, geometry, threshold=0.1).scores, atol=1e-4, rtol=0
        )
        assert flatten_masks(instances.masks, instances.boxes)[0].is_cuda
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
