"""A training recipe: its fields, and how it is read from YAML."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ..data import AugmentationArguments
from ..data.text_files import read_yaml
from .typed_values import build


@dataclass
class DataArguments:
    """Which data to train and measure on. See `data.open_dataset`."""

    root: str  # a relative path counts from the working directory
    train: str | list[str] = "train"  # a split, or several that are joined
    validation: str | list[str] | None = "val"
    format: str = "auto"  # a name in data.open.FORMATS; "auto" looks at the folder
    task: Literal["semantic", "instance", "panoptic"] | None = None  # None: the finest that the annotations can teach
    class_groups: Literal["supercategory"] | dict[str, list[str]] | None = None  # or {group: [class names]}
    void_classes: list[str] = field(default_factory=list)
    unlabelled: Literal["void", "background"] | None = None  # None: as the format means it
    options: dict[str, Any] = field(default_factory=dict)  # with format "datasets": arguments of `from_datasets`
    cache: bool = False  # keep decoded images in memory
    frames: int = 2  # frames of a clip, for models of videos
    frame_range: int = 20  # largest distance of a clip's frames from its reference frame, in frames
    workers: int = 0  # processes that load data; 0 loads between steps
    check: bool = True  # before the first step, by `data_check`


@dataclass
class ModelArguments:
    """Either a pretrained backbone, on which a new model is built, or a whole model to fine-tune.

    A checkpoint keeps its architecture. Only a Mask2Former of images may become one of videos.
    """

    preset: str | None = None  # a name in presets.PRESETS: architecture and image processor of the new model
    backbone: str | None = None  # "timm/<name>", a Hub name or a folder
    # A safetensors file in the names of the backbone's library, or, with a preset, Detectron2's .pkl. None: the Hub's.
    backbone_weights: str | None = None
    checkpoint: str | None = None
    # None: "maskformer" for a new model without a preset, and the checkpoint's own for a checkpoint.
    architecture: Literal["maskformer", "per_pixel_baseline", "mask2former_vis"] | None = None
    config: dict[str, Any] = field(default_factory=dict)  # fields of the architecture's configuration
    image_processor: dict[str, Any] = field(default_factory=dict)  # fields of MaskFormerImageProcessor


@dataclass
class OptimizationArguments:
    """AdamW and its learning rate, step by step. See `optimization.py`."""

    learning_rate: float = 1.0e-4
    weight_decay: float = 1.0e-4
    backbone_multiplier: float = 0.1  # the same as multipliers: {backbone: 0.1}, which wins over it
    # Pattern of parameter names -> what their learning rate is multiplied with. See `parameter_groups`.
    multipliers: dict[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0  # factor of the learning rate of a plain vision transformer, from a block to the one below
    schedule: Literal["poly", "cosine", "step"] = "poly"
    poly_power: float = 0.9
    milestones: list[float] = field(default_factory=list)  # shares of all steps at which "step" divides the rate by ten
    warmup_steps: int = 0
    warmup_factor: float = 1.0e-3  # share of the learning rate at the first step
    max_gradient_norm: float = 0.01  # over all parameters together; 0 does not clip
    ema_decay: float = 0.0  # 0 keeps no average of the weights


@dataclass
class Recipe:
    """One training run."""

    data: DataArguments
    augmentation: AugmentationArguments
    model: ModelArguments
    optimization: OptimizationArguments
    steps: int  # optimizer steps
    batch_size: int  # images in each forward pass of each process
    accumulation: int = 1  # forward passes in each optimizer step
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    float32_modules: list[str] = field(default_factory=list)  # submodules that keep float32 under mixed precision
    frozen_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the backbone, with freeze_backbone: true
    channels_last: bool = False
    gradient_checkpointing: bool = False  # less memory, more time: backbone and transformer compute some things twice
    compile: bool = False  # compile the network by torch.compile
    void_masks: bool = False  # leave void pixels and crowds out of the mask losses; else they are background of all
    seed: int = 0
    output_dir: str = "runs"
    log_every: int = 20
    save_every: int = 500
    evaluate_every: int = 1000
    report_to: list[str] = field(default_factory=list)  # trackers, by Accelerate's names: "tensorboard", "wandb", ...
    export_weights: Literal["best", "last"] = "best"
    export_dtype: Literal["float32", "float16"] = "float32"


def read_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Reads a YAML recipe and applies overrides such as "optimization.learning_rate=2e-4" (the value is YAML).

    A recipe may have the key `base: PATH`, relative to itself. It then takes all keys from that recipe but its own.

    Raises ValueError for a key that does not exist (naming the closest one), a missing key, a value of the wrong type.
    """
    values = _read_values(Path(path), ())
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ValueError(
                f"override {override!r} is not of the form key=value, such as optimization.learning_rate=2e-4"
            )
        _set(values, key.strip().split("."), yaml.safe_load(text), override)
    recipe = build(Recipe, values)
    _check(recipe)
    return recipe


def _read_values(path: Path, derived: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a recipe and of those it is based on. `derived`: the recipes that are based on this one."""
    if not path.is_file():
        wanted = f", which {derived[-1]} is based on" if derived else ""
        raise ValueError(f"no recipe at {path}{wanted}; pass the path of a YAML file, such as those in recipes/")
    if path.resolve() in derived:
        chain = " -> ".join(str(recipe) for recipe in (*derived, path.resolve()))
        raise ValueError(f"recipes are based on each other in a circle: {chain}")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; a recipe is a mapping of keys to values")
    base = values.pop("base", None)
    if base is None:
        return values
    return _merge(_read_values(path.parent / str(base), (*derived, path.resolve())), values)


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        both_groups = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both_groups else value
    return merged


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise ValueError(f"override {override!r}: {key} is a value, not a group of keys")
    values[keys[-1]] = value


def _check(recipe: Recipe) -> None:
    names = ("steps", "batch_size", "accumulation", "log_every", "save_every", "evaluate_every")
    positive = {name: getattr(recipe, name) for name in names}
    positive |= {"data.frames": recipe.data.frames, "data.frame_range": recipe.data.frame_range}
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    _check_augmentation(recipe.augmentation)
    for pattern, multiplier in recipe.optimization.multipliers.items():
        if multiplier < 0:
            raise ValueError(f"optimization.multipliers has {multiplier} for {pattern!r}; it must not be negative")
    if not 0 < recipe.optimization.layer_decay <= 1:
        raise ValueError(f"optimization.layer_decay is {recipe.optimization.layer_decay}; it must be in (0, 1]")
    if not 0 <= recipe.optimization.ema_decay < 1:
        raise ValueError(f"optimization.ema_decay is {recipe.optimization.ema_decay}; it must be in [0, 1)")
    _check_model(recipe.model)


def _check_model(model: ModelArguments) -> None:
    from_detectron2 = model.preset is not None and model.backbone_weights is not None
    if (model.backbone is None and not from_detectron2) == (model.checkpoint is None):
        raise ValueError(
            f"model.backbone is {model.backbone!r}, model.checkpoint is {model.checkpoint!r}; give exactly one: a "
            "backbone to build a new model on (of a preset its backbone_weights will do), or a checkpoint to fine-tune"
        )
    if model.preset is not None and model.architecture is not None:
        raise ValueError(
            f"model.preset is {model.preset!r}, model.architecture is {model.architecture!r}; a preset has its own "
            "architecture: give one of the two"
        )
    if model.preset is not None and model.checkpoint is not None:
        raise ValueError(
            f"model.preset is {model.preset!r}, model.checkpoint is {model.checkpoint!r}; a checkpoint has its own "
            "architecture: give one of the two"
        )


def _check_augmentation(arguments: AugmentationArguments) -> None:
    for name in ("short_edge", "scale", "crop_size"):
        values = getattr(arguments, name)
        if values is None:
            continue
        if min(values, default=0) <= 0 or len(values) < 2 or (len(values) > 2 and name != "short_edge"):
            raise ValueError(f"augmentation.{name} is {values}; expected two positive numbers")
    for name in ("short_edge", "scale"):
        values = getattr(arguments, name)
        if values is not None and values != sorted(values):
            raise ValueError(f"augmentation.{name} is {values}; write smaller numbers first")
    if arguments.short_edge and arguments.long_edge is not None and arguments.long_edge <= arguments.short_edge[-1]:
        raise ValueError(
            f"augmentation.long_edge is {arguments.long_edge}; it must exceed the longest short_edge, "
            f"{arguments.short_edge[-1]}"
        )
