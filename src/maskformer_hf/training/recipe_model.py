"""From a recipe to a model and its image processor."""

import difflib
import inspect
from typing import Any

import torch
from torch import nn

from ..conversion.detectron2_backbone import load_detectron2_backbone
from ..inference.load import checkpoint_path
from ..models.backbone import load_pretrained_backbone, pretrained_backbone_config
from ..models.modeling_auto import MODEL_CLASSES, model_class_of, processor_class_of
from ..models.result_options import facts_of
from ..presets import PRESETS, image_processor_for
from .arguments import ModelArguments

# By `ModelArguments.architecture`.
MODEL_TYPES = {
    None: "maskformer_hf",
    "maskformer": "maskformer_hf",
    "per_pixel_baseline": "maskformer_hf_per_pixel",
    "mask2former_vis": "maskformer_hf_video",
}


def config_class_of(arguments: ModelArguments) -> Any:
    """The class of the configuration of a recipe's model."""
    if arguments.preset is not None:
        return type(_preset(arguments.preset))
    if arguments.checkpoint is not None and arguments.architecture is None:
        return model_class_of(checkpoint_path(arguments.checkpoint)).config_class
    return MODEL_CLASSES[MODEL_TYPES[arguments.architecture]].config_class


def build_model(arguments: ModelArguments, labels: dict[str, Any]) -> nn.Module:
    """A new model on a pretrained backbone, or a checkpoint with its classes replaced by those of `label_fields`."""
    if arguments.preset is not None:
        return _build_preset(arguments, labels)
    config_class = config_class_of(arguments)
    model_class = MODEL_CLASSES[config_class.model_type]
    _check_fields(arguments.config, config_class, "model.config")
    fields: dict[str, Any] = {**labels, **arguments.config}
    if arguments.checkpoint is not None:
        return model_class.from_pretrained(checkpoint_path(arguments.checkpoint), dtype=torch.float32, **fields)
    assert arguments.backbone is not None, "read_recipe lets one of the two pass"
    return model_class.from_backbone(arguments.backbone, backbone_weights=arguments.backbone_weights, **fields)


def _build_preset(arguments: ModelArguments, labels: dict[str, Any]) -> nn.Module:
    preset = _preset(arguments.preset)
    _check_fields(arguments.config, type(preset), "model.config")
    fields = preset.to_dict()
    if arguments.backbone is not None and arguments.backbone.startswith("timm/"):
        # timm's models have an architecture of their own, which its weights need.
        fields["backbone_config"] = pretrained_backbone_config(arguments.backbone).to_dict()
    config = type(preset).from_dict(fields, **{**labels, **arguments.config})
    model = MODEL_CLASSES[config.model_type](config)
    if arguments.backbone is None:
        assert arguments.backbone_weights is not None, "read_recipe lets one of the two pass"
        load_detectron2_backbone(arguments.backbone_weights, model)
    else:
        base_model: Any = model.base_model
        load_pretrained_backbone(base_model.backbone, arguments.backbone, arguments.backbone_weights)
    return model


def _preset(name: str | None) -> Any:
    if name is None or name not in PRESETS:
        close = difflib.get_close_matches(str(name), PRESETS, n=1)
        raise ValueError(
            f"model.preset is {name!r}, which is no preset; "
            + (f"did you mean {close[0]}?" if close else f"there are {', '.join(PRESETS)}")
        )
    return PRESETS[name]()


def build_processor(arguments: ModelArguments, config: Any) -> Any:
    """The image processor of the checkpoint or the preset, or a new one, for a model of this configuration."""
    processor_class = processor_class_of(config)
    if arguments.checkpoint is not None:
        processor = processor_class.from_pretrained(checkpoint_path(arguments.checkpoint))
    elif arguments.preset is not None:
        processor = image_processor_for(arguments.preset)
    else:
        processor = processor_class()
    fields = processor.to_dict()
    # The processor needs these facts of the model too, as it reads outputs without seeing the model.
    fields |= facts_of(config)
    if processor.num_labels is not None:
        fields["num_labels"] = config.num_labels
    return processor_class.from_dict({**fields, **arguments.image_processor})


def _check_fields(fields: dict[str, Any], kind: type, where: str) -> None:
    # PreTrainedConfig accepts any keyword in silence, so with a typing error the default would be trained.
    known = {name for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")}
    known |= {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"{where} has no field {name}"
                + (f"; did you mean {close[0]}?" if close else f"; there are {sorted(known)}")
            )
