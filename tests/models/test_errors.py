"""What cannot be is refused in one clear sentence, before memory or time is spent on it."""

import json
import shutil

import pytest
import torch
from transformers import CONFIG_MAPPING, DetrConfig

from builders import resnet
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation, MaskFormerModel


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"pixel_decoder": "unet"},
            r"`pixel_decoder` must be one of \['fpn', 'transformer_fpn', 'deformable', 'fapn', .*\], got 'unet'",
        ),
        ({"transformer_decoder": "mask"}, r"`transformer_decoder` must be one of \['detr', 'masked', .*\], got 'mask'"),
        ({"transformer_decoder": "masked", "decoder_encoder_layers": 1}, "has no encoder in front: .* got 1"),
        (
            {"pixel_decoder": "deformable", "feature_size": 96, "num_attention_heads": 64, "hidden_size": 64},
            "`feature_size` must be a multiple of 4 and of .* got 96",
        ),
        ({"encoder_levels": 5}, "`encoder_levels` must be 1 to 4, got 5"),
        ({"inference_layers": 7}, "`inference_layers` must be 1 to `decoder_layers`=6, or None for all of them, got 7"),
        (
            {"pixel_decoder": "deformable", "inference_encoder_layers": 0},
            "`inference_encoder_layers` must be 1 to `encoder_layers`=6, .* got 0",
        ),
        ({"inference_encoder_layers": 2}, "`pixel_decoder='fpn'` has no encoder to leave early: .* got 2"),
        (
            {"encoder_exits": [0.5]},
            r"`pixel_decoder='fpn'` trains no earlier exits .* got \[0.5\]; choose 'deformable'",
        ),
        (
            {"pixel_decoder": "transformer_fpn", "encoder_exits": [0.5]},
            "`pixel_decoder='transformer_fpn'` trains no earlier exits",
        ),
        (
            {"pixel_decoder": "deformable", "encoder_exits": [0.5]},
            r"`encoder_exits` must be a weight of at least 0 .*, 5 with `encoder_layers=6`, .* got \[0.5\]",
        ),
        ({"pixel_decoder": "deformable", "encoder_layers": 2, "encoder_exits": [0]}, "and not all be 0, got"),
        ({"encoder_ffn_dim": 0}, "`encoder_ffn_dim` must be at least 1, or None, got 0"),
        ({"mask_loss": "sparse"}, r"`mask_loss` must be one of .*, got 'sparse'"),
        ({"mask_term": "bce"}, r"`mask_term` must be one of .*, got 'bce'"),
        ({"matching": "boxes"}, r"`matching` must be one of .*, got 'boxes'"),
        ({"task": "detection"}, r"`task` must be one of .*, got 'detection'"),
        ({"feature_size": 100}, r"`feature_size` must be a multiple of 32 \(GroupNorm groups\), got 100"),
        ({"hidden_size": 100}, r"`hidden_size` must be a multiple of 4 and of `num_attention_heads`=8, got 100"),
        ({"hidden_size": 6, "num_attention_heads": 2}, "`hidden_size` must be a multiple of 4"),
        (
            {"pixel_decoder": "transformer_fpn", "feature_size": 96, "num_attention_heads": 64},
            "`feature_size` must be a multiple of 4 and of `num_attention_heads`=64, got 96",
        ),
        ({"num_queries": 0}, "`num_queries` must be at least 1, got 0"),
        ({"num_labels": 0}, "`num_labels` must be at least 1, got 0"),
        ({"id2label": {1: "a", 2: "b"}}, r"`id2label` must number its labels from 0 to 1, got \[1, 2\]"),
        ({"num_labels": 3, "label_ids_to_fuse": [1, 3]}, r"`label_ids_to_fuse` holds \[3\], but there are 3 labels"),
        ({"oversample_ratio": 0.5}, "`oversample_ratio` be at least 1, got 0.75 and 0.5"),
        ({"duplicate_iou": 1.5}, "`duplicate_iou` must lie in .0, 1. or be None, got 1.5"),
        ({"backbone_config": {"depths": [1, 1, 1, 1]}}, "`backbone_config` needs a `model_type`.*got None"),
        ({"backbone_config": {"model_type": "resnet_50"}}, "`backbone_config` needs a `model_type`.*got 'resnet_50'"),
        (
            {"backbone_config": resnet(8, 16, 24, depths=(1, 1, 1))},
            "A 'resnet' backbone with 3 stages has too few: the pixel decoder needs 4 feature maps",
        ),
        # Names that would be taken for attributes of the user's own, and change nothing.
        ({"fpn_feature_size": 128}, "`fpn_feature_size` is a field of transformers' .* here it is `feature_size`"),
        ({"decoder_config": DetrConfig()}, r"`decoder_config` is a field of transformers' .*`hidden_size` \(d_model\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskFormerConfig(**fields)


def test_a_backbone_that_is_told_to_give_too_few_maps():
    backbone = resnet(8, 12, 16, 24, out_features=["stage3", "stage4"])
    with pytest.raises(ValueError, match=r"gives 2 feature maps \(\[16, 24\] channels\).*needs 4: set `out_features`"):
        MaskFormerModel(MaskFormerConfig(backbone_config=backbone))


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (1, 4, 64, 64), (3, 64, 64)], ids=str)
def test_pixel_values_of_another_shape(tiny_model, shape):
    with pytest.raises(ValueError, match=r"`pixel_values` must have shape \(batch, 3, height, width\), got") as error:
        tiny_model(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_targets_that_miss_their_half(tiny_model):
    with pytest.raises(ValueError, match="`mask_labels` and `class_labels` come together"):
        tiny_model(torch.zeros(1, 3, 64, 64), class_labels=[torch.zeros(1, dtype=torch.int64)])


def test_weights_that_are_not_finite(tiny_checkpoint):
    """A training step says so; `load` does for inference (test_load.py)."""
    model = MaskFormerForUniversalSegmentation.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        model.head.mask_embedder.layers[0].weight[0, 0] = torch.nan
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[:, :20] = True
    for targets in (1, 0):
        with pytest.raises(ValueError, match="finite"):
            model(
                torch.randn(1, 3, 64, 64),
                mask_labels=[masks[:targets]],
                class_labels=[torch.zeros(targets, dtype=torch.int64)],
            )


@pytest.fixture
def broken(tiny_checkpoint, tmp_path):
    """A copy of a checkpoint, to be damaged."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "broken")


@pytest.mark.parametrize("size", [0, 4, 100, 30_000, -1])
def test_truncated_weights(broken, size):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"broken/model.safetensors cannot be read .*truncated.*Download or copy"):
        MaskFormerForUniversalSegmentation.from_pretrained(broken)


def test_the_truncated_one_of_several_files_is_named(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path, max_shard_size="50KB")
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    second.write_bytes(second.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{second.name} cannot be read") as error:
        MaskFormerForUniversalSegmentation.from_pretrained(tmp_path)
    assert first.name not in str(error.value)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ('{"model_type": "maskformer_hf",', OSError, "broken/config.json' is not a valid JSON file"),
        ("[1, 2]", ValueError, "broken/config.json is not the configuration of a model: it has no `model_type`"),
        ("17", ValueError, "broken/config.json is not the configuration of a model"),
        ("null", ValueError, "broken/config.json is not the configuration of a model"),
        ('{"size": {"shortest_edge": 800}}', ValueError, "broken/config.json is not the configuration of a model"),
        ('{"model_type": "maskformer_hf", "num_queries": -1}', ValueError, "`num_queries` must be at least 1, got -1"),
    ],
)
def test_config_json_that_is_none(broken, content, error, message):
    (broken / "config.json").write_text(content)
    for load in (MaskFormerForUniversalSegmentation.from_pretrained, MaskFormerConfig.from_pretrained):
        with pytest.raises(error, match=message):
            load(broken)


@pytest.mark.parametrize("model_type", ["detr", "segformer", "resnet"])
def test_a_checkpoint_of_another_model(broken, model_type):
    CONFIG_MAPPING[model_type]().save_pretrained(broken)
    assert json.loads((broken / "config.json").read_text())["model_type"] == model_type
    for load in (MaskFormerForUniversalSegmentation.from_pretrained, MaskFormerConfig.from_pretrained):
        with pytest.raises(ValueError, match=f"broken is a '{model_type}' model; only 'maskformer_hf' and"):
            load(broken)
    with pytest.raises(ValueError, match=f"'{model_type}' model"):
        MaskFormerForUniversalSegmentation.from_pretrained(broken, config=CONFIG_MAPPING[model_type]())
