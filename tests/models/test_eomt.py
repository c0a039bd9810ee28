"""EoMT: transformers' checkpoints have the same logits here, at any size; masked attention goes away in training."""

import copy
import json

import pytest
import torch
import transformers
from torch.nn import functional as F

from builders import eomt_backbone, random_model, resnet, tiny_config, vit
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation
from maskformer_hf.conversion.to_transformers import describe_changes, to_transformers, transformers_processor
from maskformer_hf.models.masks import DenseMasks
from maskformer_hf.models.masks_by_layer import MasksByLayer
from maskformer_hf.models.transformer_decoder_joint import masked_share
from maskformer_hf.presets import EOMT, image_processor_for
from maskformer_hf.training.optimization import parameter_groups

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": 64,
    "num_register_tokens": 2,
}
THEIRS = {
    "dinov2": (transformers.EomtForUniversalSegmentation, transformers.EomtConfig, {"mlp_ratio": 2}),
    "giant": (
        transformers.EomtForUniversalSegmentation,
        transformers.EomtConfig,
        {"mlp_ratio": 2, "use_swiglu_ffn": True},
    ),
    "dinov3": (
        transformers.EomtDinov3ForUniversalSegmentation,
        transformers.EomtDinov3Config,
        {"intermediate_size": 48},
    ),
    "dinov3 gated": (
        transformers.EomtDinov3ForUniversalSegmentation,
        transformers.EomtDinov3Config,
        {"intermediate_size": 48, "use_gated_mlp": True},
    ),
}


def their_model(name, **fields):
    model_class, config_class, own = THEIRS[name]
    model = model_class(
        config_class(**{**SIZES, "num_blocks": 2, "num_queries": 6, "num_labels": 3, **own, **fields})
    ).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    # As in the released checkpoints.
    model.attn_mask_probs.zero_()
    return model


@pytest.fixture(params=THEIRS)
def pair(request, tmp_path):
    theirs = their_model(request.param)
    theirs.save_pretrained(tmp_path)
    ours, info = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    return theirs, ours.eval()


def test_their_checkpoints_have_the_same_logits(pair):
    theirs, ours = pair
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)
    config = ours.config
    assert (config.decoder_layers, config.backbone_config.num_hidden_layers) == (2, 3)
    assert {name: getattr(config, name) for name in EOMT} == EOMT


def test_there_and_back(pair, tmp_path):
    theirs, ours = pair
    again, difference = to_transformers(ours)
    assert type(again) is type(theirs)
    assert difference < 1e-5
    expected = theirs.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in again.state_dict().items())
    again.save_pretrained(tmp_path / "again")
    back = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path / "again")
    ignored = ("_name_or_path", "dtype", "architectures", "backbone_config", "transformers_version")
    first, last = ({k: v for k, v in m.config.to_dict().items() if k not in ignored} for m in (ours, back))
    assert first == last
    assert all(torch.equal(weight, back.state_dict()[name]) for name, weight in ours.state_dict().items())


def test_the_hand_over_says_what_differs():
    model = random_model(tiny_config("eomt"))
    processor = image_processor_for("eomt_small_640_coco_panoptic")
    theirs = transformers_processor(processor, model.config)
    assert type(theirs).__name__.startswith("EomtImageProcessor")
    assert theirs.do_pad
    assert any("64x64 pixels" in line for line in describe_changes(model, processor, 0.0))


@pytest.mark.parametrize("size", [(96, 96), (64, 80), (60, 64), (32, 128), (128, 32)], ids=str)
@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_any_size(kind, size, tmp_path):
    """Where transformers fails, or sees another picture: as the same weights on a model of that size."""
    their_model(kind).save_pretrained(tmp_path)
    ours = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path).eval()
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        masks = ours(image).masks_queries_logits
        padded = ours(F.pad(image, (0, -size[1] % 16, 0, -size[0] % 16))).masks_queries_logits
    assert masks.shape[-2:] == (size[0] // 4, size[1] // 4)
    torch.testing.assert_close(masks, padded[..., : size[0] // 4, : size[1] // 4])
    if size == (96, 96):
        large = their_model(kind, image_size=96)
        state = their_model(kind).state_dict()
        if kind == "dinov2":
            name = "embeddings.position_embeddings.weight"
            maps = state[name].T.view(1, 32, 4, 4)
            state[name] = F.interpolate(maps, size=(6, 6), mode="bicubic").flatten(2)[0].T
        large.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(masks, large(image).masks_queries_logits, rtol=1e-4, atol=1e-4)


class TestAnnealing:
    def test_schedule(self):
        assert [masked_share(number, 4, 0.0) for number in range(4)] == [1.0] * 4
        assert [masked_share(number, 4, 1.0) for number in range(4)] == [0.0] * 4
        assert [masked_share(number, 3, 5 / 12 - 1e-6) for number in range(3)] == [0.0, 1.0, 1.0]
        assert masked_share(0, 4, 0.25) == pytest.approx(0.5**0.9)
        assert masked_share(3, 4, 0.75) == pytest.approx(0.5**0.9)
        assert masked_share(0, 1, 0.25) == pytest.approx(0.5**0.9)

    def test_all_queries_attend_within_their_masks_at_first(self):
        """As transformers' model with its probabilities of 1."""
        theirs = their_model("dinov2")
        theirs.attn_mask_probs.fill_(1)
        model = random_model(tiny_config("eomt"))
        images = torch.randn(1, 3, 64, 96)
        with torch.no_grad():
            at_the_end = model(images).class_queries_logits
            model.train()
            model.training_progress = 0.0
            at_first = model(images).class_queries_logits
            model.training_progress = 1.0
            torch.testing.assert_close(model(images).class_queries_logits, at_the_end)
            model.training_progress = 0.0
            torch.testing.assert_close(model.eval()(images).class_queries_logits, at_the_end)
        assert not torch.allclose(at_first, at_the_end)

    @pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
    def test_masked_logits_are_transformers(self, kind, tmp_path):
        theirs = their_model(kind)
        theirs.save_pretrained(tmp_path)
        theirs.attn_mask_probs.fill_(1)
        ours = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path).train()
        ours.training_progress = 0.0
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            expected, got = theirs(images), ours(images)
        torch.testing.assert_close(got.class_queries_logits, expected.class_queries_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.masks_queries_logits, expected.masks_queries_logits, rtol=1e-4, atol=1e-4)

    def test_a_share_of_the_queries(self):
        model = random_model(tiny_config("eomt", num_queries=200))
        decoder = model.model.transformer_decoder
        states = torch.randn(2, 200 + 3 + 24, 32)
        normed, upscaled = decoder._predict(states, (4, 6))
        closed = decoder._attended(normed, upscaled, (4, 6), states.shape[1], 1.0)
        torch.manual_seed(0)
        some = decoder._attended(normed, upscaled, (4, 6), states.shape[1], 0.4)
        assert closed.shape == (2, 1, 227, 227)
        assert closed[..., :203].all()
        assert closed[:, :, 200:].all()
        assert not closed[:, :, :200, 203:].all()
        is_closed = ~closed[:, 0, :200].all(-1)
        kept = (~some[:, 0, :200].all(-1) & is_closed).sum() / is_closed.sum()
        assert 0.3 < kept < 0.5


def test_layer_decay_goes_on_in_the_decoder():
    model = random_model(tiny_config("eomt"))
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.1, multipliers={}, layer_decay=0.5)
    rates = {name: group["lr"] for group in groups for name in group["parameter_names"]}
    assert rates["model.backbone.body.patch_embeddings.weight"] == rates["model.backbone.body.blocks.0.scale1"] == 0.25
    assert rates["model.transformer_decoder.layers.0.scale1"] == 0.5
    for name in (
        "layers.1.scale1",
        "norm.weight",
        "queries.weight",
        "upscale.0.conv1.weight",
        "mask_embedder.layers.0.bias",
    ):
        assert rates[f"model.transformer_decoder.{name}"] == 1.0


def test_a_frozen_lower_part():
    model = random_model(tiny_config("eomt", freeze_backbone=True)).train()
    masks = torch.ones(1, 64, 64, dtype=torch.bool)
    model(torch.randn(1, 3, 64, 64), mask_labels=[masks], class_labels=[torch.tensor([0])]).loss.backward()
    assert all(weight.grad is None for weight in model.model.backbone.parameters())
    assert all(weight.grad is not None for weight in model.model.transformer_decoder.parameters())


def test_masks_by_layer_are_the_masks():
    logits = torch.randn(3, 2, 5, 4, 6)
    whole, parts = DenseMasks(logits), MasksByLayer([DenseMasks(layer[None]) for layer in logits])
    assert (parts.shape, parts.device) == (whole.shape, whole.device)
    assert torch.equal(parts.layer(-1), whole.layer(-1))
    assert torch.equal(parts[1][torch.tensor([3])], whole[1][torch.tensor([3])])
    query = torch.tensor([[0, 1, 4], [2, 2, 3], [4, 0, 1]])
    for layers in (slice(None), slice(-1, None)):
        assert torch.equal(parts.matched(layers, query[layers], [2, 1]), whole.matched(layers, query[layers], [2, 1]))
    some = parts.part(slice(1, None), slice(2, 4)).float()
    assert torch.equal(some.layer(0), logits[1, :, 2:4])
    for points in (None, torch.rand(3, 7, 2)):
        found = torch.zeros(3, 5, 24 if points is None else 7)
        expected = torch.zeros_like(found)
        for masks, target in ((parts, found), (whole, expected)):
            for values in masks.values(1, points):
                rows = torch.zeros(values.num_rows, values.num_values)
                values.read_negated(slice(None), rows)
                target[values.layers] = rows.view(-1, 5, values.num_values)
        torch.testing.assert_close(found, expected)


def test_errors(tmp_path):
    def refuse(match, **fields):
        with pytest.raises(ValueError, match=match):
            tiny_config("eomt", **fields)

    refuse("needs `backbone_pyramid='tokens'`, got 'simple': `presets.EOMT`", backbone_pyramid="simple")
    refuse("needs `pixel_decoder='none'`, got 'fpn'", pixel_decoder="fpn")
    refuse("`pixel_decoder='none'` makes no pixel embeddings.*'detr'", transformer_decoder="detr")
    refuse("makes no maps of strides 4 to 32.*'detr'", transformer_decoder="detr", pixel_decoder="fpn")
    refuse("must be the backbone's, 32; got 64 and 32", hidden_size=64)
    refuse(
        "is for the models that EoMT is made of.*got 'vit'", backbone_config=vit("vit", patch_size=16, image_size=64)
    )
    refuse("'resnet' is none", backbone_config=resnet())
    their_model("dinov2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in {"hidden_act": "relu", "drop_path_rate": 0.5, "num_upscale_blocks": 3}.items():
        (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
        with pytest.raises(ValueError, match=rf"`{name}` of this checkpoint is {value!r}.*patches of 16 pixels"):
            MaskFormerConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot start a model with `backbone_pyramid='tokens'`.*from_pretrained"):
        MaskFormerForUniversalSegmentation.from_backbone(str(tmp_path), **EOMT)
    other = copy.deepcopy(eomt_backbone())
    assert tiny_config("eomt", backbone_config=other).backbone_config.num_hidden_layers == 1
