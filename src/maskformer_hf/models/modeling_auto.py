"""Which of our models a configuration or a checkpoint belongs to."""

from typing import Any

from transformers import PreTrainedConfig

from .image_processing_maskformer import MaskFormerHfImageProcessor
from .modeling_maskformer import MaskFormerHfForUniversalSegmentation
from .modeling_per_pixel import MaskFormerHfPerPixelBaseline
from .modeling_video import MaskFormerHfForVideoSegmentation
from .transformers_layout import MODEL_TYPES
from .video_processing_maskformer import MaskFormerHfVideoProcessor

# By `model_type`.
MODEL_CLASSES: dict[str, Any] = {
    "maskformer_hf": MaskFormerHfForUniversalSegmentation,
    "maskformer_hf_per_pixel": MaskFormerHfPerPixelBaseline,
    "maskformer_hf_video": MaskFormerHfForVideoSegmentation,
    # transformers' own, which are translated.
    **dict.fromkeys(MODEL_TYPES, MaskFormerHfForUniversalSegmentation),
}
# By `model_type`, where it is not that of images.
PROCESSOR_CLASSES: dict[str, Any] = {"maskformer_hf_video": MaskFormerHfVideoProcessor}


def processor_class_of(config: PreTrainedConfig) -> Any:
    """The class that prepares the inputs of a model of this configuration."""
    return PROCESSOR_CLASSES.get(config.model_type, MaskFormerHfImageProcessor)


def sees_clips(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration takes clips of several frames, not images."""
    return config.kind == "clip"  # pyrefly: ignore[missing-attribute]


def model_class_of(source: Any) -> Any:
    """The class of the model in a folder or a repository of the Hub. It says itself what it cannot read."""
    config, _ = PreTrainedConfig.get_config_dict(source)
    return MODEL_CLASSES.get(config.get("model_type", ""), MaskFormerHfForUniversalSegmentation)
