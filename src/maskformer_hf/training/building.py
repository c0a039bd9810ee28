"""From a recipe to data, a model and its image processor, and from those to a folder that `from_pretrained` loads."""

import dataclasses
import difflib
import inspect
import shlex
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

from ..data import (
    Cached,
    Clips,
    ClipTransform,
    Collator,
    SegmentationDataset,
    VideoDataset,
    augmentation,
    open_dataset,
    videos_in,
)
from ..inference.load import checkpoint_path
from ..model_card import write_model_card
from ..models.configuration_maskformer import MaskFormerHfConfig
from ..models.modeling_auto import MODEL_CLASSES, model_class_of, processor_class_of, sees_clips
from .arguments import DataArguments, ModelArguments, Recipe
from .evaluation import check_classes, write_json

# By `ModelArguments.architecture`.
MODEL_TYPES = {
    None: "maskformer_hf",
    "maskformer": "maskformer_hf",
    "per_pixel_baseline": "maskformer_hf_per_pixel",
    "mask2former_vis": "maskformer_hf_video",
}


def open_data(arguments: DataArguments) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """The training data, and the data to measure on, if any, which must have the same classes."""
    training, validation = (
        open_dataset(
            arguments.root,
            split,
            # What is measured on is read again and again: it is no stream.
            format="datasets" if is_validation and arguments.format == "datasets_streaming" else arguments.format,
            task=arguments.task,
            class_groups=arguments.class_groups,
            void_classes=arguments.void_classes,
            unlabelled=arguments.unlabelled,
            options=arguments.options,
        )
        if split is not None
        else None
        for is_validation, split in enumerate((arguments.train, arguments.validation))
    )
    assert training is not None, "read_recipe lets no recipe pass without it"
    if arguments.cache:
        training, validation = Cached(training), None if validation is None else Cached(validation)
    if validation is not None:
        check_classes(training.id2label, validation.id2label, "the training data", "the validation data")
    return training, validation


def training_parts(dataset: SegmentationDataset, recipe: Recipe, config: Any, processor: Any) -> tuple[Any, Any, Any]:
    """What a model of this configuration trains on: the data set, its augmentation, and what makes batches of both.

    Raises ValueError for a model of videos where the data have none.
    """
    transform = augmentation(recipe.augmentation)
    options: dict[str, Any] = {
        "image_mean": processor.image_mean,
        "image_std": processor.image_std,
        "size_divisor": processor.size_divisor,
        "size": recipe.augmentation.crop_size or (0, 0),
        "return_void_masks": recipe.void_masks,
    }
    if not sees_clips(config):
        return dataset, transform, Collator(**options)
    clips = Clips(_videos_of(dataset), recipe.data.frames, recipe.data.frame_range)
    return clips, ClipTransform(transform), Collator(**options)


def _videos_of(dataset: SegmentationDataset) -> VideoDataset:
    videos = videos_in(dataset)
    if videos is None:
        raise ValueError(
            "a model of videos trains on videos as they are: one split of format 'youtube_vis' or 'davis', without "
            "task, class_groups, void_classes and unlabelled"
        )
    return videos


def label_fields(dataset: SegmentationDataset, config_class: Any = MaskFormerHfConfig) -> dict[str, Any]:
    """The fields of a model's configuration that its data decide, unless the recipe does.

    Raises ValueError for a model of videos where the data have none.
    """
    if sees_clips(config_class):
        _videos_of(dataset)
    names = {"id2label": dataset.id2label, "label2id": {name: index for index, name in dataset.id2label.items()}}
    if dataset.task == "semantic":
        # Which classes can be counted is not in its annotations: what a checkpoint knows of it is kept.
        return {**names, "task": "semantic"}
    return {**names, "task": dataset.task, "label_ids_to_fuse": list(dataset.label_ids_to_fuse)}


def config_class_of(arguments: ModelArguments) -> Any:
    """The class of the configuration of a recipe's model."""
    if arguments.preset is not None:
        return type(_preset(arguments.preset))
    if arguments.checkpoint is not None and arguments.architecture is None:
        return model_class_of(checkpoint_path(arguments.checkpoint)).config_class
    return MODEL_CLASSES[MODEL_TYPES[arguments.architecture]].config_class


def build_model(arguments: ModelArguments, labels: dict[str, Any]) -> nn.Module:
    """A new model on a pretrained backbone, or a checkpoint with its classes replaced by those of `label_fields`."""
    if arguments.preset is not None:
        return _build_preset(arguments, labels)
    config_class = config_class_of(arguments)
    model_class = MODEL_CLASSES[config_class.model_type]
    _check_fields(arguments.config, config_class, "model.config")
    fields: dict[str, Any] = {**labels, **arguments.config}
    if arguments.checkpoint is not None:
        return model_class.from_pretrained(checkpoint_path(arguments.checkpoint), dtype=torch.float32, **fields)
    assert arguments.backbone is not None, "read_recipe lets one of the two pass"
    return model_class.from_backbone(arguments.backbone, backbone_weights=arguments.backbone_weights, **fields)


def _build_preset(arguments: ModelArguments, labels: dict[str, Any]) -> nn.Module:
    from ..conversion.detectron2_backbone import load_detectron2_backbone
    from ..models.backbone import load_pretrained_backbone, pretrained_backbone_config

    preset = _preset(arguments.preset)
    _check_fields(arguments.config, type(preset), "model.config")
    fields = preset.to_dict()
    if arguments.backbone is not None and arguments.backbone.startswith("timm/"):
        # timm has the weights under an architecture of its own.
        fields["backbone_config"] = pretrained_backbone_config(arguments.backbone).to_dict()
    config = type(preset).from_dict(fields, **{**labels, **arguments.config})
    model = MODEL_CLASSES[config.model_type](config)
    if arguments.backbone is None:
        assert arguments.backbone_weights is not None, "read_recipe lets one of the two pass"
        load_detectron2_backbone(arguments.backbone_weights, model)
    else:
        base_model: Any = model.base_model
        load_pretrained_backbone(base_model.backbone, arguments.backbone, arguments.backbone_weights)
    return model


def enable_gradient_checkpointing(model: Any) -> None:
    """Lets transformer layers and the blocks of the backbone be computed again in the backward pass, not kept."""
    # transformers 5.23 renamed it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    body = model.base_model.backbone.body
    timm_model = getattr(body, "_backbone", None)
    if hasattr(timm_model, "set_grad_checkpointing"):
        timm_model.set_grad_checkpointing()
    for module in body.modules():
        # transformers has it for every backbone but its ResNets.
        if isinstance(module, ResNetBasicLayer | ResNetBottleNeckLayer):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def _preset(name: str | None) -> Any:
    from ..presets import PRESETS

    if name is None or name not in PRESETS:
        close = difflib.get_close_matches(str(name), PRESETS, n=1)
        raise ValueError(
            f"model.preset is {name!r}, which is none; "
            + (f"did you mean {close[0]}?" if close else f"there are {', '.join(PRESETS)}")
        )
    return PRESETS[name]()


def build_processor(arguments: ModelArguments, config: Any) -> Any:
    """The image processor of the checkpoint or the preset, or a new one, for a model of this configuration."""
    from ..presets import image_processor_for

    processor_class = processor_class_of(config)
    if arguments.checkpoint is not None:
        processor = processor_class.from_pretrained(checkpoint_path(arguments.checkpoint))
    elif arguments.preset is not None:
        processor = image_processor_for(arguments.preset)
    else:
        processor = processor_class()
    fields = processor.to_dict()
    # Facts about the classes, but both need them: the processor post-processes without seeing the model.
    if config.label_ids_to_fuse is not None:
        fields["label_ids_to_fuse"] = config.label_ids_to_fuse
    if processor.num_labels is not None:
        fields["num_labels"] = config.num_labels
    return processor_class.from_dict({**fields, **arguments.image_processor})


def write_model(model: nn.Module, processor: Any, folder: Path, dtype: torch.dtype, record: dict[str, Any]) -> None:
    """Saves both, `record` (see `training_record`) as training.json, and the model card that is made of them.

    float16 is for matrices and filters only: statistics and biases are small and keep their precision.

    config.json goes on saying float32, hence `from_pretrained` restores that type.
    """
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in model.state_dict().items()
    }
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    model.save_pretrained(folder, state_dict=state)  # pyrefly: ignore[not-callable]
    processor.save_pretrained(folder)
    write_json(folder / "training.json", record)
    write_model_card(folder, name="path/to/this/folder")


def training_record(
    recipe: Recipe,
    *,
    step: int,
    evaluation: dict[str, Any] | None,
    training_images: int | None,
    validation_images: int = 0,
    training_videos: int | None = None,
    seconds: float | None = None,
    machine: str | None = None,
    processes: int = 1,
    command: str | None = None,
) -> dict[str, Any]:
    """How a model came to be: what training.json says, and the model card repeats.

    Args:
        step: The optimizer step that the weights are from.
        training_images: None for a stream, which has no number.
        training_videos: Which they are the frames of, if any.
        evaluation: What `evaluate` says of these very weights.
        seconds: Time of the whole run so far.
        command: This process's command line if None.
    """
    program = Path(sys.argv[0])
    is_command = program.name == "maskformer" or program.parts[-2:] == ("maskformer_hf", "__main__.py")
    own_command = shlex.join([*(["maskformer"] if is_command else ["python", str(program)]), *sys.argv[1:]])
    return {
        "command": command or own_command,
        "recipe": dataclasses.asdict(recipe),
        "data": {
            "name": Path(recipe.data.root).resolve().name,
            "training": _joined(recipe.data.train),
            "training_images": training_images,
            **({"training_videos": training_videos} if training_videos else {}),
            "validation": _joined(recipe.data.validation),
            "validation_images": validation_images,
        },
        "step": step,
        "seconds": seconds and round(seconds),
        "machine": machine,
        "processes": processes,
        "versions": {name: version(name) for name in ("maskformer-hf", "torch", "transformers")},
        "evaluation": evaluation,
    }


def _joined(splits: str | list[str] | None) -> str | None:
    return " + ".join(splits) if isinstance(splits, list) else splits


def _check_fields(fields: dict[str, Any], kind: type, where: str) -> None:
    # PreTrainedConfig keeps unknown keywords without a word, so a typing error would train the default.
    known = {name for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")}
    known |= {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"{where} has no field {name}"
                + (f"; did you mean {close[0]}?" if close else f"; there are {sorted(known)}")
            )
