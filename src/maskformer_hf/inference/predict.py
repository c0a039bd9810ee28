"""From photos to segments: `predict`."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import torch
from tqdm import tqdm

from ..models.image_processing_maskformer import MaskFormerHfImageProcessor
from ..models.result_options import TASKS, ResultOptions
from .batches import padded_size, same_size_batches, slice_outputs
from .images import ImageInput, Reading, image_size, is_image, read_image, reading_of
from .load import Model
from .plans import Plan, Request, View, make_plan
from .prediction import Prediction, Task
from .views_of_models import in_evaluation_mode
from .windows import Tiling


class PredictOptions(TypedDict, total=False):
    """How outputs become segments. What is not given, or None, is as the checkpoint says.

    threshold: Least score of a segment: `config.object_mask_threshold` (panoptic) or `config.instance_threshold`.
    mask_threshold: Probability from which on a pixel belongs to a mask; 0.5.
    overlap_mask_area_threshold: A panoptic segment goes if better ones leave less than this part of its mask.
    stuff_threshold, stuff_overlap_mask_area_threshold: The same for `label_ids_to_fuse`, if those have others.
    label_ids_to_fuse: Stuff classes, one panoptic segment each.
    max_instances: In each image or tile, so many of the best pairs of query and class can become instances; 100, or the
        number of queries if that is larger.
    duplicate_iou: An instance whose IoU with a better one of its class is larger is left out.
    intersect_with_mask: Whether a panoptic segment keeps only pixels that its own mask has.
    merging: How panoptic segments share the pixels: "argmax", or "mask_wise" as in Panoptic SegFormer. With one that is
        not the checkpoint's, `threshold` is 0.8 or 0.3, as in the papers.
    resize: What semantic results bring to the size of the photo: mask "logits", or class "scores"; "logits".
    tile_size: Side of a tile in pixels of the photo; 0 never cuts. `processor.tile_size`, if the checkpoint has one.
    tile_overlap: Least number of pixels that neighbouring tiles share, 0 to half of `tile_size`. An object no wider is
        complete in one tile. `processor.tile_overlap`, or else a quarter of `tile_size`.
    max_pixels: Most pixels of a file that is opened. Pillow's limit, which is 178,956,970.
    inference_layers, inference_encoder_layers: So many layers of the transformer decoder, and of the pixel decoder's
        encoder, run. Fewer are faster, and less exact.
    """

    threshold: float | None
    mask_threshold: float | None
    overlap_mask_area_threshold: float | None
    stuff_threshold: float | None
    stuff_overlap_mask_area_threshold: float | None
    label_ids_to_fuse: Collection[int] | None
    max_instances: int | None
    duplicate_iou: float | None
    intersect_with_mask: bool | None
    merging: str | None
    resize: Literal["logits", "scores"] | None
    tile_size: int | None
    tile_overlap: int | None
    max_pixels: int | None
    inference_layers: int | None
    inference_encoder_layers: int | None


@torch.inference_mode()
def predict(
    model: Model,
    processor: MaskFormerHfImageProcessor,
    images: ImageInput | Iterable[ImageInput],
    *,
    task: Task | None = None,
    batch_size: int = 1,
    target_sizes: Literal["original"] | Sequence[tuple[int, int]] = "original",
    plan: str | None = None,
    progress: bool = False,
    **options: Unpack[PredictOptions],
) -> list[Prediction]:
    """Segment photos of any sizes, in the given order. An image gives the same answer alone or in company.

    Images are read as they are needed; at most `batch_size` of each padded size are in memory. A photo larger than
    `tile_size` is cut into overlapping tiles, whose results become one result of the photo.

    Args:
        images: One or many: a path, a URL, bytes, an open file, a PIL image, an array or a tensor (of any dtype and
            order of channels). docs/images.md says what becomes of each.
        task: None is what the checkpoint was trained for, `config.task`.
        batch_size: Images, or tiles, that run together.
        target_sizes: "original", which is the size of the photo, or a (height, width) for each image.
        plan: How the model sees a photo: "whole", "tiles", or a name that was registered. None is "tiles" where there
            is a `tile_size`, and else "whole".
        progress: Show a progress bar: of the images if there are several, and of the tiles of each.
        options: See [`PredictOptions`].

    Raises:
        ValueError: An image that cannot be read, fewer `target_sizes` than images, an unknown task, plan or option.
    """
    single = is_image(images)
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    names = PredictOptions.__annotations__
    for name in options:
        if name not in names:
            raise ValueError(f"`predict` has no option {name!r}: there are {', '.join(names)}.")
    given: dict[str, Any] = {**options}
    tiling = Tiling.of(processor, given.pop("tile_size", None), given.pop("tile_overlap", None))
    reading = reading_of(processor, given.pop("max_pixels", None))
    layers = {name: given.pop(name, None) for name in ("inference_layers", "inference_encoder_layers")}
    result_options = ResultOptions.of(model.config, check_task(task, model), **given)
    sources: Any = [images] if single else images
    bar = tqdm(sources, desc="Segmenting", unit="image", disable=not progress or single)
    model = in_evaluation_mode(model, **layers)
    requests = (
        Request(model, processor, image, size, result_options, tiling)
        for image, size in _read_images(bar, target_sizes, reading)
    )
    return _run(model, (make_plan(plan, request) for request in requests), batch_size, progress, leave=single)


def _read_images(
    sources: Iterable[ImageInput], target_sizes: Literal["original"] | Sequence[tuple[int, int]], reading: Reading
) -> Iterator[tuple[torch.Tensor, tuple[int, int]]]:
    """Images, and the height and width of their results."""
    for index, source in enumerate(sources):
        image = read_image(source, f"Image {index}", reading)
        size = image_size(image)
        if target_sizes != "original":
            if index >= len(target_sizes):
                raise ValueError(f"There are more images than the {len(target_sizes)} given in `target_sizes`.")
            height, width = target_sizes[index]
            size = (int(height), int(width))
        yield image, size


class _Waiting(NamedTuple):
    """A view that waits for a batch."""

    image: int
    plan: Plan
    number: int
    view: View

    @property
    def batch_key(self) -> Any:
        return self.view.forward, padded_size(self.view.inputs)


def _run(model: Model, plans: Iterable[Plan], batch_size: int, progress: bool, leave: bool) -> list[Prediction]:
    """The results of the plans, in their order."""
    missing: dict[int, int] = {}
    results: dict[int, Prediction] = {}

    def views() -> Iterator[_Waiting]:
        for image, plan in enumerate(plans):
            missing[image] = plan.num_views
            bar = tqdm(
                plan.views(),
                desc=f"{plan.unit.capitalize()}s",
                total=plan.num_views,
                unit=plan.unit,
                leave=leave,
                disable=not progress or plan.num_views == 1,
            )
            for number, view in enumerate(bar):
                yield _Waiting(image, plan, number, view)

    for batch in same_size_batches(views(), lambda item: item.batch_key, batch_size):
        outputs = batch[0].view.forward(model, [item.view.inputs for item in batch])
        for position, item in enumerate(batch):
            item.plan.add(item.number, slice_outputs(outputs, position))
            missing[item.image] -= 1
            if not missing[item.image]:
                results[item.image] = item.plan.result()
    return [results[image] for image in range(len(results))]


def check_task(task: str | None, model: Model) -> Task:
    """The task, or the one the model was trained for if None.

    Raises:
        ValueError: No such task, or a model that cannot do it.
    """
    if model.config.kind == "clip":
        raise ValueError("This is a model of videos: use `maskformer_hf.predict_video`, with one frame for an image.")
    task = model.config.task if task is None else task
    if model.config.is_per_pixel and task != "semantic":
        raise ValueError(
            f"A per-pixel baseline gives every pixel a class and knows no segments: `task` must be 'semantic', got "
            f"{task!r}."
        )
    if task not in TASKS:
        raise ValueError(f"`task` must be one of {list(TASKS)}, got {task!r}.")
    return task
