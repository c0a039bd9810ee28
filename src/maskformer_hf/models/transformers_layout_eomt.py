"""Checkpoints of transformers' EoMT in our words; see `transformers_layout.py`."""

from typing import Any

from transformers import CONFIG_MAPPING

from .vit_blocks import DINOV2, DINOV3

EOMT, EOMT_DINOV3 = "eomt", "eomt_dinov3"
EOMT_TYPES = (EOMT, EOMT_DINOV3)
# Which backbone each has.
BACKBONES = {EOMT: DINOV2, EOMT_DINOV3: DINOV3}

# Fields that make an EoMT.
EOMT_PARTS = {
    "backbone_pyramid": "tokens",
    "pixel_decoder": "none",
    "transformer_decoder": "joint",
    "mask_head": "product_gelu",
    "mask_loss": "points",
    "mask_term": "cross_entropy",
    "matching": "points",
    "intersect_with_mask": True,
}
# Our field -> theirs.
EOMT_FIELDS = {
    "hidden_size": "hidden_size",
    "mask_feature_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "decoder_layers": "num_blocks",
    "num_queries": "num_queries",
    "class_weight": "class_weight",
    "mask_weight": "mask_weight",
    "dice_weight": "dice_weight",
    "no_object_weight": "no_object_weight",
    "num_points": "train_num_points",
    "oversample_ratio": "oversample_ratio",
    "importance_sample_ratio": "importance_sample_ratio",
}
# Fields of the vision transformer, which have the same names in the configuration of our backbone.
_COMMON = (
    "hidden_size",
    "num_attention_heads",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "layerscale_value",
    "num_register_tokens",
)
BACKBONE_FIELDS = {
    EOMT: (*_COMMON, "mlp_ratio", "use_swiglu_ffn"),
    EOMT_DINOV3: (
        *_COMMON,
        "intermediate_size",
        "query_bias",
        "key_bias",
        "value_bias",
        "proj_bias",
        "mlp_bias",
        "use_gated_mlp",
    ),
}
# These have one value each; a checkpoint with another is refused.
_ONE_VALUE = {"hidden_act": "gelu", "hidden_dropout_prob": 0, "attention_dropout": 0, "drop_path_rate": 0}
# Fields that are read elsewhere, or only make initial weights.
_WITHOUT_COUNTERPART = (
    *_ONE_VALUE,
    *EOMT_FIELDS.values(),
    *BACKBONE_FIELDS[EOMT],
    *BACKBONE_FIELDS[EOMT_DINOV3],
    "num_hidden_layers",
    "num_upscale_blocks",
    "initializer_range",
    "rope_parameters",
    "rope_theta",
    "pos_embed_shift",
    "pos_embed_jitter",
    "pos_embed_rescale",
    "architectures",
)

_BODY, _DECODER = "model.backbone.body.", "model.transformer_decoder."
# As `WEIGHT_NAMES`.
EOMT_WEIGHT_NAMES = {
    r"^embeddings\.cls_token$": _BODY + "cls_token",
    r"^embeddings\.register_tokens$": _BODY + "register_tokens",
    r"^embeddings\.position_embeddings\.weight$": _BODY + "position_embeddings",
    r"^embeddings\.patch_embeddings\.(?:projection\.)?": _BODY + "patch_embeddings.",
    r"^layernorm\.": _DECODER + "norm.",
    r"^query\.": _DECODER + "queries.",
    r"^upscale_block\.block\.(\d+)\.layernorm2d\.": _DECODER + r"upscale.\1.norm.",
    r"^upscale_block\.block\.(\d+)\.": _DECODER + r"upscale.\1.",
    r"^mask_head\.fc1\.": _DECODER + "mask_embedder.layers.0.",
    r"^mask_head\.fc2\.": _DECODER + "mask_embedder.layers.1.",
    r"^mask_head\.fc3\.": _DECODER + "mask_embedder.layers.2.",
}
# Weights of theirs that no model of ours has.
EOMT_IGNORED_WEIGHTS = (
    # How many queries attend within their masks, which depends on the progress of training here.
    r"^attn_mask_probs$",
    # In place of masked patches in pretraining.
    r"^embeddings\.mask_token$",
)
# Inside a block.
_INSIDE = {
    r"attention\.(?:out_proj|o_proj)\.": "attention.o_proj.",
    r"layer_scale1\.lambda1$": "scale1",
    r"layer_scale2\.lambda1$": "scale2",
    r"mlp\.fc1\.": "mlp.up_proj.",
    r"mlp\.fc2\.": "mlp.down_proj.",
    "": "",
}


def eomt_names(config: Any) -> dict[str, str]:
    """As `WEIGHT_NAMES`, for an EoMT of this configuration of ours; empty for any other model.

    The last blocks, which queries join, are those of the transformer decoder here.
    """
    if config is None or config.transformer_decoder != "joint":
        return {}
    below = config.backbone_config.num_hidden_layers
    places = {number: f"{_BODY}blocks.{number}." for number in range(below)}
    places |= {below + number: f"{_DECODER}layers.{number}." for number in range(config.decoder_layers)}
    blocks = {
        rf"^layers\.{number}\.{theirs}": place + ours
        for number, place in places.items()
        for theirs, ours in _INSIDE.items()
    }
    return {**EOMT_WEIGHT_NAMES, **blocks}


def translate_eomt(theirs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Their configuration as one of our backbone, and all other fields in ours.

    Raises:
        ValueError: If a field asks for arithmetic that is not EoMT's.
    """
    model_type = theirs["model_type"]
    parsed: Any = CONFIG_MAPPING[model_type].from_dict(theirs)
    expected = {**_ONE_VALUE, "num_upscale_blocks": max(1, int(parsed.patch_size).bit_length() - 3)}
    for name, value in expected.items():
        found = getattr(parsed, name)
        if found != value:
            raise ValueError(
                f"`{name}` of this checkpoint is {found!r}; that of an EoMT with patches of {parsed.patch_size} pixels "
                f"is {value!r}, and there is no other here."
            )
    backbone = {name: getattr(parsed, name) for name in BACKBONE_FIELDS[model_type]}
    backbone["num_hidden_layers"] = parsed.num_hidden_layers - parsed.num_blocks
    if model_type == EOMT_DINOV3:
        backbone["rope_theta"] = parsed.rope_parameters["rope_theta"]
    fields = {
        **{name: value for name, value in theirs.items() if name not in _WITHOUT_COUNTERPART},
        **{name: getattr(parsed, other) for name, other in EOMT_FIELDS.items()},
        **EOMT_PARTS,
    }
    return CONFIG_MAPPING[BACKBONES[model_type]](**backbone), fields
