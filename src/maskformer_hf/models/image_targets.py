"""Targets of images: maps of ids or stacks of masks to one mask and one class an object.

Shapes: N targets, H W pixels of an image, or of the batch after padding.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.image_processing_utils import BatchFeature

from .image_opening import is_source
from .image_reading import as_tensor, size_of
from .resize import resize_nearest


class LabelRules(NamedTuple):
    """What the labels of a map mean: see the fields of the image processor of these names."""

    ignore_index: int | None
    do_reduce_labels: bool
    num_labels: int | None


class ImageTarget:
    """Targets of one image before resizing: an id map with the class of each id, or a stack of masks."""

    def __init__(self, pixels: Tensor, classes: dict[int, int] | Tensor) -> None:
        self.pixels = pixels  # (H, W) ids, or (N, H, W) bool
        self.classes = classes

    def masks(self, size: tuple[int, int], padded_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(N, *padded_size) bool, zero beyond `size`, and (N,) int64; without masks that have no pixel left."""
        pixels = resize_nearest(self.pixels, size)
        if isinstance(self.classes, Tensor):
            alive = pixels.flatten(1).any(1)
            resized, labels = pixels[alive], self.classes[alive]
        else:
            ids = [index for index in torch.unique(pixels).tolist() if index in self.classes]
            resized = pixels[None] == torch.tensor(ids, dtype=pixels.dtype, device=pixels.device).view(-1, 1, 1)
            labels = torch.tensor([self.classes[index] for index in ids], dtype=torch.int64, device=pixels.device)
        masks = torch.zeros(len(resized), *padded_size, dtype=torch.bool, device=pixels.device)
        masks[:, : size[0], : size[1]] = resized
        return masks, labels

    def void_mask(self, size: tuple[int, int], padded_size: tuple[int, int]) -> Tensor:
        """Where the image belongs to nothing by its map, *padded_size bool; False in the padding and for stacks."""
        void = torch.zeros(padded_size, dtype=torch.bool, device=self.pixels.device)
        if not isinstance(self.classes, Tensor):
            pixels = resize_nearest(self.pixels, size)
            named = torch.tensor(list(self.classes), dtype=pixels.dtype, device=pixels.device)
            void[: size[0], : size[1]] = ~torch.isin(pixels, named)
        return void


def read_maps(maps: Any, count: int) -> list[Tensor] | None:
    """Maps of ids as tensors, one an image, (H, W) if they are what they should be."""
    if maps is None:
        return None
    tensors = [as_tensor(entry) for entry in _one_entry_an_image(maps, "segmentation_maps", count, 2)]
    return [
        map.squeeze(0 if map.shape[0] == 1 else -1) if map.ndim == 3 and 1 in (map.shape[0], map.shape[-1]) else map
        for map in tensors
    ]


def sizes_of_targets(maps: list[Tensor] | None, mask_labels: Any, count: int) -> list[tuple[int, int] | None] | None:
    """(height, width) of the targets of each image, None where that is not told; None if there are no targets."""
    if maps is None and mask_labels is None:
        return None
    stacks = maps if maps is not None else _one_entry_an_image(mask_labels, "mask_labels", count, 3)
    firsts = [stack[0] if isinstance(stack, (list, tuple)) and len(stack) else stack for stack in stacks]
    shapes = [tuple(getattr(first, "shape", ())) for first in firsts]
    return [(shape[-2], shape[-1]) if len(shape) >= 2 else None for shape in shapes]


def read_targets(
    segmentation_maps: Any,
    instance_id_to_semantic_id: Any,
    mask_labels: Any,
    class_labels: Any,
    images: list[Tensor],
    rules: LabelRules,
) -> list[ImageTarget] | None:
    """The targets of each image in the form in which they are given, None if there are none."""
    if segmentation_maps is None:
        if mask_labels is None and class_labels is None:
            return None
        return targets_from_masks(mask_labels, class_labels, images, rules.num_labels)
    if mask_labels is not None or class_labels is not None:
        raise ValueError("Give targets as segmentation_maps or as mask_labels with class_labels, not both.")
    return targets_from_maps(segmentation_maps, instance_id_to_semantic_id, images, rules)


def targets_from_maps(
    maps: list[Tensor], id_to_class: Any, images: list[Tensor], rules: LabelRules
) -> list[ImageTarget]:
    """Targets of maps (H, W) of semantic ids, or with `id_to_class` of segment ids.

    Raises:
        ValueError: A map of another size, or an id that is no class; the message names the map.
    """
    if id_to_class is None or isinstance(id_to_class, dict):
        id_to_class = [id_to_class] * len(images)
    elif len(id_to_class) != len(images):
        raise ValueError(
            f"instance_id_to_semantic_id has {len(id_to_class)} dicts for {len(images)} images; give one for all "
            "or one an image."
        )
    targets = []
    for index, (segmentation, mapping, image) in enumerate(zip(maps, id_to_class, images, strict=True)):
        ids_HW = _whole_numbers(segmentation, index, image)
        classes: dict[int, int] = {}
        for segment_id in torch.unique(ids_HW).tolist():
            label = _class_of_segment(segment_id, mapping, index, rules)
            if label is not None:
                classes[segment_id] = label
        targets.append(ImageTarget(ids_HW, classes))
    return targets


def targets_from_masks(
    mask_labels: Any, class_labels: Any, images: list[Tensor], num_labels: int | None
) -> list[ImageTarget]:
    """Targets of stacks (N, H, W) of zeros and ones and their classes (N,).

    Raises:
        ValueError: Masks of another size or with other values, or a label that is no class; the message names the
            image.
    """
    if mask_labels is None or class_labels is None:
        raise ValueError("mask_labels and class_labels belong together; give both.")
    mask_labels = _one_entry_an_image(mask_labels, "mask_labels", len(images), 3)
    class_labels = _one_entry_an_image(class_labels, "class_labels", len(images), 1)
    targets = []
    for index, (masks, labels, image) in enumerate(zip(mask_labels, class_labels, images, strict=True)):
        size = size_of(image)
        masks = (
            torch.stack([as_tensor(mask) for mask in masks])
            if isinstance(masks, (list, tuple)) and len(masks)
            else as_tensor(masks).reshape(0, *size)
            if len(masks) == 0
            else as_tensor(masks)
        ).to(image.device)
        labels = as_tensor(labels).reshape(-1)
        if masks.ndim != 3 or masks.shape[-2:] != size:
            raise ValueError(
                f"mask_labels[{index}] has shape {tuple(masks.shape)} and its image is {size} (height, width); give "
                "(N, height, width)."
            )
        if len(labels) != len(masks):
            raise ValueError(
                f"Image {index} has {len(masks)} masks and {len(labels)} class labels; give one label a mask."
            )
        for label in labels.tolist():
            if label != int(label) or label < 0 or (num_labels is not None and label >= num_labels):
                raise ValueError(
                    f"class_labels[{index}] holds {label}, which is no class"
                    + (f": num_labels is {num_labels}." if num_labels is not None else ": labels count from 0.")
                    + " Leave out masks that belong to no class."
                )
        binary = as_binary(masks, f"mask_labels[{index}]")
        targets.append(ImageTarget(binary, labels.to(image.device, torch.int64)))
    return targets


def add_targets(features: BatchFeature, targets: list[tuple[Tensor, Tensor]]) -> None:
    """Adds masks and classes of each image or clip, as lists, since these differ in the number of targets.

    They are numpy arrays where the batch is one of numpy arrays, and tensors otherwise.
    """
    as_numpy = not isinstance(features["pixel_values"], Tensor)
    features["mask_labels"] = [masks.numpy(force=True) if as_numpy else masks for masks, _ in targets]
    features["class_labels"] = [labels.numpy(force=True) if as_numpy else labels for _, labels in targets]


def as_binary(masks: Tensor, name: str) -> Tensor:
    """Masks of zeros and ones as bool; a ValueError for other values."""
    binary = masks.bool()
    if not bool((masks == binary).all()):
        value = masks[masks != binary][0].item()
        raise ValueError(f"{name} holds {value}; masks are of zeros and ones, padding included.")
    return binary


def _one_entry_an_image(values: Any, name: str, count: int, entry_ndim: int) -> list[Any]:
    """A list of `count` entries; a single entry for a single image needs no list."""
    single = is_source(values) or getattr(values, "ndim", None) == entry_ndim
    entries = [values] if single else list(values)
    if len(entries) != count:
        raise ValueError(f"{name} has {len(entries)} entries for {count} images; give one an image.")
    return entries


def _whole_numbers(segmentation: Tensor, index: int, image: Tensor) -> Tensor:
    """A map of the size of its image, (H, W) int64 on its device."""
    pixels = segmentation
    if pixels.shape != image.shape[-2:]:
        raise ValueError(
            f"Segmentation map {index} has shape {tuple(pixels.shape)} and its image is {size_of(image)} "
            "(height, width); give a map of ids of the image's size. The ids of COCO's coloured panoptic files are "
            "R + 256 G + 65536 B."
        )
    whole = pixels.to(image.device, torch.int64)
    if pixels.is_floating_point() and not bool((pixels.to(image.device) == whole).all()):
        raise ValueError(f"Segmentation map {index} holds fractions; give whole numbers.")
    return whole


def _class_of_segment(segment_id: int, mapping: dict[int, int] | None, index: int, rules: LabelRules) -> int | None:
    """The class of an id of map `index`, None for void."""
    if mapping is None:
        semantic_id = segment_id
    elif segment_id in mapping:
        semantic_id = int(mapping[segment_id])
    elif segment_id == 0:
        return None  # void in maps of segment ids
    else:
        raise ValueError(
            f"Segmentation map {index} holds id {segment_id}, which instance_id_to_semantic_id does not have "
            f"(it has {_some(mapping)}); add it, or map it to ignore_index if it is void."
        )
    label = _class_of_label(semantic_id, rules)
    num_labels = rules.num_labels
    if label is not None and (label < 0 or (num_labels is not None and label >= num_labels)):
        raise ValueError(
            f"Segmentation map {index} holds label {semantic_id}, which is no class: "
            + (f"num_labels is {num_labels}" if num_labels is not None else "labels count from 0")
            + (", after label 0 has become void (do_reduce_labels)" if rules.do_reduce_labels else "")
            + f". Set ignore_index={semantic_id} if it means void, or correct num_labels."
        )
    return label


def _class_of_label(semantic_id: int, rules: LabelRules) -> int | None:
    """The class that a semantic id stands for, None for void."""
    if semantic_id == rules.ignore_index:
        return None
    if not rules.do_reduce_labels:
        return semantic_id
    # 8-bit maps mark void by 255 whatever else they do; only where label 255 exists can it be a class.
    if semantic_id == 0 or (semantic_id == 255 and (rules.num_labels is None or rules.num_labels <= 254)):
        return None
    return semantic_id - 1


def _some(mapping: dict[int, int]) -> str:
    ids = sorted(mapping)
    return ", ".join(str(index) for index in ids[:8]) + (", ..." if len(ids) > 8 else "") if ids else "none"
