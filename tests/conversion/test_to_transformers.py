"""A model of ours, handed to transformers and taken back: the same logits there, the same model here."""

import inspect
import json
import re

import pytest
import torch
import transformers
from torch import nn
from transformers.models.mask2former import modeling_mask2former

from builders import convnext, resnet, swin, timm_backbone
from maskformer_hf import (
    MaskFormerConfig,
    MaskFormerForUniversalSegmentation,
    MaskFormerImageProcessor,
    PerPixelBaseline,
    PerPixelBaselineConfig,
)
from maskformer_hf.conversion.to_transformers import (
    SWIN_NAMES,
    describe_changes,
    own_name,
    to_transformers,
    transformers_config,
    transformers_processor,
)
from maskformer_hf.models import parts
from maskformer_hf.models.transformers_layout import IGNORED_WEIGHTS, MASK2FORMER_PARTS, WEIGHT_NAMES

RESNET = resnet(16, 24, 32, 48, depths=(1, 2, 1, 1), layer_type="bottleneck")
SWIN = swin(16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4, image_size=64)
# Their Mask2Former, with sizes of which no two are the same.
MASK2FORMER = {
    **MASK2FORMER_PARTS,
    "encoder_layers": 2,
    "encoder_ffn_dim": 56,
    "hidden_size": 48,
    "dropout": 0.0,
    "num_points": 100,
    "pre_norm": True,
    "enforce_input_projection": True,
}
MODELS = {
    "mask2former with swin": {**MASK2FORMER, "backbone_config": SWIN},
    "mask2former with resnet": {**MASK2FORMER, "backbone_config": RESNET, "pre_norm": False},
}
# Some versions (5.17) keep these projections where no file finds them, so that it cannot be handed to them.
LOSES_PROJECTIONS = "self.input_projections = []" in inspect.getsource(modeling_mask2former)
if LOSES_PROJECTIONS:
    MODELS.clear()
BACKBONES = {
    "resnet": RESNET,
    "resnet without bottlenecks": {**RESNET, "layer_type": "basic"},
    "resnet with strides in its 1x1 convolutions": {**RESNET, "downsample_in_bottleneck": True},
    "swin": SWIN,
    "swin without biases": {**SWIN, "qkv_bias": False, "mlp_ratio": 2.0},
    "convnext": convnext(),
    "timm": timm_backbone("resnet18", use_pretrained_backbone=False),
}
MODELS |= {name: {"backbone_config": backbone} for name, backbone in BACKBONES.items()}


def tiny_config(**fields) -> MaskFormerConfig:
    defaults = {
        "backbone_config": SWIN,
        "feature_size": 32,
        "mask_feature_size": 24,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "ffn_dim": 40,
        "decoder_layers": 2,
        "num_queries": 9,
        "id2label": dict(enumerate(("sky", "road", "car"))),
        "label2id": {"sky": 0, "road": 1, "car": 2},
        "label_ids_to_fuse": [0, 1],
        "task": "semantic",
        "class_weight": 2,
        "no_object_weight": 0.25,
        "object_mask_threshold": 0.7,
    }
    return MaskFormerConfig(**{**defaults, **fields})


def random_model(**fields) -> MaskFormerForUniversalSegmentation:
    """No weight is what it was initialised to, or one that is lost would not be missed."""
    torch.manual_seed(0)
    model = MaskFormerForUniversalSegmentation(tiny_config(**fields)).eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point() and value.dim() == 1:
                value.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else value.normal_(0, 0.2)
        for module in model.modules():
            if isinstance(module, nn.Embedding) or hasattr(module, "relative_position_bias_table"):
                for parameter in module.parameters(recurse=False):
                    parameter.normal_()
        model.head.class_predictor.weight.mul_(10)
    return model


@pytest.fixture(scope="module", params=list(MODELS))
def ours(request) -> MaskFormerForUniversalSegmentation:
    return random_model(**MODELS[request.param])


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    theirs, difference = to_transformers(ours)
    assert difference < 1e-4
    theirs.save_pretrained(folder)
    return folder


def test_the_same_logits_there(ours, folder):
    is_masked = ours.config.transformer_decoder == "masked"
    name = "Mask2FormerForUniversalSegmentation" if is_masked else "MaskFormerForInstanceSegmentation"
    theirs, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    for size in ((64, 96), (70, 90)):
        pixel_values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected, got = ours(pixel_values), theirs(pixel_values)
        assert expected.class_queries_logits.std() > 0.5
        for name in ("class_queries_logits", "masks_queries_logits"):
            torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)


def test_the_same_model_back(ours, folder):
    again, info = MaskFormerForUniversalSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    expected, found = ours.state_dict(), again.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value) or name.endswith("num_batches_tracked"), name
    assert fields_of(again) == fields_of(ours)


def fields_of(model) -> dict:
    """A configuration without what saving adds to it."""
    added = ("_name_or_path", "architectures", "dtype", "transformers_version")
    fields = {name: value for name, value in model.config.to_dict().items() if name not in added}
    fields["backbone_config"] = {name: v for name, v in fields["backbone_config"].items() if name not in added}
    return fields


@pytest.mark.skipif(LOSES_PROJECTIONS, reason="this version of transformers does not save all of its Mask2Former")
def test_one_map_serves_both_ways():
    """Every name of theirs has one of ours, none twice, and all of ours are reached; no line of the map is idle."""
    used, swin_names = set(), set()
    for model in ("resnet", "swin", "mask2former with resnet", "mask2former with swin"):
        ours = MaskFormerForUniversalSegmentation(tiny_config(**MODELS[model]))
        config = transformers_config(ours.config)
        is_masked = isinstance(config, transformers.Mask2FormerConfig)
        name = "Mask2FormerForUniversalSegmentation" if is_masked else "MaskFormerForInstanceSegmentation"
        theirs = getattr(transformers, name)(config).state_dict()
        names = [own_name(name) for name in theirs]
        assert len(set(names)) == len(names)
        assert set(names) >= ours.state_dict().keys()
        left = set(names) - ours.state_dict().keys()
        assert all(any(re.search(pattern, name) for pattern in IGNORED_WEIGHTS) for name in left)
        used |= {
            next(pattern for pattern in WEIGHT_NAMES if re.match(pattern, name))
            for name in theirs
            if any(re.match(pattern, name) for pattern in WEIGHT_NAMES)
        }
        swin_names |= {line for line in SWIN_NAMES for name in theirs if line in name}
    assert used == WEIGHT_NAMES.keys()
    assert swin_names == SWIN_NAMES.keys()


def test_config_is_that_of_the_files_on_the_hub(tmp_path):
    theirs, _ = to_transformers(random_model())
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "maskformer"
    assert written["architectures"] == ["MaskFormerForInstanceSegmentation"]
    assert written["backbone_config"]["model_type"] == "swin"
    assert written["id2label"] == {"0": "sky", "1": "road", "2": "car"}
    assert (written["fpn_feature_size"], written["mask_feature_size"]) == (32, 24)
    assert (written["cross_entropy_weight"], written["no_object_weight"]) == (2.0, 0.25)
    decoder = written["decoder_config"]
    assert (decoder["d_model"], decoder["decoder_attention_heads"], decoder["num_queries"]) == (32, 4, 9)
    assert written["use_auxiliary_loss"] is False
    assert written["maskformer_hf"] == {
        "label_ids_to_fuse": [0, 1],
        "object_mask_threshold": 0.7,
        "task": "semantic",
        "use_auxiliary_loss": True,
    }


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"pixel_decoder": "transformer_fpn"}, "pixel_decoder='transformer_fpn'"),
        ({"pixel_decoder": "deformable"}, "MaskFormer has no counterpart of pixel_decoder='deformable'"),
        ({"transformer_decoder": "masked"}, "Mask2Former has no counterpart of pixel_decoder='fpn'"),
        ({**MASK2FORMER, "encoder_levels": 2}, "encoder_levels=2"),
        ({"pre_norm": True}, "pre_norm=True"),
        ({"decoder_encoder_layers": 1}, "decoder_encoder_layers=1"),
        ({"backbone_config": {**RESNET, "hidden_sizes": [8, 16, 24, 32]}, "enforce_input_projection": True}, "enforce"),
        ({"backbone_config": {**RESNET, "stem_type": "deep"}}, "stem_type='deep'"),
        ({"backbone_config": {**RESNET, "multi_grid": [2]}}, r"multi_grid=\[2\]"),
        ({"backbone_config": {**SWIN, "use_absolute_embeddings": True}}, "use_absolute_embeddings=True"),
        ({"pre_norm": True, "decoder_encoder_layers": 2}, "pre_norm=True; nor of decoder_encoder_layers=2"),
        ({"backbone_config": {**SWIN, "model_type": "maskformer-swin"}}, "cannot have this backbone"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_counterpart_is_named(fields, part):
    model = MaskFormerForUniversalSegmentation(tiny_config(**fields))
    with pytest.raises(ValueError, match=part):
        to_transformers(model)


def test_a_part_from_outside_has_none(monkeypatch):
    monkeypatch.setitem(parts._TABLE["class_head"], "twin", parts.part_of("class_head", "linear"))
    model = MaskFormerForUniversalSegmentation(tiny_config(class_head="twin"))
    with pytest.raises(ValueError, match="no counterpart of class_head='twin'"):
        to_transformers(model)


def test_a_per_pixel_baseline_has_none():
    model = PerPixelBaseline(PerPixelBaselineConfig(backbone_config=RESNET, feature_size=32, num_labels=3))
    with pytest.raises(ValueError, match="no counterpart of a 'maskformer_hf_per_pixel' model"):
        to_transformers(model)


def test_other_results_are_noticed(monkeypatch):
    """The check of the logits is no formality: here their model drops a bias."""
    model = random_model()
    forward = transformers.MaskFormerForInstanceSegmentation.forward

    def drop(self, *args, **kwargs):
        nn.init.zeros_(self.class_predictor.bias)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(transformers.MaskFormerForInstanceSegmentation, "forward", drop)
    with pytest.raises(ValueError, match="computes something else with these weights"):
        to_transformers(model)


def test_an_idle_projection_is_no_obstacle():
    """COCO's Swin models enforce what they would have anyway."""
    _, difference = to_transformers(random_model(enforce_input_projection=True))
    assert difference < 1e-4


def test_the_image_processor_there_and_back(tmp_path):
    ours = MaskFormerImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 160},
        ignore_index=255,
        do_reduce_labels=True,
        num_labels=3,
        label_ids_to_fuse=[0, 1],
        image_mean=[0.1, 0.2, 0.3],
    )
    transformers_processor(ours, tiny_config()).save_pretrained(tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(theirs) is transformers.MaskFormerImageProcessor
    assert (theirs.ignore_index, theirs.do_reduce_labels, theirs.size_divisor) == (255, True, 32)
    assert MaskFormerImageProcessor.from_pretrained(tmp_path).to_dict() == ours.to_dict()
    masked = transformers_processor(ours, tiny_config(**MASK2FORMER))
    assert type(masked) is transformers.Mask2FormerImageProcessor
    # A photo whose sides are multiples already is the same to both.
    photo = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected, got = (processor(photo, return_tensors="pt")["pixel_values"] for processor in (ours, theirs))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_what_changes_is_told():
    told = " ".join(describe_changes(random_model(), MaskFormerImageProcessor(), 2e-6))
    for text in ("differ by 2.0e-06", "torch.float32", "stretches them to multiples of 32", "Deep supervision"):
        assert text in told
    assert "BatchNorm" not in told
    rounding = MaskFormerImageProcessor(round_to_divisor=True)
    told = " ".join(describe_changes(random_model(backbone_config=RESNET, use_auxiliary_loss=False), rounding, 0.0))
    assert "BatchNorm is not frozen" in told
    assert "stretches" not in told
    assert "Deep supervision" not in told
    masked = random_model(**{**MASK2FORMER, "dropout": 0.1, "use_auxiliary_loss": False})
    told = " ".join(describe_changes(masked, rounding, 0.0))
    assert "Deep supervision is switched on" in told
    assert "left out there with probability 0.1" in told
