"""The configurations of the tables of MaskFormer (https://arxiv.org/abs/2107.06278) and of Mask2Former's model zoo
(https://arxiv.org/abs/2112.01527, and of videos https://arxiv.org/abs/2112.10764), one function each.

>>> from maskformer_hf import MaskFormerForUniversalSegmentation
>>> from maskformer_hf.presets import PRESETS, image_processor_for
>>> model = MaskFormerForUniversalSegmentation(PRESETS["maskformer_resnet50_ade20k"]())
>>> processor = image_processor_for("maskformer_resnet50_ade20k")
"""

import json
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

from .models.configuration_maskformer import MaskFormerHfConfig
from .models.configuration_per_pixel import MaskFormerHfPerPixelConfig
from .models.configuration_video import MaskFormerHfVideoConfig
from .models.image_processing_maskformer import MaskFormerHfImageProcessor
from .models.result_options import facts_of
from .models.transformers_layout import MASK2FORMER_PARTS
from .models.video_processing_maskformer import MaskFormerHfVideoProcessor

RESNET50 = {"model_type": "resnet"}
RESNET101 = {"model_type": "resnet", "depths": [3, 4, 23, 3]}
# DeepLab's stem and dilations: "R101c" in the tables, "R-103" in the original's files.
RESNET101C = {**RESNET101, "embedding_size": 128, "stem_type": "deep", "multi_grid": [1, 2, 4]}

SWIN_TINY = {"model_type": "swin", "drop_path_rate": 0.3}
SWIN_SMALL = {**SWIN_TINY, "depths": [2, 2, 18, 2]}
# Pretrained with 384 pixels, hence the larger windows.
SWIN_BASE = {**SWIN_SMALL, "embed_dim": 128, "num_heads": [4, 8, 16, 32], "window_size": 12, "image_size": 384}
SWIN_LARGE = {**SWIN_BASE, "embed_dim": 192, "num_heads": [6, 12, 24, 48]}

# The fields that make a Mask2Former (https://arxiv.org/abs/2112.01527) of a configuration.
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

# Image processors by the last part of a preset's name. `ignore_index` and `do_reduce_labels` are those of the
# segmentation maps that come with the data (of ADE20K-Full and COCO-Stuff-10k: with the original's preparation of it).
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
# Trained with larger crops than the other models on ADE20K.
LARGE_CROPS = tuple(
    f"{model}_swin_{size}_ade20k" for model in ("maskformer", "mask2former") for size in ("base", "large")
)


@cache
def class_names(dataset: str) -> tuple[tuple[str, bool | None, int], ...]:
    """Name, whether a thing (None: unknown), and the id in the data set, of every class in the order of training.

    Args:
        dataset: `"ade20k_150"`, `"ade20k_full_847"`, `"coco_panoptic_133"`, `"cityscapes_19"`, `"coco_stuff_10k_171"`,
            `"mapillary_vistas_65"`, `"youtube_vis_2019_40"` or `"youtube_vis_2021_40"`.
    """
    lists = json.loads(Path(__file__).with_name("class_names.json").read_text())
    return tuple((name, None if thing is None else bool(thing), source) for name, thing, source in lists[dataset])


def _maskformer(backbone: dict[str, Any], dataset: str, **fields: Any) -> MaskFormerHfConfig:
    stuff = [label for label, (_, is_thing, _) in enumerate(class_names(dataset)) if is_thing is False]
    return MaskFormerHfConfig(
        backbone_config=deepcopy(backbone), **_labels(dataset), label_ids_to_fuse=stuff or None, **fields
    )


def _labels(dataset: str) -> dict[str, Any]:
    names = [name for name, _, _ in class_names(dataset)]
    return {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}


# --- ADE20K, 150 classes ---------------------------------------------------------------------------------------------


def _ade20k(backbone: dict[str, Any]) -> MaskFormerHfConfig:
    return _maskformer(backbone, "ade20k_150", task="semantic")


def maskformer_resnet50_ade20k() -> MaskFormerHfConfig:
    return _ade20k(RESNET50)


def maskformer_resnet101_ade20k() -> MaskFormerHfConfig:
    return _ade20k(RESNET101)


def maskformer_resnet101c_ade20k() -> MaskFormerHfConfig:
    return _ade20k(RESNET101C)


def maskformer_swin_tiny_ade20k() -> MaskFormerHfConfig:
    return _ade20k(SWIN_TINY)


def maskformer_swin_small_ade20k() -> MaskFormerHfConfig:
    return _ade20k(SWIN_SMALL)


def maskformer_swin_base_ade20k() -> MaskFormerHfConfig:
    return _ade20k(SWIN_BASE)


def maskformer_swin_large_ade20k() -> MaskFormerHfConfig:
    return _ade20k(SWIN_LARGE)


# --- ADE20K-Full, 847 classes ----------------------------------------------------------------------------------------


def _ade20k_full(backbone: dict[str, Any]) -> MaskFormerHfConfig:
    return _maskformer(backbone, "ade20k_full_847", task="semantic")


def maskformer_resnet50_ade20k_full() -> MaskFormerHfConfig:
    return _ade20k_full(RESNET50)


def maskformer_resnet101_ade20k_full() -> MaskFormerHfConfig:
    return _ade20k_full(RESNET101)


def maskformer_resnet101c_ade20k_full() -> MaskFormerHfConfig:
    return _ade20k_full(RESNET101C)


# --- COCO-Stuff-10k, 171 classes -------------------------------------------------------------------------------------


def _coco_stuff(backbone: dict[str, Any]) -> MaskFormerHfConfig:
    return _maskformer(backbone, "coco_stuff_10k_171", task="semantic")


def maskformer_resnet50_coco_stuff() -> MaskFormerHfConfig:
    return _coco_stuff(RESNET50)


def maskformer_resnet101_coco_stuff() -> MaskFormerHfConfig:
    return _coco_stuff(RESNET101)


def maskformer_resnet101c_coco_stuff() -> MaskFormerHfConfig:
    return _coco_stuff(RESNET101C)


# --- Cityscapes, 19 classes, and Mapillary Vistas, 65 classes --------------------------------------------------------


def maskformer_resnet101_cityscapes() -> MaskFormerHfConfig:
    return _maskformer(RESNET101, "cityscapes_19", task="semantic")


def maskformer_resnet101c_cityscapes() -> MaskFormerHfConfig:
    return _maskformer(RESNET101C, "cityscapes_19", task="semantic")


def maskformer_resnet50_mapillary() -> MaskFormerHfConfig:
    return _maskformer(RESNET50, "mapillary_vistas_65", task="semantic")


# --- COCO panoptic, 133 classes --------------------------------------------------------------------------------------


def _coco_panoptic(backbone: dict[str, Any], **fields: Any) -> MaskFormerHfConfig:
    return _maskformer(backbone, "coco_panoptic_133", **fields)


def maskformer_resnet50_coco_panoptic() -> MaskFormerHfConfig:
    """R50 + 6 Enc."""
    return _coco_panoptic(RESNET50, pixel_decoder="transformer_fpn")


def maskformer_resnet101_coco_panoptic() -> MaskFormerHfConfig:
    """R101 + 6 Enc."""
    return _coco_panoptic(RESNET101, pixel_decoder="transformer_fpn")


def maskformer_swin_tiny_coco_panoptic() -> MaskFormerHfConfig:
    return _coco_panoptic(SWIN_TINY, enforce_input_projection=True)


def maskformer_swin_small_coco_panoptic() -> MaskFormerHfConfig:
    return _coco_panoptic(SWIN_SMALL, enforce_input_projection=True)


def maskformer_swin_base_coco_panoptic() -> MaskFormerHfConfig:
    return _coco_panoptic(SWIN_BASE, enforce_input_projection=True)


def maskformer_swin_large_coco_panoptic() -> MaskFormerHfConfig:
    return _coco_panoptic(SWIN_LARGE, enforce_input_projection=True)


# --- ADE20K panoptic, 150 classes ------------------------------------------------------------------------------------


def _ade20k_panoptic(backbone: dict[str, Any]) -> MaskFormerHfConfig:
    return _maskformer(backbone, "ade20k_150", pixel_decoder="transformer_fpn", object_mask_threshold=0.7)


def maskformer_resnet50_ade20k_panoptic() -> MaskFormerHfConfig:
    """R50 + 6 Enc."""
    return _ade20k_panoptic(RESNET50)


def maskformer_resnet101_ade20k_panoptic() -> MaskFormerHfConfig:
    """R101 + 6 Enc."""
    return _ade20k_panoptic(RESNET101)


# --- the per-pixel baselines -----------------------------------------------------------------------------------------


def _per_pixel(dataset: str, **fields: Any) -> MaskFormerHfPerPixelConfig:
    return MaskFormerHfPerPixelConfig(backbone_config=deepcopy(RESNET50), **_labels(dataset), **fields)


def per_pixel_baseline_resnet50_ade20k() -> MaskFormerHfPerPixelConfig:
    return _per_pixel("ade20k_150")


def per_pixel_baseline_plus_resnet50_ade20k() -> MaskFormerHfPerPixelConfig:
    return _per_pixel("ade20k_150", transformer_decoder="detr")


def per_pixel_baseline_resnet50_ade20k_full() -> MaskFormerHfPerPixelConfig:
    return _per_pixel("ade20k_full_847", semantic_loss_ignore_index=65535)


def per_pixel_baseline_plus_resnet50_ade20k_full() -> MaskFormerHfPerPixelConfig:
    return _per_pixel("ade20k_full_847", semantic_loss_ignore_index=65535, transformer_decoder="detr")


def per_pixel_baseline_resnet50_coco_stuff() -> MaskFormerHfPerPixelConfig:
    return _per_pixel("coco_stuff_10k_171")


def per_pixel_baseline_plus_resnet50_coco_stuff() -> MaskFormerHfPerPixelConfig:
    return _per_pixel("coco_stuff_10k_171", transformer_decoder="detr")


# --- Mask2Former -----------------------------------------------------------------------------------------------------

_BACKBONES = {
    "resnet50": RESNET50,
    "resnet101": RESNET101,
    "swin_tiny": SWIN_TINY,
    "swin_small": SWIN_SMALL,
    # Pretrained on ImageNet-1k or -21k, which makes no difference to a configuration.
    "swin_base": SWIN_BASE,
    "swin_large": SWIN_LARGE,
}
# By the last part of a preset's name: its classes, its task, and the backbones of that table of the zoo.
_MASK2FORMER_ZOO: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "coco_panoptic": ("coco_panoptic_133", "panoptic", tuple(_BACKBONES)),
    "coco_instance": ("coco_panoptic_133", "instance", tuple(_BACKBONES)),
    "cityscapes": ("cityscapes_19", "semantic", tuple(_BACKBONES)),
    "cityscapes_panoptic": ("cityscapes_19", "panoptic", tuple(_BACKBONES)),
    "cityscapes_instance": ("cityscapes_19", "instance", tuple(_BACKBONES)),
    "ade20k": ("ade20k_150", "semantic", tuple(_BACKBONES)),
    "ade20k_panoptic": ("ade20k_150", "panoptic", ("resnet50", "swin_large")),
    "ade20k_instance": ("ade20k_150", "instance", ("resnet50", "swin_large")),
    "mapillary": ("mapillary_vistas_65", "semantic", ("resnet50", "swin_large")),
    "mapillary_panoptic": ("mapillary_vistas_65", "panoptic", ("resnet50", "swin_large")),
}


def _mask2former(backbone: str, table: str) -> MaskFormerHfConfig:
    dataset, task, _ = _MASK2FORMER_ZOO[table]
    fields: dict[str, Any] = {**MASK2FORMER, "task": task}
    if task == "instance":
        # Data for instances have no stuff.
        names = [name for name, is_thing, _ in class_names(dataset) if is_thing]
        fields |= {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
    if backbone == "swin_large" and task != "semantic":
        fields["num_queries"] = 200
    if backbone.startswith("resnet") and (dataset == "cityscapes_19" or (backbone, table) == ("resnet101", "ade20k")):
        # Trained with SyncBN.
        fields["freeze_batch_norm"] = False
    if table == "mapillary_panoptic":
        fields["object_mask_threshold"] = 0.0
    if task == "instance":
        return MaskFormerHfConfig(backbone_config=deepcopy(_BACKBONES[backbone]), **fields)
    return _maskformer(_BACKBONES[backbone], dataset, **fields)


MASK2FORMER_PRESETS: dict[str, Callable[[], MaskFormerHfConfig]] = {
    f"mask2former_{backbone}_{table}": partial(_mask2former, backbone, table)
    for table, (_, _, backbones) in _MASK2FORMER_ZOO.items()
    for backbone in backbones
}


# --- Mask2Former-VIS, 40 classes -------------------------------------------------------------------------------------


def _mask2former_video(backbone: str, dataset: str) -> MaskFormerHfVideoConfig:
    return MaskFormerHfVideoConfig(
        backbone_config=deepcopy(_BACKBONES[backbone]),
        **_labels(dataset),
        num_queries=200 if backbone == "swin_large" else 100,
    )


VIDEO_PRESETS: dict[str, Callable[[], MaskFormerHfVideoConfig]] = {
    f"mask2former_{backbone}_youtube_vis_{year}": partial(_mask2former_video, backbone, f"youtube_vis_{year}_40")
    for year in (2019, 2021)
    for backbone in _BACKBONES
}


PRESETS: dict[str, Callable[[], MaskFormerHfConfig]] = {
    preset.__name__: preset
    for preset in (
        maskformer_resnet50_ade20k,
        maskformer_resnet101_ade20k,
        maskformer_resnet101c_ade20k,
        maskformer_swin_tiny_ade20k,
        maskformer_swin_small_ade20k,
        maskformer_swin_base_ade20k,
        maskformer_swin_large_ade20k,
        maskformer_resnet50_ade20k_full,
        maskformer_resnet101_ade20k_full,
        maskformer_resnet101c_ade20k_full,
        maskformer_resnet50_coco_stuff,
        maskformer_resnet101_coco_stuff,
        maskformer_resnet101c_coco_stuff,
        maskformer_resnet101_cityscapes,
        maskformer_resnet101c_cityscapes,
        maskformer_resnet50_mapillary,
        maskformer_resnet50_coco_panoptic,
        maskformer_resnet101_coco_panoptic,
        maskformer_swin_tiny_coco_panoptic,
        maskformer_swin_small_coco_panoptic,
        maskformer_swin_base_coco_panoptic,
        maskformer_swin_large_coco_panoptic,
        maskformer_resnet50_ade20k_panoptic,
        maskformer_resnet101_ade20k_panoptic,
        per_pixel_baseline_resnet50_ade20k,
        per_pixel_baseline_plus_resnet50_ade20k,
        per_pixel_baseline_resnet50_ade20k_full,
        per_pixel_baseline_plus_resnet50_ade20k_full,
        per_pixel_baseline_resnet50_coco_stuff,
        per_pixel_baseline_plus_resnet50_coco_stuff,
    )
}
PRESETS |= MASK2FORMER_PRESETS
PRESETS |= VIDEO_PRESETS


def image_processor_for(name: str) -> MaskFormerHfImageProcessor:
    """The image processor that belongs to a preset, or video processor, with the image sizes of the original's
    evaluation.

    Raises:
        ValueError: If there is no such preset.
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
        # The original pads images of its ResNet baselines to no divisor, only to the largest of the batch.
        options["size_divisor"] = 0
    if name in MASK2FORMER_PRESETS:
        # Also where MaskFormer pads to none.
        options["size_divisor"] = 32
    options |= {"num_labels": config.num_labels, **facts_of(config)}
    return (MaskFormerHfVideoProcessor if name in VIDEO_PRESETS else MaskFormerHfImageProcessor)(**options)
