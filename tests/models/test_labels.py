"""A checkpoint with other labels: what has a name in common is kept, and the rest is said to start afresh."""

import logging

import pytest
import torch
import transformers

import maskformer_hf  # noqa: F401 (registers the Auto classes)
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation, MaskFormerModel

# Those of `tiny_model`, of which sky and road are fused.
OLD = ["sky", "road", "car", "person"]
NEW = ["person", "bus", "road"]


@pytest.fixture
def old(tiny_model):
    return tiny_model.head.class_predictor


def load(folder, caplog, **kwargs):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model, info = MaskFormerForUniversalSegmentation.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(info.values())
    return model


def check_new_labels(model, old, caplog):
    new = model.head.class_predictor
    assert new.out_features == 4
    for row, former in ((0, 3), (2, 1), (3, 4)):  # person, road, no-object
        assert torch.equal(new.weight[row], old.weight[former])
        assert torch.equal(new.bias[row], old.bias[former])
    assert not any(torch.equal(new.weight[1], row) for row in old.weight)
    assert model.config.id2label == dict(enumerate(NEW))
    assert model.config.label2id == {name: label for label, name in enumerate(NEW)}
    assert model.config.label_ids_to_fuse == [2]
    [message] = [record.getMessage() for record in caplog.records if "classes" in record.getMessage()]
    assert message == (
        "The checkpoint knows 4 classes, now there are 3. Kept: no-object, person, road. Re-initialised, hence to be "
        "trained: bus."
    )


def test_id2label(tiny_checkpoint, old, caplog, tmp_path):
    model = load(tiny_checkpoint, caplog, id2label=dict(enumerate(NEW)))
    check_new_labels(model, old, caplog)
    # It trains with the new labels, and keeps them.
    masks = [torch.zeros(1, 64, 64, dtype=torch.bool)]
    loss = model(torch.randn(1, 3, 64, 64), mask_labels=masks, class_labels=[torch.tensor([2])]).loss
    loss.backward()
    assert model.head.class_predictor.weight.grad is not None
    with pytest.raises(ValueError, match="class label 3"):
        model(torch.randn(1, 3, 64, 64), mask_labels=masks, class_labels=[torch.tensor([3])])
    model.save_pretrained(tmp_path)
    again = load(tmp_path, caplog)
    assert again.config.id2label == model.config.id2label
    assert again.config.label_ids_to_fuse == [2]
    assert torch.equal(again.head.class_predictor.weight, model.head.class_predictor.weight)


def test_label2id(tiny_checkpoint, old, caplog):
    check_new_labels(load(tiny_checkpoint, caplog, label2id={name: i for i, name in enumerate(NEW)}), old, caplog)


def test_config_object(tiny_checkpoint, old, caplog):
    config = MaskFormerConfig.from_pretrained(tiny_checkpoint, id2label=dict(enumerate(NEW)))
    check_new_labels(load(tiny_checkpoint, caplog, config=config), old, caplog)
    assert config.num_labels == 3


def test_auto_class(tiny_checkpoint, old, caplog):
    with caplog.at_level(logging.WARNING):
        model = transformers.AutoModelForUniversalSegmentation.from_pretrained(
            tiny_checkpoint, id2label=dict(enumerate(NEW))
        )
    check_new_labels(model, old, caplog)


def test_model_without_head(tiny_checkpoint):
    model = MaskFormerModel.from_pretrained(tiny_checkpoint, num_labels=7)
    assert model.config.num_labels == 7


def test_number_of_labels(tiny_checkpoint, old, caplog):
    model = load(tiny_checkpoint, caplog, num_labels=5)
    assert "Kept: no-object, none. Re-initialised" in caplog.text
    assert torch.equal(model.head.class_predictor.weight[-1], old.weight[-1])
    assert model.config.label_ids_to_fuse == []
    model = load(tiny_checkpoint, caplog, num_labels=5, label_ids_to_fuse=[4])
    assert model.config.label_ids_to_fuse == [4]


@pytest.mark.parametrize(
    "kwargs",
    [{"num_labels": 4}, {"id2label": dict(enumerate(["Himmel", "Strasse", "Auto", "Person"]))}, {"num_labels": None}],
    ids=["same number", "other names", "nothing said"],
)
def test_nothing_changes_without_need(tiny_checkpoint, old, caplog, kwargs):
    model = load(tiny_checkpoint, caplog, **kwargs)
    assert not caplog.records
    assert torch.equal(model.head.class_predictor.weight, old.weight)
    assert model.config.id2label == kwargs.get("id2label", dict(enumerate(OLD)))
    assert model.config.label_ids_to_fuse == [0, 1]


def test_as_many_labels_in_another_order(tiny_checkpoint, old, caplog):
    model = load(tiny_checkpoint, caplog, id2label=dict(enumerate(["road", "sky", "car", "person"])))
    assert torch.equal(model.head.class_predictor.weight, old.weight[[1, 0, 2, 3, 4]])
    assert "Re-initialised, hence to be trained: none." in caplog.text


def test_many_names_are_abridged(tiny_checkpoint, caplog):
    load(tiny_checkpoint, caplog, num_labels=30)
    assert "LABEL_7 and 22 more." in caplog.text


def test_other_sizes_still_have_to_fit(tiny_checkpoint):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        MaskFormerForUniversalSegmentation.from_pretrained(tiny_checkpoint, num_labels=5, num_queries=13)


def test_contradictions(tiny_checkpoint):
    with pytest.raises(ValueError, match="`num_labels`=5, but there are names of 3 labels"):
        MaskFormerForUniversalSegmentation.from_pretrained(tiny_checkpoint, num_labels=5, id2label=dict(enumerate(NEW)))
    with pytest.raises(ValueError, match=r"`id2label` must number its labels from 0 to 1, got \[1, 2\]"):
        MaskFormerForUniversalSegmentation.from_pretrained(tiny_checkpoint, id2label={1: "a", 2: "b"})
