"""Files of the original whose configuration nobody gives: the model that is made of them is the one they were of."""

import pickle
from pathlib import Path

import pytest
import torch

from builders import resnet, swin
from maskformer_hf import (
    MaskFormerConfig,
    MaskFormerVideoConfig,
    MaskFormerVideoProcessor,
    PerPixelBaselineConfig,
)
from maskformer_hf.conversion.convert import convert_detectron2
from maskformer_hf.conversion.summary import summary
from maskformer_hf.models.modeling_auto import MODEL_CLASSES
from maskformer_hf.presets import MASK2FORMER, PRESETS, class_names, image_processor_for

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"
SIZES = {
    "feature_size": 32,
    "mask_feature_size": 24,
    "hidden_size": 48,
    "ffn_dim": 56,
    "decoder_layers": 2,
    "num_queries": 9,
    "num_labels": 5,
}
RESNET = resnet(16, 24, 32, 40, depths=(1, 2, 1, 3), layer_type="bottleneck")
RESNET_C = {**RESNET, "stem_type": "deep", "multi_grid": [1, 2, 4]}
SWIN = swin(16, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 4), window_size=5, image_size=64)
CONFIGS = {
    "resnet": MaskFormerConfig(**{**SIZES, "backbone_config": RESNET}),
    "R101c": MaskFormerConfig(**{**SIZES, "backbone_config": RESNET_C}),
    "swin with absolute positions": MaskFormerConfig(
        **{**SIZES, "backbone_config": {**SWIN, "use_absolute_embeddings": True}}
    ),
    "transformer encoder": MaskFormerConfig(
        **{**SIZES, "backbone_config": SWIN, "pixel_decoder": "transformer_fpn", "encoder_layers": 2}
    ),
    "norms in front": MaskFormerConfig(
        **{**SIZES, "backbone_config": RESNET, "pre_norm": True, "decoder_encoder_layers": 1}
    ),
    "enforced projection": MaskFormerConfig(
        **{**SIZES, "backbone_config": RESNET, "hidden_size": 40, "enforce_input_projection": True}
    ),
    "Mask2Former": MaskFormerConfig(
        **{**SIZES, **MASK2FORMER, "backbone_config": SWIN, "num_attention_heads": 4, "decoder_layers": 3}
    ),
    "Mask2Former with two encoded levels": MaskFormerConfig(
        **{**SIZES, **MASK2FORMER, "backbone_config": RESNET, "encoder_levels": 2, "encoder_ffn_dim": 72}
    ),
    "per-pixel baseline": PerPixelBaselineConfig(**{**SIZES, "backbone_config": RESNET}),
    "per-pixel baseline +": PerPixelBaselineConfig(**{**SIZES, "backbone_config": SWIN, "transformer_decoder": "detr"}),
}


def random_model(config):
    torch.manual_seed(0)
    model = MODEL_CLASSES[config.model_type](config).eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point() and value.dim() == 1:
                value.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else value.normal_(0, 0.2)
    return model


def write(path, state) -> str:
    content = {"model": {name: value.numpy() for name, value in state.items()}, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content, protocol=3))
    return str(path)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_model_is_made_again(original_state, tmp_path, kind):
    model = random_model(CONFIGS[kind])
    converted = convert_detectron2(write(tmp_path / "model.pkl", original_state(model)))
    assert type(converted.model) is type(model)
    assert converted.ignored == []
    pixel_values = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        expected, got = model(pixel_values).to_tuple(), converted.model(pixel_values).to_tuple()
    assert all(torch.equal(*pair) for pair in zip(expected, got, strict=True))
    remarks = " ".join(converted.remarks)
    assert "No data set of the presets has 5 classes" in remarks
    # With deformable attention, the tensors tell the number of heads.
    assert ("8 attention heads" in remarks) == (
        not kind.startswith(("per-pixel baseline", "Mask2Former")) or "+" in kind
    )
    assert ("dilations [1, 2, 4]" in remarks) == (kind == "R101c")
    # As the original pads: by SIZE_DIVISIBILITY, or for the baselines by what the backbone asks for.
    assert converted.processor.size_divisor == (0 if kind == "per-pixel baseline" else 32)


def test_a_preset_of_the_same_sizes_is_found_and_taken(original_state, tmp_path, monkeypatch):
    def preset():
        names = {label: name for label, (name, _, _) in enumerate(class_names("coco_panoptic_133"))}
        return MaskFormerConfig(
            **{
                **{name: value for name, value in SIZES.items() if name != "num_labels"},
                "backbone_config": {**RESNET, "multi_grid": [1, 1, 2]},
                "id2label": names,
                "label2id": {name: label for label, name in names.items()},
                "label_ids_to_fuse": [80, 132],
                "num_attention_heads": 4,
            }
        )

    monkeypatch.setitem(PRESETS, "maskformer_tiny_coco_panoptic", preset)
    model = random_model(preset())
    path = write(tmp_path / "model.pkl", original_state(model))
    converted = convert_detectron2(path)
    given = convert_detectron2(path, preset="maskformer_tiny_coco_panoptic")
    for found in (converted, given):
        assert found.model.config.to_dict() == preset().to_dict()
        assert found.processor.to_dict() == image_processor_for("maskformer_tiny_coco_panoptic").to_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(found.model.state_dict()[name], value) or name.endswith("num_batches_tracked")
    assert "All sizes are those of preset maskformer_tiny_coco_panoptic" in converted.remarks[0]
    assert "No tensor tells, hence taken as in the released models: 4 attention heads" in converted.remarks[1]
    assert given.remarks == ["Sizes, classes and image processor: preset maskformer_tiny_coco_panoptic."]
    assert ("classes", "133 (person, bicycle, car, motorcycle, ...), 2 of them stuff") in summary(converted.model)


def test_a_model_of_videos(original_state, tmp_path):
    """Which has the tensors of one of images: 40 classes tell it, or the preset, or Detectron2's configuration."""
    sizes = {name: value for name, value in SIZES.items() if name != "num_labels"}
    config = MaskFormerVideoConfig(**{**sizes, "backbone_config": RESNET, "num_labels": 40, "num_attention_heads": 8})
    model = random_model(config)
    converted = convert_detectron2(write(tmp_path / "model.pkl", original_state(model)))
    assert type(converted.model) is type(model)
    assert isinstance(converted.processor, MaskFormerVideoProcessor)
    assert converted.model.config.id2label[0] == "LABEL_0"
    remarks = " ".join(converted.remarks)
    assert "Taken for a model of videos, because of YouTube-VIS's 40 classes" in remarks
    assert "More than one data set of the presets has 40 classes" in remarks
    assert "Image sizes are the usual ones (360, at most 1333)" in remarks
    clip = torch.randn(1, 2, 3, 70, 90)
    with torch.no_grad():
        expected, got = model(clip), converted.model(clip)
    assert torch.equal(got.masks_queries_logits, expected.masks_queries_logits)
    with pytest.raises(ValueError, match="The preset mask2former_resnet50_youtube_vis_2021 does not fit"):
        convert_detectron2(tmp_path / "model.pkl", preset="mask2former_resnet50_youtube_vis_2021")
    golden = GOLDEN / "mask2former_video_swin"
    converted = convert_detectron2(golden / "state_dict.safetensors", config_file=golden / "config.json")
    assert type(converted.model) is type(model)
    assert isinstance(converted.processor, MaskFormerVideoProcessor)
    assert converted.model.config.num_labels == 7


def test_a_state_dict_without_a_model_around_it(original_state, tmp_path):
    model = random_model(CONFIGS["resnet"])
    state = original_state(model) | {"pixel_mean": torch.zeros(3, 1, 1), "criterion.empty_weight": torch.ones(6)}
    path = tmp_path / "state.pkl"
    path.write_bytes(pickle.dumps({name: value.numpy() for name, value in state.items()}))
    converted = convert_detectron2(path)
    assert {(name, count) for name, count, _ in converted.ignored} == {("pixel_mean", 1), ("criterion.empty_weight", 1)}
    assert all(reason for _, _, reason in converted.ignored)


def test_a_layer_that_lacks_is_named(original_state, tmp_path):
    model = random_model(CONFIGS["resnet"])
    state = {name: value for name, value in original_state(model).items() if "res3.1.conv2" not in name}
    with pytest.raises(ValueError, match=r"the checkpoint lacks: backbone\.res3\.1\.conv2\.norm\.bias"):
        convert_detectron2(write(tmp_path / "model.pkl", state))
