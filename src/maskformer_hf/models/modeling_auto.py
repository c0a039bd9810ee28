"""Which of our models a configuration or a checkpoint belongs to."""

from typing import Any

from transformers import PreTrainedConfig

from .modeling_maskformer import MaskFormerHfForUniversalSegmentation
from .modeling_per_pixel import MaskFormerHfPerPixelBaseline
from .modeling_video import MaskFormerHfForVideoSegmentation
from .transformers_layout import MODEL_TYPES

# By `model_type`.
MODEL_CLASSES: dict[str, Any] = {
    "maskformer_hf": MaskFormerHfForUniversalSegmentation,
    "maskformer_hf_per_pixel": MaskFormerHfPerPixelBaseline,
    "maskformer_hf_video": MaskFormerHfForVideoSegmentation,
    # transformers' own, which are translated.
    **dict.fromkeys(MODEL_TYPES, MaskFormerHfForUniversalSegmentation),
}


def model_class_of(source: Any) -> Any:
    """The class of the model in a folder or a repository of the Hub. It says itself what it cannot read."""
    config, _ = PreTrainedConfig.get_config_dict(source)
    return MODEL_CLASSES.get(config.get("model_type", ""), MaskFormerHfForUniversalSegmentation)
