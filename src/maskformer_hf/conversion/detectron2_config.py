"""What Detectron2 dumps as config.yaml, as a configuration and an image processor of ours."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..models.configuration_maskformer import MaskFormerHfConfig
from ..models.configuration_per_pixel import MaskFormerHfPerPixelConfig
from ..models.configuration_video import MaskFormerHfVideoConfig
from ..models.image_processing_maskformer import MaskFormerHfImageProcessor
from ..models.modeling_auto import processor_class_of
from ..models.result_options import facts_of
from ..models.transformers_layout import MASK2FORMER_PARTS
from ..presets import PEM_PARTS

RESNET_DEPTHS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
# What the original calls the backbone's maps of stride 4, 8, 16 and 32.
FEATURES = ["res2", "res3", "res4", "res5"]
# The width of the deformable encoder's feed-forward layers is written into its code, whatever DIM_FEEDFORWARD says.
DEFORMABLE_FFN_DIM = 1024
# What MP-Former's code does where denoising is not for all layers: the first one, and those after three more.
MPFORMER_FIRST_LAYERS = 4


# The per-pixel baseline that classifies pixels directly.
_WITHOUT_QUERIES = "PerPixelBaselineHead"


class _Family(NamedTuple):
    """What goes with one of the original's pixel decoders."""

    pixel_decoder: str
    transformer_decoder: str
    # What the transformer decoder attends to.
    memory: str


_FAMILIES = {
    "BasePixelDecoder": _Family("fpn", "detr", memory="res5"),
    "TransformerEncoderPixelDecoder": _Family("transformer_fpn", "detr", memory="transformer_encoder"),
    "MSDeformAttnPixelDecoder": _Family("deformable", "masked", memory="multi_scale_pixel_decoder"),
    # PEM's name of a decoder is Mask2Former's, but it is not the same.
    "PEM_Pixel_Decoder": _Family("pem", "masked", memory="multi_scale_pixel_decoder"),
}


def read_config_file(path: Path) -> dict[str, Any]:
    """A dumped configuration, YAML or JSON.

    Raises:
        ValueError: The file is neither, or has no section `MODEL`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        dump = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no valid YAML or JSON: {' '.join(str(error).split())}") from error
    if not isinstance(dump, dict) or not isinstance(dump.get("MODEL"), dict):
        raise ValueError(f"{path} has no section MODEL: give the config.yaml that Detectron2 dumped beside the file.")
    return dump


@contextmanager
def _names_what_is_missing() -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"The configuration has no {error.args[0]}: dump the whole `cfg`, not only what differs from the defaults."
        ) from error


def config_from_detectron2(dump: Mapping[str, Any]) -> MaskFormerHfConfig:
    """Translate a dumped Detectron2 configuration, or its `MODEL` section alone.

    It has no class names: those of the usual data sets come with the presets.

    Raises:
        ValueError: A setting asks for something that our parts cannot do, or is missing.
    """
    model = dump.get("MODEL", dump)
    with _names_what_is_missing():
        _check_head(model)
        architecture, head, former = model["META_ARCHITECTURE"], model["SEM_SEG_HEAD"], model["MASK_FORMER"]
        is_video = architecture == "VideoMaskFormer"
        fields: dict[str, Any] = {**_backbone_fields(model), **_common_fields(head, former)}
        if _FAMILIES[head["PIXEL_DECODER_NAME"]].transformer_decoder == "masked":
            fields |= _mask2former_fields(model, is_video)
        if is_video:
            fields |= {"task": "instance"}
            return MaskFormerHfVideoConfig(**fields)
        if architecture == "SemanticSegmentor":
            return MaskFormerHfPerPixelConfig(**fields, semantic_loss_ignore_index=head["IGNORE_VALUE"])
        return MaskFormerHfConfig(**fields)


def _check_head(model: Mapping[str, Any]):
    """Refuses settings that our pixel decoders and transformer decoders do not have."""
    architecture, head, former = model["META_ARCHITECTURE"], model["SEM_SEG_HEAD"], model["MASK_FORMER"]
    _require("META_ARCHITECTURE", architecture, ["MaskFormer", "VideoMaskFormer", "SemanticSegmentor"])
    is_per_pixel = architecture == "SemanticSegmentor"
    heads = [_WITHOUT_QUERIES, "PerPixelBaselinePlusHead"] if is_per_pixel else ["MaskFormerHead"]
    _require("SEM_SEG_HEAD.NAME", head["NAME"], heads)
    _require("SEM_SEG_HEAD.IN_FEATURES", list(head["IN_FEATURES"]), [FEATURES])
    is_pem = head["PIXEL_DECODER_NAME"] == "PEM_Pixel_Decoder"
    _require("SEM_SEG_HEAD.NORM", head["NORM"], ["SyncBN", "BN"] if is_pem else ["GN"])
    pixel_decoders = ["MSDeformAttnPixelDecoder"] if architecture == "VideoMaskFormer" else list(_FAMILIES)
    _require("SEM_SEG_HEAD.PIXEL_DECODER_NAME", head["PIXEL_DECODER_NAME"], pixel_decoders)
    memory = _FAMILIES[head["PIXEL_DECODER_NAME"]].memory
    _require("MASK_FORMER.TRANSFORMER_IN_FEATURE", former["TRANSFORMER_IN_FEATURE"], [memory])
    if head["NAME"] == "PerPixelBaselinePlusHead":
        # Query i stands for class i.
        _require("MASK_FORMER.NUM_OBJECT_QUERIES", former["NUM_OBJECT_QUERIES"], [head["NUM_CLASSES"]])


def _common_fields(head: Mapping[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of every model but for its backbone."""
    family = _FAMILIES[head["PIXEL_DECODER_NAME"]]
    is_mask2former = family.transformer_decoder == "masked"
    return {
        "pixel_decoder": family.pixel_decoder,
        "feature_size": head["CONVS_DIM"],
        "mask_feature_size": head["MASK_DIM"],
        "encoder_layers": head["TRANSFORMER_ENC_LAYERS"],
        "transformer_decoder": None if head["NAME"] == _WITHOUT_QUERIES else family.transformer_decoder,
        "hidden_size": former["HIDDEN_DIM"],
        "num_attention_heads": former["NHEADS"],
        "ffn_dim": former["DIM_FEEDFORWARD"],
        "dropout": former["DROPOUT"],
        # Mask2Former counts the prediction of its learned queries as a layer.
        "decoder_layers": former["DEC_LAYERS"] - is_mask2former,
        # Mask2Former does not read ENC_LAYERS.
        "decoder_encoder_layers": 0 if is_mask2former else former["ENC_LAYERS"],
        "pre_norm": former["PRE_NORM"],
        "enforce_input_projection": former["ENFORCE_INPUT_PROJ"],
        "num_queries": former["NUM_OBJECT_QUERIES"],
        "use_auxiliary_loss": former["DEEP_SUPERVISION"],
        "mask_weight": former["MASK_WEIGHT"],
        "dice_weight": former["DICE_WEIGHT"],
        "no_object_weight": former["NO_OBJECT_WEIGHT"],
        "task": _task(former["TEST"]),
        "object_mask_threshold": former["TEST"]["OBJECT_MASK_THRESHOLD"],
        "overlap_mask_area_threshold": former["TEST"]["OVERLAP_THRESHOLD"],
        "num_labels": head["NUM_CLASSES"],
    }


def _mask2former_fields(model: Mapping[str, Any], is_video: bool) -> dict[str, Any]:
    """The fields that are Mask2Former's alone."""
    head, former = model["SEM_SEG_HEAD"], model["MASK_FORMER"]
    name = f"{'Video' if is_video else ''}MultiScaleMaskedTransformerDecoder"
    names = [name] if is_video else [name, f"{name}MaskDN"]
    _require("MASK_FORMER.TRANSFORMER_DECODER_NAME", former["TRANSFORMER_DECODER_NAME"], names)
    _require("SEM_SEG_HEAD.COMMON_STRIDE", head["COMMON_STRIDE"], [4])
    fields = {
        **MASK2FORMER_PARTS,
        "class_weight": former["CLASS_WEIGHT"],
        "num_points": former["TRAIN_NUM_POINTS"],
        "oversample_ratio": former["OVERSAMPLE_RATIO"],
        "importance_sample_ratio": former["IMPORTANCE_SAMPLE_RATIO"],
        **(_denoising_fields(model) if former["TRANSFORMER_DECODER_NAME"] != name else {}),
    }
    if head["PIXEL_DECODER_NAME"] == "PEM_Pixel_Decoder":
        return {**fields, **PEM_PARTS}
    encoded = list(head["DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"])
    levels = [FEATURES[-number:] for number in range(1, len(FEATURES) + 1)]
    _require("SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", encoded, levels)
    return {**fields, "encoder_levels": len(encoded), "encoder_ffn_dim": DEFORMABLE_FFN_DIM}


def _denoising_fields(model: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are MP-Former's alone (https://arxiv.org/abs/2303.07336)."""
    former, noise = model["MASK_FORMER"], model["DN"]
    _require("MASK_FORMER.DN_MODE", former["DN_MODE"], ["points"])
    # From 100 on, its code takes the number of groups for that of queries.
    number = {"denoising_groups" if noise["NUM_DN"] < 100 else "denoising_queries": noise["NUM_DN"]}
    return {
        **number,
        "query_source": "denoising",
        "query_position": False,
        "denoising_label_noise": max(0.0, former["LB_NOISE_RATIO"]),
        "denoising_mask_noise": noise["NOISE_SCALE"],
        "denoising_noise_of_heads": former["HEAD_DN"],
        "denoising_layers": None if former["ALL_LY_DN"] else MPFORMER_FIRST_LAYERS,
        "denoising_class_loss": not former["DN_NO_LB"],
    }


def _task(test: Mapping[str, Any]) -> str:
    """MaskFormer has no instances. Mask2Former's panoptic models do the other tasks besides."""
    if test["PANOPTIC_ON"]:
        return "panoptic"
    return "instance" if test.get("INSTANCE_ON") else "semantic"


def _backbone_fields(model: Mapping[str, Any]) -> dict[str, Any]:
    name = model["BACKBONE"]["NAME"]
    _require("BACKBONE.NAME", name, ["build_resnet_backbone", "build_resnet_deeplab_backbone", "D2SwinTransformer"])
    if name == "D2SwinTransformer":
        # A Swin has no BatchNorm.
        return {"backbone_config": _swin_config(model["SWIN"]), "freeze_batch_norm": True}
    return {
        "backbone_config": _resnet_config(model["RESNETS"], name),
        "freeze_batch_norm": model["RESNETS"]["NORM"] == "FrozenBN",
    }


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


def image_processor_from_detectron2(dump: Mapping[str, Any], config: MaskFormerHfConfig) -> MaskFormerHfImageProcessor:
    """The image processor, or video processor, that a whole dumped configuration describes.

    Raises:
        ValueError: The model takes images in another order of channels than RGB, or a setting is missing.
    """
    model, images = dump["MODEL"], dump.get("INPUT", {})
    if images.get("FORMAT", "RGB") != "RGB":
        raise ValueError(f"INPUT.FORMAT is {images['FORMAT']!r}; only models of 'RGB' images can be converted.")
    options: dict[str, Any] = {"num_labels": config.num_labels, **facts_of(config)}
    if "MIN_SIZE_TEST" in images and "MAX_SIZE_TEST" in images:
        options["size"] = {"shortest_edge": images["MIN_SIZE_TEST"], "longest_edge": images["MAX_SIZE_TEST"]}
    with _names_what_is_missing():
        options |= {
            # Detectron2 normalises values of 0 to 255.
            "image_mean": [value / 255 for value in model["PIXEL_MEAN"]],
            "image_std": [value / 255 for value in model["PIXEL_STD"]],
            "size_divisor": max(model["MASK_FORMER"]["SIZE_DIVISIBILITY"], 0),
            "ignore_index": model["SEM_SEG_HEAD"]["IGNORE_VALUE"],
        }
    return processor_class_of(config)(**options)
