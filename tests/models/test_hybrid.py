"""RT-DETR's hybrid encoder, against transformers' at random weights."""

from typing import Any, ClassVar

import pytest
import torch
from transformers import RTDetrConfig
from transformers.models.rt_detr.modeling_rt_detr import RTDetrHybridEncoder

from builders import convnext, random_model, tiny_config
from maskformer_hf import MaskFormerConfig
from maskformer_hf.models.interfaces import Ask
from tests.models.contract import Mask2FormerContract, ModelContract

FIELDS: dict[str, Any] = {"pixel_decoder": "hybrid"}


class TestHybrid(Mask2FormerContract):
    fields: ClassVar[dict[str, Any]] = FIELDS
    encoder_attention_size = (6, 6)


class TestDetrDecoderOnHybrid(ModelContract):
    fields: ClassVar[dict[str, Any]] = FIELDS
    num_encoder_attentions = 1
    memory_sizes: ClassVar[list[tuple[int, int]]] = [(2, 3), (4, 6), (8, 12)]
    attended_sizes: ClassVar[list[tuple[int, int]]] = [(2, 3)]


def theirs_of(ours, layers: int) -> RTDetrHybridEncoder:
    config = RTDetrConfig(
        encoder_hidden_dim=32,
        encoder_ffn_dim=48,
        encoder_attention_heads=4,
        num_attention_heads=4,
        encoder_layers=layers,
        encoder_in_channels=[32, 32, 32],
        dropout=0.0,
    )
    theirs = RTDetrHybridEncoder(config).eval()
    names = {"encoder.layers": "aifi.0.layers", "laterals": "lateral_convs", "down": "fpn_blocks"}
    names |= {"strided": "downsample_convs", "up": "pan_blocks"}
    inner = {"self_attn_norm": "self_attn_layer_norm", "ffn_norm": "final_layer_norm", "ffn": "mlp"}
    inner["blocks"] = "bottlenecks"
    state = {}
    for name, tensor in ours.state_dict().items():
        part = next((part for part in names if name.startswith(f"{part}.")), None)
        if part is not None:
            rest = [inner.get(word, word) for word in name.removeprefix(f"{part}.").split(".")]
            state[".".join([names[part], *rest])] = tensor
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("layers", [1, 2])
def test_the_encoder_is_that_of_transformers(layers):
    ours = random_model(tiny_config(**FIELDS, encoder_layers=layers, ffn_dim=48)).model.pixel_decoder
    generator = torch.manual_seed(4)
    with torch.no_grad():
        for name, tensor in ours.named_parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * (0.1 if "norm" in name else 0.05))
        for tensor in ours.buffers():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        maps = [torch.randn(2, 32, 3 * 2**i, 5 * 2**i, generator=generator) for i in range(3)]
        found, _ = ours.encode(maps, Ask())
        expected = theirs_of(ours, layers)([level.clone() for level in reversed(maps)]).last_hidden_state
        assert len(found) == len(expected) == 3
        for level, their_level in zip(found, reversed(expected), strict=True):
            torch.testing.assert_close(level, their_level, rtol=1e-4, atol=1e-4)
        stopped, _ = ours.encode(maps, Ask(num_encoder_layers=1))
    assert torch.equal(stopped[0], found[0]) == (layers == 1)


def test_backbones_that_round_down():
    model = random_model(tiny_config(**FIELDS, backbone_config=convnext(), feature_size=20))
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 201, 131), output_hidden_states=True)
    assert outputs.masks_queries_logits.shape[-2:] == (50, 32)
    sizes = [tuple(level.shape[-2:]) for level in outputs.pixel_decoder_hidden_states]
    assert sizes == [tuple(level.shape[-2:]) for level in reversed(outputs.encoder_hidden_states[1:])]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`feature_size` must be a multiple of 4 and of `num_attention_heads`=8"):
        MaskFormerConfig(**FIELDS, feature_size=36)
    with pytest.raises(ValueError, match="`pixel_decoder='hybrid'` trains no earlier exits"):
        MaskFormerConfig(**FIELDS, encoder_exits=[1.0])
