"""A training recipe: what can be set, read from YAML, every key and value checked by name."""

import dataclasses
import difflib
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ..data import AugmentationArguments


@dataclass
class DataArguments:
    """Relative paths count from the working directory."""

    root: str
    train: str | list[str] = "train"  # a split, or several that are joined
    validation: str | list[str] | None = "val"
    format: str = "auto"  # a name in data.open.FORMATS; "auto" looks at the folder
    task: Literal["semantic", "instance", "panoptic"] | None = None  # where the annotations can teach several
    class_groups: Literal["supercategory"] | dict[str, list[str]] | None = None  # or the names in each group
    void_classes: list[str] = field(default_factory=list)
    unlabelled: Literal["void", "background"] | None = None  # None: as the format means it
    options: dict[str, Any] = field(default_factory=dict)  # of format "datasets": arguments of `from_datasets`
    cache: bool = False  # keep decoded photos in memory
    frames: int = 2  # of a clip, for models of videos
    frame_range: int = 20  # of a video, how far a clip's frames are at most from the one that was drawn first
    workers: int = 0  # processes that load data; 0 loads between steps
    check: bool = True  # before the first step, by `data_check`


@dataclass
class ModelArguments:
    """Either a pretrained backbone, on which a new model is built, or a whole model to fine-tune.

    The one architecture that a checkpoint may be turned into is that of videos, from a Mask2Former of images.
    """

    preset: str | None = None  # a name in presets.PRESETS: architecture and image processor of the new model
    backbone: str | None = None  # "timm/<name>", a Hub name or a folder
    # safetensors file in the backbone library's own names, or, with a preset, Detectron2's .pkl; None: the Hub's
    backbone_weights: str | None = None
    checkpoint: str | None = None
    # Of a new model without a preset "maskformer" if None, and that of the checkpoint if there is one.
    architecture: Literal["maskformer", "per_pixel_baseline", "mask2former_vis"] | None = None
    config: dict[str, Any] = field(default_factory=dict)  # fields of the architecture's configuration
    image_processor: dict[str, Any] = field(default_factory=dict)  # fields of MaskFormerImageProcessor


@dataclass
class OptimizationArguments:
    learning_rate: float = 1.0e-4
    weight_decay: float = 1.0e-4
    backbone_multiplier: float = 0.1
    schedule: Literal["poly", "cosine", "step"] = "poly"
    poly_power: float = 0.9
    milestones: list[float] = field(default_factory=list)  # shares of all steps at which "step" divides the rate by ten
    warmup_steps: int = 0
    warmup_factor: float = 1.0e-3  # of the learning rate, at the first step
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
    batch_size: int  # images a process and forward pass
    accumulation: int = 1  # forward passes an optimizer step
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    float32_modules: list[str] = field(default_factory=list)  # submodules that keep float32 under mixed precision
    channels_last: bool = False
    gradient_checkpointing: bool = False  # less memory, more time: backbone and transformer compute some things twice
    compile: bool = False  # of the network, by torch.compile
    void_masks: bool = False  # void pixels and crowds teach no mask, in place of being background of all
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

    A recipe may say `base: PATH`, relative to itself: it then is that recipe but for its own keys, group by group.

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
    recipe = _build(Recipe, values, "")
    _check(recipe)
    return recipe


def _read_values(path: Path, derived: tuple[Path, ...]) -> dict[str, Any]:
    """What a recipe and those it is based on say. `derived`: the recipes that are being read because of it."""
    if not path.is_file():
        wanted = f", which {derived[-1]} is based on" if derived else ""
        raise ValueError(f"no recipe at {path}{wanted}; pass the path of a YAML file, such as those in recipes/")
    if path.resolve() in derived:
        chain = " -> ".join(str(recipe) for recipe in (*derived, path.resolve()))
        raise ValueError(f"recipes are based on each other in a circle: {chain}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
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


def _build(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'the recipe'} is {values!r}; expected keys and values")
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            remedy = f"did you mean {_join(where, close[0])}?" if close else f"the keys there are {sorted(hints)}"
            raise ValueError(f"the recipe has no key {_join(where, key)}; {remedy}")
    arguments = {}
    for item in dataclasses.fields(kind):
        name = _join(where, item.name)
        if item.name in values:
            arguments[item.name] = _convert(hints[item.name], values[item.name], name)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            if not dataclasses.is_dataclass(hints[item.name]):
                raise ValueError(f"the recipe lacks {name}; add it to the file or pass --set {name}=...")
            arguments[item.name] = _build(hints[item.name], {}, name)
    return kind(**arguments)


def _convert(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, {} if value is None else value, name)
    origin, choices = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        choices = [choice for choice in choices if choice is not type(None)]
        for choice in choices[:-1]:
            try:
                return _convert(choice, value, name)
            except ValueError:
                pass
        if len(choices) > 1 and not isinstance(value, get_origin(choices[-1]) or choices[-1]):
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(_type_name, choices))}")
        return _convert(choices[-1], value, name)
    if origin is Literal:
        # YAML reads an unquoted no as False.
        value = "no" if value is False and "no" in choices else value
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; choose one of {list(choices)}")
        return value
    if origin is list and isinstance(value, list):
        return [_convert(choices[0], item, f"{name}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _convert(choices[1], item, f"{name}.{key}") for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-4, without a point, as text
        except ValueError:
            pass
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (bool, str) and isinstance(value, kind):
        return value
    raise ValueError(f"{name} is {value!r}; expected {_type_name(kind)}")


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return kind.__name__ if get_origin(kind) is None else str(kind)


def _check(recipe: Recipe) -> None:
    names = ("steps", "batch_size", "accumulation", "log_every", "save_every", "evaluate_every")
    positive = {name: getattr(recipe, name) for name in names}
    positive |= {"data.frames": recipe.data.frames, "data.frame_range": recipe.data.frame_range}
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    _check_augmentation(recipe.augmentation)
    if not 0 <= recipe.optimization.ema_decay < 1:
        raise ValueError(f"optimization.ema_decay is {recipe.optimization.ema_decay}; it must be in [0, 1)")
    model = recipe.model
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


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
