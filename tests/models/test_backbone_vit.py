"""Plain vision transformers as backbones: a pyramid of any of them, at any size, tuned or frozen."""

import math

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional as F

from builders import random_model, resnet, swin, timm_backbone, tiny_config, vit
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation
from maskformer_hf.models.backbone import make_backbone
from maskformer_hf.models.backbone_pyramid import PYRAMID_STRIDES, SimplePyramid

BACKBONES = {
    "dinov2": vit("dinov2"),
    "dinov2_with_registers": vit("dinov2_with_registers"),
    "dinov3": vit("dinov3_vit", patch_size=16),
    "vit": vit("vit", patch_size=16, image_size=64),
    "vit, patches of 8": vit("vit", patch_size=8, image_size=64),
    "vit, patches of 32": vit("vit", patch_size=32, image_size=64),
    "siglip": vit("siglip_vision_model", patch_size=16, image_size=64),
    "clip": vit("clip_vision_model", patch_size=16, image_size=64),
    "beit": vit("beit", patch_size=16, image_size=64, use_relative_position_bias=True),
    "beit, absolute": vit("beit", patch_size=16, image_size=64, use_absolute_position_embeddings=True),
    "beit, four maps": vit("beit", patch_size=16, image_size=64, out_indices=[0, 1, 2, 3]),
    "timm": timm_backbone("test_vit"),
    "timm, four maps": timm_backbone("test_vit", out_indices=[0, 1, 2, 3]),
}
FIELDS = {"feature_size": 32, "mask_feature_size": 16, "hidden_size": 32, "ffn_dim": 32, "decoder_layers": 1}


def build(backbone_config, **fields):
    torch.manual_seed(0)
    fields = {"backbone_pyramid": "simple", **FIELDS, **fields}
    return make_backbone(MaskFormerConfig(backbone_config=backbone_config, **fields)).eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_a_pyramid_of_strides_4_to_32_at_any_size(name):
    backbone = build(BACKBONES[name]).train()
    assert backbone.facts.channels == (32,) * 4
    assert backbone.facts.strides == (4, 8, 16, 32)
    maps = backbone(torch.randn(2, 3, 70, 90))
    assert [tuple(level.shape) for level in maps] == [
        (2, 32, math.ceil(70 / stride), math.ceil(90 / stride)) for stride in PYRAMID_STRIDES
    ]
    sum((level * torch.randn_like(level)).sum() for level in maps).backward()
    without = [key for key, weight in backbone.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == []


@pytest.mark.parametrize("name", ["dinov2", "vit", "beit, absolute", "timm"])
def test_padding_is_cut_off_again(name):
    """An image of whole patches gives what it gives alone, and one that is padded to it gives the part of it."""
    backbone = build(BACKBONES[name])
    small = torch.randn(1, 3, 41, 59)
    padded = F.pad(small, (0, 5, 0, 7))
    assert padded.shape[-2:] == (48, 64)
    with torch.no_grad():
        got, expected = backbone(small), backbone(padded)
    for level, whole, stride in zip(got, expected, PYRAMID_STRIDES, strict=True):
        torch.testing.assert_close(level, whole[..., : math.ceil(41 / stride), : math.ceil(59 / stride)])


def test_positions_are_interpolated():
    """An even image shows the positions: twice the size gives the same picture of them, not its first quarter."""
    backbone = build(BACKBONES["vit"])
    with torch.no_grad():
        backbone.body.embeddings.position_embeddings.normal_(0, 1, generator=torch.manual_seed(0))
        small, large = (backbone.run(torch.ones(1, 3, size, size))[0] for size in (64, 128))
    shrunk = F.interpolate(large, size=small.shape[-2:], mode="area")
    similarity = F.cosine_similarity(small.flatten(2), shrunk.flatten(2), dim=1).mean()
    other = F.cosine_similarity(small.flatten(2), large[..., :4, :4].flatten(2), dim=1).mean()
    assert similarity > 0.8 > other


def test_patches_of_14_pixels_cover_16():
    backbone = build(BACKBONES["dinov2"])
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        [expected] = backbone.body(F.interpolate(image, size=(56, 84), mode="bilinear")).feature_maps
        torch.testing.assert_close(backbone(image)[2], backbone.pyramid.levels[2](expected))


def test_the_pyramid_is_vitdets():
    pyramid = SimplePyramid([64], 16, 32)
    counts = [sum(weight.numel() for weight in level.parameters()) for level in pyramid.levels]
    ends = [channels * 32 + 32 * 32 * 9 + 4 * 32 for channels in (16, 32, 64, 64)]
    finest = 64 * 32 * 4 + 32 + 2 * 32 + 32 * 16 * 4 + 16
    assert counts == [finest + ends[0], 64 * 32 * 4 + 32 + ends[1], ends[2], ends[3]]
    levels = pyramid([torch.randn(1, 64, 5, 7)])
    assert [tuple(level.shape[-2:]) for level in levels] == [(20, 28), (10, 14), (5, 7), (3, 4)]
    [level] = pyramid([torch.randn(1, 64, 5, 7)])[2:3]
    torch.testing.assert_close(level.mean(1), torch.zeros(1, 5, 7), atol=1e-5, rtol=0)


def test_each_of_four_maps_has_its_level():
    backbone = build(BACKBONES["timm, four maps"])
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = backbone.run(image)
        for number, level in enumerate(backbone(image)):
            torch.testing.assert_close(level, backbone.pyramid.levels[number](maps[number]))


def test_errors():
    for config in (vit("dinov2"), vit("vit", patch_size=16)):
        with pytest.raises(ValueError, match=r"have the stride of its patches, 1[46].*`backbone_pyramid='simple'`"):
            MaskFormerConfig(backbone_config=config, **FIELDS)
    with pytest.raises(ValueError, match=r"at stride 4.*for a vision transformer set `backbone_pyramid='simple'`"):
        build(timm_backbone("test_vit", out_indices=[0, 1, 2, 3]), backbone_pyramid=None)(torch.zeros(1, 3, 64, 64))
    for config in (resnet(), swin()):
        with pytest.raises(ValueError, match=r"'(resnet|swin)' is none: leave `backbone_pyramid` at None"):
            build(config)
    with pytest.raises(ValueError, match=r"have \[2, 4, 8, 16, 32\]: leave|have \[4, 8, 16, 32\]: leave"):
        build(timm_backbone("test_efficientnet", out_indices=[-4, -3, -2, -1]))
    with pytest.raises(ValueError, match="needs one map, or 4, but the backbone gives 2: set `out_features`"):
        build(vit("dinov2", out_indices=[1, 3]))
    with pytest.raises(ValueError, match=r"`out_indices` \[2\].*set `num_hidden_layers`"):
        build(vit("dinov2", out_indices=[2]))
    with pytest.raises(ValueError, match=r"`backbone_pyramid` must be one of .*'simple'.*got 'fpn'"):
        build(vit("dinov2"), backbone_pyramid="fpn")
    with pytest.raises(ValueError, match=r"must be square, got \[16, 8\]"):
        build(vit("vit", patch_size=[16, 8], image_size=64))


@pytest.mark.parametrize("kind", ["dinov2", "vit", "beit", "timm"])
def test_pretrained_weights(tmp_path, kind):
    fields = {**FIELDS, "backbone_pyramid": "simple", "freeze_backbone": True, "num_attention_heads": 4}
    if kind == "timm":
        source, weights = "timm/test_vit", str(tmp_path / "timm.safetensors")
        whole = timm.create_model("test_vit")
        save_file(whole.state_dict(), weights)
    else:
        source, weights = str(tmp_path), None
        whole = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**BACKBONES[kind]))
        whole.save_pretrained(tmp_path)
    model = MaskFormerForUniversalSegmentation.from_backbone(source, backbone_weights=weights, **fields)
    body = {
        name.split(".", 2)[-1] if kind == "timm" else name: w
        for name, w in model.model.backbone.body.state_dict().items()
    }
    arrived = [
        name
        for name, weight in whole.state_dict().items()
        if name.removeprefix("beit.") in {n.removeprefix("beit.") for n in body}
    ]
    assert len(arrived) >= len(body)
    for name, weight in body.items():
        assert torch.equal(weight, whole.state_dict()[name.removeprefix("beit.")]), name
    assert not any(weight.requires_grad for weight in model.model.backbone.body.parameters())


class TestFrozen:
    @pytest.fixture
    def model(self):
        return random_model(
            tiny_config("mask2former", backbone_config=vit("dinov2"), backbone_pyramid="simple", freeze_backbone=True)
        )

    def test_it_stays_in_evaluation_mode_and_keeps_nothing(self, model):
        model.train()
        body = model.model.backbone.body
        assert model.model.backbone.training
        assert not any(module.training for module in body.modules())
        maps = model.model.backbone.run(torch.randn(1, 3, 56, 56))
        assert not any(feature.requires_grad for feature in maps)
        assert all(level.requires_grad for level in model.model.backbone(torch.randn(1, 3, 56, 56)))

    def test_a_frozen_resnet(self):
        model = random_model(
            tiny_config(backbone_config=resnet(), freeze_backbone=True, freeze_batch_norm=False)
        ).train()
        before = {name: value.clone() for name, value in model.model.backbone.state_dict().items()}
        masks = torch.ones(1, 64, 64, dtype=torch.bool)
        model(torch.randn(1, 3, 64, 64), mask_labels=[masks], class_labels=[torch.tensor([0])]).loss.backward()
        for name, value in model.model.backbone.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert all(weight.grad is None for weight in model.model.backbone.parameters())

    def test_it_is_frozen_after_loading(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert again.config.freeze_backbone
        assert not any(weight.requires_grad for weight in again.model.backbone.body.parameters())
        assert all(weight.requires_grad for weight in again.model.backbone.pyramid.parameters())
        assert not again.train().model.backbone.body.training
        tuned = type(model).from_pretrained(tmp_path, freeze_backbone=False)
        still = [name for name, weight in tuned.model.backbone.named_parameters() if not weight.requires_grad]
        assert still == ["body.embeddings.mask_token"]

    def test_names_are_those_of_the_tuned_model(self, model):
        tuned = random_model(tiny_config("mask2former", backbone_config=vit("dinov2"), backbone_pyramid="simple"))
        assert tuned.state_dict().keys() == model.state_dict().keys()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_of_the_frozen_part(self, model, dtype):
        image = torch.randn(1, 3, 64, 96)
        with torch.no_grad():
            expected = model(image).masks_queries_logits
        model.model.backbone.body.to(dtype)
        assert model.dtype == torch.float32
        masks = torch.ones(1, 64, 96, dtype=torch.bool)
        outputs = model.train()(image, mask_labels=[masks], class_labels=[torch.tensor([0])])
        outputs.loss.backward()
        got = outputs.masks_queries_logits
        assert got.dtype == torch.float32
        assert (got - expected).abs().mean() < 0.1 * expected.abs().mean()
        assert model.model.backbone.pyramid.levels[0][0].weight.grad.dtype == torch.float32

    def test_asked_to_train(self, model):
        model.model.backbone.body.requires_grad_(True)
        with pytest.raises(ValueError, match=r"is frozen \(`freeze_backbone=True`\).*build the model with"):
            model.train()
