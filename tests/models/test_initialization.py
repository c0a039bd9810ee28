"""Weights start as the original's do: transformers' built-in MaskFormer does not, and its queries never part."""

import pytest
import torch
from torch import nn
from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

from builders import STAGES, resnet
from maskformer_hf import MaskFormerConfig as OurConfig
from maskformer_hf import MaskFormerForUniversalSegmentation, MaskFormerModel
from maskformer_hf.presets import MASK2FORMER

SMALL_RESNET = resnet(32, 64, 128, 256, embedding_size=16, layer_type="bottleneck")


@pytest.fixture(scope="module")
def model() -> MaskFormerForUniversalSegmentation:
    torch.manual_seed(0)
    backbone = {**SMALL_RESNET, "embedding_size": 64, "stem_type": "deep", "multi_grid": [2]}
    config = OurConfig(
        backbone_config=backbone,
        pixel_decoder="transformer_fpn",
        encoder_layers=1,
        decoder_layers=2,
        decoder_encoder_layers=1,
        pre_norm=True,
        enforce_input_projection=True,
        mask_feature_size=128,
        num_labels=150,
    )
    return MaskFormerForUniversalSegmentation(config)


def assert_uniform(tensor: torch.Tensor, bound: float):
    """Evenly spread over [-bound, bound]: no value outside, the largest near it, and the deviation of that spread."""
    assert tensor.abs().max() <= bound * 1.0001
    if tensor.numel() >= 4096:
        assert tensor.abs().max() > 0.99 * bound
        assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert abs(tensor.mean().item()) < 0.03 * bound
    else:
        assert tensor.abs().max() > 0.5 * bound


def fan_in(weight: torch.Tensor) -> int:
    return weight[0].numel()


def xavier_bound(fan_in: int, fan_out: int) -> float:
    return (6 / (fan_in + fan_out)) ** 0.5


def test_every_weight_outside_the_backbone(model):
    """By the last parts of its name, with the number of tensors looked at, so that none is forgotten."""
    seen = dict.fromkeys(("packed", "xavier", "queries", "convolutions", "heads", "norms", "zeros", "feed-forward"), 0)
    modules = dict(model.named_modules())
    for name, tensor in model.named_parameters():
        if ".backbone." in name:
            continue
        path, kind = name.rsplit(".", 1)
        module, last = modules[path], path.rsplit(".", 1)[-1]
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            assert torch.equal(tensor, torch.full_like(tensor, float(kind == "weight"))), name
            seen["norms"] += 1
        elif last == "query_position":
            assert tensor.std().item() == pytest.approx(1, rel=0.02)
            assert abs(tensor.mean().item()) < 0.02
            seen["queries"] += 1
        elif isinstance(module, nn.Conv2d) and kind == "weight":
            # c2_xavier_fill, which is He's uniform initialisation of a linear layer.
            assert_uniform(tensor, (3 / fan_in(tensor)) ** 0.5)
            seen["convolutions"] += 1
        elif last in ("q_proj", "k_proj", "v_proj") and kind == "weight":
            # Drawn as one matrix of (3 * 256, 256) in the original.
            assert_uniform(tensor, xavier_bound(256, 3 * 256))
            seen["packed"] += 1
        elif last in ("o_proj", "fc1", "fc2") and kind == "weight":
            assert_uniform(tensor, xavier_bound(*tensor.shape))
            seen["xavier"] += 1
        elif isinstance(module, nn.Conv2d) or last.endswith("_proj"):
            assert torch.count_nonzero(tensor) == 0, name
            seen["zeros"] += 1
        elif last in ("fc1", "fc2"):
            assert_uniform(tensor, fan_in(module.weight) ** -0.5)
            seen["feed-forward"] += 1
        else:
            assert name.startswith("head."), name
            assert_uniform(tensor, fan_in(module.weight) ** -0.5)  # PyTorch's default
            seen["heads"] += 1
    # Attentions: one in each of 2 encoder layers, two in each of 2 decoder layers.
    assert seen == {
        "packed": 6 * 3,
        "xavier": 6 + 4 * 2,
        "queries": 1,
        "convolutions": 1 + 3 + 3 + 1 + 2,  # stem, laterals, outputs, mask projection, input projections
        "heads": 2 + 3 * 2,
        "norms": 2
        * (7 + 2 * 2 + 2 * 3 + 2 + 1),  # GroupNorms, encoder layers, decoder layers, ends of encoders, decoder
        "zeros": 6 * 4 + 3,
        "feed-forward": 4 * 2,
    }


def test_every_weight_of_mask2former():
    """As its code says, by the last parts of each name; the offsets are in test_deformable_attention.py."""
    torch.manual_seed(0)
    fields = {**MASK2FORMER, "encoder_layers": 1, "decoder_layers": 3, "hidden_size": 128, "num_labels": 150}
    model = MaskFormerForUniversalSegmentation(OurConfig(backbone_config=SMALL_RESNET, **fields))
    kinds = (
        "packed",
        "xavier",
        "queries",
        "pyramid",
        "projections",
        "heads",
        "norms",
        "zeros",
        "feed-forward",
        "offsets",
    )
    seen = dict.fromkeys(kinds, 0)
    modules = dict(model.named_modules())
    for name, tensor in model.named_parameters():
        if ".backbone." in name:
            continue
        path, kind = name.rsplit(".", 1)
        module, last = modules[path], path.rsplit(".", 1)[-1]
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            assert torch.equal(tensor, torch.full_like(tensor, float(kind == "weight"))), name
            seen["norms"] += 1
        elif kind == "level_embedding" or isinstance(module, nn.Embedding):
            assert tensor.std().item() == pytest.approx(1, rel=0.15)
            seen["queries"] += 1
        elif last in ("sampling_offsets", "attention_weights"):
            assert kind == "bias" or torch.count_nonzero(tensor) == 0
            seen["offsets"] += 1
        elif isinstance(module, nn.Conv2d) and kind == "weight" and ".pixel_decoder.input_projections." in name:
            assert_uniform(tensor, xavier_bound(module.in_channels, module.out_channels))
            seen["projections"] += 1
        elif isinstance(module, nn.Conv2d) and kind == "weight":
            assert_uniform(tensor, (3 / fan_in(tensor)) ** 0.5)
            seen["pyramid"] += 1
        elif last in ("q_proj", "k_proj", "v_proj") and kind == "weight" and ".transformer_decoder." in name:
            assert_uniform(tensor, xavier_bound(128, 3 * 128))
            seen["packed"] += 1
        elif last in ("in_proj", "v_proj", "o_proj", "fc1", "fc2") and kind == "weight":
            assert_uniform(tensor, xavier_bound(*tensor.shape))
            seen["packed" if last == "in_proj" else "xavier"] += 1
        elif isinstance(module, nn.Conv2d) or last.endswith("_proj"):
            assert torch.count_nonzero(tensor) == 0, name
            seen["zeros"] += 1
        elif last in ("fc1", "fc2"):
            assert_uniform(tensor, fan_in(module.weight) ** -0.5)
            seen["feed-forward"] += 1
        else:
            assert "mask_embedder" in name or name.startswith("head."), name
            assert_uniform(tensor, fan_in(module.weight) ** -0.5)  # PyTorch's default
            seen["heads"] += 1
    assert seen == {
        "packed": 3 * (1 + 3),
        "xavier": 2 + 2 + 3 * (1 + 1 + 2),
        "queries": 4,  # levels in both decoders, query features and positions
        "pyramid": 1 + 1 + 1 + 3,  # lateral, output, mask projection; into the decoder
        "projections": 3,
        "heads": 2 + 3 * 2,
        "norms": 2 * (3 + 2 + 2 + 3 * 3 + 1),
        "zeros": 3 + 1 + 3 + 2 + 3 * (2 + 4),
        "feed-forward": 2 + 3 * 2,
        "offsets": 4,
    }


def test_convolutions_of_the_backbone(model):
    """As torchvision's ResNets, the added stem of the "c" variants included: He's for the number of outputs."""
    convolutions = [m for m in model.model.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 3 + 4 * 4
    for convolution in convolutions:
        fan_out = convolution.weight[:, 0].numel()
        assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_the_model_without_heads_starts_alike():
    torch.manual_seed(0)
    config = OurConfig(backbone_config=SMALL_RESNET, decoder_layers=1)
    decoder = MaskFormerModel(config).transformer_decoder
    assert decoder.query_position.weight.std().item() == pytest.approx(1, rel=0.02)
    assert_uniform(decoder.layers[0].cross_attn.q_proj.weight, xavier_bound(256, 3 * 256))


def spread(queries: torch.Tensor) -> float:
    """How far the queries of an image are from one another: their deviation, averaged over channels."""
    return queries.std(dim=1).mean().item()


def test_queries_differ_from_the_start():
    """In eval mode, where no dropout makes them differ."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 96)
    sizes = {"decoder_layers": 3, "dropout": 0.1}
    ours = MaskFormerForUniversalSegmentation(OurConfig(backbone_config=SMALL_RESNET, num_queries=50, **sizes))
    theirs = MaskFormerForInstanceSegmentation(
        MaskFormerConfig(
            backbone_config={**SMALL_RESNET, "out_features": STAGES},
            decoder_config=DetrConfig(num_queries=50, **sizes),
        )
    )
    with torch.no_grad():
        our_output = ours.eval()(images, output_hidden_states=True)
        their_output = theirs.eval()(images, output_hidden_states=True)
    their_spread = spread(their_output.transformer_decoder_last_hidden_state)
    our_spread = spread(our_output.transformer_decoder_last_hidden_state)
    assert their_spread < 1e-3, "transformers has changed its initialisation: compare again"
    assert our_spread > 0.01
    assert our_spread > 50 * their_spread
    assert spread(our_output.class_queries_logits) > 50 * spread(their_output.class_queries_logits)
