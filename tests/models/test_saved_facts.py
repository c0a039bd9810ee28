"""What a checkpoint says about its results is the same in config.json and preprocessor_config.json."""

import copy
import json

import pytest
import transformers

from builders import tiny_config
from maskformer_hf import MaskFormerConfig, MaskFormerImageProcessor, MaskFormerVideoConfig, MaskFormerVideoProcessor
from maskformer_hf.inference.load import bundled_checkpoints
from maskformer_hf.models.result_options import FACTS, facts_of
from maskformer_hf.models.saved_facts import update_saved_processor

OWN = {
    "task": "instance",
    "object_mask_threshold": 0.3,
    "overlap_mask_area_threshold": 0.6,
    "instance_threshold": 0.2,
    "duplicate_iou": 0.9,
    "intersect_with_mask": True,
    "label_ids_to_fuse": [1],
}


def stored(folder):
    return json.loads((folder / "preprocessor_config.json").read_text())


def test_facts_are_saved_and_loaded(tmp_path):
    MaskFormerImageProcessor(**OWN).save_pretrained(tmp_path)
    assert stored(tmp_path).items() >= OWN.items()
    assert facts_of(MaskFormerImageProcessor.from_pretrained(tmp_path)) == {**FACTS, **OWN}


def test_the_processor_takes_those_of_the_model_when_it_is_saved(tmp_path):
    tiny_config(**OWN).save_pretrained(tmp_path)
    processor = MaskFormerImageProcessor(object_mask_threshold=0.1)
    processor.save_pretrained(tmp_path)
    assert facts_of(processor) == {**FACTS, **OWN}
    assert facts_of(MaskFormerImageProcessor.from_pretrained(tmp_path)) == {**FACTS, **OWN}


def test_the_model_gives_its_own_to_the_processor_that_is_there(tmp_path):
    processor = MaskFormerImageProcessor(size={"shortest_edge": 55}, duplicate_iou=0.1, label_ids_to_fuse=[2])
    processor.save_pretrained(tmp_path)
    before = stored(tmp_path)
    update_saved_processor(tmp_path, tiny_config(**{**OWN, "duplicate_iou": None, "label_ids_to_fuse": (2, 0)}))
    after = stored(tmp_path)
    assert {name: value for name, value in after.items() if name not in FACTS} == {
        name: value for name, value in before.items() if name not in FACTS
    }
    assert facts_of(MaskFormerImageProcessor.from_pretrained(tmp_path)) == {
        **FACTS,
        **OWN,
        "duplicate_iou": None,
        "label_ids_to_fuse": [0, 2],
    }
    # The file is what the processor itself would have written.
    MaskFormerImageProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert stored(tmp_path) == after
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_processor_of_videos_too(tmp_path):
    MaskFormerVideoProcessor().save_pretrained(tmp_path)
    update_saved_processor(tmp_path, MaskFormerVideoConfig(instance_threshold=0.9))
    assert MaskFormerVideoProcessor.from_pretrained(tmp_path).instance_threshold == 0.9


def test_files_of_others_are_left_alone(tmp_path):
    transformers.MaskFormerImageProcessor().save_pretrained(tmp_path)
    before = (tmp_path / "preprocessor_config.json").read_text()
    update_saved_processor(tmp_path, tiny_config(**OWN))
    assert (tmp_path / "preprocessor_config.json").read_text() == before
    update_saved_processor(tmp_path / "nothing", tiny_config(**OWN))
    assert not (tmp_path / "nothing").exists()
    # Neither is the configuration of another model followed.
    transformers.MaskFormerConfig().save_pretrained(tmp_path)
    processor = MaskFormerImageProcessor(object_mask_threshold=0.1)
    processor.save_pretrained(tmp_path)
    assert processor.object_mask_threshold == 0.1


def test_whichever_is_saved_last(tmp_path, tiny_model):
    model = copy.deepcopy(tiny_model)
    model.config.object_mask_threshold = 0.3
    processor = MaskFormerImageProcessor()
    processor.save_pretrained(tmp_path / "processor first")
    model.save_pretrained(tmp_path / "processor first")
    model.save_pretrained(tmp_path / "model first")
    processor.save_pretrained(tmp_path / "model first")
    for folder in ("processor first", "model first"):
        again = MaskFormerImageProcessor.from_pretrained(tmp_path / folder)
        assert facts_of(again) == {**facts_of(model.config), "label_ids_to_fuse": [0, 1]}
        assert again.object_mask_threshold == 0.3


@pytest.mark.parametrize("kind", ["maskformer", "mask2former", "before"])
def test_files_without_facts_are_read_with_those_of_the_model(tmp_path, kind):
    """Files of transformers' processors, and of ours from before they carried facts."""
    if kind == "before":
        tiny_config(**OWN).save_pretrained(tmp_path)
        fields = {"image_processor_type": "MaskFormerHfImageProcessor", "label_ids_to_fuse": [1]}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
        expected = {**FACTS, **OWN}
    else:
        theirs = {"maskformer": transformers.MaskFormerConfig, "mask2former": transformers.Mask2FormerConfig}[kind]
        theirs().save_pretrained(tmp_path)
        transformers.MaskFormerImageProcessor().save_pretrained(tmp_path)
        expected = facts_of(MaskFormerConfig.from_pretrained(tmp_path))
        assert expected["intersect_with_mask"] == (kind == "mask2former")
    assert facts_of(MaskFormerImageProcessor.from_pretrained(tmp_path)) == expected
    assert MaskFormerImageProcessor.from_pretrained(tmp_path, duplicate_iou=0.4).duplicate_iou == 0.4


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON .*: repair or delete it"):
        MaskFormerImageProcessor().save_pretrained(tmp_path)


def test_bundled_checkpoints_say_the_same_twice():
    assert len(bundled_checkpoints()) == 4
    for folder in bundled_checkpoints().values():
        config = json.loads((folder / "config.json").read_text())
        processor = stored(folder)
        assert {name: config.get(name, default) for name, default in FACTS.items()} == {
            name: processor.get(name) for name in FACTS
        }
