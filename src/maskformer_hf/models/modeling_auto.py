"""Which of our models a configuration or a checkpoint belongs to."""

from typing import Any

from transformers import PreTrainedConfig

from .auto_classes import IMAGE_PROCESSOR, MODEL_REFERENCES, PROCESSORS, class_of
from .modeling_maskformer import MaskFormerHfForUniversalSegmentation
from .transformers_layout import MODEL_TYPES

# By `model_type`.
MODEL_CLASSES: dict[str, Any] = {
    **{model_type: class_of(reference) for model_type, reference in MODEL_REFERENCES.items()},
    # transformers' own, which are translated.
    **dict.fromkeys(MODEL_TYPES, MaskFormerHfForUniversalSegmentation),
}


def processor_class_of(config: PreTrainedConfig) -> Any:
    """The class that prepares the inputs of a model of this configuration."""
    return class_of(PROCESSORS.get(config.model_type, IMAGE_PROCESSOR)["AutoImageProcessor"])


def model_class_of(source: Any) -> Any:
    """The class of the model in a folder or a repository of the Hub. It says itself what it cannot read."""
    config, _ = PreTrainedConfig.get_config_dict(source)
    return MODEL_CLASSES.get(config.get("model_type", ""), MaskFormerHfForUniversalSegmentation)
