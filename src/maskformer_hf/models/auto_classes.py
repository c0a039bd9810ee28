"""Which of our classes transformers' Auto classes take: the one table of the models of this package.

A new model is one row. What `maskformer_hf.register` registers, which class `modeling_auto.py` finds for a checkpoint
and what `auto_map` says in a saved folder all come from here. Classes are written as text, "file.Class": that is what
`auto_map` holds, and a table of the classes themselves would import every model.
"""

from importlib import import_module
from typing import Any, NamedTuple

IMAGE_PROCESSOR = {"AutoImageProcessor": "image_processing_maskformer.MaskFormerHfImageProcessor"}
VIDEO_PROCESSOR = dict.fromkeys(
    ("AutoImageProcessor", "AutoVideoProcessor"), "video_processing_maskformer.MaskFormerHfVideoProcessor"
)


class _Row(NamedTuple):
    """
    Attributes:
        config: The class of the configuration.
        model: The class with heads and loss.
        tasks: The Auto classes that take `model`, without "AutoModelFor" and "Segmentation". transformers' `pipeline`
            asks only for Image and Semantic.
        base_model: The class that `AutoModel` takes, if there is one.
        processor: The Auto classes of what prepares the inputs.
    """

    config: str
    model: str
    tasks: tuple[str, ...]
    base_model: str | None = None
    processor: dict[str, str] = IMAGE_PROCESSOR


_ROWS = {
    "maskformer_hf": _Row(
        "configuration_maskformer.MaskFormerHfConfig",
        "modeling_maskformer.MaskFormerHfForUniversalSegmentation",
        ("Image", "Semantic", "Universal", "Instance"),
        "modeling_maskformer.MaskFormerHfModel",
    ),
    "maskformer_hf_per_pixel": _Row(
        "configuration_per_pixel.MaskFormerHfPerPixelConfig",
        "modeling_per_pixel.MaskFormerHfPerPixelBaseline",
        ("Image", "Semantic"),
    ),
    "maskformer_hf_video": _Row(
        "configuration_video.MaskFormerHfVideoConfig",
        "modeling_video.MaskFormerHfForVideoSegmentation",
        ("Universal",),
        "modeling_video.MaskFormerHfVideoModel",
        VIDEO_PROCESSOR,
    ),
}


def _auto_map(row: _Row) -> dict[str, str]:
    base_model = {} if row.base_model is None else {"AutoModel": row.base_model}
    tasks = dict.fromkeys((f"AutoModelFor{task}Segmentation" for task in row.tasks), row.model)
    return {"AutoConfig": row.config, **base_model, **tasks}


# By `model_type`: the `auto_map` of config.json, the class with heads and loss, and the `auto_map` of the processor.
MODELS = {model_type: _auto_map(row) for model_type, row in _ROWS.items()}
MODEL_REFERENCES = {model_type: row.model for model_type, row in _ROWS.items()}
PROCESSORS = {model_type: row.processor for model_type, row in _ROWS.items()}

CLASS_NAMES = {
    reference.partition(".")[2]
    for auto_map in (*MODELS.values(), *PROCESSORS.values())
    for reference in auto_map.values()
}


def class_of(reference: str) -> Any:
    """The class that "file.Class" names."""
    module, _, name = reference.partition(".")
    return getattr(import_module(f".{module}", __package__), name)
