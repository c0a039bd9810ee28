"""Layer-wise learning-rate decay of plain vision transformers (BEiT, ViTDet, EoMT)."""

import re
from typing import Any

from torch import nn

# Blocks in the models of transformers and timm, and in the transformer decoder that goes on with them.
_BLOCK = re.compile(r"(?:^|\.)(?:layers?|blocks)\.(\d+)\.")
_FINAL_NORM = re.compile(r"(?:^|\.)(?:\w*layernorm|norm|ln_post)\.(?:weight|bias)$")


def depths_of(model: Any) -> dict[str, int]:
    """How many blocks of a plain vision transformer are above each of its trained weights, by name.

    Embeddings, which are below all blocks, count as those of the first block. The final norm has none above it. Blocks
    that queries join, in the transformer decoder, are the last ones.

    Raises:
        ValueError: If the model has no plain vision transformer as backbone, or it is frozen.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "backbone_pyramid", None) is None:
        raise ValueError(
            "layer_decay is for plain vision transformers as backbones, and this model has another one: set "
            "optimization.layer_decay to 1"
        )
    if config.freeze_backbone:
        raise ValueError(
            "layer_decay is for a backbone that is trained, but model.config.freeze_backbone is true: set one of the "
            "two differently"
        )
    body = {name: _block(name) for name in _trained(model.base_model.backbone.body)}
    joined: dict[str, int] = {}
    if config.transformer_decoder == "joint":
        layers = model.base_model.transformer_decoder.layers
        joined = {f"layers.{name}": int(name.partition(".")[0]) for name in _trained(layers)}
    num_below = 1 + max((block for block in body.values() if block is not None), default=-1)
    num_blocks = num_below + (1 + max(joined.values()) if joined else 0)
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    depths = {}
    for name, block in body.items():
        is_final = block is None and _FINAL_NORM.search(name) is not None
        depths[f"{prefix}backbone.body.{name}"] = 0 if is_final else num_blocks - 1 - (block or 0)
    for name, block in joined.items():
        depths[f"{prefix}transformer_decoder.{name}"] = num_blocks - 1 - num_below - block
    return depths


def _trained(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def _block(name: str) -> int | None:
    found = _BLOCK.search(name)
    return None if found is None else int(found.group(1))
