"""The configurations of the paper's tables have the original's size, classes and thresholds."""

import pytest
import torch

from maskformer_hf import MaskFormerVideoProcessor
from maskformer_hf.conversion.to_transformers import _target, transformers_config
from maskformer_hf.models.modeling_auto import MODEL_CLASSES
from maskformer_hf.presets import EOMT_PRESETS, MASK2FORMER, PRESETS, class_names, image_processor_for

# Parameters of the original's models, built from its configuration files. Frozen BatchNorm has none.
PARAMETERS = {
    "maskformer_resnet50_ade20k": 41_254_743,
    "maskformer_resnet101_ade20k": 60_194_647,
    "maskformer_resnet101c_ade20k": 60_318_039,
    "maskformer_swin_tiny_ade20k": 41_757_009,
    "maskformer_swin_small_ade20k": 63_074_913,
    "maskformer_swin_base_ade20k": 101_829_391,
    "maskformer_swin_large_ade20k": 211_575_627,
    "maskformer_resnet50_ade20k_full": 41_433_872,
    "maskformer_resnet50_coco_stuff": 41_260_140,
    "maskformer_resnet101_cityscapes": 60_160_980,
    "maskformer_resnet101c_cityscapes": 60_284_372,
    "maskformer_resnet50_mapillary": 41_232_898,
    "maskformer_resnet50_coco_panoptic": 45_012_038,
    "maskformer_resnet101_coco_panoptic": 63_951_942,
    "maskformer_swin_tiny_coco_panoptic": 41_752_640,
    "maskformer_swin_small_coco_panoptic": 63_070_544,
    "maskformer_swin_base_coco_panoptic": 101_825_022,
    "maskformer_swin_large_coco_panoptic": 211_571_258,
    "maskformer_resnet50_ade20k_panoptic": 45_016_407,
    "maskformer_resnet101_ade20k_panoptic": 63_956_311,
}
# Not in the original's counts, but a head with more classes is the only difference.
PARAMETERS["maskformer_resnet101_ade20k_full"] = 60_194_647 + 257 * (847 - 150)
PARAMETERS["maskformer_resnet101c_ade20k_full"] = 60_318_039 + 257 * (847 - 150)
PARAMETERS["maskformer_resnet101_coco_stuff"] = 60_194_647 + 257 * (171 - 150)
PARAMETERS["maskformer_resnet101c_coco_stuff"] = 60_318_039 + 257 * (171 - 150)

PER_PIXEL_PARAMETERS = {
    "per_pixel_baseline_resnet50_ade20k": 31_033_942,
    "per_pixel_baseline_plus_resnet50_ade20k": 41_228_736,
    "per_pixel_baseline_resnet50_ade20k_full": 31_213_071,
    "per_pixel_baseline_plus_resnet50_ade20k_full": 41_407_168,
    "per_pixel_baseline_resnet50_coco_stuff": 31_039_339,
    "per_pixel_baseline_plus_resnet50_coco_stuff": 41_234_112,
}
PARAMETERS |= PER_PIXEL_PARAMETERS

# The same of Mask2Former.
MASK2FORMER_PARAMETERS = {
    "mask2former_resnet50_coco_panoptic": 43_983_878,
    "mask2former_resnet101_coco_panoptic": 62_923_782,
    "mask2former_swin_tiny_coco_panoptic": 47_435_264,
    "mask2former_swin_small_coco_panoptic": 68_753_168,
    "mask2former_swin_base_coco_panoptic": 106_917_822,
    "mask2former_swin_large_coco_panoptic": 215_535_610,
    "mask2former_resnet50_coco_instance": 43_970_257,
    "mask2former_resnet101_coco_instance": 62_910_161,
    "mask2former_swin_tiny_coco_instance": 47_421_643,
    "mask2former_swin_small_coco_instance": 68_739_547,
    "mask2former_swin_base_coco_instance": 106_904_201,
    "mask2former_swin_large_coco_instance": 215_521_989,
    "mask2former_resnet50_ade20k": 43_988_247,
    "mask2former_resnet101_ade20k": 63_033_495,
    "mask2former_swin_tiny_ade20k": 47_439_633,
    "mask2former_swin_small_ade20k": 68_757_537,
    "mask2former_swin_base_ade20k": 106_922_191,
    "mask2former_swin_large_ade20k": 215_488_779,
    "mask2former_resnet50_mapillary": 43_966_402,
}
# Not in the original's counts, but a head with more classes, more queries (a feature and a position each) and trained
# BatchNorm are the only differences.
for size in ("resnet50", "resnet101", "swin_tiny", "swin_small", "swin_base"):
    for table, classes in {"cityscapes": 19, "cityscapes_panoptic": 19, "cityscapes_instance": 8}.items():
        count = MASK2FORMER_PARAMETERS[f"mask2former_{size}_coco_panoptic"] - 257 * (133 - classes)
        MASK2FORMER_PARAMETERS[f"mask2former_{size}_{table}"] = count + {"resnet50": 53_120, "resnet101": 105_344}.get(
            size, 0
        )
SEMANTIC_LARGE, PANOPTIC_LARGE = 215_488_779 - 257 * 150, 215_535_610 - 257 * 133
MASK2FORMER_PARAMETERS |= {
    "mask2former_swin_large_cityscapes": SEMANTIC_LARGE + 257 * 19,
    "mask2former_swin_large_cityscapes_panoptic": PANOPTIC_LARGE + 257 * 19,
    "mask2former_swin_large_cityscapes_instance": PANOPTIC_LARGE + 257 * 8,
    "mask2former_resnet50_ade20k_panoptic": 43_988_247,
    "mask2former_swin_large_ade20k_panoptic": PANOPTIC_LARGE + 257 * 150,
    "mask2former_resnet50_ade20k_instance": 43_988_247 - 257 * 50,
    "mask2former_swin_large_ade20k_instance": PANOPTIC_LARGE + 257 * 100,
    "mask2former_swin_large_mapillary": SEMANTIC_LARGE + 257 * 65,
    "mask2former_resnet50_mapillary_panoptic": 43_966_402,
    "mask2former_swin_large_mapillary_panoptic": PANOPTIC_LARGE + 257 * 65,
}
PARAMETERS |= MASK2FORMER_PARAMETERS
# MP-Former has an embedding of each class, and no positions of queries.
PARAMETERS |= {"mpformer_resnet50_coco_instance": 43_965_137, "mpformer_resnet50_coco_panoptic": 43_992_326}
# The original's counts have the affine terms of frozen BatchNorm.
SEGFORMER_PARAMETERS = {
    "panoptic_segformer_resnet50_coco_panoptic": 51_271_900 - 53_120,
    "panoptic_segformer_resnet101_coco_panoptic": 70_264_028 - 105_344,
    "panoptic_segformer_swin_large_coco_panoptic": 221_352_624,
}
PARAMETERS |= SEGFORMER_PARAMETERS

# The same of Mask2Former-VIS. Both versions of its data have 40 classes.
VIDEO_PARAMETERS = {
    f"mask2former_{backbone}_youtube_vis_{year}": count
    for year in (2019, 2021)
    for backbone, count in {
        "resnet50": 43_959_977,
        "resnet101": 62_899_881,
        "swin_tiny": 47_411_363,
        "swin_small": 68_729_267,
        "swin_base": 106_893_921,
        "swin_large": 215_511_709,
    }.items()
}
PARAMETERS |= VIDEO_PARAMETERS

# The same of PEM. Cityscapes' backbones have trained BatchNorm.
PEM_PARAMETERS = {
    "pem_resnet50_ade20k": 35_513_128,
    "pem_resnet50_ade20k_panoptic": 35_513_128,
    "pem_resnet50_cityscapes": 35_532_581,
    "pem_resnet50_cityscapes_panoptic": 35_532_581,
}
PARAMETERS |= PEM_PARAMETERS
# As transformers' own model of that configuration, see `test_eomts_are_transformers`.
PARAMETERS |= {
    "eomt_small_640_coco_panoptic": 23_975_942,
    "eomt_base_640_coco_panoptic": 93_663_110,
    "eomt_large_640_coco_panoptic": 316_695_686,
    "eomt_giant_640_coco_panoptic": 1_163_622_022,
    "eomt_large_1280_coco_panoptic": 321_610_886,
    "eomt_giant_1280_coco_panoptic": 1_170_994_822,
    "eomt_small_640_dinov3_coco_panoptic": 23_356_934,
    "eomt_base_640_dinov3_coco_panoptic": 92_425_094,
    "eomt_large_640_dinov3_coco_panoptic": 315_032_710,
    "eomt_large_1280_dinov3_coco_panoptic": 315_032_710,
    "eomt_large_640_coco_instance": 316_641_361,
    "eomt_large_1280_coco_instance": 321_556_561,
    "eomt_large_640_dinov3_coco_instance": 314_978_385,
    "eomt_large_1280_dinov3_coco_instance": 314_978_385,
    "eomt_large_640_ade20k_panoptic": 316_713_111,
    "eomt_giant_640_ade20k_panoptic": 1_163_648_151,
    "eomt_large_1280_ade20k_panoptic": 321_628_311,
    "eomt_giant_1280_ade20k_panoptic": 1_171_020_951,
    "eomt_large_512_ade20k": 316_020_887,
    "eomt_large_512_dinov3_ade20k": 314_947_735,
    "eomt_large_1024_cityscapes": 319_032_340,
}

# Affine terms of BatchNorm, which are parameters where it is not frozen.
AFFINE_TERMS = {"resnet50": 53_120, "resnet101": 105_344, "resnet101c": 105_728}


def count_parameters(config) -> int:
    with torch.device("meta"):
        model = MODEL_CLASSES[config.model_type](config)
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_preset_is_counted():
    assert PRESETS.keys() == PARAMETERS.keys()
    # Some tables have two Swin-B, which are one preset.
    assert len(PRESETS) - len(PEM_PARAMETERS) == 30 + 2 * 6 + 3 * 6 + 6 + 2 + 2 + 2 + 2 + 2 + 3 + 2 * 6 + 21


@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters(name):
    assert count_parameters(PRESETS[name]()) == PARAMETERS[name]


@pytest.mark.parametrize("backbone", AFFINE_TERMS)
def test_number_of_parameters_with_trained_batch_norm(backbone):
    config = PRESETS[f"maskformer_{backbone}_ade20k"]()
    config.freeze_batch_norm = False
    assert count_parameters(config) == PARAMETERS[f"maskformer_{backbone}_ade20k"] + AFFINE_TERMS[backbone]


@pytest.mark.parametrize(
    ("dataset", "num_classes", "num_things"),
    [
        ("ade20k_150", 150, 100),
        ("coco_panoptic_133", 133, 80),
        ("cityscapes_19", 19, 8),
        ("coco_stuff_10k_171", 171, 80),
        ("mapillary_vistas_65", 65, 37),
        ("youtube_vis_2019_40", 40, 40),
        ("youtube_vis_2021_40", 40, 40),
    ],
)
def test_class_names(dataset, num_classes, num_things):
    classes = class_names(dataset)
    assert len({name for name, _, _ in classes}) == len(classes) == num_classes
    assert sum(is_thing is True for _, is_thing, _ in classes) == num_things


def test_class_names_of_unknown_kind():
    assert len(class_names("ade20k_full_847")) == 847
    assert {is_thing for _, is_thing, _ in class_names("ade20k_full_847")} == {None}


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in VIDEO_PARAMETERS])
def test_labels_task_and_thresholds(name):
    config = PRESETS[name]()
    assert config.label2id == {label: index for index, label in config.id2label.items()}
    tasks = ("panoptic", "instance")
    assert config.task == next((task for task in tasks if name.endswith(f"_{task}")), "semantic")
    expected = 0.7 if name.endswith("ade20k_panoptic") and name.startswith("maskformer") else 0.8
    if name.endswith("mapillary_panoptic"):
        expected = 0.0
    least_left = 0.8
    if name in SEGFORMER_PARAMETERS:
        expected, least_left = 0.3 if "swin" in name else 0.25, 0.6
    assert (config.object_mask_threshold, config.overlap_mask_area_threshold) == (expected, least_left)
    assert config.intersect_with_mask == name.startswith(("mask2former", "mpformer", "pem", "eomt"))
    if config.task == "instance":
        first = {"coco": "person", "cityscapes": "person", "ade20k": "bed"}
        assert config.id2label[0] == next(label for dataset, label in first.items() if dataset in name)
    if name.endswith("_full") or name in PER_PIXEL_PARAMETERS or config.task == "instance":
        assert config.label_ids_to_fuse is None
    else:
        kinds = {"_ade20k": (50, "wall"), "ade20k_panoptic": (50, "wall"), "coco_panoptic": (53, "banner")}
        kinds |= {"cityscapes": (11, "road"), "coco_stuff": (91, "banner"), "mapillary": (28, "Curb")}
        kinds |= {"cityscapes_panoptic": (11, "road"), "mapillary_panoptic": (28, "Curb")}
        count, first = next(kind for end, kind in kinds.items() if name.endswith(end))
        assert len(config.label_ids_to_fuse) == count
        assert config.id2label[config.label_ids_to_fuse[0]] == first


@pytest.mark.parametrize("name", PER_PIXEL_PARAMETERS)
def test_per_pixel_baselines(name):
    config = PRESETS[name]()
    assert config.transformer_decoder == ("detr" if "_plus_" in name else None)
    assert config.num_queries == config.num_labels
    assert config.semantic_loss_ignore_index == (65535 if name.endswith("_full") else 255)


@pytest.mark.parametrize("name", MASK2FORMER_PARAMETERS)
def test_mask2former(name):
    config = PRESETS[name]()
    assert {field: getattr(config, field) for field in MASK2FORMER} == MASK2FORMER
    assert (config.decoder_layers, config.encoder_layers, config.encoder_levels, config.num_points) == (9, 6, 3, 12544)
    is_large = "swin_large" in name and not name.endswith(("ade20k", "cityscapes", "mapillary"))
    assert config.num_queries == (200 if is_large else 100)


@pytest.mark.parametrize("name", VIDEO_PARAMETERS)
def test_mask2former_of_videos(name):
    config = PRESETS[name]()
    fields = {field: value for field, value in MASK2FORMER.items() if field != "intersect_with_mask"}
    assert {field: getattr(config, field) for field in fields} == fields
    assert (config.encoder_layers, config.encoder_levels, config.num_points) == (6, 3, 12544)
    assert config.num_queries == (200 if "swin_large" in name else 100)
    assert config.task == "instance"
    assert config.id2label[0] == ("person" if name.endswith("2019") else "airplane")
    assert config.label2id == {label: index for index, label in config.id2label.items()}
    processor = image_processor_for(name)
    assert isinstance(processor, MaskFormerVideoProcessor)
    assert processor.size["shortest_edge"] == (480 if "swin" in name else 360)


def test_presets_share_nothing():
    first, second = (PRESETS["maskformer_swin_base_ade20k"]() for _ in range(2))
    first.backbone_config.num_heads[0] = 7
    first.label_ids_to_fuse.append(149)
    assert second.backbone_config.num_heads[0] == 4
    assert 149 not in second.label_ids_to_fuse


@pytest.mark.parametrize(
    ("name", "shortest", "longest", "divisor"),
    [
        ("maskformer_resnet50_ade20k", 512, 2048, 32),
        ("maskformer_swin_small_ade20k", 512, 2048, 32),
        ("maskformer_swin_base_ade20k", 640, 2560, 32),
        ("maskformer_swin_large_ade20k", 640, 2560, 32),
        ("maskformer_resnet50_ade20k_full", 512, 2048, 32),
        ("maskformer_resnet50_coco_stuff", 640, 2560, 32),
        ("maskformer_resnet101_cityscapes", 1024, 2048, 32),
        ("maskformer_resnet50_mapillary", 2048, 2048, 32),
        ("maskformer_swin_large_coco_panoptic", 800, 1333, 0),
        ("maskformer_resnet50_ade20k_panoptic", 640, 2560, 32),
        ("mask2former_resnet50_coco_panoptic", 800, 1333, 32),
        ("mask2former_swin_tiny_coco_instance", 800, 1333, 32),
        ("mask2former_resnet101_ade20k", 512, 2048, 32),
        ("mask2former_swin_base_ade20k", 640, 2560, 32),
        ("mask2former_resnet50_ade20k_instance", 640, 2560, 32),
        ("mask2former_resnet50_cityscapes_panoptic", 1024, 2048, 32),
        ("mask2former_swin_large_mapillary_panoptic", 2048, 2048, 32),
        ("per_pixel_baseline_resnet50_ade20k", 512, 2048, 0),
        ("per_pixel_baseline_plus_resnet50_coco_stuff", 640, 2560, 0),
    ],
)
def test_image_processor(name, shortest, longest, divisor):
    processor = image_processor_for(name)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (shortest, longest)
    assert processor.size_divisor == divisor
    config = PRESETS[name]()
    assert (processor.num_labels, processor.label_ids_to_fuse) == (config.num_labels, config.label_ids_to_fuse)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_an_image_processor(name):
    assert image_processor_for(name).num_labels == PRESETS[name]().num_labels


def test_unknown_preset_is_named():
    with pytest.raises(
        ValueError, match=r"no preset 'maskformer_resnet18_ade20k'; there are maskformer_resnet50_ade20k"
    ):
        image_processor_for("maskformer_resnet18_ade20k")


@pytest.mark.parametrize("name", EOMT_PRESETS)
def test_eomts_are_transformers(name):
    config = PRESETS[name]()
    theirs = _target(config)
    with torch.device("meta"):
        model = theirs.model(transformers_config(config))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    side = config.backbone_config.image_size
    size, divisor = image_processor_for(name).size, image_processor_for(name).size_divisor
    assert size["shortest_edge"] == side
    assert (size["longest_edge"], divisor) == ((4 * side, 16) if config.task == "semantic" else (side, side))
