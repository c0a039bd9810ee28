"""The processor's post-processing: its arguments, and what transformers' does otherwise."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from packaging.version import Version
from pycocotools import mask as coco_mask
from transformers import Mask2FormerImageProcessor as TheirMask2FormerProcessor
from transformers import MaskFormerImageProcessor as TheirProcessor

from logits import as_outputs, confident, example, rectangle
from maskformer_hf import MaskFormerImageProcessor

# Claims about transformers are checked against the version that they were made of.
THEIRS_AS_DESCRIBED = Version(transformers.__version__).release[:2] == (5, 23)


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
        assert len(self.ours.post_process_panoptic_segmentation(weak, threshold=0.5)[0]["segments_info"]) == 1
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
