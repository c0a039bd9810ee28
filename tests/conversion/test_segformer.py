"""Files of the original Panoptic SegFormer: recognised by names and shapes, or refused."""

import pytest
import torch

from builders import random_model, resnet, tiny_config
from maskformer_hf.conversion.convert import convert_detectron2
from maskformer_hf.conversion.segformer import (
    RELEASED_NAMES,
    convert_segformer,
    is_segformer,
    matching_segformer,
    segformer_names,
)
from maskformer_hf.models.modeling_auto import MODEL_CLASSES
from maskformer_hf.presets import SEGFORMER_PRESETS
from tests.models.test_panoptic_segformer import FIELDS


def original_state(model) -> dict[str, torch.Tensor]:
    """A model of ours in the names of the released files."""
    own, state = model.state_dict(), {}
    for name, target in segformer_names(model.config).items():
        parts = [own[part] for part in ((target,) if isinstance(target, str) else target)]
        is_embedding = name in ("bbox_head.query_embedding.weight", "bbox_head.stuff_query.weight")
        state[name] = torch.cat(parts, dim=int(is_embedding))
    for old, new in RELEASED_NAMES.items():
        state = {old + name.removeprefix(new) if name.startswith(new) else name: x for name, x in state.items()}
    return state


@pytest.mark.parametrize("preset", SEGFORMER_PRESETS)
def test_released_sizes_are_recognised(preset):
    config = SEGFORMER_PRESETS[preset]()
    with torch.device("meta"):
        state = original_state(MODEL_CLASSES[config.model_type](config))
    assert is_segformer(state)
    assert matching_segformer(state) == preset


@pytest.fixture(scope="module")
def tiny():
    backbone = resnet(16, 24, 32, 40, layer_type="bottleneck")
    return random_model(tiny_config(**{**FIELDS, "backbone_config": backbone, "num_labels": 3}))


def test_every_tensor_has_its_place(tiny):
    state = original_state(tiny)
    converted = convert_segformer({**state, "backbone.bn1.num_batches_tracked": torch.tensor(7)}, tiny.config)
    assert converted.keys() == tiny.state_dict().keys()
    for name, value in tiny.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(converted[name], value), name


def test_what_is_something_else_is_named(tiny, tmp_path):
    state = original_state(tiny)
    state["bbox_head.extra.weight"] = state.pop("bbox_head.stuff_query.weight")
    with pytest.raises(
        ValueError, match=r"without a place in the model: bbox_head\.extra\.weight.*lacks: bbox_head\.stuff"
    ):
        convert_segformer(state, tiny.config)
    path = tmp_path / "segformer.pth"
    torch.save({"meta": {"epoch": 3}, "state_dict": original_state(tiny)}, path)
    with pytest.raises(ValueError, match="a Panoptic SegFormer with other sizes than the released ones, panoptic_seg"):
        convert_detectron2(path)
    with pytest.raises(ValueError, match="The preset maskformer_resnet50_ade20k does not fit the checkpoint"):
        convert_detectron2(path, preset="maskformer_resnet50_ade20k")
    with pytest.raises(ValueError, match="no configuration of Detectron2"):
        convert_detectron2(path, config_file=path)


def test_a_released_file_becomes_a_model(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(SEGFORMER_PRESETS, "panoptic_segformer_resnet50_coco_panoptic", lambda: tiny.config)
    monkeypatch.setattr("maskformer_hf.conversion.convert.PRESETS", SEGFORMER_PRESETS)
    path = tmp_path / "segformer.pth"
    torch.save({"meta": {"epoch": 3}, "state_dict": original_state(tiny)}, path)
    converted = convert_detectron2(path)
    assert converted.processor.panoptic_merging == "mask_wise"
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = tiny(images), converted.model(images)
    torch.testing.assert_close(theirs.masks_queries_logits, ours.masks_queries_logits)
