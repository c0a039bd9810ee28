"""Which preset a checkpoint belongs to, and where a configuration contradicts its tensors."""

from typing import Any

from ..models.configuration_maskformer import MaskFormerHfConfig
from ..presets import PRESETS, PROCESSORS
from .detectron2_names import memory_channels

# Fields that the names and shapes of tensors show: in every model, in those with queries, and by kind of part.
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
_MASKED_FIELDS = ("query_source", "query_position")
_DETR_FIELDS = ("decoder_encoder_layers", "pre_norm")
_DEFORMABLE_FIELDS = ("encoder_layers", "encoder_levels", "num_attention_heads")
_BACKBONE_FIELDS = {
    "resnet": ("embedding_size", "hidden_sizes", "depths"),
    "swin": ("embed_dim", "patch_size", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias"),
}


def differences(inferred: MaskFormerHfConfig, given: MaskFormerHfConfig) -> list[str]:
    """Where a configuration contradicts the one inferred from the tensors of a checkpoint, one line per field."""
    ours, theirs = _visible(inferred), _visible(given)
    return [
        f"{name} is {ours[name]} in the checkpoint, not {theirs[name]}"
        for name in ours
        if name in theirs and ours[name] != theirs[name]
    ]


def _visible(config: MaskFormerHfConfig) -> dict[str, Any]:
    """The fields of a configuration that the names and shapes of tensors show."""
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
    if config.pixel_decoder == "transformer_fpn":
        fields |= {name: getattr(config, name) for name in ("encoder_layers", "ffn_dim", "pre_norm")}
    if config.pixel_decoder == "deformable":
        fields |= {name: getattr(config, name) for name in _DEFORMABLE_FIELDS}
        fields["encoder_ffn_dim"] = config.encoder_ffn_dim or config.ffn_dim
    if config.transformer_decoder == "detr":
        fields |= {name: getattr(config, name) for name in _DETR_FIELDS}
    if config.transformer_decoder == "masked":
        fields |= {name: getattr(config, name) for name in _MASKED_FIELDS}
    if config.transformer_decoder is not None:
        fields |= {name: getattr(config, name) for name in _DECODER_FIELDS}
        # Tensors show a projection. Only where it is not needed for the sizes to fit was it asked for.
        if memory_channels(config) == config.hidden_size:
            fields["enforce_input_projection"] = config.enforce_input_projection
    return fields


def same_size_presets(config: MaskFormerHfConfig) -> list[str]:
    """The presets of the same sizes: none, one, or several Mask2Formers that differ in their task alone."""
    return [name for name, preset in PRESETS.items() if not differences(config, preset())]


def matching_preset(config: MaskFormerHfConfig) -> tuple[str | None, bool]:
    """The preset of the same sizes and True; or else one for the same classes and False; or else None and False.

    Where several presets have the same sizes ([`same_size_presets`]), it is the first. Otherwise classes are recognised
    by their number. If presets of several data sets have that number, those with the same pixel decoder are looked at
    (ADE20K has a semantic and a panoptic preset, which differ in it); if they still differ in their classes, there is
    no preset.
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
    # Models for one list of classes that differ in their task.
    if len({str(preset.id2label) for preset in same_classes.values()}) == 1:
        return next(iter(same_classes)), False
    return None, False


def _data_set(preset: str) -> str:
    return next(suffix for suffix in PROCESSORS if preset.endswith(f"_{suffix}"))
