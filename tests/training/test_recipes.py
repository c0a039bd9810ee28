"""The paper's trainings as recipes: what they build, and that they train on tiny data in their data sets' layouts."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from builders import resnet, vit
from maskformer_hf.models import backbone
from maskformer_hf.models.modeling_auto import MODEL_CLASSES
from maskformer_hf.models.modeling_maskformer import MaskFormerHfForUniversalSegmentation
from maskformer_hf.presets import MASK2FORMER, PRESETS
from maskformer_hf.training import train
from maskformer_hf.training.arguments import read_recipe
from maskformer_hf.training.recipe_model import build_model, build_processor

ROOT = Path(__file__).parents[2] / "recipes"
# As in the original's configuration files: crop, batch, steps, shortest and longest short edge, long edge.
SEMANTIC = {
    "ade20k": ([512, 512], 16, 160_000, (256, 1024), 2048),
    "ade20k_full": ([512, 512], 16, 200_000, (256, 1024), 2048),
    "coco_stuff": ([640, 640], 32, 60_000, (320, 960), 2560),
    "cityscapes": ([512, 1024], 16, 90_000, (512, 2048), 4096),
    "mapillary": ([1280, 1280], 16, 300_000, (1024, 4096), 8192),
    "ade20k_panoptic": ([640, 640], 16, 720_000, (320, 1280), 2560),
}
RECIPES = {
    str(path.relative_to(ROOT)): path
    for dataset in ("coco_panoptic", *SEMANTIC)
    for path in sorted((ROOT / dataset).glob("*.yaml"))
    if not path.name.startswith("frozen_")
}
FROZEN = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.glob("*/frozen_*.yaml"))}


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(backbone, "load_pretrained_backbone", lambda *_: 0)
    for name in ("load_pretrained_backbone", "load_detectron2_backbone"):
        monkeypatch.setattr(f"maskformer_hf.training.recipe_model.{name}", lambda *_: 0)


def test_there_is_one_for_every_model_of_the_paper():
    presets = [read_recipe(path).model.preset for path in RECIPES.values()]
    assert sorted(presets) == sorted(name for name in PRESETS if name.startswith(("maskformer", "per_pixel")))


@pytest.mark.parametrize("name", RECIPES)
def test_schedules_are_the_papers(name):
    recipe = read_recipe(RECIPES[name])
    dataset, size = name.split("/")[0], recipe.augmentation
    is_swin, is_large = "swin" in name, "swin_base" in name or "swin_large" in name
    if dataset == "coco_panoptic":
        assert (size.kind, size.crop_size, size.color_jitter) == ("detr", None, False)
        assert size.short_edge == list(range(480, 801, 32))
        assert size.long_edge == (1000 if "swin_large" in name else 1333)
        assert (recipe.batch_size, recipe.steps) == (64, 554_400)
        assert (recipe.optimization.schedule, recipe.optimization.milestones) == ("step", [369_600 / 554_400])
    else:
        crop, batch, steps, edges, longest = SEMANTIC["ade20k_panoptic" if is_large else dataset]
        assert (size.kind, size.crop_size, size.crop_max_class_share) == ("short_edge_jitter", crop, 1.0)
        assert size.color_jitter
        assert (size.short_edge[0], size.short_edge[-1], size.long_edge) == (*edges, longest)
        assert len(size.short_edge) == (11 if dataset == "coco_stuff" else 16)
        assert (recipe.batch_size, recipe.steps) == (batch, 160_000 if is_large else steps)
        assert (recipe.optimization.schedule, recipe.optimization.poly_power) == ("poly", 0.9)
    rates = (
        recipe.optimization.learning_rate,
        recipe.optimization.weight_decay,
        recipe.optimization.backbone_multiplier,
    )
    assert rates == ((6e-5, 0.01, 1.0) if is_swin else (1e-4, 1e-4, 0.1))
    if is_swin:
        assert (recipe.optimization.warmup_steps, recipe.optimization.warmup_factor) == (1500, 1e-6)
    else:
        assert recipe.optimization.warmup_steps == 0 or recipe.optimization.warmup_factor == 1
    assert recipe.optimization.max_gradient_norm == 0.01
    assert recipe.output_dir == f"runs/{name.removesuffix('.yaml')}"


def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_model_is_that_of_the_preset(name, no_weights):
    arguments = read_recipe(RECIPES[name]).model
    expected = PRESETS[arguments.preset]()
    labels = {"id2label": expected.id2label, "label2id": expected.label2id}
    with torch.device("meta"):
        model = build_model(arguments, labels)
    assert (model.config.task, model.config.label_ids_to_fuse) == (expected.task, expected.label_ids_to_fuse)
    if (arguments.backbone or "").startswith("timm/"):
        # Another implementation of the same backbone: what it is made of cannot be compared field by field.
        with torch.device("meta"):
            by_preset = MODEL_CLASSES[expected.model_type](expected)
        assert count_parameters(model) == count_parameters(by_preset)
    else:
        assert model.config.backbone_config.to_dict() == expected.backbone_config.to_dict()
    processor = build_processor(arguments, model.config)
    assert processor.num_labels == expected.num_labels
    assert processor.label_ids_to_fuse == expected.label_ids_to_fuse


def test_own_classes_on_a_preset(no_weights):
    arguments = read_recipe(RECIPES["ade20k/maskformer_resnet101c.yaml"], ["model.config.num_queries=7"]).model
    with torch.device("meta"):
        model = build_model(arguments, {"id2label": {0: "sky", 1: "puddle", 2: "wall"}, "task": "semantic"})
    assert model.config.num_queries == 7
    assert model.config.num_labels == 3
    assert model.config.label_ids_to_fuse == [0, 2]
    processor = build_processor(arguments, model.config)
    assert (processor.num_labels, processor.label_ids_to_fuse) == (3, [0, 2])
    assert processor.size == {"shortest_edge": 512, "longest_edge": 2048}


def test_errors_of_presets(recipe):
    def build(*overrides):
        return build_model(read_recipe(recipe, ["model.checkpoint=null", *overrides]).model, {})

    preset = "model.preset=maskformer_resnet50_ade20k"
    with pytest.raises(ValueError, match="exactly one"):
        build(preset)
    with pytest.raises(ValueError, match="a checkpoint has its own architecture"):
        read_recipe(recipe, [preset])
    with pytest.raises(ValueError, match="did you mean maskformer_resnet50_ade20k"):
        build("model.preset=maskformer_resnet_50_ade20k", "model.backbone=x")
    with pytest.raises(ValueError, match="did you mean num_queries"):
        build(preset, "model.backbone=x", "model.config.num_querys=3")


@pytest.fixture
def tiny_dinov2(tmp_path):
    """A folder with the weights of a DINOv2, in place of the released ones."""
    folder = tmp_path / "dinov2"
    AutoModel.from_config(AutoConfig.for_model(**vit("dinov2"))).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_transformers(name, tiny_dinov2):
    recipe = read_recipe(FROZEN[name], [f"model.backbone={tiny_dinov2}"])
    config = build_model(recipe.model, {"num_labels": 3}).config
    assert (config.backbone_pyramid, config.freeze_backbone, recipe.frozen_dtype) == ("simple", True, "bfloat16")
    assert {field: getattr(config, field) for field in MASK2FORMER} == MASK2FORMER
    assert read_recipe(FROZEN[name]).model.backbone == "facebook/dinov2-small"
    assert recipe.output_dir == f"runs/{name.removesuffix('.yaml')}"


@pytest.mark.parametrize("name", FROZEN)
def test_two_steps_of_frozen_transformers(name, tiny_dinov2, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    dataset = name.split("/")[0]
    path, (_, write, num_labels) = FROZEN[name], RUNS[dataset]
    root = tmp_path / Path(read_recipe(path).data.root).name
    write(root)
    fields = {"model.backbone": tiny_dinov2, "model.config.decoder_layers": 1, "model.config.encoder_layers": 1}
    small = {**small_run(root, tmp_path), **fields, "mixed_precision": "no", "model.config.encoder_ffn_dim": 32}
    if dataset != "coco_panoptic":
        small["augmentation.crop_size"] = [40, 56]
    folder = train(path, [f"{key}={value}" for key, value in small.items()])
    assert json.loads((folder / "config.json").read_text())["freeze_backbone"]
    assert len(json.loads((folder / "config.json").read_text())["id2label"]) == num_labels
    before, after = load_file(tiny_dinov2 / "model.safetensors"), load_file(folder / "model.safetensors")
    for key, weight in before.items():
        assert torch.equal(weight.bfloat16(), after[f"model.backbone.body.{key}"]), key


def detectron2_names(name: str) -> str:
    """The name that Detectron2 gives a tensor of our ResNet."""
    name = name.removeprefix("model.backbone.body.").replace("normalization.", "norm.").replace("convolution.", "")
    parts = name.split(".")
    if parts[0] == "embedder":
        return ".".join(["stem", f"conv{int(parts[2]) + 1}", *parts[3:]])
    stage, block, rest = f"res{int(parts[2]) + 2}", parts[4], parts[5:]
    rest = ["shortcut", *rest[1:]] if rest[0] == "shortcut" else [f"conv{int(rest[1]) + 1}", *rest[2:]]
    return ".".join([stage, block, *rest])


def test_backbone_of_detectron2(tmp_path):
    """A file as R-103.pkl is: tensors by Detectron2's names under "model", and a classifier."""
    overrides = [
        "model.config.feature_size=32",
        f"model.config.backbone_config={json.dumps({**SMALL_RESNET, 'multi_grid': [2]})}",
        f"model.backbone_weights={tmp_path / 'R.pkl'}",
    ]
    arguments = read_recipe(RECIPES["ade20k/maskformer_resnet101c.yaml"], overrides).model
    fields = {**arguments.config["backbone_config"], "stem_type": "deep"}
    source = MaskFormerHfForUniversalSegmentation.config_class(backbone_config=fields, feature_size=32)
    weights = {
        name: torch.randn_like(tensor)
        for name, tensor in MaskFormerHfForUniversalSegmentation(source).state_dict().items()
        if name.startswith("model.backbone.") and tensor.is_floating_point()
    }
    file = {detectron2_names(name): tensor.numpy() for name, tensor in weights.items()}
    assert "stem.conv3.norm.running_var" in file
    assert "res3.0.shortcut.weight" in file
    content = {"model": {**file, "fc.weight": np.zeros((5, 2))}, "matching_heuristics": True}
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(content))
    loaded = build_model(arguments, {}).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())

    del content["model"]["res4.0.conv2.weight"]
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"stay random: 1 of \d+ tensors are missing"):
        build_model(arguments, {})


SMALL_RESNET = resnet(32, 40, 48, 64, embedding_size=16, layer_type="bottleneck")


def picture(path: Path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)


def regions(*values, dtype=np.uint8):
    """48 x 64 pixels in as many columns as values."""
    return np.repeat(np.array(values, dtype=dtype), 64 // len(values))[None].repeat(48, 0)


def write_ade20k(root: Path) -> None:
    picture(root / "annotations/training/a.png", regions(0, 1, 8, 150))
    objects = np.stack([regions(0, 0, 1, 1), regions(0, 0, 1, 2), regions(0, 0, 0, 0)], -1)
    picture(root / "annotations_instance/training/a.png", objects)
    picture(root / "images/training/a.jpg", PHOTO)


def write_ade20k_full(root: Path) -> None:
    picture(root / "annotations_detectron2/training/a.tif", regions(0, 846, 300, 65535, dtype=np.uint16))
    picture(root / "images_detectron2/training/a.jpg", PHOTO)


def write_coco_stuff(root: Path) -> None:
    picture(root / "train/labels/a.png", regions(0, 1, 2, 255))
    picture(root / "train/images/a.jpg", PHOTO)
    (root / "classes.txt").write_text("person\ngrass\nsky-other\n")


def write_cityscapes(root: Path) -> None:
    picture(root / "gtFine/train/x/x_0_0_gtFine_labelIds.png", regions(7, 26, 0, 23))
    picture(root / "leftImg8bit/train/x/x_0_0_leftImg8bit.png", PHOTO)


def write_mapillary(root: Path) -> None:
    picture(root / "training/labels/a.png", regions(0, 1, 2, 1))
    picture(root / "training/images/a.jpg", PHOTO)
    names = {"Bird": True, "Road": True, "Unlabeled": False}
    labels = [{"readable": name, "evaluate": counts, "instances": name == "Bird"} for name, counts in names.items()]
    (root / "config.json").write_text(json.dumps({"labels": labels}))


def write_coco_panoptic(root: Path) -> None:
    ids = regions(1, 2, 3, 0)
    picture(root / "annotations/panoptic_train2017/a.png", np.stack([ids, 0 * ids, 0 * ids], -1))
    picture(root / "train2017/a.jpg", PHOTO)
    segments = [{"id": number, "category_id": 3 if number < 3 else 8, "iscrowd": 0} for number in (1, 2, 3)]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 3, "name": "cat", "isthing": 1}, {"id": 8, "name": "grass", "isthing": 0}],
    }
    (root / "annotations/panoptic_train2017.json").write_text(json.dumps(content))


PHOTO = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
# Data set: the recipe that is run, who writes its data, and how many classes they have.
RUNS = {
    "ade20k": ("maskformer_resnet50", write_ade20k, 150),
    "ade20k_full": ("per_pixel_baseline_plus_resnet50", write_ade20k_full, 847),
    "ade20k_panoptic": ("maskformer_resnet50", write_ade20k, 150),
    "coco_stuff": ("per_pixel_baseline_resnet50", write_coco_stuff, 3),
    "cityscapes": ("maskformer_resnet101", write_cityscapes, 19),
    "mapillary": ("maskformer_resnet50", write_mapillary, 2),
    "coco_panoptic": ("maskformer_resnet50", write_coco_panoptic, 2),
}


def small_run(root, tmp_path):
    """Overrides of two steps."""
    return {
        "data.root": root,
        "data.validation": "null",
        "data.workers": 0,
        "steps": 2,
        "batch_size": 2,
        "output_dir": tmp_path / "run",
        "log_every": 1,
        **{f"model.config.{key}": 32 for key in ("feature_size", "mask_feature_size", "hidden_size", "ffn_dim")},
        "augmentation.short_edge": [40, 50, 60],
    }


@pytest.mark.parametrize("dataset", RUNS)
def test_two_steps(dataset, tmp_path, monkeypatch, no_weights):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    name, write, num_labels = RUNS[dataset]
    path = ROOT / dataset / f"{name}.yaml"
    root = tmp_path / Path(read_recipe(path).data.root).name
    write(root)
    small = {
        **small_run(root, tmp_path),
        "model.backbone": "any",  # the preset's, but small
        "model.config.backbone_config": json.dumps(SMALL_RESNET),
    }
    if dataset != "coco_panoptic":
        small["augmentation.crop_size"] = [40, 56]
    folder = train(path, [f"{key}={value}" for key, value in small.items()])
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    config = json.loads((folder / "config.json").read_text())
    assert config["task"] == ("panoptic" if "panoptic" in dataset else "semantic")
    assert len(config["id2label"]) == num_labels
