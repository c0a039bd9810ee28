"""From a recipe to data: what is trained and measured on, and batches of it."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data import (
    Cached,
    Collator,
    SampleStream,
    SegmentationDataset,
    StreamPart,
    augmentation,
    is_streamed,
    open_dataset,
    streamed_loader,
)
from ..models.assembly import target_maps_of
from ..models.configuration_maskformer import MaskFormerHfConfig
from .arguments import DataArguments, Recipe
from .classes import check_classes
from .kinds import kind_of, videos_of


def open_data(arguments: DataArguments) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """The training data and, if any, the data to measure on, which must have the same classes."""
    training = _open_splits(arguments, arguments.train, arguments.format)
    if arguments.validation is None:
        return training, None
    # Data to measure on are read again and again, so they are no stream.
    format = "datasets" if arguments.format == "datasets_streaming" else arguments.format
    validation = _open_splits(arguments, arguments.validation, format)
    check_classes(training.id2label, validation.id2label, "the training data", "the validation data")
    return training, validation


def _open_splits(arguments: DataArguments, splits: str | list[str], format: str) -> SegmentationDataset:
    dataset = open_dataset(
        arguments.root,
        splits,
        format=format,
        task=arguments.task,
        class_groups=arguments.class_groups,
        void_classes=arguments.void_classes,
        unlabelled=arguments.unlabelled,
        options=arguments.options,
    )
    return Cached(dataset) if arguments.cache else dataset


def label_fields(dataset: SegmentationDataset, config_class: Any = MaskFormerHfConfig) -> dict[str, Any]:
    """The fields of a model's configuration that its data decide, unless the recipe does.

    Raises ValueError for a model of clips if the data are no videos.
    """
    if kind_of(config_class).needs_videos:
        videos_of(dataset)
    names = {"id2label": dataset.id2label, "label2id": {name: index for index, name in dataset.id2label.items()}}
    if dataset.task == "semantic":
        # Semantic annotations do not tell which classes are things, so what a checkpoint knows of that is kept.
        return {**names, "task": "semantic"}
    return {**names, "task": dataset.task, "label_ids_to_fuse": list(dataset.label_ids_to_fuse)}


def training_parts(dataset: SegmentationDataset, recipe: Recipe, config: Any, processor: Any) -> tuple[Any, Any, Any]:
    """What a model of this configuration trains on: the data set, its augmentation, and the collator.

    Raises ValueError for a model of clips if the data are no videos.
    """
    samples, transform = kind_of(config).training_data(dataset, augmentation(recipe.augmentation), recipe.data)
    collator = Collator(
        processor.image_mean,
        processor.image_std,
        processor.size_divisor,
        recipe.augmentation.crop_size or (0, 0),
        return_void_masks=recipe.void_masks,
        target_maps=target_maps_of(config),
    )
    return samples, transform, collator


def training_batches(
    accelerator: Accelerator, parts: tuple[Any, Any, Any], recipe: Recipe, first_step: int
) -> Iterator[dict[str, Any]]:
    """The remaining batches of this process, from `first_step` on.

    Step s reads the same samples whatever the number of processes. The exception is a stream whose shards they share.

    Args:
        parts: See `training_parts`.
    """
    dataset, transform, collator = parts
    samples_a_step = recipe.batch_size * recipe.accumulation * accelerator.num_processes
    start, stop = first_step * samples_a_step, recipe.steps * samples_a_step
    loading: dict[str, Any] = {"workers": recipe.data.workers, "pin_memory": accelerator.device.type == "cuda"}
    if is_streamed(dataset):
        part = StreamPart(
            recipe.batch_size,
            recipe.seed,
            start,
            stop,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        return iter(streamed_loader(dataset, transform, part, collate=collator, **loading))
    loader = DataLoader(
        SampleStream(dataset, transform, seed=recipe.seed, start=start, stop=stop),
        batch_size=recipe.batch_size,
        collate_fn=collator,
        num_workers=loading["workers"],
        pin_memory=loading["pin_memory"],
    )
    return iter(accelerator.prepare_data_loader(loader, device_placement=False))


def to_device(batch: dict[str, Any], device: torch.device, channels_last: bool) -> dict[str, Any]:
    """The batch with all its tensors on a device, its images in channels-last memory if wanted."""

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: move(item) for name, item in value.items()}
        return [move(item) for item in value] if isinstance(value, list) else value.to(device, non_blocking=True)

    batch = move(batch)
    if channels_last:
        # The backbone sees the frames of clips one by one, so each frame is laid out as an image.
        pixels = batch["pixel_values"]
        images = pixels.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        batch["pixel_values"] = images.unflatten(0, pixels.shape[:-3])
    return batch
