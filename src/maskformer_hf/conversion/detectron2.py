"""Checkpoints of the original MaskFormer and Mask2Former (github.com/facebookresearch), made with Detectron2.

Left is the original's name of every tensor, right ours. Nothing is guessed: a tensor that the map does not know, or one
of ours that it leaves empty, is an error that names it.
"""

import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..models.configuration_maskformer import MaskFormerHfConfig
from ..models.configuration_per_pixel import MaskFormerHfPerPixelConfig
from ..models.configuration_video import MaskFormerHfVideoConfig
from ..models.modeling_auto import MODEL_CLASSES
from ..models.pixel_decoder_deformable import NUM_MEMORY_LEVELS
from ..models.transformers_layout import MASK2FORMER_PARTS

# What the original saves and we have no use for: the end of a name, and why.
IGNORED = {
    "criterion.empty_weight": "the class weights of the loss; they are `no_object_weight` in the configuration",
    "attn.relative_position_index": "Swin's lookup table; it follows from the window size",
    "num_batches_tracked": "BatchNorm's counter, which nothing reads",
    "pixel_mean": "belongs to the image processor",
    "pixel_std": "belongs to the image processor",
}

RESNET_DEPTHS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
FEATURES = ["res2", "res3", "res4", "res5"]
# Of the deformable encoder, whatever DIM_FEEDFORWARD says: it is written into its code.
DEFORMABLE_FFN_DIM = 1024
# The original's pixel decoders: ours, what of it the transformer decoder attends to, and that decoder.
PIXEL_DECODERS = {
    "BasePixelDecoder": ("fpn", "res5", "detr"),
    "TransformerEncoderPixelDecoder": ("transformer_fpn", "transformer_encoder", "detr"),
    "MSDeformAttnPixelDecoder": ("deformable", "multi_scale_pixel_decoder", "masked"),
}

# Our name of one tensor, or our three names of a tensor that holds queries, keys and values one below the other.
Target = str | tuple[str, str, str]


def load_detectron2(path: str | Path, config: MaskFormerHfConfig | None = None) -> Any:
    """Build the model of an original checkpoint: MaskFormer, Mask2Former, its video form, or a per-pixel baseline.

    Args:
        path: A `.pkl` of the model zoo, a `.pth` of one's own training, or the same state dict as `.safetensors`.
        config: The configuration, from a preset or [`config_from_detectron2`]. Without it, the `config.yaml` that
            Detectron2 writes beside its checkpoints (or its dump as `config.json`) is read.
    """
    path = Path(path)
    config = _config_beside(path) if config is None else config
    state = convert_state_dict(read_checkpoint(path), config)
    model = MODEL_CLASSES[config.model_type](config)
    model.load_state_dict(state)
    return model.eval()


def convert_state_dict(state: Mapping[str, torch.Tensor], config: MaskFormerHfConfig) -> dict[str, torch.Tensor]:
    """Give the tensors of an original checkpoint our names and layouts.

    Args:
        state: Either of the original's layouts: `sem_seg_head.adapter_1...` as in the released files, or
            `sem_seg_head.pixel_decoder.adapter_1...` as in what its later versions save. The keys decide, because the
            version number, by which the original decides, is lost in a plain dictionary.

    Raises:
        ValueError: If a tensor has no place in a model of this configuration, or the model has one that stays empty, or
            the two differ in shape.
    """
    state = {later_name(name): value for name, value in state.items() if not name.endswith(tuple(IGNORED))}
    names = tensor_names(config)
    unknown, missing = sorted(state.keys() - names.keys()), sorted(names.keys() - state.keys())
    if unknown or missing:
        raise ValueError(
            "The checkpoint does not belong to this configuration. "
            f"Tensors of the checkpoint without a place in the model: {_shorten(unknown)}. "
            f"Tensors the model needs and the checkpoint lacks: {_shorten(missing)}."
        )
    converted = {}
    for name, target in names.items():
        value = state[name]
        if name == "backbone.absolute_pos_embed":
            value = value.flatten(2).transpose(1, 2)  # (1, C, h, w) -> (1, hw, C)
        if isinstance(target, str):
            converted[target] = value.contiguous()
        elif value.dim() and len(value) % 3 == 0:
            converted.update(zip(target, (part.clone() for part in value.chunk(3)), strict=True))
        else:
            raise ValueError(
                f"{name} of the checkpoint has the shape {tuple(value.shape)}; queries, keys and values do not part."
            )
    _check_against_model(converted, config)
    return converted


def later_name(name: str) -> str:
    """A tensor's name in the later one of the original's layouts, of a name in either."""
    head, own = "sem_seg_head.", ("sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.")
    # Mask2Former's learned queries, once.
    name = name.replace("static_query", "query_feat")
    if name.startswith(head) and not name.startswith(own):
        return f"{head}pixel_decoder.{name.removeprefix(head)}"
    return name


def _check_against_model(converted: dict[str, torch.Tensor], config: MaskFormerHfConfig):
    with torch.device("meta"):
        own = MODEL_CLASSES[config.model_type](config).state_dict()
    for name in own.keys() - converted.keys():
        if name.endswith("num_batches_tracked"):
            converted[name] = torch.zeros((), dtype=torch.int64)
    lost, empty = sorted(converted.keys() - own.keys()), sorted(own.keys() - converted.keys())
    if lost or empty:
        raise ValueError(
            f"The map of names does not fit the model: it fills {_shorten(lost)}, which the model has not, and leaves "
            f"{_shorten(empty)} empty."
        )
    shapes = {name: (tuple(converted[name].shape), tuple(own[name].shape)) for name in own}
    wrong = [f"{name}: {a} in the checkpoint, {b} in the model" for name, (a, b) in shapes.items() if a != b]
    if wrong:
        raise ValueError(f"The checkpoint has other sizes than the configuration: {_shorten(wrong)}.")


def _shorten(names: list[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest


# --- names -----------------------------------------------------------------------------------------------------------


def tensor_names(config: MaskFormerHfConfig) -> dict[str, Target]:
    """The original's name and ours of every tensor of a model of this configuration."""
    backbone: Any = config.backbone_config
    backbone_names = {"resnet": _resnet, "swin": _swin}.get(backbone.model_type)
    if backbone_names is None:
        raise ValueError(f"The original MaskFormer has no {backbone.model_type!r} backbone, only 'resnet' and 'swin'.")
    pixel_decoder = _deformable_pixel_decoder if config.pixel_decoder == "deformable" else _pixel_decoder
    predictor = _masked_predictor if config.transformer_decoder == "masked" else _predictor
    return backbone_names(backbone) | pixel_decoder(config) | predictor(config)


def _resnet(config: Any) -> dict[str, Target]:
    theirs, ours = "backbone", "model.backbone.body"
    names = {}
    if getattr(config, "stem_type", "basic") == "deep":
        for i in range(3):
            names |= _conv_batch_norm(f"{theirs}.stem.conv{i + 1}", f"{ours}.embedder.embedder.{i}")
    else:
        names |= _conv_batch_norm(f"{theirs}.stem.conv1", f"{ours}.embedder.embedder")
    in_channels = config.embedding_size
    for stage, (depth, channels) in enumerate(zip(config.depths, config.hidden_sizes, strict=True)):
        for block in range(depth):
            their_block, our_block = f"{theirs}.res{stage + 2}.{block}", f"{ours}.encoder.stages.{stage}.layers.{block}"
            for i in range(3):
                names |= _conv_batch_norm(f"{their_block}.conv{i + 1}", f"{our_block}.layer.{i}")
            if in_channels != channels:
                names |= _conv_batch_norm(f"{their_block}.shortcut", f"{our_block}.shortcut")
            in_channels = channels
    return names


def _conv_batch_norm(theirs: str, ours: str) -> dict[str, Target]:
    names: dict[str, Target] = {f"{theirs}.weight": f"{ours}.convolution.weight"}
    for kind in ("weight", "bias", "running_mean", "running_var"):
        names[f"{theirs}.norm.{kind}"] = f"{ours}.normalization.{kind}"
    return names


def _swin(config: Any) -> dict[str, Target]:
    theirs, ours = "backbone", "model.backbone.body.swin"
    names: dict[str, Target] = {}
    if config.use_absolute_embeddings:
        names[f"{theirs}.absolute_pos_embed"] = f"{ours}.embeddings.position_embeddings"
    names |= _layer(f"{theirs}.patch_embed.proj", f"{ours}.embeddings.patch_embeddings.projection")
    names |= _layer(f"{theirs}.patch_embed.norm", f"{ours}.embeddings.norm")
    for stage, depth in enumerate(config.depths):
        their_stage, our_stage = f"{theirs}.layers.{stage}", f"{ours}.encoder.layers.{stage}"
        for block in range(depth):
            names |= _swin_block(f"{their_stage}.blocks.{block}", f"{our_stage}.blocks.{block}", config.qkv_bias)
        if stage < len(config.depths) - 1:
            names[f"{their_stage}.downsample.reduction.weight"] = f"{our_stage}.downsample.reduction.weight"
            names |= _layer(f"{their_stage}.downsample.norm", f"{our_stage}.downsample.norm")
        names |= _layer(f"{theirs}.norm{stage}", f"model.backbone.body.hidden_states_norms.stage{stage + 1}")
    return names


def _swin_block(theirs: str, ours: str, qkv_bias: bool) -> dict[str, Target]:
    names: dict[str, Target] = {
        f"{theirs}.attn.qkv.{kind}": _packed(f"{ours}.attention", kind)
        for kind in (["weight", "bias"] if qkv_bias else ["weight"])
    }
    table = "relative_position_bias_table"
    names[f"{theirs}.attn.{table}"] = f"{ours}.attention.relative_position_bias.{table}"
    names |= _layer(f"{theirs}.attn.proj", f"{ours}.attention.o_proj")
    names |= _layer(f"{theirs}.norm1", f"{ours}.layernorm_before")
    names |= _layer(f"{theirs}.norm2", f"{ours}.layernorm_after")
    names |= _layer(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1")
    names |= _layer(f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2")
    return names


def _pixel_decoder(config: MaskFormerHfConfig) -> dict[str, Target]:
    theirs, ours = "sem_seg_head.pixel_decoder", "model.pixel_decoder"
    names = _conv_group_norm(f"{theirs}.layer_4", f"{ours}.stem")
    # The original counts from fine to coarse, we in the order of use.
    for i, level in enumerate((3, 2, 1)):
        names |= _conv_group_norm(f"{theirs}.adapter_{level}", f"{ours}.laterals.{i}")
        names |= _conv_group_norm(f"{theirs}.layer_{level}", f"{ours}.outputs.{i}")
    names |= _layer(f"{theirs}.mask_features", f"{ours}.mask_projection")
    if config.pixel_decoder == "transformer_fpn":
        names |= _layer(f"{theirs}.input_proj", f"{ours}.input_projection")
        names |= _encoder(f"{theirs}.transformer.encoder", f"{ours}.encoder", config.encoder_layers, config.pre_norm)
    return names


def _deformable_pixel_decoder(config: MaskFormerHfConfig) -> dict[str, Target]:
    theirs, ours = "sem_seg_head.pixel_decoder", "model.pixel_decoder"
    names: dict[str, Target] = {f"{theirs}.transformer.level_embed": f"{ours}.level_embedding"}
    for level in range(config.encoder_levels):
        for part in (0, 1):
            names |= _layer(f"{theirs}.input_proj.{level}.{part}", f"{ours}.input_projections.{level}.{part}")
    for i in range(config.encoder_layers):
        their_layer, our_layer = f"{theirs}.transformer.encoder.layers.{i}", f"{ours}.layers.{i}"
        for part, own in {"value_proj": "v_proj", "output_proj": "o_proj"}.items():
            names |= _layer(f"{their_layer}.self_attn.{part}", f"{our_layer}.self_attn.{own}")
        for part in ("sampling_offsets", "attention_weights"):
            names |= _layer(f"{their_layer}.self_attn.{part}", f"{our_layer}.self_attn.{part}")
        names |= _layer(f"{their_layer}.norm1", f"{our_layer}.self_attn_norm")
        names |= _feed_forward(their_layer, our_layer)
        names |= _layer(f"{their_layer}.norm2", f"{our_layer}.ffn_norm")
    # The original counts from fine to coarse, we in the order of use.
    num_finer = len(FEATURES) - config.encoder_levels
    for i in range(num_finer):
        names |= _conv_group_norm(f"{theirs}.adapter_{num_finer - i}", f"{ours}.laterals.{i}")
        names |= _conv_group_norm(f"{theirs}.layer_{num_finer - i}", f"{ours}.outputs.{i}")
    return names | _layer(f"{theirs}.mask_features", f"{ours}.mask_projection")


def _conv_group_norm(theirs: str, ours: str) -> dict[str, Target]:
    return {f"{theirs}.weight": f"{ours}.0.weight", **_layer(f"{theirs}.norm", f"{ours}.1")}


def _predictor(config: MaskFormerHfConfig) -> dict[str, Target]:
    theirs, ours = "sem_seg_head.predictor", "model.transformer_decoder"
    if config.transformer_decoder is None:
        return _layer(theirs, "head.classifier")
    names: dict[str, Target] = {f"{theirs}.query_embed.weight": f"{ours}.query_position.weight"}
    if config.enforce_input_projection or _memory_channels(config) != config.hidden_size:
        names |= _layer(f"{theirs}.input_proj", f"{ours}.input_projection")
    names |= _encoder(
        f"{theirs}.transformer.encoder", f"{ours}.encoder", config.decoder_encoder_layers, config.pre_norm
    )
    for i in range(config.decoder_layers):
        names |= _decoder_layer(f"{theirs}.transformer.decoder.layers.{i}", f"{ours}.layers.{i}")
    names |= _layer(f"{theirs}.transformer.decoder.norm", f"{ours}.norm")
    if config.model_type != MaskFormerHfPerPixelConfig.model_type:
        names |= _layer(f"{theirs}.class_embed", "head.class_predictor")
    for i in range(3):
        names |= _layer(f"{theirs}.mask_embed.layers.{i}", f"head.mask_embedder.layers.{i}")
    return names


def _masked_predictor(config: MaskFormerHfConfig) -> dict[str, Target]:
    theirs, ours = "sem_seg_head.predictor", "model.transformer_decoder"
    names: dict[str, Target] = {
        f"{theirs}.query_feat.weight": f"{ours}.query_features.weight",
        f"{theirs}.query_embed.weight": f"{ours}.query_position.weight",
        f"{theirs}.level_embed.weight": f"{ours}.level_embedding.weight",
    }
    if config.enforce_input_projection or config.feature_size != config.hidden_size:
        for level in range(NUM_MEMORY_LEVELS):
            names |= _layer(f"{theirs}.input_proj.{level}", f"{ours}.input_projections.{level}")
    for i in range(config.decoder_layers):
        layer = f"{ours}.layers.{i}"
        cross, own, ffn = (
            f"{theirs}.transformer_{part}_layers.{i}" for part in ("cross_attention", "self_attention", "ffn")
        )
        for kind in ("weight", "bias"):
            names[f"{cross}.multihead_attn.in_proj_{kind}"] = f"{layer}.cross_attn.in_proj.{kind}"
        names |= _layer(f"{cross}.multihead_attn.out_proj", f"{layer}.cross_attn.o_proj")
        names |= _layer(f"{cross}.norm", f"{layer}.cross_attn_norm")
        names |= _attention(f"{own}.self_attn", f"{layer}.self_attn")
        names |= _layer(f"{own}.norm", f"{layer}.self_attn_norm")
        names |= _feed_forward(ffn, layer)
        names |= _layer(f"{ffn}.norm", f"{layer}.ffn_norm")
    names |= _layer(f"{theirs}.decoder_norm", f"{ours}.norm")
    for i in range(3):
        names |= _layer(f"{theirs}.mask_embed.layers.{i}", f"{ours}.mask_embedder.layers.{i}")
    return names | _layer(f"{theirs}.class_embed", "head.class_predictor")


def _memory_channels(config: MaskFormerHfConfig) -> int:
    if config.pixel_decoder != "fpn":
        return config.feature_size
    backbone: Any = config.backbone_config
    return backbone.hidden_sizes[-1] if backbone.model_type == "resnet" else backbone.hidden_size


def _encoder(theirs: str, ours: str, num_layers: int, pre_norm: bool) -> dict[str, Target]:
    names: dict[str, Target] = {}
    for i in range(num_layers):
        their_layer, our_layer = f"{theirs}.layers.{i}", f"{ours}.layers.{i}"
        names |= _attention(f"{their_layer}.self_attn", f"{our_layer}.self_attn")
        names |= _layer(f"{their_layer}.norm1", f"{our_layer}.self_attn_norm")
        names |= _feed_forward(their_layer, our_layer)
        names |= _layer(f"{their_layer}.norm2", f"{our_layer}.ffn_norm")
    if pre_norm:
        names |= _layer(f"{theirs}.norm", f"{ours}.norm")
    return names


def _decoder_layer(theirs: str, ours: str) -> dict[str, Target]:
    return {
        **_attention(f"{theirs}.self_attn", f"{ours}.self_attn"),
        **_layer(f"{theirs}.norm1", f"{ours}.self_attn_norm"),
        **_attention(f"{theirs}.multihead_attn", f"{ours}.cross_attn"),
        **_layer(f"{theirs}.norm2", f"{ours}.cross_attn_norm"),
        **_feed_forward(theirs, ours),
        **_layer(f"{theirs}.norm3", f"{ours}.ffn_norm"),
    }


def _attention(theirs: str, ours: str) -> dict[str, Target]:
    return {
        f"{theirs}.in_proj_weight": _packed(ours, "weight"),
        f"{theirs}.in_proj_bias": _packed(ours, "bias"),
        **_layer(f"{theirs}.out_proj", f"{ours}.o_proj"),
    }


def _feed_forward(theirs: str, ours: str) -> dict[str, Target]:
    return _layer(f"{theirs}.linear1", f"{ours}.ffn.fc1") | _layer(f"{theirs}.linear2", f"{ours}.ffn.fc2")


def _packed(ours: str, kind: str) -> Target:
    return f"{ours}.q_proj.{kind}", f"{ours}.k_proj.{kind}", f"{ours}.v_proj.{kind}"


def _layer(theirs: str, ours: str) -> dict[str, Target]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}


# --- configuration ---------------------------------------------------------------------------------------------------


def _config_beside(path: Path) -> MaskFormerHfConfig:
    for file in (path.with_name("config.yaml"), path.with_name("config.json")):
        if file.is_file():
            text = file.read_text()
            return config_from_detectron2(json.loads(text) if file.suffix == ".json" else yaml.safe_load(text))
    raise ValueError(
        f"{path} does not say what model it holds, and there is no config.yaml of Detectron2 beside it: pass `config`, "
        "such as `maskformer_hf.presets.PRESETS[name]()`, or `config_from_detectron2` of the dumped configuration."
    )


def config_from_detectron2(cfg_model: Mapping[str, Any]) -> MaskFormerHfConfig:
    """Translate the `MODEL` section of a dumped Detectron2 configuration (a whole dump will do).

    Class names are not in it: those of the data sets come with the presets.

    Raises:
        ValueError: If a setting asks for something that our parts do not do, or is missing.
    """
    model = cfg_model.get("MODEL", cfg_model)
    try:
        return _translate(model)
    except KeyError as error:
        raise ValueError(
            f"The configuration has no {error.args[0]}: dump the whole `cfg`, not only what differs from the defaults."
        ) from error


def _translate(model: Mapping[str, Any]) -> MaskFormerHfConfig:
    head, former, name = model["SEM_SEG_HEAD"], model["MASK_FORMER"], model["BACKBONE"]["NAME"]
    architecture = model["META_ARCHITECTURE"]
    _require("META_ARCHITECTURE", architecture, ["MaskFormer", "VideoMaskFormer", "SemanticSegmentor"])
    is_per_pixel, is_video = architecture == "SemanticSegmentor", architecture == "VideoMaskFormer"
    heads = ["PerPixelBaselineHead", "PerPixelBaselinePlusHead"] if is_per_pixel else ["MaskFormerHead"]
    _require("SEM_SEG_HEAD.NAME", head["NAME"], heads)
    has_queries = head["NAME"] != "PerPixelBaselineHead"
    _require("SEM_SEG_HEAD.IN_FEATURES", list(head["IN_FEATURES"]), [FEATURES])
    _require("SEM_SEG_HEAD.NORM", head["NORM"], ["GN"])
    _require("BACKBONE.NAME", name, ["build_resnet_backbone", "build_resnet_deeplab_backbone", "D2SwinTransformer"])
    choices = ["MSDeformAttnPixelDecoder"] if is_video else list(PIXEL_DECODERS)
    _require("SEM_SEG_HEAD.PIXEL_DECODER_NAME", head["PIXEL_DECODER_NAME"], choices)
    pixel_decoder, memory, transformer_decoder = PIXEL_DECODERS[head["PIXEL_DECODER_NAME"]]
    _require("MASK_FORMER.TRANSFORMER_IN_FEATURE", former["TRANSFORMER_IN_FEATURE"], [memory])
    is_mask2former = transformer_decoder == "masked"
    is_swin = name == "D2SwinTransformer"
    config_class: Any = MaskFormerHfVideoConfig if is_video else MaskFormerHfConfig
    if is_per_pixel:
        config_class = partial(MaskFormerHfPerPixelConfig, semantic_loss_ignore_index=head["IGNORE_VALUE"])
        if has_queries:
            _require("MASK_FORMER.NUM_OBJECT_QUERIES", former["NUM_OBJECT_QUERIES"], [head["NUM_CLASSES"]])
    fields: dict[str, Any] = {
        "backbone_config": _swin_config(model["SWIN"]) if is_swin else _resnet_config(model["RESNETS"], name),
        "freeze_batch_norm": is_swin or model["RESNETS"]["NORM"] == "FrozenBN",
        "pixel_decoder": pixel_decoder,
        "feature_size": head["CONVS_DIM"],
        "mask_feature_size": head["MASK_DIM"],
        "encoder_layers": head["TRANSFORMER_ENC_LAYERS"],
        "transformer_decoder": transformer_decoder if has_queries else None,
        "hidden_size": former["HIDDEN_DIM"],
        "num_attention_heads": former["NHEADS"],
        "ffn_dim": former["DIM_FEEDFORWARD"],
        "dropout": former["DROPOUT"],
        # Mask2Former counts the prediction of its learned queries as a layer.
        "decoder_layers": former["DEC_LAYERS"] - is_mask2former,
        # Mask2Former reads no ENC_LAYERS.
        "decoder_encoder_layers": 0 if is_mask2former else former["ENC_LAYERS"],
        "pre_norm": former["PRE_NORM"],
        "enforce_input_projection": former["ENFORCE_INPUT_PROJ"],
        "num_queries": former["NUM_OBJECT_QUERIES"],
        "use_auxiliary_loss": former["DEEP_SUPERVISION"],
        "mask_weight": former["MASK_WEIGHT"],
        "dice_weight": former["DICE_WEIGHT"],
        "no_object_weight": former["NO_OBJECT_WEIGHT"],
        "task": "instance" if is_video else _task(former["TEST"]),
        "object_mask_threshold": former["TEST"]["OBJECT_MASK_THRESHOLD"],
        "overlap_mask_area_threshold": former["TEST"]["OVERLAP_THRESHOLD"],
        "num_labels": head["NUM_CLASSES"],
    }
    return config_class(**{**fields, **(_mask2former(head, former, is_video) if is_mask2former else {})})


def _mask2former(head: Mapping[str, Any], former: Mapping[str, Any], is_video: bool) -> dict[str, Any]:
    """The fields that are Mask2Former's alone."""
    name = f"{'Video' if is_video else ''}MultiScaleMaskedTransformerDecoder"
    _require("MASK_FORMER.TRANSFORMER_DECODER_NAME", former["TRANSFORMER_DECODER_NAME"], [name])
    _require("SEM_SEG_HEAD.COMMON_STRIDE", head["COMMON_STRIDE"], [4])
    encoded = list(head["DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"])
    levels = [FEATURES[-number:] for number in range(1, len(FEATURES) + 1)]
    _require("SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", encoded, levels)
    return {
        **MASK2FORMER_PARTS,
        "encoder_levels": len(encoded),
        "encoder_ffn_dim": DEFORMABLE_FFN_DIM,
        "class_weight": former["CLASS_WEIGHT"],
        "num_points": former["TRAIN_NUM_POINTS"],
        "oversample_ratio": former["OVERSAMPLE_RATIO"],
        "importance_sample_ratio": former["IMPORTANCE_SAMPLE_RATIO"],
    }


def _task(test: Mapping[str, Any]) -> str:
    """MaskFormer has no instances. Mask2Former's panoptic models do the other tasks besides."""
    if test["PANOPTIC_ON"]:
        return "panoptic"
    return "instance" if test.get("INSTANCE_ON") else "semantic"


def _resnet_config(resnets: Mapping[str, Any], name: str) -> dict[str, Any]:
    _require("RESNETS.DEPTH", resnets["DEPTH"], list(RESNET_DEPTHS))
    _require("RESNETS.NUM_GROUPS", resnets["NUM_GROUPS"], [1])
    _require("RESNETS.WIDTH_PER_GROUP", resnets["WIDTH_PER_GROUP"], [resnets["RES2_OUT_CHANNELS"] / 4])
    _require("RESNETS.RES5_DILATION", resnets["RES5_DILATION"], [1])
    _require("RESNETS.DEFORM_ON_PER_STAGE", any(resnets["DEFORM_ON_PER_STAGE"]), [False])
    config = {
        "model_type": "resnet",
        "embedding_size": resnets["STEM_OUT_CHANNELS"],
        "hidden_sizes": [resnets["RES2_OUT_CHANNELS"] * 2**i for i in range(4)],
        "depths": RESNET_DEPTHS[resnets["DEPTH"]],
        "downsample_in_bottleneck": resnets["STRIDE_IN_1X1"],
    }
    # Only DeepLab's builder reads these three.
    if name == "build_resnet_deeplab_backbone":
        _require("RESNETS.RES4_DILATION", resnets["RES4_DILATION"], [1])
        _require("RESNETS.STEM_TYPE", resnets["STEM_TYPE"], ["basic", "deeplab"])
        config["stem_type"] = "deep" if resnets["STEM_TYPE"] == "deeplab" else "basic"
        config["multi_grid"] = list(resnets["RES5_MULTI_GRID"])
    return config


def _swin_config(swin: Mapping[str, Any]) -> dict[str, Any]:
    _require("SWIN.PATCH_NORM", swin["PATCH_NORM"], [True])
    _require("SWIN.QK_SCALE", swin["QK_SCALE"], [None])
    _require("SWIN.OUT_FEATURES", list(swin["OUT_FEATURES"]), [FEATURES])
    return {
        "model_type": "swin",
        "image_size": swin["PRETRAIN_IMG_SIZE"],
        "patch_size": swin["PATCH_SIZE"],
        "embed_dim": swin["EMBED_DIM"],
        "depths": list(swin["DEPTHS"]),
        "num_heads": list(swin["NUM_HEADS"]),
        "window_size": swin["WINDOW_SIZE"],
        "mlp_ratio": swin["MLP_RATIO"],
        "qkv_bias": swin["QKV_BIAS"],
        "hidden_dropout_prob": swin["DROP_RATE"],
        "attention_probs_dropout_prob": swin["ATTN_DROP_RATE"],
        "drop_path_rate": swin["DROP_PATH_RATE"],
        "use_absolute_embeddings": swin["APE"],
    }


def _require(name: str, value: Any, choices: list[Any]):
    if value not in choices:
        raise ValueError(f"MODEL.{name} is {value!r}; only {' or '.join(map(repr, choices))} can be converted.")


# --- files -----------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the state dict of an original checkpoint, without running anything that a file may hold.

    Args:
        path: `.safetensors`; a `.pkl` of numpy arrays by name, at the top or, as in the model zoo, below `"model"`; or
            a `.pth`, which Detectron2 writes in training, of tensors likewise.

    Raises:
        ValueError: If the file is of another kind, is damaged, or holds more than arrays and plain containers.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no complete safetensors file: {error}") from error
    if path.suffix == ".pth":
        return _read_tensors(path)
    if path.suffix != ".pkl":
        raise ValueError(f"{path} is neither `.pkl` nor `.pth` nor `.safetensors`.")
    try:
        with path.open("rb") as file:
            return _arrays_by_name(_ArrayUnpickler(file).load())
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise ValueError(f"{path} is no pickle of numpy arrays by name: {error}") from error


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        # PyTorch's own list of what a file may ask for: tensors and plain containers.
        content = torch.load(path, map_location="cpu", weights_only=True)
        return _values_by_name(content, torch.Tensor)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no PyTorch file of tensors by name, or asks for more than tensors and plain containers. It was "
            "not run. If you trust the file, save its tensors as safetensors where it was made."
        ) from error
    except Exception as error:
        raise ValueError(f"{path} is no PyTorch file of tensors by name: {error}") from error


def _arrays_by_name(content: Any) -> dict[str, torch.Tensor]:
    arrays = _values_by_name(content, _Array)
    return {name: torch.from_numpy(array.to_numpy()) for name, array in arrays.items()}


def _values_by_name(content: Any, kind: type) -> dict[str, Any]:
    """What lies below `"model"`, or at the top where there is none."""
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}.")
    others = [str(name) for name, value in state.items() if not isinstance(value, kind)]
    if others:
        raise ValueError(f"these are no arrays: {_shorten(others)}.")
    return {str(name): value for name, value in state.items()}


class _Dtype:
    """Stands in for `numpy.dtype`, so that a file reaches only what is written here, and only plain numbers."""

    def __init__(self, code: str, *_: Any):
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise ValueError(f"it holds an array of {self.dtype}, and only numbers are read.")

    def __setstate__(self, state: tuple):
        byte_order = state[1]
        if byte_order == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """Stands in for `numpy.ndarray` and collects what makes one up."""

    def __setstate__(self, state: tuple):
        _, self.shape, self.dtype, self.fortran_order, self.data = state

    def to_numpy(self) -> np.ndarray:
        array = np.frombuffer(self.data, self.dtype.dtype).reshape(self.shape, order="F" if self.fortran_order else "C")
        return array.astype(array.dtype.newbyteorder("="), order="C")


def _reconstruct(*_: Any) -> _Array:
    """How numpy pickles an array up to protocol 4: an empty one first, its content as state later."""
    return _Array()


def _from_buffer(data: bytes | bytearray, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    """How numpy pickles an array from protocol 5 on."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


class _ArrayUnpickler(pickle.Unpickler):
    # numpy 2 renamed `numpy.core`; the released files are older.
    allowed = {  # noqa: RUF012
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise ValueError(
                f"it asks for `{module}.{name}`, which is neither an array nor a plain container. It was not run. If "
                "you trust the file, save its arrays as safetensors where it was made."
            )
        return self.allowed[module, name]
