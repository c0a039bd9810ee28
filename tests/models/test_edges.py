"""Options for outlines and relations: each starts as the model without it, and learns."""

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from builders import random_model, tiny_config
from maskformer_hf import MaskFormerConfig
from maskformer_hf.models import assembly, dense_workspace, matcher, parts
from maskformer_hf.models.at_once import AtOnce
from maskformer_hf.models.modeling_auto import MODEL_CLASSES
from maskformer_hf.models.part import Part
from tensors import LargestTensor
from tests.models.contract import NUM_LAYERS, ModelContract

# Fields that add to a model, and the kinds of models that they are tested in.
OPTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "boundary_blocks": ({"boundary_blocks": 2}, ("maskformer", "mask2former", "video", "per_pixel")),
}
CASES = [(name, kind) for name, (_, kinds) in OPTIONS.items() for kind in kinds]


def inputs(kind, height=64, width=96) -> torch.Tensor:
    frames = (2,) if kind == "video" else ()
    return torch.randn(2, *frames, 3, height, width, generator=torch.manual_seed(1))


def targets(kind, height=64, width=96) -> dict[str, Any]:
    if kind == "per_pixel":
        return {"labels": (torch.arange(width) // 40).clamp(max=2).expand(2, height, width)}
    frames = (2,) if kind == "video" else ()
    masks = torch.zeros(2, *frames, height, width, dtype=torch.bool)
    masks[0, ..., : height // 2, :] = masks[1, ..., width // 3 :] = True
    return {"mask_labels": [masks, masks[:1]], "class_labels": [torch.tensor([2, 0]), torch.tensor([1])]}


def logits(model, kind) -> list[torch.Tensor]:
    with torch.no_grad():
        outputs = model(inputs(kind))
    return [outputs[name] for name in outputs if name.endswith("logits")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_checkpoint_gives_the_same_results_to_the_bit(name, kind, tmp_path):
    plain = random_model(tiny_config(kind))
    plain.save_pretrained(tmp_path)
    model, info = type(plain).from_pretrained(tmp_path, **OPTIONS[name][0], output_loading_info=True)
    assert info["missing_keys"]
    assert not info["unexpected_keys"] | info["mismatched_keys"]
    assert plain.state_dict().keys() | info["missing_keys"] == model.state_dict().keys()
    for expected, got in zip(logits(plain, kind), logits(model.eval(), kind), strict=True):
        assert torch.equal(expected, got)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_new_weights_learn(name, kind, tmp_path):
    """Two steps, because some weights stand behind a zero in the first."""
    plain = random_model(tiny_config(kind))
    model = random_model(tiny_config(kind, **OPTIONS[name][0])).train()
    before = {key: weight.clone() for key, weight in model.state_dict().items() if key not in plain.state_dict()}
    assert before
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(inputs(kind), **targets(kind)).loss.backward()
        optimizer.step()
    for key, weight in before.items():
        assert not torch.equal(model.state_dict()[key], weight), key
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    for expected, got in zip(logits(model.eval(), kind), logits(again, kind), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_step_makes_no_larger_tensors(name, kind, monkeypatch):
    monkeypatch.setattr(matcher, "VALUES_AT_ONCE", AtOnce(2**14, 2**14))
    monkeypatch.setattr(dense_workspace, "PIXELS_AT_ONCE", AtOnce(2**14, 2**14))
    sizes = []
    for fields in ({}, OPTIONS[name][0]):
        model = random_model(tiny_config(kind, num_queries=50, **fields)).train()
        with LargestTensor() as largest:
            model(inputs(kind, 128, 192), **targets(kind, 128, 192)).loss.backward()
        sizes.append(largest.numel)
    assert sizes[1] <= 1.2 * sizes[0]


def test_off_they_leave_no_trace():
    for kind, model_class in (("maskformer", "maskformer_hf"), ("video", "maskformer_hf_video")):
        names = MODEL_CLASSES[model_class](tiny_config(kind)).state_dict()
        assert not [name for name in names if "blocks" in name or "relation" in name or "network" in name]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boundary_blocks": -1}, r"`boundary_blocks` must be 0 \(none\) or more, got -1"),
    ],
)
def test_contradictions(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskFormerConfig(**fields)


# --- boundary blocks


class TestBoundaryBlocks(ModelContract):
    fields: ClassVar[dict[str, Any]] = {"boundary_blocks": 1, "transformer_decoder": "masked"}
    num_predictions = NUM_LAYERS + 1


def test_boundary_blocks_need_a_last_convolution(monkeypatch):
    monkeypatch.setitem(parts._TABLE["pixel_decoder"], "other", Part(lambda config, facts: nn.Identity()))
    config = tiny_config(pixel_decoder="other", boundary_blocks=1)
    with pytest.raises(ValueError, match=r"`boundary_blocks`=1 stand before .*`mask_projection`, which Identity lacks"):
        assembly.make_pixel_decoder(config, facts=None)
