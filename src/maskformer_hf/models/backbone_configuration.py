"""The configuration of the backbone, completed."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

# A feature pyramid from stride 4 to stride 32.
NUM_FEATURE_LEVELS = 4


def complete_backbone_config(
    backbone_config: Any, num_channels: int, num_maps: int = NUM_FEATURE_LEVELS
) -> PreTrainedConfig:
    """The configuration object of the backbone, with its last `num_maps` maps and the model's number of channels."""
    if backbone_config is None:
        backbone_config = {"model_type": "resnet"}
    if isinstance(backbone_config, dict):
        backbone_config = dict(backbone_config)
        model_type = backbone_config.pop("model_type", None)
        if model_type not in CONFIG_MAPPING:
            raise ValueError(
                f"`backbone_config` needs a `model_type` that transformers knows, such as 'resnet', 'swin' or "
                f"'timm_backbone'; got {model_type!r}."
            )
        backbone_config = CONFIG_MAPPING[model_type](**backbone_config)
    backbone_config.num_channels = num_channels
    # As after a round trip through JSON: ConvNeXt adds lists to the tuples of its own defaults.
    for name, value in list(vars(backbone_config).items()):
        if isinstance(value, tuple):
            setattr(backbone_config, name, list(value))
    if len(backbone_config.out_indices or ()) > 1:
        return backbone_config
    if backbone_config.model_type == "timm_backbone":
        backbone_config.out_indices = list(range(-num_maps, 0))
        return backbone_config
    stage_names = [name for name in backbone_config.stage_names if name != "stem"]
    if len(stage_names) < NUM_FEATURE_LEVELS:
        raise ValueError(
            f"A {backbone_config.model_type!r} backbone with {len(stage_names)} stages has too few: the pixel decoder "
            f"needs {NUM_FEATURE_LEVELS} feature maps, at strides 4, 8, 16 and 32."
        )
    backbone_config.out_features = stage_names[-num_maps:]
    return backbone_config
