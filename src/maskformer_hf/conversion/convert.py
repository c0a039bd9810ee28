"""From a file of the original MaskFormer or Mask2Former to a checkpoint folder: what `maskformer convert` does."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from ..models.configuration_maskformer import MaskFormerHfConfig
from ..models.configuration_per_pixel import MaskFormerHfPerPixelConfig
from ..models.configuration_video import MaskFormerHfVideoConfig
from ..models.image_processing_maskformer import MaskFormerHfImageProcessor
from ..models.modeling_auto import MODEL_CLASSES, processor_class_of
from ..presets import PRESETS, image_processor_for
from .architecture import differences, infer_config, matching_preset, same_size_presets
from .detectron2 import IGNORED, config_from_detectron2, convert_state_dict, read_checkpoint

# What a preset knows of its data set and tensors do not.
_DATA_SET_FIELDS = ("task", "object_mask_threshold", "overlap_mask_area_threshold")


@dataclass
class Converted:
    """
    Attributes:
        model: A MaskFormer or Mask2Former, of images or videos, or one of the per-pixel baselines.
        ignored: What the file holds and the model does not need: the end of a name, how many tensors, and why.
        remarks: What is not in the file: where class names come from, and what was taken as in the released models.
    """

    model: Any
    processor: MaskFormerHfImageProcessor
    ignored: list[tuple[str, int, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def convert_detectron2(path: str | Path, preset: str | None = None, config_file: str | Path | None = None) -> Converted:
    """Make a checkpoint of ours of one of the original MaskFormer or Mask2Former, of images or videos.

    The configuration is inferred from the weights. A preset, a dumped Detectron2 configuration (`config_file`, or a
    `config.yaml` beside the checkpoint) is checked against them and then adds what weights do not tell. Without either
    the preset of the same sizes does, and where there is none, the data set with as many classes.

    Args:
        path: A `.pkl` of the model zoo, a `.pth` of one's own training, or the same state dict as `.safetensors`.
        preset: A name in `maskformer_hf.presets.PRESETS`.
        config_file: A whole dump of Detectron2's configuration, as YAML or JSON.

    Raises:
        ValueError: The file is no such checkpoint, is damaged or would run code; a weight is not finite; the preset or
            the configuration contradicts the weights; both are given.
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
    beside = path.with_name("config.yaml")
    if preset is None and config_file is None and beside.is_file():
        config_file = beside
    config = infer_config(state, _is_video(preset, config_file))
    if preset is not None:
        config, processor, remarks = _with_preset(config, preset)
    elif config_file is not None:
        config, processor, remarks = _with_config_file(config, Path(config_file))
    else:
        config, processor, remarks = _with_matching_preset(config)
    model = MODEL_CLASSES[config.model_type](config)
    model.load_state_dict(convert_state_dict(state, config))
    if config.model_type == MaskFormerHfPerPixelConfig.model_type:
        # The original asks the backbone what to pad to: a Swin of any size says 32, a ResNet nothing.
        backbone: Any = config.backbone_config
        processor.size_divisor = 32 if backbone.model_type == "swin" else 0
    return Converted(model.eval(), processor, _ignored(state), remarks)


def _is_video(preset: str | None, config_file: str | Path | None) -> bool | None:
    """Whether a preset or a dumped configuration is that of a model of videos; None if there is neither."""
    if preset is not None:
        return isinstance(PRESETS[preset](), MaskFormerHfVideoConfig)
    if config_file is not None:
        return isinstance(config_from_detectron2(_read_config_file(Path(config_file))), MaskFormerHfVideoConfig)
    return None


def _with_preset(
    inferred: MaskFormerHfConfig, preset: str
) -> tuple[MaskFormerHfConfig, MaskFormerHfImageProcessor, list[str]]:
    config = PRESETS[preset]()
    _check(inferred, config, f"The preset {preset}")
    return config, image_processor_for(preset), [f"Sizes, classes and image processor: preset {preset}."]


def _with_config_file(
    inferred: MaskFormerHfConfig, path: Path
) -> tuple[MaskFormerHfConfig, MaskFormerHfImageProcessor, list[str]]:
    dump = _read_config_file(path)
    config = config_from_detectron2(dump)
    _check(inferred, config, str(path))
    preset, _ = matching_preset(config)
    remarks = [f"Sizes and image processor: {path}.", _remark_on_classes(config, preset)]
    if preset is not None:
        _take_classes(config, preset)
    return config, _image_processor(dump, config), remarks


def _with_matching_preset(
    inferred: MaskFormerHfConfig,
) -> tuple[MaskFormerHfConfig, MaskFormerHfImageProcessor, list[str]]:
    preset, exact = matching_preset(inferred)
    if preset is not None and exact:
        config = PRESETS[preset]()
        remarks = [
            f"All sizes are those of preset {preset}, hence its {config.num_labels} class names: if the model was "
            "trained on other data, give its dumped config.yaml by --config."
        ]
        others = same_size_presets(inferred)[1:]
        if others:
            remarks.append(
                f"Models of {' and '.join(others)} have the same sizes and another task, other thresholds or other "
                "classes: if it is one of those, name it by --preset."
            )
    else:
        config, remarks = inferred, [_remark_on_classes(inferred, preset)]
        if preset is not None:
            _take_classes(config, preset)
            for name in _DATA_SET_FIELDS:
                setattr(config, name, getattr(PRESETS[preset](), name))
    if isinstance(inferred, MaskFormerHfVideoConfig):
        remarks.append(
            f"Taken for a model of videos, because of YouTube-VIS's {config.num_labels} classes: no tensor tells. If "
            "it is one of images, give its dumped config.yaml by --config."
        )
    remarks += _assumptions(config)
    if preset is not None:
        return config, image_processor_for(preset), remarks
    processor = processor_class_of(config)(num_labels=config.num_labels)
    shortest, longest = processor.size["shortest_edge"], processor.size["longest_edge"]
    remarks.append(
        f"Image sizes are the usual ones ({shortest}, at most {longest}): set `size` of preprocessor_config.json to "
        "what was trained."
    )
    return config, processor, remarks


def _check(inferred: MaskFormerHfConfig, given: MaskFormerHfConfig, source: str):
    found = differences(inferred, given)
    if found:
        raise ValueError(f"{source} does not fit the checkpoint: {'; '.join(found)}.")


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
    """What no tensor tells and was taken as in the released models."""
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


def _read_config_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        dump = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no valid YAML or JSON: {' '.join(str(error).split())}") from error
    if not isinstance(dump, dict) or not isinstance(dump.get("MODEL"), dict):
        raise ValueError(f"{path} has no section MODEL: give the config.yaml that Detectron2 dumped beside the file.")
    return dump


def _image_processor(dump: Mapping[str, Any], config: MaskFormerHfConfig) -> MaskFormerHfImageProcessor:
    """The image processor that a dumped configuration describes."""
    model, images = dump["MODEL"], dump.get("INPUT", {})
    if images.get("FORMAT", "RGB") != "RGB":
        raise ValueError(f"INPUT.FORMAT is {images['FORMAT']!r}; only models of 'RGB' images can be converted.")
    options: dict[str, Any] = {}
    if "MIN_SIZE_TEST" in images and "MAX_SIZE_TEST" in images:
        options["size"] = {"shortest_edge": images["MIN_SIZE_TEST"], "longest_edge": images["MAX_SIZE_TEST"]}
    try:
        options |= {
            # Detectron2 normalises values of 0 to 255.
            "image_mean": [value / 255 for value in model["PIXEL_MEAN"]],
            "image_std": [value / 255 for value in model["PIXEL_STD"]],
            "size_divisor": max(model["MASK_FORMER"]["SIZE_DIVISIBILITY"], 0),
            "ignore_index": model["SEM_SEG_HEAD"]["IGNORE_VALUE"],
        }
    except KeyError as error:
        raise ValueError(
            f"The configuration has no {error.args[0]}: dump the whole `cfg`, not only what differs from the defaults."
        ) from error
    options["label_ids_to_fuse"] = config.label_ids_to_fuse
    return processor_class_of(config)(num_labels=config.num_labels, **options)


# --- summary ---------------------------------------------------------------------------------------------------------


def summary(model: Any) -> list[tuple[str, str]]:
    """What a model is made of, by part."""
    config: Any = model.config
    backbone = config.backbone_config
    sizes = {
        "resnet": lambda: f"depths {_join(backbone.depths)}, widths {_join(backbone.hidden_sizes)}",
        "swin": lambda: f"depths {_join(backbone.depths)}, width {backbone.embed_dim}, window {backbone.window_size}",
    }.get(backbone.model_type, lambda: f"widths {_join(model.model.backbone.channels)}")()
    if getattr(backbone, "stem_type", "basic") == "deep":
        sizes += f", DeepLab's stem and dilations {_join(getattr(backbone, 'multi_grid', None) or [1])}"
    if getattr(backbone, "use_absolute_embeddings", False):
        sizes += ", absolute positions"
    encoder = f", {config.encoder_layers} encoder layers" if config.pixel_decoder != "fpn" else ""
    decoder = "none: pixels are classified"
    if config.transformer_decoder is not None:
        decoder = (
            f"{config.decoder_layers} layers, {config.num_queries} queries, width {config.hidden_size}, "
            f"{config.num_attention_heads} heads"
        )
    if config.pre_norm:
        decoder += ", norms in front"
    names = [config.id2label[label] for label in range(config.num_labels)]
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    stuff = f", {len(config.label_ids_to_fuse)} of them stuff" if config.label_ids_to_fuse else ""
    return [
        ("backbone", f"{backbone.model_type}, {sizes}"),
        ("pixel decoder", f"{config.pixel_decoder}, width {config.feature_size}{encoder}"),
        ("decoder", decoder),
        ("classes", f"{config.num_labels} ({shown}){stuff}"),
        ("task", config.task),
        ("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"),
    ]


def _join(values: Any) -> str:
    return " ".join(map(str, values))
