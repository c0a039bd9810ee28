"""The configurations of EoMT (https://arxiv.org/abs/2503.19108), by name; a part of `presets.py`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from .class_names import class_names, numbered
from .models.configuration_maskformer import MaskFormerHfConfig
from .models.transformers_layout_eomt import EOMT_PARTS
from .models.vit_blocks import DINOV2, DINOV3

# The fields that turn a configuration into an EoMT (https://arxiv.org/abs/2503.19108).
EOMT: dict[str, Any] = {**EOMT_PARTS, "class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0}
# Width, heads, blocks, and how many of them queries join.
_VITS = {"small": (384, 6, 12, 3), "base": (768, 12, 12, 3), "large": (1024, 16, 24, 4), "giant": (1536, 24, 40, 5)}
# By the last part of a preset's name: its classes, its task, and the models in that table, by size and side of images.
_EOMT_ZOO: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "coco_panoptic": (
        "coco_panoptic_133",
        "panoptic",
        (
            *(f"{size}_640" for size in _VITS),
            "large_1280",
            "giant_1280",
            *(f"{size}_640_dinov3" for size in ("small", "base", "large")),
            "large_1280_dinov3",
        ),
    ),
    "coco_instance": (
        "coco_panoptic_133",
        "instance",
        ("large_640", "large_1280", "large_640_dinov3", "large_1280_dinov3"),
    ),
    "ade20k_panoptic": ("ade20k_150", "panoptic", ("large_640", "giant_640", "large_1280", "giant_1280")),
    "ade20k": ("ade20k_150", "semantic", ("large_512", "large_512_dinov3")),
    "cityscapes": ("cityscapes_19", "semantic", ("large_1024",)),
}


def _eomt(model: str, table: str) -> MaskFormerHfConfig:
    dataset, task, _ = _EOMT_ZOO[table]
    size, side, *is_dinov3 = model.split("_")
    width, heads, blocks, joined = _VITS[size]
    backbone: dict[str, Any] = {
        "model_type": DINOV3 if is_dinov3 else DINOV2,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": blocks - joined,
        "num_register_tokens": 4,
        "image_size": int(side),
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
    }
    if is_dinov3:
        backbone["intermediate_size"] = 4 * width
    else:
        backbone["use_swiglu_ffn"] = size == "giant"
    fields: dict[str, Any] = {
        **EOMT,
        "task": task,
        "hidden_size": width,
        "mask_feature_size": width,
        "num_attention_heads": heads,
        "decoder_layers": joined,
        "num_queries": 100 if task == "semantic" else 200,
    }
    classes = [(name, is_thing) for name, is_thing, _ in class_names(dataset) if task != "instance" or is_thing]
    if task != "instance":
        fields["label_ids_to_fuse"] = [label for label, (_, is_thing) in enumerate(classes) if is_thing is False]
    return MaskFormerHfConfig(backbone_config=backbone, **numbered([name for name, _ in classes]), **fields)


EOMT_PRESETS: dict[str, Callable[[], MaskFormerHfConfig]] = {
    f"eomt_{model}_{table}": partial(_eomt, model, table)
    for table, (_, _, models) in _EOMT_ZOO.items()
    for model in models
}


def fit_eomt(options: dict[str, Any], config: Any) -> None:
    """Images as EoMT sees them: padded to the square that it was trained with; the short side of semantic ones fits."""
    side = config.backbone_config.image_size
    options["size"] = {"shortest_edge": side, "longest_edge": 4 * side if config.task == "semantic" else side}
    options["size_divisor"] = 16 if config.task == "semantic" else side
