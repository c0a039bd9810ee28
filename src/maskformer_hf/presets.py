"""The configurations in the tables of MaskFormer (https://arxiv.org/abs/2107.06278) and in Mask2Former's model zoo
(https://arxiv.org/abs/2112.01527, and for videos https://arxiv.org/abs/2112.10764), and PEM's with a ResNet
(https://arxiv.org/abs/2402.19422), by name.

>>> from maskformer_hf import MaskFormerForUniversalSegmentation
>>> from maskformer_hf.presets import PRESETS, image_processor_for
>>> model = MaskFormerForUniversalSegmentation(PRESETS["maskformer_resnet50_ade20k"]())
>>> processor = image_processor_for("maskformer_resnet50_ade20k")
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

from .class_names import class_names, labels_of, numbered
from .models.configuration_maskformer import MaskFormerHfConfig
from .models.configuration_per_pixel import MaskFormerHfPerPixelConfig
from .models.configuration_video import MaskFormerHfVideoConfig
from .models.image_processing_maskformer import MaskFormerHfImageProcessor
from .models.result_options import facts_of
from .models.transformers_layout import MASK2FORMER_PARTS
from .models.video_processing_maskformer import MaskFormerHfVideoProcessor
from .presets_eomt import EOMT, EOMT_PRESETS, fit_eomt

RESNET50 = {"model_type": "resnet"}
RESNET101 = {"model_type": "resnet", "depths": [3, 4, 23, 3]}
# DeepLab's stem and dilations: "R101c" in the tables, "R-103" in the original's files.
RESNET101C = {**RESNET101, "embedding_size": 128, "stem_type": "deep", "multi_grid": [1, 2, 4]}

SWIN_TINY = {"model_type": "swin", "drop_path_rate": 0.3}
SWIN_SMALL = {**SWIN_TINY, "depths": [2, 2, 18, 2]}
# Pretrained with 384 pixels, hence the larger windows.
SWIN_BASE = {**SWIN_SMALL, "embed_dim": 128, "num_heads": [4, 8, 16, 32], "window_size": 12, "image_size": 384}
SWIN_LARGE = {**SWIN_BASE, "embed_dim": 192, "num_heads": [6, 12, 24, 48]}

# By the part of a preset's name. A Swin-B or -L may be pretrained on ImageNet-1k or -21k, with the same configuration.
_BACKBONES = {
    "resnet50": RESNET50,
    "resnet101": RESNET101,
    "resnet101c": RESNET101C,
    "swin_tiny": SWIN_TINY,
    "swin_small": SWIN_SMALL,
    "swin_base": SWIN_BASE,
    "swin_large": SWIN_LARGE,
}

# The fields that turn a configuration into a Mask2Former (https://arxiv.org/abs/2112.01527).
MASK2FORMER: dict[str, Any] = {
    **MASK2FORMER_PARTS,
    "encoder_ffn_dim": 1024,
    "dropout": 0.0,
    # The original's DEC_LAYERS is 10, because it counts the prediction of the learned queries as well.
    "decoder_layers": 9,
    "class_weight": 2.0,
    "mask_weight": 5.0,
    "dice_weight": 5.0,
}

# The fields that turn a configuration into a PEM (https://arxiv.org/abs/2402.19422).
PEM_PARTS = {"pixel_decoder": "pem", "cross_attention": "prototype"}
PEM: dict[str, Any] = {
    **MASK2FORMER,
    **PEM_PARTS,
    "encoder_ffn_dim": None,
    "feature_size": 128,
    "decoder_layers": 6,
    "pre_norm": True,
    "enforce_input_projection": True,
}

# The fields that turn a Mask2Former into an MP-Former (https://arxiv.org/abs/2303.07336), as its code trains it: labels
# have noise, masks have none.
MPFORMER: dict[str, Any] = {
    **MASK2FORMER,
    "query_source": "denoising",
    "query_position": False,
    "denoising_groups": 1,
    "denoising_label_noise": 0.2,
}

# The fields that turn a configuration into a Panoptic SegFormer (https://arxiv.org/abs/2109.03814).
PANOPTIC_SEGFORMER: dict[str, Any] = {
    "pixel_decoder": "encoder",
    "transformer_decoder": "panoptic_segformer",
    "criterion": "panoptic_segformer",
    "ffn_dim": 1024,
    "num_queries": 300,
    "class_weight": 2.0,
    "dice_weight": 2.0,
    "class_scores": "sigmoid",
    "mask_values": "linear",
    "panoptic_merging": "mask_wise",
    "object_mask_threshold": 0.25,
    # A thing may be covered by two fifths, stuff by one.
    "overlap_mask_area_threshold": 0.6,
    "stuff_overlap_mask_area_threshold": 0.8,
}

# Image processors by the last part of a preset's name. `ignore_index` and `do_reduce_labels` fit the segmentation maps
# that come with the data (for ADE20K-Full and COCO-Stuff-10k: those that the original's preparation makes).
PROCESSORS: dict[str, dict[str, Any]] = {
    "ade20k": {"size": (512, 2048), "ignore_index": 255, "do_reduce_labels": True},
    "ade20k_full": {"size": (512, 2048), "ignore_index": 65535},
    "coco_stuff": {"size": (640, 2560), "ignore_index": 255},
    "cityscapes": {"size": (1024, 2048), "ignore_index": 255},
    "mapillary": {"size": (2048, 2048), "ignore_index": 65},
    "coco_panoptic": {"size": (800, 1333), "size_divisor": 0},
    "ade20k_panoptic": {"size": (640, 2560)},
    "coco_instance": {"size": (800, 1333)},
    "ade20k_instance": {"size": (640, 2560)},
    "cityscapes_panoptic": {"size": (1024, 2048)},
    "cityscapes_instance": {"size": (1024, 2048)},
    "mapillary_panoptic": {"size": (2048, 2048)},
    "youtube_vis_2019": {"size": (360, 1333)},
    "youtube_vis_2021": {"size": (360, 1333)},
}
# These were trained with larger crops than the other models on ADE20K.
LARGE_CROPS = tuple(
    f"{model}_swin_{size}_ade20k" for model in ("maskformer", "mask2former") for size in ("base", "large")
)


# --- MaskFormer ------------------------------------------------------------------------------------------------------

_RESNETS, _SWINS = ("resnet50", "resnet101"), ("swin_tiny", "swin_small", "swin_base", "swin_large")


class _Table(NamedTuple):
    """Models of one data set in the paper's tables: the last part of a preset's name, the classes, and what differs."""

    suffix: str
    dataset: str
    backbones: tuple[str, ...]
    fields: dict[str, Any]


_MASKFORMER_TABLES = (
    _Table("ade20k", "ade20k_150", (*_RESNETS, "resnet101c", *_SWINS), {"task": "semantic"}),
    _Table("ade20k_full", "ade20k_full_847", (*_RESNETS, "resnet101c"), {"task": "semantic"}),
    _Table("coco_stuff", "coco_stuff_10k_171", (*_RESNETS, "resnet101c"), {"task": "semantic"}),
    _Table("cityscapes", "cityscapes_19", ("resnet101", "resnet101c"), {"task": "semantic"}),
    _Table("mapillary", "mapillary_vistas_65", ("resnet50",), {"task": "semantic"}),
    # "R50 + 6 Enc." and "R101 + 6 Enc." in the tables.
    _Table("coco_panoptic", "coco_panoptic_133", _RESNETS, {"pixel_decoder": "transformer_fpn"}),
    _Table("coco_panoptic", "coco_panoptic_133", _SWINS, {"enforce_input_projection": True}),
    _Table(
        "ade20k_panoptic",
        "ade20k_150",
        _RESNETS,
        {"pixel_decoder": "transformer_fpn", "object_mask_threshold": 0.7},
    ),
)


def _maskformer(backbone: str, dataset: str, **fields: Any) -> MaskFormerHfConfig:
    stuff = [label for label, (_, is_thing, _) in enumerate(class_names(dataset)) if is_thing is False]
    backbone_config = deepcopy(_BACKBONES[backbone])
    return MaskFormerHfConfig(
        backbone_config=backbone_config, **labels_of(dataset), label_ids_to_fuse=stuff or None, **fields
    )


MASKFORMER_PRESETS: dict[str, Callable[[], MaskFormerHfConfig]] = {
    f"maskformer_{backbone}_{table.suffix}": partial(_maskformer, backbone, table.dataset, **table.fields)
    for table in _MASKFORMER_TABLES
    for backbone in table.backbones
}


# --- the per-pixel baselines -----------------------------------------------------------------------------------------

# By the last part of a preset's name. A label map of more than 255 classes has 16 bits, and void is 65535.
_PER_PIXEL_TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "ade20k": ("ade20k_150", {}),
    "ade20k_full": ("ade20k_full_847", {"semantic_loss_ignore_index": 65535}),
    "coco_stuff": ("coco_stuff_10k_171", {}),
}


def _per_pixel(dataset: str, **fields: Any) -> MaskFormerHfPerPixelConfig:
    return MaskFormerHfPerPixelConfig(backbone_config=deepcopy(RESNET50), **labels_of(dataset), **fields)


PER_PIXEL_PRESETS: dict[str, Callable[[], MaskFormerHfPerPixelConfig]] = {
    f"{model}_resnet50_{suffix}": partial(_per_pixel, dataset, **fields, **parts)
    for suffix, (dataset, fields) in _PER_PIXEL_TABLES.items()
    for model, parts in (
        ("per_pixel_baseline", {}),
        ("per_pixel_baseline_plus", {"transformer_decoder": "detr"}),
    )
}


# --- Mask2Former -----------------------------------------------------------------------------------------------------

# By the last part of a preset's name: its classes, its task, and the backbones in that table of the zoo.
_MASK2FORMER_ZOO: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "coco_panoptic": ("coco_panoptic_133", "panoptic", (*_RESNETS, *_SWINS)),
    "coco_instance": ("coco_panoptic_133", "instance", (*_RESNETS, *_SWINS)),
    "cityscapes": ("cityscapes_19", "semantic", (*_RESNETS, *_SWINS)),
    "cityscapes_panoptic": ("cityscapes_19", "panoptic", (*_RESNETS, *_SWINS)),
    "cityscapes_instance": ("cityscapes_19", "instance", (*_RESNETS, *_SWINS)),
    "ade20k": ("ade20k_150", "semantic", (*_RESNETS, *_SWINS)),
    "ade20k_panoptic": ("ade20k_150", "panoptic", ("resnet50", "swin_large")),
    "ade20k_instance": ("ade20k_150", "instance", ("resnet50", "swin_large")),
    "mapillary": ("mapillary_vistas_65", "semantic", ("resnet50", "swin_large")),
    "mapillary_panoptic": ("mapillary_vistas_65", "panoptic", ("resnet50", "swin_large")),
}


def _mask2former(backbone: str, table: str, parts: dict[str, Any] = MASK2FORMER) -> MaskFormerHfConfig:
    dataset, task, _ = _MASK2FORMER_ZOO[table]
    fields: dict[str, Any] = {**parts, "task": task}
    if task == "instance":
        # Data for instances have no stuff.
        fields |= numbered([name for name, is_thing, _ in class_names(dataset) if is_thing])
    if backbone == "swin_large" and task != "semantic":
        fields["num_queries"] = 200
    if backbone.startswith("resnet") and (dataset == "cityscapes_19" or (backbone, table) == ("resnet101", "ade20k")):
        # Trained with SyncBN.
        fields["freeze_batch_norm"] = False
    if table == "mapillary_panoptic":
        fields["object_mask_threshold"] = 0.0
    if task == "instance":
        return MaskFormerHfConfig(backbone_config=deepcopy(_BACKBONES[backbone]), **fields)
    return _maskformer(backbone, dataset, **fields)


MASK2FORMER_PRESETS: dict[str, Callable[[], MaskFormerHfConfig]] = {
    f"mask2former_{backbone}_{table}": partial(_mask2former, backbone, table)
    for table, (_, _, backbones) in _MASK2FORMER_ZOO.items()
    for backbone in backbones
}

# The original has these two of its own.
MPFORMER_PRESETS: dict[str, Callable[[], MaskFormerHfConfig]] = {
    f"mpformer_resnet50_{table}": partial(_mask2former, "resnet50", table, MPFORMER)
    for table in ("coco_instance", "coco_panoptic")
}


# --- Panoptic SegFormer ----------------------------------------------------------------------------------------------

# Its Swin-L is pretrained with 224 pixels.
_SEGFORMER_BACKBONES = {
    "resnet50": RESNET50,
    "resnet101": RESNET101,
    "swin_large": {**SWIN_LARGE, "window_size": 7, "image_size": 224},
}


def _panoptic_segformer(backbone: str) -> MaskFormerHfConfig:
    fields: dict[str, Any] = {**PANOPTIC_SEGFORMER, "object_mask_threshold": 0.3 if backbone == "swin_large" else 0.25}
    config = _maskformer("resnet50", "coco_panoptic_133")
    return MaskFormerHfConfig(
        backbone_config=deepcopy(_SEGFORMER_BACKBONES[backbone]),
        **labels_of("coco_panoptic_133"),
        label_ids_to_fuse=config.label_ids_to_fuse,
        **fields,
    )


SEGFORMER_PRESETS: dict[str, Callable[[], MaskFormerHfConfig]] = {
    f"panoptic_segformer_{backbone}_coco_panoptic": partial(_panoptic_segformer, backbone)
    for backbone in _SEGFORMER_BACKBONES
}


# --- PEM with a ResNet; its STDC backbones are not among those of transformers and timm ------------------------------


def _pem(dataset: str, **fields: Any) -> MaskFormerHfConfig:
    # The backbones for Cityscapes were trained with SyncBN.
    return _maskformer("resnet50", dataset, freeze_batch_norm=dataset != "cityscapes_19", **PEM, **fields)


PEM_PRESETS: dict[str, Callable[[], MaskFormerHfConfig]] = {
    "pem_resnet50_ade20k": partial(_pem, "ade20k_150", task="semantic"),
    "pem_resnet50_ade20k_panoptic": partial(_pem, "ade20k_150"),
    "pem_resnet50_cityscapes": partial(_pem, "cityscapes_19", task="semantic"),
    "pem_resnet50_cityscapes_panoptic": partial(_pem, "cityscapes_19"),
}


# --- Mask2Former-VIS, 40 classes -------------------------------------------------------------------------------------


def _mask2former_video(backbone: str, dataset: str) -> MaskFormerHfVideoConfig:
    return MaskFormerHfVideoConfig(
        backbone_config=deepcopy(_BACKBONES[backbone]),
        **labels_of(dataset),
        num_queries=200 if backbone == "swin_large" else 100,
    )


VIDEO_PRESETS: dict[str, Callable[[], MaskFormerHfVideoConfig]] = {
    f"mask2former_{backbone}_youtube_vis_{year}": partial(_mask2former_video, backbone, f"youtube_vis_{year}_40")
    for year in (2019, 2021)
    for backbone in (*_RESNETS, *_SWINS)
}


PRESETS: dict[str, Callable[[], MaskFormerHfConfig]] = {
    **MASKFORMER_PRESETS,
    **PER_PIXEL_PRESETS,
    **MASK2FORMER_PRESETS,
    **PEM_PRESETS,
    **MPFORMER_PRESETS,
    **SEGFORMER_PRESETS,
    **VIDEO_PRESETS,
    **EOMT_PRESETS,
}


def image_processor_for(name: str) -> MaskFormerHfImageProcessor:
    """The image processor, or video processor, of a preset, with the image sizes of the original's evaluation.

    Raises:
        ValueError: There is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
    config = PRESETS[name]()
    options = dict(next(options for suffix, options in PROCESSORS.items() if name.endswith(f"_{suffix}")))
    shortest, longest = (640, 2560) if name in LARGE_CROPS else options["size"]
    if name in VIDEO_PRESETS and "swin" in name:
        shortest = 480
    options["size"] = {"shortest_edge": shortest, "longest_edge": longest}
    if name.startswith("per_pixel"):
        # The original pads images of its ResNet baselines only to the largest of the batch.
        options["size_divisor"] = 0
    if name in {**MASK2FORMER_PRESETS, **MPFORMER_PRESETS, **PEM_PRESETS}:
        # Also for data sets where MaskFormer does not pad to a divisor.
        options["size_divisor"] = 32
    if name in EOMT_PRESETS:
        fit_eomt(options, config)
    options |= {"num_labels": config.num_labels, **facts_of(config)}
    return (MaskFormerHfVideoProcessor if name in VIDEO_PRESETS else MaskFormerHfImageProcessor)(**options)


__all__ = [
    "EOMT",
    "MASK2FORMER",
    "MPFORMER",
    "PANOPTIC_SEGFORMER",
    "PEM",
    "PRESETS",
    "class_names",
    "image_processor_for",
]
