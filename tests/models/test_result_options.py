"""Options of results: a checkpoint's own, and what a caller says."""

import pytest
import torch
from PIL import Image

from builders import tiny_config
from logits import as_outputs, confident, rectangle
from maskformer_hf import MaskFormerConfig, MaskFormerImageProcessor, MaskFormerVideoConfig, MaskFormerVideoProcessor
from maskformer_hf import PerPixelBaselineConfig as PerPixelConfig
from maskformer_hf.models.panoptic import MERGINGS, panoptic_segmentation
from maskformer_hf.models.parts import Part, names_of, register
from maskformer_hf.models.result_options import FACTS, ResultOptions, facts_of
from maskformer_hf.models.results import results_of
from maskformer_hf.models.saved_facts import copy_facts

OWN = {
    "task": "instance",
    "object_mask_threshold": 0.3,
    "overlap_mask_area_threshold": 0.6,
    "instance_threshold": 0.2,
    "duplicate_iou": 0.9,
    "intersect_with_mask": True,
    "label_ids_to_fuse": [1],
}


class TestOptions:
    def test_they_are_the_checkpoints(self):
        for source in (tiny_config(**OWN), MaskFormerImageProcessor(**OWN)):
            assert ResultOptions.of(source) == ResultOptions(
                "instance",
                threshold=0.2,
                overlap_mask_area_threshold=0.6,
                label_ids_to_fuse={1},
                duplicate_iou=0.9,
                intersect_with_mask=True,
            )
            assert ResultOptions.of(source, "panoptic").threshold == 0.3

    def test_what_is_given_wins(self):
        given = {
            "threshold": 0.0,
            "mask_threshold": 0.4,
            "overlap_mask_area_threshold": 0,
            "label_ids_to_fuse": (),
            "max_instances": 7,
            "duplicate_iou": 1,
            "intersect_with_mask": False,
            "merging": "argmax",
            "resize": "scores",
        }
        assert ResultOptions.of(tiny_config(**OWN), "panoptic", **given) == ResultOptions("panoptic", **given)
        none = ResultOptions.of(tiny_config(**OWN), None, **dict.fromkeys(given))
        assert none == ResultOptions.of(tiny_config(**OWN))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (
                {"treshold": 0.5},
                r"There is no option 'treshold' of results; there are threshold, mask_threshold, .*resize",
            ),
            ({"task": "detection"}, r"`task` must be one of \['semantic', 'instance', 'panoptic'\], got 'detection'"),
            ({"task": ""}, r"`task` must be one of"),
            ({"merging": "best"}, r"`merging` must be one of \['argmax'.*\], got 'best'"),
            ({"resize": "probabilities"}, r"`resize` must be one of \['logits', 'scores'\], got 'probabilities'"),
            ({"threshold": 1.5}, r"`threshold` must be a number from 0 to 1, got 1.5"),
            ({"threshold": "high"}, r"`threshold` must be a number from 0 to 1, got 'high'"),
            ({"mask_threshold": -0.1}, r"`mask_threshold` must be a number from 0 to 1, got -0.1"),
            (
                {"overlap_mask_area_threshold": 80},
                r"`overlap_mask_area_threshold` must be a number from 0 to 1, got 80",
            ),
            ({"duplicate_iou": float("nan")}, r"`duplicate_iou` must be a number from 0 to 1, got nan"),
            ({"max_instances": 0}, r"`max_instances` must be at least 1, or None, got 0"),
        ],
    )
    def test_what_cannot_be_is_named(self, given, message):
        with pytest.raises(ValueError, match=message):
            ResultOptions.of(tiny_config(), **given)

    def test_facts_of_every_configuration_and_processor_have_the_same_defaults(self):
        assert facts_of(MaskFormerConfig()) == facts_of(MaskFormerImageProcessor()) == FACTS
        assert (
            facts_of(MaskFormerVideoConfig()) == facts_of(MaskFormerVideoProcessor()) == {**FACTS, "task": "instance"}
        )
        assert facts_of(PerPixelConfig()) == {**FACTS, "task": "semantic"}


@pytest.fixture(scope="module")
def outputs(tiny_model, tiny_processor, photo_paths):
    inputs = tiny_processor(Image.open(photo_paths[0]), return_tensors="pt")
    with torch.inference_mode():
        return tiny_model(**inputs)


class TestCheckpointsOwnResults:
    """Without arguments, the processor's methods give what the checkpoint's options give."""

    @pytest.mark.parametrize("own", [{}, OWN])
    def test_no_arguments(self, own, outputs):
        config = tiny_config(**own)
        processor = MaskFormerImageProcessor()
        copy_facts(config, processor)
        size = [(120, 90)]
        (panoptic,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=size)
        (expected,) = results_of(outputs, ResultOptions.of(config, "panoptic"), size)
        assert len(expected.segments) > 1
        assert panoptic["segments_info"] == expected.segments
        assert torch.equal(panoptic["segmentation"], expected.segmentation)

        (instances,) = processor.post_process_instance_segmentation(outputs, target_sizes=size)
        (expected,) = results_of(outputs, ResultOptions.of(config, "instance"), size)
        assert len(expected.segments) > 1
        rounded = [{**segment, "score": round(segment["score"], 6)} for segment in expected.segments]
        assert instances["segments_info"] == rounded
        assert torch.equal(instances["masks"], expected.masks)
        # Better scores lie on top, and none is left out.
        for index in range(len(rounded)):
            hidden = expected.masks[:index].any(0)
            assert torch.equal(instances["segmentation"] == index + 1, expected.masks[index] & ~hidden)

        (semantic,) = processor.post_process_semantic_segmentation(outputs, target_sizes=size)
        (expected,) = results_of(outputs, ResultOptions.of(config, "semantic"), size)
        assert torch.equal(semantic, expected.segmentation)
        assert {segment["id"] for segment in expected.segments} == set(semantic.unique().tolist())

    def test_the_facts_make_a_difference(self, outputs):
        """Each of them changes what the methods give: none is read by one side alone."""

        def segments(task, **facts):
            processor = MaskFormerImageProcessor(**facts)
            method = getattr(processor, f"post_process_{task}_segmentation")
            return method(outputs, target_sizes=[(120, 90)])[0]["segments_info"]

        assert len(segments("panoptic")) > 1
        for facts in (
            {"object_mask_threshold": 0.999},
            {"overlap_mask_area_threshold": 0.99},
            {"intersect_with_mask": True},
            {"label_ids_to_fuse": [0, 1, 2, 3]},
        ):
            assert segments("panoptic", **facts) != segments("panoptic"), facts
        assert len(segments("instance")) > 1
        for facts in ({"instance_threshold": 0.9}, {"duplicate_iou": 0.05}, {"label_ids_to_fuse": [0, 1]}):
            assert len(segments("instance", **facts)) < len(segments("instance")), facts


class LazyMasks:
    """Masks of one image that tell which queries they were asked for."""

    def __init__(self, logits_Qhw):
        self.logits_Qhw = logits_Qhw
        self.shape, self.device = logits_Qhw.shape, logits_Qhw.device
        self.asked = []

    def __getitem__(self, queries):
        found = self.logits_Qhw[queries]
        self.asked.append(range(len(self.logits_Qhw))[queries] if isinstance(queries, slice) else queries.tolist())
        return found


class TestLazyMasks:
    class_logits = torch.cat([confident([2, -1], 3), confident([0, 1], 3, 0.6)])
    mask_logits = torch.stack([rectangle(8, 8, row, 0, row + 2, 8) for row in (0, 2, 4, 6)])

    @pytest.mark.parametrize(
        ("task", "options", "asked"),
        [
            ("panoptic", {"threshold": 0.8}, [0]),
            ("panoptic", {"threshold": 0.5}, [0, 2, 3]),
            ("instance", {"threshold": 0.5}, [0, 2, 3]),
            ("instance", {"threshold": 0.5, "label_ids_to_fuse": [0]}, [0, 3]),
            ("semantic", {}, [0, 1, 2, 3]),
        ],
    )
    def test_only_queries_that_can_matter_are_asked_for(self, task, options, asked):
        outputs = as_outputs(self.class_logits, self.mask_logits)
        lazy = as_outputs(self.class_logits, self.mask_logits)
        lazy.masks, lazy.masks_queries_logits = [LazyMasks(self.mask_logits)], None
        options = ResultOptions(task, **options)
        (found,), (expected,) = results_of(lazy, options), results_of(outputs, options)
        assert found.segments == expected.segments
        assert len(found.segments) > 0
        for part in ("segmentation", "masks", "boxes"):
            ours, theirs = getattr(found, part), getattr(expected, part)
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
        assert [list(queries) for queries in lazy.masks[0].asked] == [asked]

    def test_no_query_is_asked_for_where_there_is_nothing(self):
        outputs = as_outputs(confident([-1, -1], 3), torch.zeros(2, 8, 8))
        outputs.masks, outputs.masks_queries_logits = [LazyMasks(torch.zeros(2, 8, 8))], None
        (result,) = results_of(outputs, ResultOptions("panoptic"), [(20, 30)])
        assert result.segmentation.shape == (20, 30)
        assert outputs.masks[0].asked == []


def test_merging_is_a_part(monkeypatch):
    def upside_down(class_logits, masks, geometry, options):
        segmentation, records = panoptic_segmentation(class_logits, masks, geometry, options)
        return segmentation.flip(0), records

    register("merging", "upside_down", Part(upside_down))
    monkeypatch.setitem(MERGINGS, "upside_down", MERGINGS.pop("upside_down"))  # deletes it after the test
    outputs = as_outputs(confident([0, 1], 2), torch.stack([rectangle(8, 8, 0, 0, 3, 8), rectangle(8, 8, 3, 0, 8, 8)]))
    (plain,) = results_of(outputs, ResultOptions("panoptic"))
    assert set(names_of("merging")) == set(MERGINGS) >= {"argmax", "upside_down"}
    (merged,) = results_of(outputs, ResultOptions("panoptic", merging="upside_down"))
    assert torch.equal(merged.segmentation, plain.segmentation.flip(0))


def test_results_need_the_right_outputs():
    per_pixel = as_outputs(torch.zeros(1, 1, 1), torch.zeros(1, 1, 8, 8))
    per_pixel.logits = torch.zeros(1, 3, 8, 8)
    for task in ("panoptic", "instance"):
        with pytest.raises(ValueError, match="outputs of a per-pixel model"):
            results_of(per_pixel, ResultOptions(task))
    (result,) = results_of(per_pixel, ResultOptions("semantic"))
    assert [segment["label_id"] for segment in result.segments] == [0]
    clip = as_outputs(torch.zeros(1, 2, 4), torch.zeros(1, 2, 3, 8, 8))
    with pytest.raises(ValueError, match="outputs of a video model"):
        results_of(clip, ResultOptions("instance"))
