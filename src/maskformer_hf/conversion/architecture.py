"""The configuration of an original checkpoint, inferred from the names and shapes of its tensors."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from ..models.configuration_maskformer import MaskFormerHfConfig
from ..models.configuration_per_pixel import MaskFormerHfPerPixelConfig
from ..models.configuration_video import MaskFormerHfVideoConfig
from ..models.pixel_decoder_deformable import NUM_POINTS
from ..presets import MASK2FORMER, MPFORMER, PEM
from .detectron2_names import later_name

# No tensor depends on it; every configuration of the original says 8.
NUM_ATTENTION_HEADS = 8
# Both versions of YouTube-VIS have 40 classes. No released model for images has.
NUM_VIDEO_LABELS = 40
# Every Swin of the original has this rate. It matters in training only.
DROP_PATH_RATE = 0.3
# Side of the images a Swin was pretrained with, by its window. Only absolute position embeddings depend on it.
PRETRAINING_SIZES = {7: 224, 12: 384}

_PIXEL_DECODER = "sem_seg_head.pixel_decoder"
_PREDICTOR = "sem_seg_head.predictor"
_DECODER = f"{_PREDICTOR}.transformer.decoder.layers"
# Only a Mask2Former has these.
_MASKED_LAYERS = f"{_PREDICTOR}.transformer_cross_attention_layers."

# Only a PEM has this.
_PEM_CONVOLUTION = f"{_PIXEL_DECODER}.dcn.0.dcn.weight"

Shapes = dict[str, tuple[int, ...]]


def infer_config(state: Mapping[str, torch.Tensor], is_video: bool | None = None) -> MaskFormerHfConfig:
    """The configuration of an original checkpoint: a MaskFormer, a Mask2Former for images or videos, a PEM with a
    ResNet, or a per-pixel baseline.

    Only the names and shapes of its tensors are read. What they leave open is as in every released model: 8 attention
    heads (Mask2Former's tensors tell their number), strides in the 3x3 convolutions of a ResNet, dilations 1, 2, 4 in
    the last stage of a ResNet with DeepLab's stem, and classes without names. The task is panoptic for Mask2Former and
    for the pixel decoder with a transformer encoder, otherwise semantic; [`matching_preset`] may know better.

    Args:
        is_video: Whether a Mask2Former is one for videos, which has the same tensors. If None, it is one if it has
            YouTube-VIS's number of classes.

    Raises:
        ValueError: The state dict is no such checkpoint.
    """
    shapes: Shapes = {later_name(name): tuple(value.shape) for name, value in state.items()}
    _check_is_original(shapes)
    backbone, num_channels = _infer_backbone(shapes)
    common: dict[str, Any] = {
        "backbone_config": backbone,
        "num_channels": num_channels,
        # Detectron2's frozen BatchNorm has no counter.
        "freeze_batch_norm": not any(re.match(r"backbone\..*num_batches_tracked$", name) for name in shapes),
    }
    if _PEM_CONVOLUTION in shapes:
        return _configure(MaskFormerHfConfig, common | _infer_pem(shapes))
    common["mask_feature_size"] = _shape(shapes, f"{_PIXEL_DECODER}.mask_features.weight", 4)[0]
    if any(name.startswith(_MASKED_LAYERS) for name in shapes):
        fields = common | _infer_mask2former(shapes)
        if is_video is None:
            is_video = fields["num_labels"] == NUM_VIDEO_LABELS
        return _configure(MaskFormerHfVideoConfig if is_video else MaskFormerHfConfig, fields)
    return _infer_maskformer(shapes, common)


def _infer_maskformer(shapes: Shapes, common: dict[str, Any]) -> MaskFormerHfConfig:
    """A MaskFormer or a per-pixel baseline."""
    fields, memory_channels = _infer_fpn(shapes)
    fields |= common
    if f"{_PREDICTOR}.weight" in shapes:
        num_labels = _shape(shapes, f"{_PREDICTOR}.weight", 4)[0]
        return _configure_per_pixel({**fields, "transformer_decoder": None, "num_labels": num_labels})
    fields |= _infer_decoder(shapes, memory_channels)
    if f"{_PREDICTOR}.class_embed.weight" not in shapes:
        # Query i stands for class i.
        fields["num_labels"] = fields.pop("num_queries")
        return _configure_per_pixel(fields)
    # The last class is no-object.
    fields["num_labels"] = _shape(shapes, f"{_PREDICTOR}.class_embed.weight", 2)[0] - 1
    fields["task"] = "panoptic" if fields["pixel_decoder"] == "transformer_fpn" else "semantic"
    return _configure(MaskFormerHfConfig, fields)


def _infer_fpn(shapes: Shapes) -> tuple[dict[str, Any], int]:
    """The fields of an FPN, with or without a transformer encoder, and the channels of the coarsest backbone map."""
    feature_size, memory_channels = _shape(shapes, f"{_PIXEL_DECODER}.layer_4.weight", 4)[:2]
    fields: dict[str, Any] = {
        "pixel_decoder": "fpn",
        "feature_size": feature_size,
        "num_attention_heads": NUM_ATTENTION_HEADS,
    }
    if f"{_PIXEL_DECODER}.input_proj.weight" in shapes:
        layers = f"{_PIXEL_DECODER}.transformer.encoder.layers"
        fields["pixel_decoder"] = "transformer_fpn"
        fields["encoder_layers"] = _count(shapes, layers)
        fields["ffn_dim"] = _shape(shapes, f"{layers}.0.linear1.weight", 2)[0]
        fields["pre_norm"] = f"{_PIXEL_DECODER}.transformer.encoder.norm.weight" in shapes
    return fields, memory_channels


def _configure_per_pixel(fields: dict[str, Any]) -> MaskFormerHfConfig:
    # Label maps of more than 255 classes have 16 bits, and void is the largest value of them.
    ignored = {"semantic_loss_ignore_index": 65535} if fields["num_labels"] > 255 else {}
    return _configure(MaskFormerHfPerPixelConfig, {**fields, **ignored})


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
    num_queries, hidden_size = _shape(shapes, f"{_PREDICTOR}.query_feat.weight", 2)
    return {
        **(MPFORMER if f"{_PREDICTOR}.label_enc.weight" in shapes else MASK2FORMER),
        "feature_size": feature_size,
        "encoder_levels": num_levels,
        "encoder_layers": _count(shapes, encoder),
        "encoder_ffn_dim": _shape(shapes, f"{encoder}.0.linear1.weight", 2)[0],
        # An offset has an x and a y.
        "num_attention_heads": max(1, num_offsets // (num_levels * NUM_POINTS * 2)),
        "hidden_size": hidden_size,
        "ffn_dim": _shape(shapes, f"{_PREDICTOR}.transformer_ffn_layers.0.linear1.weight", 2)[0],
        "decoder_layers": _count(shapes, f"{_PREDICTOR}.transformer_ffn_layers"),
        "enforce_input_projection": f"{_PREDICTOR}.input_proj.0.weight" in shapes and feature_size == hidden_size,
        "num_queries": num_queries,
        "num_labels": _shape(shapes, f"{_PREDICTOR}.class_embed.weight", 2)[0] - 1,
    }


def _infer_pem(shapes: Shapes) -> dict[str, Any]:
    return {
        **PEM,
        "feature_size": _shape(shapes, _PEM_CONVOLUTION, 4)[0],
        "mask_feature_size": _shape(shapes, f"{_PIXEL_DECODER}.out.conv.weight", 4)[0],
        "num_attention_heads": NUM_ATTENTION_HEADS,
        "hidden_size": _shape(shapes, f"{_PREDICTOR}.query_embed.weight", 2)[1],
        "ffn_dim": _shape(shapes, f"{_PREDICTOR}.transformer_ffn_layers.0.linear1.weight", 2)[0],
        "decoder_layers": _count(shapes, f"{_PREDICTOR}.transformer_ffn_layers"),
        "num_queries": _shape(shapes, f"{_PREDICTOR}.query_embed.weight", 2)[0],
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


def _check_is_original(shapes: Shapes):
    """Refuses a file that is no checkpoint of the original MaskFormer or Mask2Former, and says what it holds."""
    if any(name.startswith(("model.", "head.")) for name in shapes):
        raise ValueError(
            "These are weights in the names of this package or of transformers, which need no conversion from "
            "Detectron2: give the folder that they and their config.json lie in."
        )
    if not any(name.startswith("sem_seg_head.") for name in shapes):
        raise ValueError(
            "This is no checkpoint of a MaskFormer or Mask2Former in Detectron2: it has no `sem_seg_head`, and begins "
            f"with {', '.join(list(shapes)[:3]) or 'nothing'}."
        )


def _shape(shapes: Shapes, name: str, num_dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"The checkpoint lacks {name}, which every such model has: the file is not complete.")
    shape = shapes[name]
    if len(shape) != num_dimensions or not all(shape):
        raise ValueError(f"{name} of the checkpoint has the shape {shape}; {num_dimensions} dimensions are expected.")
    return shape


def _count(shapes: Shapes, prefix: str) -> int:
    """How many layers there are below a name. If their numbers have gaps, the conversion names what is missing."""
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
            "The backbone is a ResNet with two convolutions per block (18 or 34 layers), which cannot be converted."
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
        raise ValueError("The backbone is a Swin without a norm behind its patch embedding, which cannot be converted.")
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
