"""Tiny models and backbones, for every test that needs one. A test names only the sizes that its numbers depend on."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from maskformer_hf import MaskFormerConfig, MaskFormerVideoConfig, PerPixelBaselineConfig
from maskformer_hf.models.modeling_auto import MODEL_CLASSES
from maskformer_hf.presets import EOMT, MASK2FORMER

STAGES = ["stage1", "stage2", "stage3", "stage4"]


# --- backbones: the dictionaries that `backbone_config` takes


def resnet(
    *hidden_sizes: int,
    embedding_size: int = 8,
    depths: Sequence[int] = (1, 1, 1, 1),
    layer_type: str = "basic",
    **fields: Any,
) -> dict[str, Any]:
    """A ResNet, of basic blocks because they have the fewest weights; released ones have `layer_type="bottleneck"`."""
    return {
        "model_type": "resnet",
        "embedding_size": embedding_size,
        "hidden_sizes": list(hidden_sizes or (8, 16, 24, 32)),
        "depths": list(depths),
        "layer_type": layer_type,
        **fields,
    }


def swin(
    embed_dim: int = 8,
    *,
    depths: Sequence[int] = (1, 1, 1, 2),
    num_heads: Sequence[int] = (1, 1, 2, 2),
    window_size: int = 3,
    image_size: int = 32,
    **fields: Any,
) -> dict[str, Any]:
    """A Swin transformer."""
    return {
        "model_type": "swin",
        "image_size": image_size,
        "embed_dim": embed_dim,
        "depths": list(depths),
        "num_heads": list(num_heads),
        "window_size": window_size,
        **fields,
    }


def convnext(*hidden_sizes: int, **fields: Any) -> dict[str, Any]:
    """A ConvNeXt, which rounds sizes down where the others round up."""
    widths = list(hidden_sizes or (8, 16, 24, 32))
    return {"model_type": "convnext", "hidden_sizes": widths, "depths": [1, 1, 1, 1], **fields}


def vit(model_type: str = "dinov2", *, patch_size: int = 14, image_size: int = 56, **fields: Any) -> dict[str, Any]:
    """A plain vision transformer: `dinov2`, `dinov2_with_registers`, `dinov3_vit`, `vit`, `beit`, ..."""
    widths: dict[str, Any] = {"mlp_ratio": 2} if model_type.startswith("dinov2") else {"intermediate_size": 48}
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, **widths, **fields}
    return {"model_type": model_type, "patch_size": patch_size, "image_size": image_size, **sizes}


def timm_backbone(name: str = "test_efficientnet", **fields: Any) -> dict[str, Any]:
    """A backbone of timm, which has tiny ones for tests: `test_efficientnet`, `test_convnext`, `test_vit`."""
    return {"model_type": "timm_backbone", "backbone": name, **fields}


def eomt_backbone(model_type: str = "dinov2_with_registers", **fields: Any) -> dict[str, Any]:
    """The lower blocks of an EoMT."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_register_tokens": 2, "layer_norm_eps": 1e-6}
    return vit(model_type, patch_size=16, image_size=64, **sizes, **fields)


# --- configurations and models

SIZES = {
    "feature_size": 32,
    "mask_feature_size": 16,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "encoder_layers": 1,
    "decoder_layers": 2,
}
# What each kind adds: its configuration class and its fields.
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "maskformer": (MaskFormerConfig, {"num_queries": 5}),
    "mask2former": (MaskFormerConfig, {**MASK2FORMER, "encoder_ffn_dim": 40, "num_points": 64, "num_queries": 5}),
    "video": (MaskFormerVideoConfig, {"encoder_ffn_dim": 40, "num_points": 64, "num_queries": 5}),
    "eomt": (
        MaskFormerConfig,
        {"backbone_config": eomt_backbone(), **EOMT, "mask_feature_size": 32, "num_points": 64, "num_queries": 5},
    ),
    "per_pixel": (PerPixelBaselineConfig, {}),
}


def tiny_config(kind: str = "maskformer", *, labels: Sequence[str] | None = None, **fields: Any) -> Any:
    """The configuration of a model of some ten thousand weights.

    `kind` is one of "maskformer", "mask2former", "eomt", "video" and "per_pixel"; `labels` are names of classes, three
    without names if there are none; `fields` are those of the configuration and win over the sizes here.
    """
    config_class, own = KINDS[kind]
    names: dict[str, Any] = {}
    if labels is not None:
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    elif "id2label" not in fields:
        names = {"num_labels": 3}
    return config_class(**{"backbone_config": resnet(), **SIZES, **own, **names, **fields})


def tiny_transformers_config(**fields: Any) -> transformers.MaskFormerConfig:
    """The configuration of a tiny MaskFormer of transformers' own, whose checkpoints this package reads."""
    decoder = {"d_model": 32, "decoder_layers": 1, "decoder_ffn_dim": 32, "decoder_attention_heads": 2}
    defaults = {
        "backbone_config": swin(out_features=STAGES),
        "decoder_config": {"model_type": "detr", **decoder, "num_queries": 5},
        "fpn_feature_size": 32,
        "mask_feature_size": 32,
        "id2label": {0: "a", 1: "b"},
    }
    return transformers.MaskFormerConfig(**{**defaults, **fields})


def random_model(config: Any, *, attn_implementation: str | None = None) -> PreTrainedModel:
    """The model of a configuration with its initial weights, the same in each call, in evaluation mode."""
    torch.manual_seed(0)
    config._attn_implementation = attn_implementation
    return MODEL_CLASSES[config.model_type](config).eval()
