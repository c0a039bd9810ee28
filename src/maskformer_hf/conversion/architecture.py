"""What the tensors of an original checkpoint say about their model: every size, and nothing that has no tensor."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from ..models.configuration_maskformer import MaskFormerHfConfig
from ..models.configuration_per_pixel import MaskFormerHfPerPixelConfig
from ..models.configuration_video import MaskFormerHfVideoConfig
from ..models.pixel_decoder_deformable import NUM_POINTS
from ..presets import MASK2FORMER, PRESETS, PROCESSORS
from .detectron2 import later_name

# No tensor depends on it; every configuration of the original says 8.
NUM_ATTENTION_HEADS = 8
# Of both versions of YouTube-VIS, and of no data set of images that a model was released for.
NUM_VIDEO_LABELS = 40
# Of every Swin of the original; it matters in training only.
DROP_PATH_RATE = 0.3
# Pixels of the images a Swin was pretrained with, by window. Only absolute position embeddings depend on them.
PRETRAINING_SIZES = {7: 224, 12: 384}

_PIXEL_DECODER = "sem_seg_head.pixel_decoder"
_PREDICTOR = "sem_seg_head.predictor"
_DECODER = f"{_PREDICTOR}.transformer.decoder.layers"
# Mask2Former's, and no other model's.
_MASKED_LAYERS = f"{_PREDICTOR}.transformer_cross_attention_layers."

# Fields of a configuration that tensors tell, of every model and of those with queries.
_FIELDS = (
    "model_type",
    "num_labels",
    "num_channels",
    "pixel_decoder",
    "feature_size",
    "mask_feature_size",
    "transformer_decoder",
)
_DECODER_FIELDS = ("hidden_size", "ffn_dim", "decoder_layers", "num_queries")
_DETR_FIELDS = ("decoder_encoder_layers", "pre_norm")
_DEFORMABLE_FIELDS = ("encoder_layers", "encoder_levels", "num_attention_heads")
_BACKBONE_FIELDS = {
    "resnet": ("embedding_size", "hidden_sizes", "depths"),
    "swin": ("embed_dim", "patch_size", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias"),
}

Shapes = dict[str, tuple[int, ...]]


def infer_config(state: Mapping[str, torch.Tensor], is_video: bool | None = None) -> MaskFormerHfConfig:
    """The configuration of an original checkpoint: a MaskFormer, a Mask2Former of images or videos, or a per-pixel
    baseline.

    Only the names and shapes of its tensors are read.

    What they leave open is as in every released model: 8 attention heads (Mask2Former's tensors tell), strides in the
    3x3 convolutions of a ResNet, DeepLab's dilations 1, 2, 4 in the last stage of one that has DeepLab's stem, and
    classes without names. The task is panoptic for Mask2Former and for the pixel decoder with a transformer encoder,
    else semantic, until [`matching_preset`] knows better.

    Args:
        is_video: Whether a Mask2Former is one of videos, which has the same tensors: without it, whether it has
            YouTube-VIS's number of classes.

    Raises:
        ValueError: If this is no such checkpoint.
    """
    shapes: Shapes = {later_name(name): tuple(value.shape) for name, value in state.items()}
    _check_kind(shapes)
    backbone, num_channels = _infer_backbone(shapes)
    common: dict[str, Any] = {
        "backbone_config": backbone,
        "num_channels": num_channels,
        # A frozen BatchNorm of Detectron2 has no counter.
        "freeze_batch_norm": not any(name.endswith("num_batches_tracked") for name in shapes),
        "mask_feature_size": _shape(shapes, f"{_PIXEL_DECODER}.mask_features.weight", 4)[0],
    }
    if any(name.startswith(_MASKED_LAYERS) for name in shapes):
        common |= _infer_mask2former(shapes)
        if is_video is None:
            is_video = common["num_labels"] == NUM_VIDEO_LABELS
        return _configure(MaskFormerHfVideoConfig if is_video else MaskFormerHfConfig, common)
    feature_size, memory_channels = _shape(shapes, f"{_PIXEL_DECODER}.layer_4.weight", 4)[:2]
    with_encoder = f"{_PIXEL_DECODER}.input_proj.weight" in shapes
    fields: dict[str, Any] = {
        **common,
        "pixel_decoder": "transformer_fpn" if with_encoder else "fpn",
        "feature_size": feature_size,
        "num_attention_heads": NUM_ATTENTION_HEADS,
    }
    if with_encoder:
        layers = f"{_PIXEL_DECODER}.transformer.encoder.layers"
        fields["encoder_layers"] = _count(shapes, layers)
        fields["ffn_dim"] = _shape(shapes, f"{layers}.0.linear1.weight", 2)[0]
        fields["pre_norm"] = f"{_PIXEL_DECODER}.transformer.encoder.norm.weight" in shapes
    config_class: Any = MaskFormerHfPerPixelConfig
    if f"{_PREDICTOR}.weight" in shapes:
        fields |= {"transformer_decoder": None, "num_labels": _shape(shapes, f"{_PREDICTOR}.weight", 4)[0]}
    else:
        fields |= _infer_decoder(shapes, memory_channels)
        if f"{_PREDICTOR}.class_embed.weight" in shapes:
            config_class = MaskFormerHfConfig
            fields["num_labels"] = _shape(shapes, f"{_PREDICTOR}.class_embed.weight", 2)[0] - 1
            fields["task"] = "panoptic" if with_encoder else "semantic"
        else:
            fields["num_labels"] = fields.pop("num_queries")
    if config_class is MaskFormerHfPerPixelConfig and fields["num_labels"] > 255:
        fields["semantic_loss_ignore_index"] = 65535
    return _configure(config_class, fields)


def _configure(config_class: Any, fields: dict[str, Any]) -> MaskFormerHfConfig:
    try:
        return config_class(**fields)
    except ValueError as error:
        raise ValueError(
            f"The sizes of the checkpoint make no model: {error} No tensor tells the number of attention heads: if it "
            f"is not {NUM_ATTENTION_HEADS}, give the `config.yaml` that was dumped beside the checkpoint."
        ) from error


def _infer_mask2former(shapes: Shapes) -> dict[str, Any]:
    encoder = f"{_PIXEL_DECODER}.transformer.encoder.layers"
    num_levels, feature_size = _shape(shapes, f"{_PIXEL_DECODER}.transformer.level_embed", 2)
    num_offsets = _shape(shapes, f"{encoder}.0.self_attn.sampling_offsets.weight", 2)[0]
    num_queries, hidden_size = _shape(shapes, f"{_PREDICTOR}.query_embed.weight", 2)
    return {
        **MASK2FORMER,
        "feature_size": feature_size,
        "encoder_levels": num_levels,
        "encoder_layers": _count(shapes, encoder),
        "encoder_ffn_dim": _shape(shapes, f"{encoder}.0.linear1.weight", 2)[0],
        # An offset has two numbers.
        "num_attention_heads": max(1, num_offsets // (num_levels * NUM_POINTS * 2)),
        "hidden_size": hidden_size,
        "ffn_dim": _shape(shapes, f"{_PREDICTOR}.transformer_ffn_layers.0.linear1.weight", 2)[0],
        "decoder_layers": _count(shapes, f"{_PREDICTOR}.transformer_ffn_layers"),
        "enforce_input_projection": f"{_PREDICTOR}.input_proj.0.weight" in shapes and feature_size == hidden_size,
        "num_queries": num_queries,
        "num_labels": _shape(shapes, f"{_PREDICTOR}.class_embed.weight", 2)[0] - 1,
    }


def _infer_decoder(shapes: Shapes, memory_channels: int) -> dict[str, Any]:
    num_queries, hidden_size = _shape(shapes, f"{_PREDICTOR}.query_embed.weight", 2)
    return {
        "transformer_decoder": "detr",
        "hidden_size": hidden_size,
        "ffn_dim": _shape(shapes, f"{_DECODER}.0.linear1.weight", 2)[0],
        "decoder_layers": _count(shapes, _DECODER),
        "decoder_encoder_layers": _count(shapes, f"{_PREDICTOR}.transformer.encoder.layers"),
        "pre_norm": f"{_PREDICTOR}.transformer.encoder.norm.weight" in shapes,
        "enforce_input_projection": f"{_PREDICTOR}.input_proj.weight" in shapes and memory_channels == hidden_size,
        "num_queries": num_queries,
    }


def _check_kind(shapes: Shapes):
    """Say what a file holds that is no checkpoint of the original MaskFormer or Mask2Former."""
    if any(name.startswith(("model.", "head.")) for name in shapes):
        raise ValueError(
            "These are weights in the names of this package or of transformers, which need no conversion from "
            "Detectron2: give the folder that they and their config.json lie in."
        )
    if not any(name.startswith("sem_seg_head.") for name in shapes):
        raise ValueError(
            "This is no checkpoint of a MaskFormer or Mask2Former in Detectron2: it has no `sem_seg_head`, and begins "
            "with "
            f"{', '.join(list(shapes)[:3]) or 'nothing'}."
        )


def _shape(shapes: Shapes, name: str, num_dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"The checkpoint lacks {name}, which every such model has: the file is not complete.")
    shape = shapes[name]
    if len(shape) != num_dimensions or not all(shape):
        raise ValueError(f"{name} of the checkpoint has the shape {shape}; {num_dimensions} dimensions are expected.")
    return shape


def _count(shapes: Shapes, prefix: str) -> int:
    """How many layers there are below a name. Of layers that are skipped the conversion says what lacks."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for match in map(pattern.match, shapes) if match})


# --- backbones -------------------------------------------------------------------------------------------------------


def _infer_backbone(shapes: Shapes) -> tuple[dict[str, Any], int]:
    """The backbone's configuration and the channels of an image."""
    if "backbone.patch_embed.proj.weight" in shapes:
        return _infer_swin(shapes)
    if "backbone.stem.conv1.weight" in shapes:
        return _infer_resnet(shapes)
    raise ValueError("The checkpoint has neither a ResNet (`backbone.stem`) nor a Swin (`backbone.patch_embed`).")


def _infer_resnet(shapes: Shapes) -> tuple[dict[str, Any], int]:
    is_deep = "backbone.stem.conv3.weight" in shapes
    if "backbone.res2.0.conv1.weight" in shapes and "backbone.res2.0.conv3.weight" not in shapes:
        raise ValueError(
            "The backbone is a ResNet with two convolutions a block (18 or 34 layers), which has no map here."
        )
    config: dict[str, Any] = {
        "model_type": "resnet",
        "embedding_size": _shape(shapes, f"backbone.stem.conv{3 if is_deep else 1}.weight", 4)[0],
        "hidden_sizes": [_shape(shapes, f"backbone.res{stage}.0.conv3.weight", 4)[0] for stage in range(2, 6)],
        "depths": [_count(shapes, f"backbone.res{stage}") for stage in range(2, 6)],
    }
    if is_deep:
        config |= {"stem_type": "deep", "multi_grid": [1, 2, 4]}
    return config, _shape(shapes, "backbone.stem.conv1.weight", 4)[1]


def _infer_swin(shapes: Shapes) -> tuple[dict[str, Any], int]:
    embed_dim, num_channels, patch_size, _ = _shape(shapes, "backbone.patch_embed.proj.weight", 4)
    if "backbone.patch_embed.norm.weight" not in shapes:
        raise ValueError("The backbone is a Swin without a norm behind its patch embedding, which has no map here.")
    table = "attn.relative_position_bias_table"
    tables = [_shape(shapes, f"backbone.layers.{stage}.blocks.0.{table}", 2) for stage in range(4)]
    # A window of w x w tokens has (2w - 1)² distances.
    window_size = (math.isqrt(tables[0][0]) + 1) // 2
    has_positions = "backbone.absolute_pos_embed" in shapes
    image_size = PRETRAINING_SIZES.get(window_size, 224)
    if has_positions:
        image_size = _shape(shapes, "backbone.absolute_pos_embed", 4)[-1] * patch_size
    return {
        "model_type": "swin",
        "image_size": image_size,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depths": [_count(shapes, f"backbone.layers.{stage}.blocks") for stage in range(4)],
        "num_heads": [heads for _, heads in tables],
        "window_size": window_size,
        "mlp_ratio": _shape(shapes, "backbone.layers.0.blocks.0.mlp.fc1.weight", 2)[0] / embed_dim,
        "qkv_bias": "backbone.layers.0.blocks.0.attn.qkv.bias" in shapes,
        "use_absolute_embeddings": has_positions,
        "drop_path_rate": DROP_PATH_RATE,
    }, num_channels


# --- presets ---------------------------------------------------------------------------------------------------------


def differences(inferred: MaskFormerHfConfig, given: MaskFormerHfConfig) -> list[str]:
    """Where a configuration contradicts what the tensors of a checkpoint say, one line a field."""
    ours, theirs = _visible(inferred), _visible(given)
    return [
        f"{name} is {ours[name]} in the checkpoint, not {theirs[name]}"
        for name in ours
        if name in theirs and ours[name] != theirs[name]
    ]


def _visible(config: MaskFormerHfConfig) -> dict[str, Any]:
    """What of a configuration shows in the names and shapes of tensors."""
    backbone: Any = config.backbone_config
    kind = backbone.model_type
    fields: dict[str, Any] = {name: getattr(config, name) for name in _FIELDS}
    fields["backbone"] = kind
    fields |= {f"backbone.{name}": getattr(backbone, name) for name in _BACKBONE_FIELDS.get(kind, ())}
    if kind == "resnet":
        fields["backbone.stem_type"] = getattr(backbone, "stem_type", "basic")
    if kind == "swin":
        fields["backbone.use_absolute_embeddings"] = backbone.use_absolute_embeddings
        if backbone.use_absolute_embeddings:
            fields["backbone.image_size"] = backbone.image_size
    memory_channels = backbone.hidden_sizes[-1] if kind == "resnet" else backbone.hidden_size
    if config.pixel_decoder == "transformer_fpn":
        memory_channels = config.feature_size
        fields |= {name: getattr(config, name) for name in ("encoder_layers", "ffn_dim", "pre_norm")}
    if config.pixel_decoder == "deformable":
        memory_channels = config.feature_size
        fields |= {name: getattr(config, name) for name in _DEFORMABLE_FIELDS}
        fields["encoder_ffn_dim"] = config.encoder_ffn_dim or config.ffn_dim
    if config.transformer_decoder == "detr":
        fields |= {name: getattr(config, name) for name in _DETR_FIELDS}
    if config.transformer_decoder is not None:
        fields |= {name: getattr(config, name) for name in _DECODER_FIELDS}
        if memory_channels == config.hidden_size:
            fields["enforce_input_projection"] = config.enforce_input_projection
    return fields


def same_size_presets(config: MaskFormerHfConfig) -> list[str]:
    """The presets of the same sizes: one, or none, or several models of Mask2Former that differ in their task alone."""
    return [name for name, preset in PRESETS.items() if not differences(config, preset())]


def matching_preset(config: MaskFormerHfConfig) -> tuple[str | None, bool]:
    """The preset of the same sizes and True, or one with the same data set's classes and False.

    Classes are known by their number. Where data sets share it (ADE20K has a semantic and a panoptic preset), the pixel
    decoder decides, and else the first; None where classes of one number differ. Of several presets of the same sizes,
    see [`same_size_presets`], it is the first.
    """
    exact = same_size_presets(config)
    if exact:
        return exact[0], True
    presets = {name: preset() for name, preset in PRESETS.items()}
    same_classes = {
        name: preset
        for name, preset in presets.items()
        if (preset.model_type, preset.num_labels, preset.transformer_decoder)
        == (config.model_type, config.num_labels, config.transformer_decoder)
    }
    same_decoder = {
        name: preset for name, preset in same_classes.items() if preset.pixel_decoder == config.pixel_decoder
    }
    for candidates in (same_classes, same_decoder):
        if len({_data_set(name) for name in candidates}) == 1:
            return next(iter(candidates)), False
    # Of one data set's models, which differ in their task, the first.
    if len({str(preset.id2label) for preset in same_classes.values()}) == 1:
        return next(iter(same_classes)), False
    return None, False


def _data_set(preset: str) -> str:
    return next(suffix for suffix in PROCESSORS if preset.endswith(f"_{suffix}"))
