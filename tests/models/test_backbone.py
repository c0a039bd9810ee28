"""Backbones: pretrained weights arrive or the failure is loud, every parameter learns, frozen statistics stay."""

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from builders import convnext, resnet, swin, timm_backbone
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation
from maskformer_hf.models.backbone import STRIDES, Backbone, FrozenBatchNorm2d, adapt_input_channels

RESNET = resnet(16, 24, 32, 40, depths=(1, 1, 1, 2), layer_type="bottleneck")
SWIN = swin(16, num_heads=(1, 2, 2, 4), window_size=4)
CONVNEXT = convnext()
BACKBONES = {
    "resnet": RESNET,
    "resnet_basic": {**RESNET, "layer_type": "basic"},
    "resnet_c": {**RESNET, "stem_type": "deep", "multi_grid": [1, 2]},
    "swin": SWIN,
    "swin_absolute": {**SWIN, "use_absolute_embeddings": True},
    "convnext": CONVNEXT,
    # timm's three kinds of extractors: without its end, a flat list of stages, and the latter with channels last.
    "timm_efficientnet": timm_backbone("test_efficientnet"),
    "timm_convnext": timm_backbone("test_convnext"),
    "timm_mambaout": timm_backbone("mambaout_femto"),
}
SMALL = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_dim": 32,
    "decoder_layers": 1,
    "num_queries": 4,
}


def build(backbone_config, freeze_batch_norm=True, num_channels=3) -> Backbone:
    torch.manual_seed(0)
    config = MaskFormerConfig(backbone_config=backbone_config, num_channels=num_channels)
    return Backbone(config.backbone_config, freeze_batch_norm)


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_var", "norm.weight", "normalization.weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.dim() < 2:
                tensor.normal_(0, 0.2)
    return model.eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_gets_a_gradient(name):
    backbone = build(BACKBONES[name]).train()
    features = backbone(torch.randn(2, 3, 65, 98))
    for feature, channels, stride in zip(features, backbone.facts.channels, STRIDES, strict=True):
        assert feature.shape[:2] == (2, channels)
        for cells, size in zip(feature.shape[-2:], (65, 98), strict=True):
            assert abs(cells - size / stride) < 1
    sum((feature * torch.randn_like(feature)).sum() for feature in features).backward()
    parameters = dict(backbone.named_parameters())
    assert parameters
    assert [key for key, parameter in parameters.items() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["resnet", "resnet_c", "timm_efficientnet"])
def test_frozen_batch_norm(name):
    frozen, free = build(BACKBONES[name]), build(BACKBONES[name], freeze_batch_norm=False)
    assert frozen.state_dict().keys() == free.state_dict().keys()
    norms = [module for module in frozen.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert not any(list(norm.parameters()) for norm in norms)
    before = {key: tensor.clone() for key, tensor in frozen.state_dict().items()}
    frozen.train()(torch.randn(2, 3, 64, 64))
    assert not any(norm.training for norm in norms)
    assert frozen.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in frozen.state_dict().items())

    num_affine = sum(norm.weight.numel() + norm.bias.numel() for norm in norms)
    count = [sum(parameter.numel() for parameter in backbone.parameters()) for backbone in (frozen, free)]
    assert count[1] - count[0] == num_affine
    key = next(key for key in before if key.endswith("running_mean"))
    free.train()(torch.randn(2, 3, 64, 64))
    assert not torch.equal(free.state_dict()[key], before[key])


def test_resnet_c():
    body = build(BACKBONES["resnet_c"]).body
    stem = [module for module in body.embedder.modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels, conv.stride[0]) for conv in stem] == [(3, 4, 2), (4, 4, 1), (4, 8, 1)]
    last = [module for module in body.encoder.stages[-1].modules() if getattr(module, "kernel_size", None) == (3, 3)]
    assert [(conv.dilation[0], conv.padding[0], conv.stride[0]) for conv in last] == [(1, 1, 2), (2, 2, 1)]
    with pytest.raises(ValueError, match=r"stem_type.*'wide'"):
        build({**RESNET, "stem_type": "wide"})
    with pytest.raises(ValueError, match=r"multi_grid.*2 last blocks.*\[1, 2, 4\]"):
        build({**RESNET, "multi_grid": [1, 2, 4]})


def test_channels_last_are_told_from_a_map_as_wide_as_its_channels():
    backbone = build(BACKBONES["timm_mambaout"]).eval()
    assert backbone.facts.channels[0] == 48
    pixel_values = torch.randn(1, 3, 192, 192)  # 48 cells at stride 4
    with torch.no_grad():
        feature, expected = backbone(pixel_values)[0], backbone.body._backbone(pixel_values)[0]
    assert torch.equal(feature, expected.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "backbone_config",
    [
        timm_backbone("test_vit", out_indices=[0, 1, 2, 3]),
        # Its first stage ends at stride 8.
        {"model_type": "focalnet", "embed_dim": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
    ],
    ids=lambda config: config["model_type"],
)
def test_other_strides_are_refused(backbone_config):
    with pytest.raises(ValueError, match=r"needs .* channels at stride 4"):
        build(backbone_config)(torch.randn(1, 3, 160, 160))


def test_dilation_in_place_of_the_last_stride():
    config = timm_backbone("test_efficientnet", output_stride=16)
    backbone = build(config)
    assert backbone.facts.strides == (4, 8, 16, 16)
    with torch.no_grad():
        sizes = [feature.shape[-1] for feature in backbone(torch.randn(1, 3, 160, 160))]
    assert sizes == [40, 20, 10, 10]


def transformers_classifier(config: dict) -> transformers.PreTrainedModel:
    return randomise(
        transformers.AutoModelForImageClassification.from_config(
            transformers.AutoConfig.for_model(**config, num_labels=5)
        )
    )


@pytest.mark.parametrize("config", [RESNET, SWIN, CONVNEXT], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("with_head", [True, False])
def test_pretrained_weights_from_a_folder(tmp_path, config, with_head):
    classifier = transformers_classifier(config)
    (classifier if with_head else classifier.base_model).save_pretrained(tmp_path)
    model = MaskFormerForUniversalSegmentation.from_backbone(str(tmp_path), **SMALL).eval()
    expected = type(model.model.backbone.body).from_pretrained(tmp_path, out_indices=[1, 2, 3, 4])
    pixel_values = torch.randn(1, 3, 65, 98)
    with torch.no_grad():
        for feature, other in zip(model.model.backbone(pixel_values), expected(pixel_values).feature_maps, strict=True):
            torch.testing.assert_close(feature, other)
    for name, tensor in classifier.base_model.state_dict().items():
        if "relative_position_index" not in name and "layernorm." not in name:
            assert any(torch.equal(tensor, own) for own in model.model.backbone.state_dict().values()), name


def test_pretrained_weights_from_a_file(tmp_path):
    classifier = transformers_classifier(RESNET)
    classifier.config.save_pretrained(tmp_path)
    save_file(classifier.state_dict(), tmp_path / "elsewhere.safetensors")
    with pytest.raises(OSError, match=r"model.safetensors"):
        MaskFormerForUniversalSegmentation.from_backbone(str(tmp_path), **SMALL)
    model = MaskFormerForUniversalSegmentation.from_backbone(
        str(tmp_path), backbone_weights=tmp_path / "elsewhere.safetensors", **SMALL
    )
    weight = model.model.backbone.body.embedder.embedder.convolution.weight
    assert torch.equal(weight, classifier.resnet.embedder.embedder.convolution.weight)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_resnet"])
def test_pretrained_weights_of_timm(tmp_path, name):
    classifier = randomise(timm.create_model(name))
    save_file(classifier.state_dict(), tmp_path / "timm.safetensors")
    model = MaskFormerForUniversalSegmentation.from_backbone(
        f"timm/{name}", backbone_weights=str(tmp_path / "timm.safetensors"), **SMALL
    ).eval()
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = model.model.backbone(pixel_values)
        expected = classifier.forward_intermediates(pixel_values, intermediates_only=True)[-4:]
    for feature, other in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, other)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    file = tmp_path / "timm.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), file)
    with pytest.raises(ValueError, match=r"would have stayed random: .* tensors are missing"):
        MaskFormerForUniversalSegmentation.from_backbone("timm/test_convnext", backbone_weights=str(file), **SMALL)
    state = load_file(file)
    state["blocks.0.0.conv.weight"] = state["blocks.0.0.conv.weight"][:, :-1].contiguous()
    save_file(state, file)
    with pytest.raises(ValueError, match=r"1 have another shape .*blocks\.0\.0\.conv\.weight"):
        MaskFormerForUniversalSegmentation.from_backbone("timm/test_efficientnet", backbone_weights=str(file), **SMALL)
    del state["blocks.0.0.conv.weight"]
    save_file(state, file)
    with pytest.raises(ValueError, match=r"1 of .* tensors are missing .*blocks\.0\.0\.conv\.weight"):
        MaskFormerForUniversalSegmentation.from_backbone("timm/test_efficientnet", backbone_weights=str(file), **SMALL)
    # A folder whose weights are of another model than its config.json.
    transformers_classifier(RESNET).save_pretrained(tmp_path)
    transformers.AutoConfig.for_model(**SWIN).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="would have stayed random"):
        MaskFormerForUniversalSegmentation.from_backbone(str(tmp_path), **SMALL)


@pytest.mark.parametrize("num_channels", [1, 3, 4, 13])
@pytest.mark.parametrize("kind", ["resnet", "swin", "convnext", "timm"])
def test_any_number_of_channels(tmp_path, kind, num_channels):
    if kind == "timm":
        source, weights = "timm/test_efficientnet", str(tmp_path / "timm.safetensors")
        save_file(randomise(timm.create_model("test_efficientnet")).state_dict(), weights)
    else:
        source, weights = str(tmp_path), None
        transformers_classifier({"resnet": RESNET, "swin": SWIN, "convnext": CONVNEXT}[kind]).save_pretrained(tmp_path)
    colour, other = (
        MaskFormerForUniversalSegmentation.from_backbone(source, backbone_weights=weights, num_channels=n, **SMALL)
        .eval()
        .model.backbone
        for n in (3, num_channels)
    )
    grey = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        expected = colour(grey.expand(-1, 3, -1, -1))
        got = other(grey.expand(-1, num_channels, -1, -1))
    for feature, reference in zip(got, expected, strict=True):
        if num_channels in (1, 3):  # a grey picture is the same as a colour picture without colours
            torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-4)
        else:
            assert 0.5 < feature.std() / reference.std() < 2


def test_adapted_first_convolution():
    weight = torch.randn(8, 3, 5, 5)
    assert torch.equal(adapt_input_channels(weight, 1), weight.sum(1, keepdim=True))
    four = adapt_input_channels(weight, 4)
    assert torch.equal(four, weight[:, [0, 1, 2, 0]] * 0.75)
    torch.testing.assert_close(adapt_input_channels(weight, 6).sum(1), weight.sum(1))


def test_stochastic_depth_drops_both_branches_of_a_swin_block():
    """As in the original; transformers' Swin drops its attention only."""
    backbone = build({**SWIN, "drop_path_rate": 0.5}).train()
    # The rates grow from 0 in the first block to 0.5 in the last.
    block = backbone.body.swin.encoder.layers[-1].blocks[-1]
    assert block.drop_path.drop_prob == pytest.approx(0.5)
    states = torch.randn(64, 10, block.mlp.fc1.in_features)
    dropped = (block.mlp(states) == 0).all(2).all(1).sum().item()
    assert 16 < dropped < 48
    block.eval()
    assert not (block.mlp(states) == 0).all(2).any()


def test_frozen_batch_norm_keeps_nothing_for_the_gradient():
    """The same result as PyTorch's, which keeps its input."""
    torch.manual_seed(0)
    frozen = randomise(build(BACKBONES["resnet"])).train()
    layers = [module for module in frozen.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(layers) > 5
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        for layer in layers:
            channels = layer.num_features
            image = torch.randn(2, channels, 6, 8, requires_grad=True)
            got = layer(image)
            [gradient] = torch.autograd.grad(got.square().sum(), image)
            with torch.no_grad():
                expected = layer(image)
            torch.testing.assert_close(got.detach(), expected, rtol=1e-5, atol=1e-5)
            slope = (layer.weight / (layer.running_var + layer.eps).sqrt())[:, None, None]
            torch.testing.assert_close(gradient, 2 * expected * slope, rtol=1e-4, atol=1e-4)
    # The output, which the test itself squares, and scales: never the input.
    assert all(tensor.shape[-2:] == (1, 1) or tensor.grad_fn is not None for tensor in kept)
