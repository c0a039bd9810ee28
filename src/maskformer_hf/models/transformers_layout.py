"""Checkpoints of transformers' own MaskFormer (model_type "maskformer") in our words: fields and weight names.

Literal maps, read when a checkpoint is loaded, and backwards when one is converted to that layout.
"""

from typing import Any

from transformers import MaskFormerConfig

MODEL_TYPE = "maskformer"

# Fields that make a Mask2Former and no transformers configuration has: its class says it all.
MASK2FORMER_PARTS = {
    "pixel_decoder": "deformable",
    "transformer_decoder": "masked",
    "mask_loss": "points",
    "mask_term": "cross_entropy",
    "matching": "points",
    "intersect_with_mask": True,
}

# Our field -> theirs.
FIELDS = {
    "feature_size": "fpn_feature_size",
    "mask_feature_size": "mask_feature_size",
    "use_auxiliary_loss": "use_auxiliary_loss",
    "class_weight": "cross_entropy_weight",
    "mask_weight": "mask_weight",
    "dice_weight": "dice_weight",
    "no_object_weight": "no_object_weight",
}
# Where our fields without a counterpart are in a configuration of theirs that was made of one of ours.
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
# Their fields that a constructor of ours would take for an unknown attribute, and ours in their place.
RENAMED_FIELDS = {
    "fpn_feature_size": "`feature_size`",
    "cross_entropy_weight": "`class_weight`",
    "decoder_config": ", ".join(f"`{ours}` ({theirs})" for ours, theirs in DECODER_FIELDS.items()),
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

_MODEL = r"^(?:model\.)?"
_ENCODER = _MODEL + r"pixel_level_module\.encoder\."
_PIXEL_DECODER = _MODEL + r"pixel_level_module\.decoder\."
_TRANSFORMER = _MODEL + r"transformer_module\."
_LAYER = _TRANSFORMER + r"decoder\.layers\.(\d+)\."

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

# What their checkpoints hold and no model of ours, after renaming.
IGNORED_WEIGHTS = (
    # Swin's classification LayerNorm: no feature map passes it.
    r"backbone\.body\.swin\.layernorm\.",
    # A constant made of the window size.
    r"backbone\.body\.swin\.encoder\.layers\.\d+\.blocks\.\d+\.attention\..*relative_position_index$",
    # `no_object_weight` as a tensor.
    r"^criterion\.empty_weight$",
)


def translate_config(theirs: dict[str, Any], own_model_type: str) -> dict[str, Any]:
    """The dictionary of a transformers `MaskFormerConfig` as one of ours.

    Raises:
        ValueError: If a field asks for arithmetic that is not MaskFormer's.
    """
    backbone = theirs.get("backbone_config")
    if backbone is not None and backbone["model_type"] == "maskformer-swin":
        # Their second implementation of the same network, of which they warn that it is not supported.
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
    return {
        **{name: value for name, value in theirs.items() if name not in known},
        **{name: getattr(parsed, other) for name, other in FIELDS.items()},
        **{name: getattr(decoder, other) for name, other in DECODER_FIELDS.items()},
        "model_type": own_model_type,
        "backbone_config": _translate_backbone(parsed.backbone_config.to_dict()),
        "num_channels": parsed.backbone_config.num_channels,
        # Trained by the original with fixed statistics, which transformers' BatchNorm is only in `eval()`.
        "freeze_batch_norm": True,
        **theirs.get(OWN_SECTION, {}),
    }


def _translate_backbone(backbone: dict[str, Any]) -> dict[str, Any]:
    if backbone["model_type"] != "swin":
        return backbone
    # Theirs gives the features of all stages, whatever its configuration says.
    stages = [f"stage{stage + 1}" for stage in range(len(backbone["depths"]))]
    return {**backbone, "out_features": stages, "out_indices": None}
