"""A file of the original MaskFormer or Mask2Former as a model and its processor: what `maskformer convert` writes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..models.configuration_maskformer import MaskFormerHfConfig
from ..models.image_processing_maskformer import MaskFormerHfImageProcessor
from ..models.modeling_auto import MODEL_CLASSES, processor_class_of
from ..models.result_options import facts_of
from ..presets import PRESETS, image_processor_for
from .architecture import infer_config
from .detectron2 import IGNORED, convert_state_dict
from .detectron2_config import config_from_detectron2, image_processor_from_detectron2, read_config_file
from .preset_matching import differences, matching_preset, same_size_presets
from .safe_reader import read_checkpoint
from .segformer import convert_segformer, is_segformer, matching_segformer

# What a preset knows about its data set and tensors do not show.
_DATA_SET_FIELDS = ("task", "object_mask_threshold", "overlap_mask_area_threshold")


# A configuration, its processor, and remarks for the user.
_Found = tuple[MaskFormerHfConfig, MaskFormerHfImageProcessor, list[str]]


@dataclass
class Converted:
    """
    Attributes:
        model: A MaskFormer or Mask2Former, for images or videos, or one of the per-pixel baselines.
        ignored: What the file holds and the model does not need: the end of a name, how many tensors, and why.
        remarks: What the file does not say: where class names come from, and what was taken from the released models.
    """

    model: Any
    processor: MaskFormerHfImageProcessor
    ignored: list[tuple[str, int, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def convert_detectron2(path: str | Path, preset: str | None = None, config_file: str | Path | None = None) -> Converted:
    """Read a checkpoint of the original MaskFormer or Mask2Former, for images or videos, as a model of ours.

    The configuration is inferred from the weights. A preset or a dumped Detectron2 configuration (`config_file`, or a
    `config.yaml` beside the checkpoint) is checked against them, and adds what weights do not tell. Without either, the
    preset of the same sizes adds it, or if there is none, a preset with as many classes.

    Args:
        path: A `.pkl` from the model zoo, a `.pth` from your own training, or the same state dict as `.safetensors`.
        preset: A name in `maskformer_hf.presets.PRESETS`.
        config_file: A whole dump of Detectron2's configuration, as YAML or JSON.

    Raises:
        ValueError: The file is no such checkpoint, is damaged or would run code; a weight is not finite; the preset or
            the configuration contradicts the weights; or both are given.
    """
    path = Path(path)
    if preset is not None and config_file is not None:
        raise ValueError("A preset and a configuration file both say what the checkpoint holds: give one of them.")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"There is no preset {preset!r}; there are {', '.join(PRESETS)}.")
    state = read_checkpoint(path)
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{path}: the tensor {name} is not finite (NaN or infinity).")
    if is_segformer(state):
        return _convert_segformer(state, preset, config_file)
    beside = path.with_name("config.yaml")
    if preset is None and config_file is None and beside.is_file():
        config_file = beside
    if preset is not None:
        config, processor, remarks = _with_preset(state, preset)
    elif config_file is not None:
        config, processor, remarks = _with_config_file(state, Path(config_file))
    else:
        config, processor, remarks = _with_matching_preset(infer_config(state))
    model = MODEL_CLASSES[config.model_type](config)
    model.load_state_dict(convert_state_dict(state, config))
    if config.is_per_pixel:
        # Here the original asks the backbone what to pad to: 32 for a Swin of any size, nothing for a ResNet.
        backbone: Any = config.backbone_config
        processor.size_divisor = 32 if backbone.model_type == "swin" else 0
    return Converted(model.eval(), processor, _ignored(state), remarks)


def _convert_segformer(
    state: Mapping[str, torch.Tensor], preset: str | None, config_file: str | Path | None
) -> Converted:
    """A Panoptic SegFormer. No file beside it says what it is, but names and shapes do."""
    if config_file is not None:
        raise ValueError("A Panoptic SegFormer has no configuration of Detectron2: leave it out.")
    preset = matching_segformer(state) if preset is None else preset
    config = PRESETS[preset]()
    if config.transformer_decoder != "panoptic_segformer":
        raise ValueError(f"The preset {preset} does not fit the checkpoint: it is a Panoptic SegFormer.")
    model = MODEL_CLASSES[config.model_type](config)
    model.load_state_dict(convert_segformer(state, config))
    remarks = [f"Sizes, classes and image processor: preset {preset}."]
    return Converted(model.eval(), image_processor_for(preset), _ignored(state), remarks)


def _with_preset(state: Mapping[str, torch.Tensor], preset: str) -> _Found:
    config = PRESETS[preset]()
    _check(state, config, f"The preset {preset}")
    return config, image_processor_for(preset), [f"Sizes, classes and image processor: preset {preset}."]


def _with_config_file(state: Mapping[str, torch.Tensor], path: Path) -> _Found:
    dump = read_config_file(path)
    config = config_from_detectron2(dump)
    _check(state, config, str(path))
    preset, _ = matching_preset(config)
    remarks = [f"Sizes and image processor: {path}.", _remark_on_classes(config, preset)]
    if preset is not None:
        _take_classes(config, preset)
    return config, image_processor_from_detectron2(dump, config), remarks


def _check(state: Mapping[str, torch.Tensor], given: MaskFormerHfConfig, source: str):
    """Refuses a configuration that contradicts the weights."""
    found = differences(infer_config(state, is_video=given.kind == "clip"), given)
    if found:
        raise ValueError(f"{source} does not fit the checkpoint: {'; '.join(found)}.")


def _with_matching_preset(inferred: MaskFormerHfConfig) -> _Found:
    preset, exact = matching_preset(inferred)
    if preset is not None and exact:
        config, remarks = PRESETS[preset](), _remarks_on_sizes(inferred, preset)
    else:
        config, remarks = inferred, [_remark_on_classes(inferred, preset)]
        if preset is not None:
            _take_classes(config, preset)
            for name in _DATA_SET_FIELDS:
                setattr(config, name, getattr(PRESETS[preset](), name))
    if inferred.kind == "clip":
        remarks.append(
            f"Taken for a model of videos, because of YouTube-VIS's {config.num_labels} classes: no tensor tells. If "
            "it is one of images, give its dumped config.yaml by --config."
        )
    remarks += _assumptions(config)
    if preset is not None:
        return config, image_processor_for(preset), remarks
    processor = processor_class_of(config)(num_labels=config.num_labels, **facts_of(config))
    shortest, longest = processor.size["shortest_edge"], processor.size["longest_edge"]
    remarks.append(
        f"Image sizes are the usual ones ({shortest}, at most {longest}): set `size` of preprocessor_config.json to "
        "what was trained."
    )
    return config, processor, remarks


def _remarks_on_sizes(inferred: MaskFormerHfConfig, preset: str) -> list[str]:
    remarks = [
        f"All sizes are those of preset {preset}, hence its {inferred.num_labels} class names: if the model was "
        "trained on other data, give its dumped config.yaml by --config."
    ]
    others = same_size_presets(inferred)[1:]
    if others:
        remarks.append(
            f"Models of {' and '.join(others)} have the same sizes and another task, other thresholds or other "
            "classes: if it is one of those, name it by --preset."
        )
    return remarks


def _take_classes(config: MaskFormerHfConfig, preset: str):
    named = PRESETS[preset]()
    config.id2label, config.label2id = named.id2label, named.label2id
    config.label_ids_to_fuse = named.label_ids_to_fuse


def _remark_on_classes(config: MaskFormerHfConfig, preset: str | None) -> str:
    if preset is None:
        same = [(known.model_type, known.num_labels) for known in (make() for make in PRESETS.values())]
        several = (config.model_type, config.num_labels) in same
        return (
            f"{'More than one' if several else 'No'} data set of the presets has {config.num_labels} classes: they are "
            "named LABEL_0, LABEL_1, ... Write their names into `id2label` and `label2id` of config.json, and ids of "
            "stuff into `label_ids_to_fuse`."
        )
    return f"Class names: those of preset {preset}, which has {config.num_labels} classes too."


def _assumptions(config: MaskFormerHfConfig) -> list[str]:
    """What no tensor tells and was therefore taken from the released models."""
    backbone: Any = config.backbone_config
    assumed = []
    has_attention = config.transformer_decoder is not None or config.pixel_decoder == "transformer_fpn"
    if has_attention and config.pixel_decoder != "deformable":
        assumed.append(f"{config.num_attention_heads} attention heads")
    if backbone.model_type == "resnet":
        assumed.append("strides in the 3x3 convolutions")
        if getattr(backbone, "multi_grid", None):
            assumed.append(f"dilations {backbone.multi_grid} in the last stage, as DeepLab's stem is there")
    return [f"No tensor tells, hence taken as in the released models: {', '.join(assumed)}."] if assumed else []


def _ignored(state: Mapping[str, torch.Tensor]) -> list[tuple[str, int, str]]:
    counts = Counter(ending for name in state for ending in IGNORED if name.endswith(ending))
    return [(ending, count, IGNORED[ending]) for ending, count in counts.items()]
