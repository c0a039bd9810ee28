"""From photos to segments: `predict`."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..models.configuration_per_pixel import MaskFormerHfPerPixelConfig
from ..models.configuration_video import MaskFormerHfVideoConfig
from ..models.image_processing_maskformer import MaskFormerHfImageProcessor
from .batches import forward_batch
from .images import ImageInput, crop_image, image_size, read_image
from .load import Model
from .prediction import TASKS, Prediction, Task, outputs_to_predictions
from .tiles import TileMerger, scale_windows, tile_windows


@torch.inference_mode()
def predict(
    model: Model,
    processor: MaskFormerHfImageProcessor,
    images: ImageInput | Iterable[ImageInput],
    *,
    task: Task | None = None,
    batch_size: int = 1,
    target_sizes: Literal["original"] | Sequence[tuple[int, int]] = "original",
    threshold: float | None = None,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float | None = None,
    label_ids_to_fuse: Collection[int] | None = None,
    max_instances: int | None = None,
    tile_size: int | None = None,
    tile_overlap: int | None = None,
    progress: bool = False,
) -> list[Prediction]:
    """Segment photos of any sizes, in the given order. An image gives the same answer alone or in company.

    Only images which the processor pads to the same size share a batch, because more padding would change an answer.
    Images are read as they are needed; at most `batch_size` of each padded size are in memory.

    A photo larger than `tile_size` is cut into overlapping tiles. The processor treats each as a photo of its own, so
    the tiles of a photo of any size come at one scale, and its `size` says at which. What the tiles give becomes one
    result of the photo (`tiles.py` says how), and memory does not grow with their number.

    Args:
        images: One or many: a path, a PIL image, an array or a tensor ((H, W, C) or (C, H, W), 0 to 255).
        task: What the checkpoint was trained for (`config.task`) if None.
        batch_size: Images, or tiles, that run together.
        target_sizes: The size of the photo, or a (height, width) for each image.
        threshold: Least score of a segment: `config.object_mask_threshold` (panoptic) or `config.instance_threshold`
            if None.
        mask_threshold: Probability from which on a pixel belongs to a mask.
        overlap_mask_area_threshold: A panoptic segment goes if less than this part of its mask is left by better ones;
            `config.overlap_mask_area_threshold` if None.
        label_ids_to_fuse: Stuff classes, one panoptic segment each; `config.label_ids_to_fuse` if None.
        max_instances: Of the best pairs of query and class, in an image or tile, so many can become instances; 100, or
            the number of queries if that is larger, if None.
        tile_size: Side of a tile in pixels of the photo; 0 never cuts. `processor.tile_size` if None, which travels
            with a checkpoint, and unless set never cuts.
        tile_overlap: Least number of pixels that neighbouring tiles share, 0 to half of `tile_size`. An object no wider
            is complete in one tile. `processor.tile_overlap` if None, or else a quarter of `tile_size`.
        progress: Show a progress bar: of the images if there are several, and of the tiles of each.

    Raises:
        ValueError: An image that cannot be read, an unknown task, as many `target_sizes` as there are images not given.
    """
    single = isinstance(images, str | Path | Image.Image | np.ndarray | torch.Tensor)
    if single:
        images = [images]
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    task = check_task(task, model)
    tile_size, tile_overlap = _tile_options(processor, tile_size, tile_overlap)
    options = {
        "task": task,
        "threshold": threshold,
        "mask_threshold": mask_threshold,
        "overlap_mask_area_threshold": overlap_mask_area_threshold,
        "label_ids_to_fuse": label_ids_to_fuse,
        "max_instances": max_instances,
    }
    results: dict[int, Prediction] = {}
    unfinished: dict[int, tuple[TileMerger, set[int]]] = {}
    waiting: dict[torch.Size, list[_Input]] = {}

    def run(batch: list[_Input]):
        outputs = forward_batch(model, [item.inputs for item in batch])
        sizes = [item.size for item in batch]
        for item, prediction in zip(batch, outputs_to_predictions(model, outputs, sizes, **options), strict=True):
            if item.tile is None:
                results[item.image] = prediction
                continue
            merger, missing = unfinished[item.image]
            merger.add(item.tile, prediction.segments, prediction.segmentation, prediction.masks)
            missing.remove(item.tile)
            if not missing:
                del unfinished[item.image]
                segments, segmentation, crops = merger.result()
                results[item.image] = Prediction(task, merger.size, segments, segmentation, crops=crops)

    was_training = model.training
    model.eval()
    try:
        for index, source in enumerate(tqdm(images, desc="Segmenting", unit="image", disable=not progress or single)):
            image = read_image(source, model.config.num_channels)
            photo_size = image_size(image, model.config.num_channels)
            size = photo_size
            if target_sizes != "original":
                if index >= len(target_sizes):
                    raise ValueError(f"There are more images than the {len(target_sizes)} given in `target_sizes`.")
                height, width = target_sizes[index]
                size = (int(height), int(width))
            windows = tile_windows(photo_size, tile_size, tile_overlap) if tile_size else []
            if len(windows) > 1:
                targets = scale_windows(windows, photo_size, size)
                stuff = model.config.label_ids_to_fuse if label_ids_to_fuse is None else label_ids_to_fuse
                unfinished[index] = TileMerger(task, targets, stuff or ()), set(range(len(windows)))
                parts = [
                    (tile, window, (target.bottom - target.top, target.right - target.left))
                    for tile, (window, target) in enumerate(zip(windows, targets, strict=True))
                ]
            else:
                parts = [(None, None, size)]
            hidden = not progress or len(parts) == 1
            for tile, window, target in tqdm(parts, desc="Tiles", unit="tile", leave=single, disable=hidden):
                part = image if window is None else crop_image(image, window, model.config.num_channels)
                inputs = processor.preprocess([part], return_tensors="pt")
                batch = waiting.setdefault(inputs["pixel_values"].shape, [])
                batch.append(_Input(index, tile, dict(inputs), target))
                if len(batch) == batch_size:
                    run(waiting.pop(inputs["pixel_values"].shape))
        for batch in waiting.values():
            run(batch)
    finally:
        model.train(was_training)
    return [results[index] for index in range(len(results))]


class _Input(NamedTuple):
    """An image, or a tile of it, that waits for a batch; `size` is that of its result."""

    image: int
    tile: int | None
    inputs: dict[str, torch.Tensor]
    size: tuple[int, int]


def _tile_options(processor: Any, tile_size: int | None, tile_overlap: int | None) -> tuple[int, int]:
    """Size and overlap of tiles, from the processor if None; 0 is no tiles."""
    if tile_size is None:
        tile_size = getattr(processor, "tile_size", None) or 0
        tile_overlap = getattr(processor, "tile_overlap", None) if tile_overlap is None else tile_overlap
    if tile_size < 0:
        raise ValueError(f"`tile_size` is {tile_size}: give the side of a tile in pixels, or 0 for no tiles.")
    if tile_overlap is None:
        tile_overlap = tile_size // 4
    if not 0 <= 2 * tile_overlap <= tile_size and tile_size:
        raise ValueError(f"`tile_overlap` is {tile_overlap}: it must be 0 to {tile_size // 2}, half of `tile_size`.")
    return tile_size, tile_overlap


def check_task(task: str | None, model: Model) -> Task:
    """The task, or the one the model was trained for if None; a ValueError if there is no such task."""
    if model.config.model_type == MaskFormerHfVideoConfig.model_type:
        raise ValueError("This is a model of videos: use `maskformer_hf.predict_video`, with one frame for an image.")
    task = model.config.task if task is None else task
    if model.config.model_type == MaskFormerHfPerPixelConfig.model_type and task != "semantic":
        raise ValueError(
            f"A per-pixel baseline gives every pixel a class and knows no segments: `task` must be 'semantic', got "
            f"{task!r}."
        )
    if task not in TASKS:
        raise ValueError(f"`task` must be one of {list(TASKS)}, got {task!r}.")
    return task
