"""A checkpoint of ours as transformers' own MaskFormer, Mask2Former or EoMT, for people without this package."""

import re
from copy import deepcopy
from dataclasses import fields
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedConfig

from ..models.configuration_maskformer import MaskFormerHfConfig
from ..models.image_processing_maskformer import MaskFormerHfImageProcessor
from ..models.modeling_maskformer import MaskFormerHfForUniversalSegmentation
from ..models.modeling_per_pixel import MaskFormerHfPerPixelBaseline
from ..models.transformers_layout import (
    DECODER_FIELDS,
    FIELDS,
    IGNORED_WEIGHTS,
    MASK2FORMER_FIELDS,
    OWN_SECTION,
    WEIGHT_NAMES,
)
from ..models.transformers_layout_eomt import EOMT_FIELDS, EOMT_IGNORED_WEIGHTS, EOMT_PARTS, eomt_names
from .to_transformers_eomt import MODEL_TYPES, eomt_fields
from .wording import shorten

# Names inside a block of a Swin. Our backbone is transformers' newer Swin, which renamed them; its MaskFormer has the
# older Swin.
SWIN_NAMES = {
    ".attention.self.query.": ".attention.q_proj.",
    ".attention.self.key.": ".attention.k_proj.",
    ".attention.self.value.": ".attention.v_proj.",
    ".attention.self.relative_position_bias_table": ".attention.relative_position_bias.relative_position_bias_table",
    ".attention.output.dense.": ".attention.o_proj.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
}
# Largest difference of logits in shares of the largest logit: more than any backbone's rounding, less than any mistake.
LARGEST_DIFFERENCE = 1e-3
# What transformers' MaskFormer and Mask2Former have in other slots, and that they run all their layers.
_PARTS = {
    "cross_attention": "softmax",
    "class_head": "linear",
    "mask_head": "product",
    "query_source": None,
    "query_relations": None,
    "boundary_blocks": 0,
    "inference_layers": None,
    "inference_encoder_layers": None,
    "backbone_pyramid": None,
}
_RATIOS = {"oversample_ratio", "importance_sample_ratio"}

Ours = MaskFormerHfForUniversalSegmentation | MaskFormerHfPerPixelBaseline
Theirs = transformers.MaskFormerForInstanceSegmentation | transformers.Mask2FormerForUniversalSegmentation


class _Target(NamedTuple):
    """One of transformers' models: its classes, and the pixel decoder that it has."""

    name: str
    config: Any
    model: Any
    image_processor: Any
    pixel_decoder: str
    parts: dict[str, Any] = _PARTS


# By our transformer decoder.
_TARGETS = {
    "detr": _Target(
        "MaskFormer",
        transformers.MaskFormerConfig,
        transformers.MaskFormerForInstanceSegmentation,
        transformers.MaskFormerImageProcessor,
        "fpn",
    ),
    "masked": _Target(
        "Mask2Former",
        transformers.Mask2FormerConfig,
        transformers.Mask2FormerForUniversalSegmentation,
        transformers.Mask2FormerImageProcessor,
        "deformable",
    ),
    "joint": _Target(
        "EoMT",
        transformers.EomtConfig,
        transformers.EomtForUniversalSegmentation,
        transformers.EomtImageProcessor,
        "none",
        {field: EOMT_PARTS.get(field, part) for field, part in _PARTS.items()},
    ),
}


def _target(config: Any) -> _Target:
    target = _TARGETS.get(config.transformer_decoder, _TARGETS["detr"])
    if (
        target.name == "EoMT"
        and MODEL_TYPES[config.backbone_config.model_type] == transformers.EomtDinov3Config.model_type
    ):
        return target._replace(
            config=transformers.EomtDinov3Config, model=transformers.EomtDinov3ForUniversalSegmentation
        )
    return target


def to_transformers(model: Ours) -> tuple[Theirs, float]:
    """The same network with the same weights as a model of transformers, and how far their logits differ.

    The difference is the largest absolute one over all class and mask logits for one image of noise.

    Args:
        model: Should be in float32: with fewer bits the two round differently.

    Raises:
        ValueError: A part, which is named, has no counterpart in transformers, or the two models do not agree.
    """
    model = model.eval()
    config: Any = model.config
    lacking = _parts_without_counterpart(model)
    if lacking:
        raise ValueError(f"transformers' {_target(config).name} has no counterpart of {'; nor of '.join(lacking)}.")
    theirs: Any = _target(config).model(transformers_config(config)).eval()
    theirs.to(model.dtype)
    if hasattr(theirs.config, "backbone_config"):
        # Their model replaces the configuration of a Swin by one of another class, and loading that would warn.
        theirs.config.backbone_config = transformers_config(config).backbone_config
    theirs.load_state_dict(_state_dict(model, theirs))
    if hasattr(theirs, "attn_mask_probs"):
        # Queries of a trained EoMT attend to all patches.
        theirs.attn_mask_probs.zero_()
    return theirs, _largest_difference(model, theirs)


def _parts_without_counterpart(model: Ours) -> list[str]:
    config: Any = model.config
    if config.model_type != MaskFormerHfConfig.model_type:
        return [f"a {config.model_type!r} model"]
    target = _target(config)
    parts = {
        f"pixel_decoder={config.pixel_decoder!r}": config.pixel_decoder != target.pixel_decoder,
        f"transformer_decoder={config.transformer_decoder!r}": config.transformer_decoder not in _TARGETS,
        **{
            f"{field}={getattr(config, field)!r}": getattr(config, field) != part
            for field, part in target.parts.items()
        },
    }
    if target.name == "MaskFormer":
        # Mask2Former has both there.
        is_projected = model.model.pixel_decoder.memory.channels[0] != config.hidden_size
        name = f"enforce_input_projection=True where features have hidden_size={config.hidden_size} channels already"
        parts["pre_norm=True"] = config.pre_norm
        parts[name] = config.enforce_input_projection and not is_projected
    elif target.name == "Mask2Former":
        parts[f"encoder_levels={config.encoder_levels}"] = config.encoder_levels != 3
        parts["query_position=False"] = not config.query_position
    parts[f"decoder_encoder_layers={config.decoder_encoder_layers}"] = config.decoder_encoder_layers > 0
    return [part for part, is_there in parts.items() if is_there] + _backbone_without_counterpart(config)


def _backbone_without_counterpart(config: Any) -> list[str]:
    backbone = config.backbone_config
    dilations = getattr(backbone, "multi_grid", None)
    parts = {
        "the stem of R50c and R101c (backbone_config.stem_type='deep')": getattr(backbone, "stem_type", None) == "deep",
        f"dilations in the last stage (backbone_config.multi_grid={dilations})": set(dilations or [1]) != {1},
        # There they only fit images of the size that the backbone was pretrained with. Any other size fails.
        "absolute position embeddings for images of any size (backbone_config.use_absolute_embeddings=True)": getattr(
            backbone, "use_absolute_embeddings", False
        ),
    }
    return [part for part, is_there in parts.items() if is_there]


# --- configuration ---------------------------------------------------------------------------------------------------


def transformers_config(config: MaskFormerHfConfig) -> transformers.MaskFormerConfig | transformers.Mask2FormerConfig:
    """Translate a configuration. Fields that transformers lacks go into a section of our own, for the way back."""
    target = _target(config)
    names = {"MaskFormer": FIELDS, "Mask2Former": MASK2FORMER_FIELDS, "EoMT": EOMT_FIELDS}[target.name]
    translated: dict[str, Any] = {
        **{other: getattr(config, name) for name, other in names.items()},
        "id2label": config.id2label,
        "label2id": config.label2id,
    }
    if target.name == "EoMT":
        translated |= eomt_fields(config)
    else:
        translated["backbone_config"] = config.backbone_config.to_dict()  # pyrefly: ignore[missing-attribute]
    if target.name == "MaskFormer":
        decoder = {other: getattr(config, name) for name, other in DECODER_FIELDS.items()}
        translated["decoder_config"] = {"model_type": "detr", **decoder}
        # With it, their forward fails unless it is asked for hidden states too.
        translated[names["use_auxiliary_loss"]] = False
    elif target.name == "Mask2Former":
        translated["decoder_layers"] = config.decoder_layers + 1
        translated[names["encoder_ffn_dim"]] = config.encoder_ffn_dim or config.ffn_dim
        # Without it, their forward fails.
        translated[names["use_auxiliary_loss"]] = True
    for name in {"no_object_weight", "class_weight", "mask_weight", "dice_weight", *_RATIOS} & names.keys():
        translated[names[name]] = float(translated[names[name]])
    # A copy: some versions of transformers take their own keys out of nested dictionaries.
    read_back = MaskFormerHfConfig.from_dict(deepcopy({**translated, "model_type": target.config.model_type}))
    common = {"backbone_config", *(field.name for field in fields(PreTrainedConfig))}
    own = sorted(field.name for field in fields(MaskFormerHfConfig) if field.name not in common)
    section = {name: getattr(config, name) for name in own if getattr(config, name) != getattr(read_back, name)}
    if section:
        translated[OWN_SECTION] = section
    return target.config(**translated)


# --- weights ---------------------------------------------------------------------------------------------------------


def own_name(name: str, config: Any = None) -> str:
    """Our name for a tensor of transformers' models, by the map that reads their checkpoints.

    `config`: Ours, which an EoMT's names depend on.
    """
    for pattern, replacement in {**WEIGHT_NAMES, **eomt_names(config)}.items():
        if re.match(pattern, name):
            name = re.sub(pattern, replacement, name)
            break
    if name.startswith("model.backbone.body.swin.encoder."):
        for theirs, ours in SWIN_NAMES.items():
            if theirs in name:
                return name.replace(theirs, ours)
    return name


def _state_dict(model: Ours, theirs: Theirs) -> dict[str, torch.Tensor]:
    """Their state dict with our tensors. Tensors that no model of ours has keep their initial values."""
    ours = model.state_dict()
    state, empty = theirs.state_dict(), []
    for name in state:
        own = own_name(name, model.config)
        if own in ours:
            state[name] = ours.pop(own)
        elif not any(re.search(pattern, own) for pattern in (*IGNORED_WEIGHTS, *EOMT_IGNORED_WEIGHTS)):
            empty.append(name)
    if ours or empty:
        raise ValueError(
            f"transformers' {_target(model.config).name} cannot have this backbone. Weights without a place there: "
            f"{shorten(sorted(ours), 3)}. Weights it would lack: {shorten(empty, 3)}."
        )
    return state


@torch.no_grad()
def _largest_difference(model: Ours, theirs: Any) -> float:
    # The size is no multiple of any stride. Their EoMT knows one size.
    side: Any = getattr(model.config.backbone_config, "image_size", None)
    size: Any = (side, side) if _target(model.config).name == "EoMT" else (90, 134)
    noise = torch.randn(1, model.config.num_channels, *size, generator=torch.Generator().manual_seed(0))
    noise = noise.to(model.device, model.dtype)
    ours, others = model(noise), theirs.to(model.device)(noise)
    names = ("class_queries_logits", "masks_queries_logits")
    difference = max((ours[name] - others[name]).abs().max().item() for name in names)
    if not difference <= LARGEST_DIFFERENCE * max(ours[name].abs().max().item() for name in names):
        raise ValueError(
            f"transformers' {_target(model.config).name} computes something else with these weights: logits of the "
            f"same image differ by {difference:.2g}. Its {model.config.backbone_config.model_type!r} backbone is "
            "another one."
        )
    return difference


# --- image processor -------------------------------------------------------------------------------------------------


def transformers_processor(processor: MaskFormerHfImageProcessor, config: Any) -> Any:
    """The image processor of transformers for a model of this configuration, with the same settings.

    It stretches sides to multiples of `size_divisor` where ours pads. Settings that it does not know are written all
    the same, for the way back.
    """
    options = processor.to_dict()
    for name in ("image_processor_type", "auto_map", "processor_class"):
        options.pop(name, None)
    if _target(config).name == "EoMT":
        options["do_pad"] = True
    return _target(config).image_processor(**options)


def describe_changes(model: Ours, processor: MaskFormerHfImageProcessor, difference: float) -> list[str]:
    """What somebody who moves to transformers has to know."""
    changes = [f"Logits of the same pixels differ by {difference:.1e} at most; weights are written in {model.dtype}."]
    if processor.size_divisor and not processor.round_to_divisor:
        changes.append(
            "The image processor there rounds sides: it stretches them to multiples of "
            f"{processor.size_divisor}, where this one pads. Segmentations differ accordingly."
        )
    config: Any = model.config
    if config.transformer_decoder == "detr" and config.use_auxiliary_loss:
        changes.append("Deep supervision is switched off: transformers' forward fails with it.")
    if config.transformer_decoder == "joint":
        side = config.backbone_config.image_size
        changes.append(f"Images must have {side}x{side} pixels there; training does not anneal masked attention.")
    if config.transformer_decoder == "masked" and not config.use_auxiliary_loss:
        changes.append("Deep supervision is switched on: transformers' forward fails without it.")
    if config.transformer_decoder == "masked" and config.dropout > 0:
        changes.append(f"In training, whole decoder layers are left out there with probability {config.dropout}.")
    if any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()) and model.config.freeze_batch_norm:
        changes.append("BatchNorm is not frozen there: training changes its statistics.")
    return changes
