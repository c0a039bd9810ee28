"""The configuration of an EoMT of ours as transformers' own."""

from typing import Any

from ..models.transformers_layout_eomt import BACKBONE_FIELDS, BACKBONES, EOMT_DINOV3, EOMT_FIELDS

# Our backbone -> their model.
MODEL_TYPES = {backbone: model_type for model_type, backbone in BACKBONES.items()}


def eomt_fields(config: Any) -> dict[str, Any]:
    """Fields of transformers' `EomtConfig` or `EomtDinov3Config`."""
    backbone = config.backbone_config
    model_type = MODEL_TYPES[backbone.model_type]
    fields = {name: getattr(backbone, name) for name in BACKBONE_FIELDS[model_type]}
    fields |= {theirs: getattr(config, ours) for ours, theirs in EOMT_FIELDS.items()}
    fields["num_hidden_layers"] = backbone.num_hidden_layers + config.decoder_layers
    fields["num_upscale_blocks"] = max(1, int(backbone.patch_size).bit_length() - 3)
    if model_type == EOMT_DINOV3:
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": backbone.rope_theta}
    return fields
