"""The configuration of the backbone, completed."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from .vit_blocks import DINOV2, DINOV3

# A feature pyramid from stride 4 to stride 32.
NUM_FEATURE_LEVELS = 4


def complete_backbone_config(
    backbone_config: Any, num_channels: int, pyramid: str | None = None, num_maps: int = NUM_FEATURE_LEVELS
) -> PreTrainedConfig:
    """The configuration object of the backbone, with its output features and the model's number of channels.

    There are `num_maps` output features, the last ones; below a pyramid only the last one.
    """
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
    if pyramid is not None:
        return _complete_plain(backbone_config, pyramid)
    if _is_plain(backbone_config):
        raise ValueError(
            f"All maps of a {backbone_config.model_type!r} backbone have the stride of its patches, "
            f"{backbone_config.patch_size}, but the pixel decoder needs strides 4, 8, 16 and 32: set "
            "`backbone_pyramid='simple'`."
        )
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


def _is_plain(config: Any) -> bool:
    """Whether a transformers configuration is one of a plain vision transformer, without a pyramid of its own."""
    is_transformer = getattr(config, "patch_size", None) is not None and hasattr(config, "num_hidden_layers")
    return is_transformer and not hasattr(config, "depths") and not getattr(config, "add_fpn", False)


def _complete_plain(config: Any, pyramid: str) -> PreTrainedConfig:
    indices = list(getattr(config, "out_indices", None) or ())
    if config.model_type == "timm_backbone":
        config.out_indices = indices or [-1]
        return config
    if not _is_plain(config):
        raise ValueError(
            f"`backbone_pyramid={pyramid!r}` is for plain vision transformers, whose maps all have the stride of their "
            f"patches; {config.model_type!r} is none: leave `backbone_pyramid` at None."
        )
    if pyramid == "tokens" and config.model_type not in (DINOV2, DINOV3):
        raise ValueError(
            f"`backbone_pyramid='tokens'` is for the models that EoMT is made of, {DINOV2!r} and {DINOV3!r}; got "
            f"{config.model_type!r}."
        )
    sides = set(config.patch_size) if isinstance(config.patch_size, list) else {config.patch_size}
    if len(sides) > 1:
        raise ValueError(f"`patch_size` of `backbone_config` must be square, got {config.patch_size}.")
    if indices and max(index % (config.num_hidden_layers + 1) for index in indices) < config.num_hidden_layers:
        raise ValueError(
            f"`out_indices` {indices} of `backbone_config` leave out the last of {config.num_hidden_layers} blocks, "
            "which would be computed for nothing: set `num_hidden_layers` to the deepest of them."
        )
    return config
