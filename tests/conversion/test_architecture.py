"""What is read off the shapes of an original checkpoint: all that has a tensor, for every model that was released."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builders import resnet, swin
from maskformer_hf.conversion.architecture import infer_config
from maskformer_hf.conversion.detectron2_config import config_from_detectron2
from maskformer_hf.conversion.preset_matching import differences, matching_preset, same_size_presets
from maskformer_hf.conversion.safe_reader import read_checkpoint
from maskformer_hf.models.configuration_maskformer import MaskFormerHfConfig
from maskformer_hf.models.modeling_auto import MODEL_CLASSES
from maskformer_hf.presets import EOMT_PRESETS, MASK2FORMER, PRESETS, SEGFORMER_PRESETS

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"
CHECKPOINTS = {
    "maskformer_r50_fpn": "model_zoo_style.pkl",
    "maskformer_swin_tenc": "state_dict.safetensors",
    "perpixel_plus_swin": "state_dict.safetensors",
    "mask2former_swin": "model_zoo_style.pkl",
    "mask2former_video_swin": "state_dict.safetensors",
    "pem_r50": "state_dict.safetensors",
}
# One network of those that differ in their classes alone.
NETWORKS = [
    "maskformer_resnet50_ade20k",
    "maskformer_resnet101_cityscapes",
    "maskformer_resnet101c_cityscapes",
    "maskformer_swin_tiny_coco_panoptic",
    "maskformer_swin_small_ade20k",
    "maskformer_swin_base_ade20k",
    "maskformer_swin_large_coco_panoptic",
    "maskformer_resnet50_coco_panoptic",
    "maskformer_resnet101_ade20k_panoptic",
    "per_pixel_baseline_resnet50_ade20k",
    "per_pixel_baseline_plus_resnet50_ade20k",
    "mask2former_resnet50_coco_panoptic",
    "mask2former_resnet101_coco_panoptic",
    "mask2former_swin_tiny_coco_panoptic",
    "mask2former_swin_small_coco_panoptic",
    "mask2former_swin_base_coco_panoptic",
    "mask2former_swin_large_coco_panoptic",
    "mask2former_swin_large_cityscapes",
    "mpformer_resnet50_coco_panoptic",
    "pem_resnet50_ade20k",
]
TINY = {
    "feature_size": 32,
    "mask_feature_size": 24,
    "hidden_size": 48,
    "ffn_dim": 56,
    "decoder_layers": 2,
    "num_queries": 9,
    "num_labels": 5,
}
RESNET = resnet(16, 24, 32, 40, depths=(1, 2, 1, 3), layer_type="bottleneck")
SWIN = swin(16, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 4), window_size=5, image_size=64, mlp_ratio=3.0)


def model_of(config: MaskFormerHfConfig, device: str = "cpu"):
    with torch.device(device):
        return MODEL_CLASSES[config.model_type](config)


def with_classes(state: dict[str, torch.Tensor], num_labels: int) -> dict[str, torch.Tensor]:
    """The state dict of the same network for another number of classes."""
    state = dict(state)
    predictor = "sem_seg_head.predictor"
    per_class = {f"{predictor}.class_embed.weight": num_labels + 1, f"{predictor}.weight": num_labels}
    per_class |= {f"{predictor}.label_enc.weight": num_labels}
    if f"{predictor}.class_embed.weight" not in state:
        per_class[f"{predictor}.query_embed.weight"] = num_labels
    for name, rows in per_class.items():
        if name in state:
            state[name] = torch.empty(rows, *state[name].shape[1:], device="meta")
    return state


@pytest.fixture(scope="module")
def released(original_state):
    """The state dict, without memory, of any released model."""

    def network(config) -> str:
        fields = config.to_dict()
        parts = ["backbone_config", "pixel_decoder", "transformer_decoder", "query_source"]
        # Mask2Former has the same tensors for videos.
        parts.append("num_queries" if config.transformer_decoder == "masked" else "model_type")
        return json.dumps([fields[name] for name in parts], sort_keys=True)

    states = {}
    for name in NETWORKS:
        config = PRESETS[name]()
        states[network(config)] = original_state(model_of(config, "meta"))
    assert len(states) == len(NETWORKS)
    return lambda config: with_classes(states[network(config)], config.num_labels)


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in {**EOMT_PRESETS, **SEGFORMER_PRESETS}])
def test_every_released_model_is_recognised(released, name):
    preset = PRESETS[name]()
    state = released(preset)
    inferred = infer_config(state)
    assert differences(inferred, preset) == []
    same = same_size_presets(inferred)
    assert name in same
    assert matching_preset(inferred) == (same[0], True)
    # They differ in the task or the version of the data, which nothing in the tensors tells.
    assert {base_name(other) for other in same} == {base_name(name)}


def base_name(preset: str) -> str:
    return preset.removesuffix("_panoptic").replace("youtube_vis_2021", "youtube_vis_2019")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_golden_checkpoints(name):
    """All but the number of heads and what only training knows."""
    expected = config_from_detectron2(json.loads((GOLDEN / name / "config.json").read_text()))
    is_video = True if "video" in name else None  # it has 7 classes, not 40
    inferred = infer_config(read_checkpoint(GOLDEN / name / CHECKPOINTS[name]), is_video)
    assert type(inferred) is type(expected)
    assert differences(inferred, expected) == []
    ours, theirs = inferred.to_dict(), expected.to_dict()
    differing = {field for field in ours if ours[field] != theirs.get(field) and field != "backbone_config"}
    assert differing <= {
        "num_attention_heads",
        "dropout",
        "task",
        "object_mask_threshold",
        "overlap_mask_area_threshold",
        "encoder_layers",  # 0 there and 6 here, where there is no encoder
        "num_points",
    }
    ours, theirs = ours["backbone_config"], theirs["backbone_config"]
    assert {field for field in ours if ours[field] != theirs.get(field)} <= {"drop_path_rate", "image_size"}


@pytest.mark.parametrize(
    "fields",
    [
        {"backbone_config": RESNET},
        {"backbone_config": RESNET, "freeze_batch_norm": False},
        {"backbone_config": {**RESNET, "stem_type": "deep", "multi_grid": [1, 2, 4]}},
        {"backbone_config": SWIN},
        {"backbone_config": {**SWIN, "use_absolute_embeddings": True}},
        {"backbone_config": {**SWIN, "qkv_bias": False, "patch_size": 2}},
        {"backbone_config": RESNET, "pre_norm": True, "decoder_encoder_layers": 2},
        {"backbone_config": RESNET, "num_channels": 4, "hidden_size": 40, "enforce_input_projection": True},
        {"backbone_config": RESNET, "hidden_size": 40, "enforce_input_projection": False},
        {"backbone_config": SWIN, "pixel_decoder": "transformer_fpn", "encoder_layers": 3, "pre_norm": True},
        {
            "backbone_config": SWIN,
            "pixel_decoder": "transformer_fpn",
            "hidden_size": 32,
            "enforce_input_projection": True,
        },
        {**MASK2FORMER, "backbone_config": RESNET, "num_attention_heads": 4, "encoder_ffn_dim": 72},
        {**MASK2FORMER, "backbone_config": SWIN, "encoder_levels": 2, "encoder_layers": 1, "decoder_layers": 3},
        {**MASK2FORMER, "backbone_config": SWIN, "hidden_size": 32, "enforce_input_projection": True},
    ],
    ids=str,
)
def test_every_size_is_read(original_state, fields):
    config = MaskFormerHfConfig(**{**TINY, **fields})
    state = original_state(model_of(config))
    if not config.freeze_batch_norm:
        state["backbone.stem.conv1.norm.num_batches_tracked"] = torch.zeros(())
    inferred = infer_config(state)
    assert differences(inferred, config) == []
    assert inferred.freeze_batch_norm == config.freeze_batch_norm
    names = [*TINY, "pixel_decoder", "encoder_layers", "pre_norm", "decoder_encoder_layers", "enforce_input_projection"]
    names += ["transformer_decoder", "encoder_levels", "encoder_ffn_dim", "num_attention_heads"]
    expected, found = config.to_dict(), inferred.to_dict()
    assert {name: found[name] for name in names if name in found} == {
        name: expected[name] for name in names if name in expected
    }
    given = fields["backbone_config"]
    assert {name: found["backbone_config"][name] for name in given if name != "image_size"} == {
        name: value for name, value in given.items() if name != "image_size"
    }
    if given.get("use_absolute_embeddings"):
        assert found["backbone_config"]["image_size"] == given["image_size"]


def test_every_difference_is_named(original_state):
    config = MaskFormerHfConfig(**{**TINY, "backbone_config": SWIN})
    inferred = infer_config(original_state(model_of(config)))
    others = {
        "num_labels": 6,
        "feature_size": 64,
        "hidden_size": 64,
        "num_queries": 10,
        "decoder_layers": 3,
        "pre_norm": True,
        "pixel_decoder": "transformer_fpn",
    }
    for name, value in others.items():
        found = differences(inferred, MaskFormerHfConfig(**{**TINY, "backbone_config": SWIN, name: value}))
        assert any(line.startswith(f"{name} is ") and line.endswith(f", not {value}") for line in found)
    other = MaskFormerHfConfig(**{**TINY, "backbone_config": {**SWIN, "depths": [1, 1, 1, 1]}})
    assert differences(inferred, other) == ["backbone.depths is [1, 2, 1, 1] in the checkpoint, not [1, 1, 1, 1]"]
    assert "backbone is swin in the checkpoint, not resnet" in differences(
        inferred, MaskFormerHfConfig(**{**TINY, "backbone_config": RESNET})
    )


@pytest.mark.parametrize(
    ("num_labels", "pixel_decoder", "preset"),
    [
        (150, "fpn", "ade20k"),
        (150, "transformer_fpn", "ade20k_panoptic"),
        (133, "fpn", "coco_panoptic"),
        (133, "transformer_fpn", "coco_panoptic"),
        (19, "fpn", "cityscapes"),
        (171, "fpn", "coco_stuff"),
        (65, "transformer_fpn", "mapillary"),
        (847, "fpn", "ade20k_full"),
        (7, "fpn", None),
        (80, "deformable", "coco_instance"),
        (133, "deformable", "coco_panoptic"),
        (8, "deformable", "cityscapes_instance"),
        # Or its panoptic models, which have the same classes.
        (19, "deformable", "cityscapes"),
    ],
)
def test_data_set_of_an_unknown_size_of_model(num_labels, pixel_decoder, preset):
    config = MaskFormerHfConfig(
        **{
            **TINY,
            "num_labels": num_labels,
            "pixel_decoder": pixel_decoder,
            "hidden_size": 32,
            "backbone_config": SWIN,
        },
        transformer_decoder="masked" if pixel_decoder == "deformable" else "detr",
    )
    found, exact = matching_preset(config)
    assert not exact
    assert found is None if preset is None else found.endswith(f"_{preset}")
    assert found is None or found.startswith("mask2former_" if pixel_decoder == "deformable" else "maskformer_")


MISTAKES = {
    "nothing": (lambda state: {}, "has no `sem_seg_head`, and begins with nothing"),
    "a backbone": (
        lambda state: {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone")},
        "has no `sem_seg_head`, and begins with layers.0",
    ),
    "our own": (lambda state: {"model.backbone.body.weight": torch.zeros(1)}, "need no conversion from Detectron2"),
    "half a Mask2Former": (
        lambda state: state | {"sem_seg_head.predictor.transformer_cross_attention_layers.0.norm.bias": torch.ones(2)},
        r"lacks sem_seg_head\.pixel_decoder\.transformer\.level_embed",
    ),
    "no queries": (
        lambda state: {name: value for name, value in state.items() if "query_embed" not in name},
        r"lacks sem_seg_head\.predictor\.query_embed\.weight",
    ),
    "another shape": (
        lambda state: state | {"sem_seg_head.predictor.query_embed.weight": torch.zeros(3)},
        r"query_embed\.weight of the checkpoint has the shape \(3,\); 2 dimensions",
    ),
    "no elements": (
        lambda state: state | {"sem_seg_head.predictor.query_embed.weight": torch.zeros(0, 32)},
        r"has the shape \(0, 32\)",
    ),
    "heads that do not divide": (
        lambda state: state | {"sem_seg_head.predictor.query_embed.weight": torch.zeros(12, 36)},
        r"make no model: .*hidden_size.*No tensor tells the number of attention heads",
    ),
    "another backbone": (
        lambda state: {name.replace("patch_embed", "stages"): value for name, value in state.items()},
        "neither a ResNet",
    ),
    "a Swin without its first norm": (
        lambda state: {name: value for name, value in state.items() if "patch_embed.norm" not in name},
        "without a norm behind its patch embedding",
    ),
    "a small ResNet": (
        lambda state: {
            **{name: value for name, value in state.items() if not name.startswith("backbone.")},
            "backbone.stem.conv1.weight": torch.zeros(8, 3, 7, 7),
            "backbone.res2.0.conv1.weight": torch.zeros(1),
        },
        r"two convolutions per block \(18 or 34 layers\)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_no_maskformer_is_told(mistake):
    state = load_file(GOLDEN / "maskformer_swin_tenc" / "state_dict.safetensors")
    spoil, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        infer_config(spoil(state))
