"""Checkpoints of transformers' own MaskFormer, Mask2Former and EoMT in our words: fields and weight names.

Literal maps, read when a checkpoint is loaded, and backwards when one is converted to that layout.
"""

from typing import Any

from transformers import Mask2FormerConfig, MaskFormerConfig

from .transformers_layout_eomt import EOMT, EOMT_DINOV3, EOMT_TYPES, translate_eomt

# The `model_type` of each.
MASKFORMER, MASK2FORMER = "maskformer", "mask2former"
MODEL_TYPES = (MASKFORMER, MASK2FORMER, *EOMT_TYPES)

# Fields that make a Mask2Former. transformers' configuration has none of them, because its class says it all.
MASK2FORMER_PARTS = {
    "pixel_decoder": "deformable",
    "transformer_decoder": "masked",
    "mask_loss": "points",
    "mask_term": "cross_entropy",
    "matching": "points",
    "intersect_with_mask": True,
}

# MaskFormer: our field -> theirs.
FIELDS = {
    "feature_size": "fpn_feature_size",
    "mask_feature_size": "mask_feature_size",
    "use_auxiliary_loss": "use_auxiliary_loss",
    "class_weight": "cross_entropy_weight",
    "mask_weight": "mask_weight",
    "dice_weight": "dice_weight",
    "no_object_weight": "no_object_weight",
}
# A configuration of theirs that was made of one of ours keeps our further fields here.
OWN_SECTION = "maskformer_hf"
# Our field -> theirs in `decoder_config`.
DECODER_FIELDS = {
    "hidden_size": "d_model",
    "num_attention_heads": "decoder_attention_heads",
    "ffn_dim": "decoder_ffn_dim",
    "dropout": "dropout",
    "decoder_layers": "decoder_layers",
    "num_queries": "num_queries",
}
# Mask2Former: our field -> theirs. `decoder_layers` is one more there, because it counts predictions.
MASK2FORMER_FIELDS = {
    "feature_size": "feature_size",
    "mask_feature_size": "mask_feature_size",
    "encoder_layers": "encoder_layers",
    "encoder_ffn_dim": "encoder_feedforward_dim",
    "hidden_size": "hidden_dim",
    "num_attention_heads": "num_attention_heads",
    "ffn_dim": "dim_feedforward",
    "dropout": "dropout",
    "pre_norm": "pre_norm",
    "enforce_input_projection": "enforce_input_projection",
    "num_queries": "num_queries",
    "use_auxiliary_loss": "use_auxiliary_loss",
    "class_weight": "class_weight",
    "mask_weight": "mask_weight",
    "dice_weight": "dice_weight",
    "no_object_weight": "no_object_weight",
    "num_points": "train_num_points",
    "oversample_ratio": "oversample_ratio",
    "importance_sample_ratio": "importance_sample_ratio",
}
# Fields of theirs that our constructors do not know, and what they are called here.
RENAMED_FIELDS = {
    "fpn_feature_size": "`feature_size`",
    "cross_entropy_weight": "`class_weight`",
    "decoder_config": ", ".join(f"`{ours}` ({theirs})" for ours, theirs in DECODER_FIELDS.items()),
    **{theirs: f"`{ours}`" for ours, theirs in MASK2FORMER_FIELDS.items() if ours != theirs},
}
# Fields of theirs that change no prediction of a trained model, and are not taken over. They are about initialisation,
# about what a forward returns, or copies of fields in `decoder_config`, itself a DETR configuration of which only the
# decoder is built: no encoder, no backbone, no boxes, and always sine positions. Its dropout inside attention and
# feed-forward network is 0 unless set; the original's is `dropout`, and so is ours.
_WITHOUT_COUNTERPART = (
    "init_std",
    "init_xavier_std",
    "output_auxiliary_logits",
    "num_attention_heads",
    "num_hidden_layers",
    "hidden_size",
    "decoder_config",
    # How older versions named a backbone in place of `backbone_config`.
    "backbone",
    "backbone_kwargs",
    "use_pretrained_backbone",
    "use_timm_backbone",
    # The name of their class.
    "architectures",
)
_MASK2FORMER_WITHOUT_COUNTERPART = (
    "init_std",
    "init_xavier_std",
    "output_auxiliary_logits",
    "decoder_layers",
    # What their image processor leaves out already.
    "ignore_value",
    # These have one value each; a checkpoint with another is refused.
    "activation_function",
    "common_stride",
    "feature_strides",
    # Names of other fields.
    "hidden_size",
    "num_hidden_layers",
    "backbone",
    "backbone_kwargs",
    "use_pretrained_backbone",
    "use_timm_backbone",
    "architectures",
)

_MODEL = r"^(?:model\.)?"
_ENCODER = _MODEL + r"pixel_level_module\.encoder\."
_PIXEL_DECODER = _MODEL + r"pixel_level_module\.decoder\."
_TRANSFORMER = _MODEL + r"transformer_module\."
_LAYER = _TRANSFORMER + r"decoder\.layers\.(\d+)\."
_ENCODER_LAYER = _PIXEL_DECODER + r"encoder\.layers\.(\d+)\."

# Their name (a regular expression) -> ours; the first that fits a name is used. None fits a name of ours, so every
# checkpoint can pass. Blocks of a Swin are renamed further by transformers' own conversion of Swin checkpoints.
WEIGHT_NAMES = {
    _ENCODER + r"hidden_states_norms\.0\.": "model.backbone.body.hidden_states_norms.stage1.",
    _ENCODER + r"hidden_states_norms\.1\.": "model.backbone.body.hidden_states_norms.stage2.",
    _ENCODER + r"hidden_states_norms\.2\.": "model.backbone.body.hidden_states_norms.stage3.",
    _ENCODER + r"hidden_states_norms\.3\.": "model.backbone.body.hidden_states_norms.stage4.",
    _ENCODER + r"model\.embeddings\.": "model.backbone.body.swin.embeddings.",
    _ENCODER + r"model\.encoder\.": "model.backbone.body.swin.encoder.",
    _ENCODER + r"model\.layernorm\.": "model.backbone.body.swin.layernorm.",
    _ENCODER: "model.backbone.body.",
    _PIXEL_DECODER + r"fpn\.stem\.": "model.pixel_decoder.stem.",
    _PIXEL_DECODER + r"fpn\.layers\.(\d+)\.proj\.": r"model.pixel_decoder.laterals.\1.",
    _PIXEL_DECODER + r"fpn\.layers\.(\d+)\.block\.": r"model.pixel_decoder.outputs.\1.",
    _PIXEL_DECODER + r"mask_projection\.": "model.pixel_decoder.mask_projection.",
    # Mask2Former's, down to the queries.
    _PIXEL_DECODER + r"input_projections\.": "model.pixel_decoder.input_projections.",
    _PIXEL_DECODER + r"level_embed$": "model.pixel_decoder.level_embedding",
    _PIXEL_DECODER + r"adapter_1\.": "model.pixel_decoder.laterals.0.",
    _PIXEL_DECODER + r"layer_1\.": "model.pixel_decoder.outputs.0.",
    _ENCODER_LAYER + r"self_attn\.value_proj\.": r"model.pixel_decoder.layers.\1.self_attn.v_proj.",
    _ENCODER_LAYER + r"self_attn\.output_proj\.": r"model.pixel_decoder.layers.\1.self_attn.o_proj.",
    _ENCODER_LAYER + r"self_attn\.": r"model.pixel_decoder.layers.\1.self_attn.",
    _ENCODER_LAYER + r"self_attn_layer_norm\.": r"model.pixel_decoder.layers.\1.self_attn_norm.",
    _ENCODER_LAYER + r"final_layer_norm\.": r"model.pixel_decoder.layers.\1.ffn_norm.",
    _ENCODER_LAYER + r"fc1\.": r"model.pixel_decoder.layers.\1.ffn.fc1.",
    _ENCODER_LAYER + r"fc2\.": r"model.pixel_decoder.layers.\1.ffn.fc2.",
    _TRANSFORMER + r"level_embed\.": "model.transformer_decoder.level_embedding.",
    _TRANSFORMER + r"queries_features\.": "model.transformer_decoder.query_features.",
    _TRANSFORMER + r"input_projections\.": "model.transformer_decoder.input_projections.",
    _TRANSFORMER + r"decoder\.mask_predictor\.mask_embedder\.(\d+)\.0\.": (
        r"model.transformer_decoder.mask_embedder.layers.\1."
    ),
    _LAYER + r"cross_attn\.in_proj_": r"model.transformer_decoder.layers.\1.cross_attn.in_proj.",
    _LAYER + r"cross_attn\.out_proj\.": r"model.transformer_decoder.layers.\1.cross_attn.o_proj.",
    _LAYER + r"cross_attn_layer_norm\.": r"model.transformer_decoder.layers.\1.cross_attn_norm.",
    # Both models have these.
    _TRANSFORMER + r"queries_embedder\.": "model.transformer_decoder.query_position.",
    _TRANSFORMER + r"input_projection\.": "model.transformer_decoder.input_projection.",
    _TRANSFORMER + r"decoder\.layernorm\.": "model.transformer_decoder.norm.",
    _LAYER + r"self_attn_layer_norm\.": r"model.transformer_decoder.layers.\1.self_attn_norm.",
    _LAYER + r"encoder_attn_layer_norm\.": r"model.transformer_decoder.layers.\1.cross_attn_norm.",
    _LAYER + r"final_layer_norm\.": r"model.transformer_decoder.layers.\1.ffn_norm.",
    # `out_proj`, and `fc1` and `fc2` without `mlp`, up to version 5.
    _LAYER + r"self_attn\.(?:o_proj|out_proj)\.": r"model.transformer_decoder.layers.\1.self_attn.o_proj.",
    _LAYER + r"encoder_attn\.(?:o_proj|out_proj)\.": r"model.transformer_decoder.layers.\1.cross_attn.o_proj.",
    _LAYER + r"self_attn\.": r"model.transformer_decoder.layers.\1.self_attn.",
    _LAYER + r"encoder_attn\.": r"model.transformer_decoder.layers.\1.cross_attn.",
    _LAYER + r"(?:mlp\.)?fc1\.": r"model.transformer_decoder.layers.\1.ffn.fc1.",
    _LAYER + r"(?:mlp\.)?fc2\.": r"model.transformer_decoder.layers.\1.ffn.fc2.",
    r"^class_predictor\.": "head.class_predictor.",
    r"^mask_embedder\.(\d+)\.0\.": r"head.mask_embedder.layers.\1.",
}

# Weights of their checkpoints that no model of ours has, by their names after renaming.
IGNORED_WEIGHTS = (
    # Swin's classification LayerNorm: no feature map passes it.
    r"backbone\.body\.swin\.layernorm\.",
    # A constant made of the window size.
    r"backbone\.body\.swin\.encoder\.layers\.\d+\.blocks\.\d+\.attention\..*relative_position_index$",
    # `no_object_weight` as a tensor.
    r"^criterion\.empty_weight$",
)


def translate_config(theirs: dict[str, Any], own_model_type: str) -> dict[str, Any]:
    """The dictionary of a configuration of transformers' own models as one of ours.

    Raises:
        ValueError: If a field asks for arithmetic that is not MaskFormer's, Mask2Former's or EoMT's.
    """
    translate = {
        MASKFORMER: _translate_maskformer,
        MASK2FORMER: _translate_mask2former,
        EOMT: translate_eomt,
        EOMT_DINOV3: translate_eomt,
    }[theirs["model_type"]]
    backbone, fields = translate(theirs)
    return {
        **fields,
        "model_type": own_model_type,
        "backbone_config": _translate_backbone(backbone.to_dict()),
        "num_channels": backbone.num_channels,
        # The original trains with fixed statistics; transformers' BatchNorm fixes them only in `eval()`.
        "freeze_batch_norm": True,
        **theirs.get(OWN_SECTION, {}),
    }


def _translate_maskformer(theirs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Their configuration of the backbone, and all other fields in ours."""
    backbone = theirs.get("backbone_config")
    if backbone is not None and backbone["model_type"] == "maskformer-swin":
        # A second implementation of the same network. transformers warns that it is not supported.
        theirs = {**theirs, "backbone_config": {**backbone, "model_type": "swin"}}
    parsed: Any = MaskFormerConfig.from_dict(theirs)
    decoder = parsed.decoder_config
    if decoder.activation_function != "relu":
        raise ValueError(
            f"`decoder_config.activation_function` of this checkpoint is {decoder.activation_function!r}; MaskFormer's "
            "is 'relu', and there is no other here."
        )
    if decoder.auxiliary_loss:
        raise ValueError(
            "`decoder_config.auxiliary_loss` of this checkpoint is True: with it transformers normalises the queries "
            "between decoder layers, which MaskFormer does not. Set it to False in config.json if the model was "
            "trained without."
        )
    known = {*FIELDS.values(), *_WITHOUT_COUNTERPART, OWN_SECTION}
    return parsed.backbone_config, {
        **{name: value for name, value in theirs.items() if name not in known},
        **{name: getattr(parsed, other) for name, other in FIELDS.items()},
        **{name: getattr(decoder, other) for name, other in DECODER_FIELDS.items()},
    }


def _translate_mask2former(theirs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    parsed: Any = Mask2FormerConfig.from_dict(theirs)
    for name, value in {
        "activation_function": "relu",
        "common_stride": 4,
        "feature_strides": [4, 8, 16, 32],
    }.items():
        found = getattr(parsed, name)
        if (list(found) if isinstance(value, list) else found) != value:
            raise ValueError(
                f"`{name}` of this checkpoint is {found!r}; Mask2Former's is {value!r}, and there is no other here."
            )
    known = {*MASK2FORMER_FIELDS.values(), *_MASK2FORMER_WITHOUT_COUNTERPART, OWN_SECTION}
    return parsed.backbone_config, {
        **{name: value for name, value in theirs.items() if name not in known},
        **{name: getattr(parsed, other) for name, other in MASK2FORMER_FIELDS.items()},
        "decoder_layers": parsed.decoder_layers - 1,
        **MASK2FORMER_PARTS,
    }


def _translate_backbone(backbone: dict[str, Any]) -> dict[str, Any]:
    if backbone["model_type"] != "swin":
        return backbone
    # transformers' MaskFormer takes the features of all stages, whatever the configuration says.
    stages = [f"stage{stage + 1}" for stage in range(len(backbone["depths"]))]
    return {**backbone, "out_features": stages, "out_indices": None}
