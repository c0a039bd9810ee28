"""From photos to segments: `load` a checkpoint, `predict` with it.

Shapes: B images, Q queries, K classes, N instances, H W pixels of the photo.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from .models.configuration_per_pixel import MaskFormerHfPerPixelConfig
from .models.configuration_video import MaskFormerHfVideoConfig
from .models.image_geometry import is_per_pixel
from .models.image_processing_maskformer import MaskFormerHfImageProcessor
from .models.modeling_auto import MODEL_CLASSES, model_class_of, processor_class_of
from .models.modeling_maskformer import MaskFormerHfForUniversalSegmentation
from .models.modeling_per_pixel import MaskFormerHfPerPixelBaseline
from .models.result_options import ResultOptions
from .models.results import iterate_results
from .models.saved_facts import copy_facts
from .tiles import TileMerger, Window, scale_windows, tile_windows

Task = Literal["semantic", "instance", "panoptic"]
TASKS: tuple[Task, ...] = ("semantic", "instance", "panoptic")
Model = MaskFormerHfForUniversalSegmentation | MaskFormerHfPerPixelBaseline
ImageInput = str | Path | Image.Image | np.ndarray | torch.Tensor

CHECKPOINTS = Path(__file__).parent / "checkpoints"
DEFAULT_CHECKPOINT = "street"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Prediction:
    """What was found in one photo of H x W pixels. Tensors are on the CPU.

    Attributes:
        task: "semantic", "instance" or "panoptic".
        size: (H, W).
        segments: One dictionary a segment: `id`, `label_id`, `label`, `score` (0 to 1), `area` (pixels). The largest
            comes first; for instances the best score, and they have a `box` (left, top, right, bottom in pixels).
        segmentation: (H, W) int. Semantic: class ids, which are the segments' ids too. Panoptic: segment ids from 1,
            0 is void. None for instances.
        masks: (N, H, W) bool for instances, which may overlap: `masks[i]` is `segments[i]`. None otherwise. Of a photo
            in tiles it is put together when asked for; `mask` gives one of thousands without the others.
    """

    def __init__(
        self,
        task: Task,
        size: tuple[int, int],
        segments: list[dict[str, Any]] | None = None,
        segmentation: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        crops: list[torch.Tensor] | None = None,
    ) -> None:
        """`crops` may take the place of `masks`: of each segment what lies in its box, (height, width) bool."""
        self.task = task
        self.size = size
        self.segments = segments or []
        self.segmentation = segmentation
        self._masks = masks
        self._crops = crops

    def __repr__(self) -> str:
        return f"Prediction({self.task!r}, {self.size}, {len(self.segments)} segments)"

    @property
    def masks(self) -> torch.Tensor | None:
        if self._crops is None:
            return self._masks
        masks = torch.zeros((len(self.segments), *self.size), dtype=torch.bool)
        for segment, mask in zip(self.segments, masks, strict=True):
            self._paste(segment, mask)
        return masks

    def mask(self, segment: dict[str, Any]) -> torch.Tensor:
        """The pixels of one of `segments`: (H, W) bool."""
        if self._crops is not None:
            return self._paste(segment, torch.zeros(self.size, dtype=torch.bool))
        if self._masks is not None:
            return self._masks[segment["id"] - 1]
        assert self.segmentation is not None
        return self.segmentation == segment["id"]

    def _paste(self, segment: dict[str, Any], mask_HW: torch.Tensor) -> torch.Tensor:
        assert self._crops is not None
        left, top, right, bottom = (int(side) for side in segment["box"])
        mask_HW[top:bottom, left:right] = self._crops[segment["id"] - 1]
        return mask_HW


def bundled_checkpoints() -> dict[str, Path]:
    """Names of the checkpoints that come with the package, and their folders."""
    return {path.parent.name: path.parent for path in sorted(CHECKPOINTS.glob("*/config.json"))}


def checkpoint_path(name_or_path: str | Path) -> str:
    """Where `from_pretrained` finds a checkpoint: the folder of a bundled one, a local folder, or a Hub name as it is.

    Raises:
        ValueError: There is no such folder, and the name is neither bundled nor the shape of a Hub name.
    """
    name = str(name_or_path)
    bundled = bundled_checkpoints()
    if name in bundled:
        return str(bundled[name])
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"The folder {name!r} holds no config.json, so it is no checkpoint.")
        return str(path)
    is_local = path.exists() or path.is_absolute() or name.startswith((".", "~"))
    if is_local or name.count("/") != 1 or name.endswith("/"):
        raise ValueError(
            f"There is no checkpoint {name!r}: give the name of a bundled one "
            f"({', '.join(bundled) or 'this installation has none'}), a folder, or a Hub name such as "
            "'facebook/maskformer-swin-base-ade'."
        )
    return name


def load(
    name_or_path: str | Path = DEFAULT_CHECKPOINT,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[Model, MaskFormerHfImageProcessor]:
    """A model ready for `predict`, and its image processor.

    Args:
        name_or_path: A bundled checkpoint (see `bundled_checkpoints`), a folder, or a Hub name; checkpoints of
            transformers' MaskFormer and Mask2Former are read too.
        device: CUDA where there is one, else the CPU, if None.
        dtype: float32 if None, whatever the weights are stored in; or "bfloat16", "float16" and their short names.

    Raises:
        ValueError: No such checkpoint or device; a file that is damaged or not what it should be; a weight that is
            missing (it would be random) or not finite.
    """
    path = checkpoint_path(name_or_path)
    device = _resolve_device(device)
    dtype = _resolve_dtype(dtype)
    if Path(path).is_dir():
        _check_json(Path(path) / "config.json")
    try:
        model, loading = model_class_of(path).from_pretrained(path, dtype=dtype, output_loading_info=True)
        processor = processor_class_of(model.config).from_pretrained(path)
        copy_facts(model.config, processor)
    except (OSError, ValueError, StrictDataclassError) as error:
        # A strict dataclass names the check that failed in its first line; what the check said is the cause.
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
        raise ValueError(f"Checkpoint {str(name_or_path)!r} cannot be loaded: {_first_line(cause or error)}") from error
    absent = sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"])
    if absent:
        raise ValueError(
            f"Checkpoint {str(name_or_path)!r} lacks {len(absent)} weights of its model, which would stay random "
            f"({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''})."
        )
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"Checkpoint {str(name_or_path)!r}: the weight {name} is not finite (NaN or infinity).")
    # Convolutions of the CPU and of tensor cores run fastest on channels-last memory.
    return model.eval().to(device=device, memory_format=torch.channels_last), processor


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
                part = image if window is None else _crop_image(image, window, model.config.num_channels)
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


def read_image(source: ImageInput, num_channels: int = 3) -> Image.Image | np.ndarray | torch.Tensor:
    """The image as the processor takes it: files and PIL images upright (EXIF) and in RGB, arrays as they are.

    Raises:
        ValueError: No such file, no image, a truncated one, or one with more than 8 bits a channel.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        return source
    name = "The image" if isinstance(source, Image.Image) else repr(str(source))
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        image = ImageOps.exif_transpose(image)
        # Opening reads the header only.
        image.load()
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {name}.") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no image, or none that Pillow reads.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow reports a broken PNG as a SyntaxError.
        raise ValueError(f"{name} cannot be read as an image: {_first_line(error)}") from error
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has more than 8 bits a channel (mode {image.mode}): convert it to 0..255 first.")
    return image.convert("RGB") if num_channels == 3 else image


def image_size(image: Image.Image | np.ndarray | torch.Tensor, num_channels: int = 3) -> tuple[int, int]:
    """Height and width of what `read_image` gives."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    shape = tuple(image.shape)
    if len(shape) == 2:
        return shape
    if len(shape) == 3 and shape[0] == num_channels and shape[2] != num_channels:
        return shape[1], shape[2]
    if len(shape) == 3 and shape[2] == num_channels:
        return shape[0], shape[1]
    raise ValueError(
        f"An image of shape {shape} is none of the model's {num_channels} channels: give (height, width, "
        f"{num_channels}) or ({num_channels}, height, width)."
    )


def _crop_image(
    image: Image.Image | np.ndarray | torch.Tensor, window: Window, num_channels: int
) -> Image.Image | np.ndarray | torch.Tensor:
    """A part of what `read_image` gives."""
    if isinstance(image, Image.Image):
        return image.crop((window.left, window.top, window.right, window.bottom))
    rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
    channels_last = image.ndim == 2 or tuple(image.shape[:2]) == image_size(image, num_channels)
    return image[rows, columns] if channels_last else image[:, rows, columns]


def forward_batch(model: Model, inputs: Sequence[dict[str, torch.Tensor]]) -> Any:
    """Run images of one padded size: `pixel_values` (1, C, H, W) and `pixel_mask` (1, H, W) each."""
    pixel_values = torch.cat([item["pixel_values"] for item in inputs])
    return model(
        pixel_values=pixel_values.to(model.device, model.dtype, memory_format=torch.channels_last),
        pixel_mask=torch.cat([item["pixel_mask"] for item in inputs]).to(model.device),
    )


def slice_outputs(outputs: Any, index: int) -> Any:
    """One image's part of the outputs of a batch, still with a batch dimension."""
    names = ["logits"] if is_per_pixel(outputs) else ["class_queries_logits", "masks_queries_logits"]
    return type(outputs)(**{name: outputs[name][index, None] for name in [*names, "image_sizes", "padded_sizes"]})


def outputs_to_predictions(
    model: Model,
    outputs: Any,
    target_sizes: Sequence[tuple[int, int]],
    *,
    task: Task,
    threshold: float | None = None,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float | None = None,
    label_ids_to_fuse: Collection[int] | None = None,
    max_instances: int | None = None,
) -> list[Prediction]:
    """What `predict` makes of model outputs; the options are its."""
    id2label = {int(label_id): label for label_id, label in (model.config.id2label or {}).items()}
    options = ResultOptions.of(
        model.config,
        task,
        threshold=threshold,
        mask_threshold=mask_threshold,
        overlap_mask_area_threshold=overlap_mask_area_threshold,
        label_ids_to_fuse=label_ids_to_fuse,
        max_instances=max_instances,
    )
    predictions = []
    for size, result in zip(target_sizes, iterate_results(outputs, options, target_sizes), strict=True):
        segments = [
            {
                "id": record["id"],
                "label_id": record["label_id"],
                "label": id2label[record["label_id"]],
                "score": record["score"],
                "area": record["area"],
                **({"box": list(record["box"])} if "box" in record else {}),
            }
            for record in result.segments
        ]
        if task == "panoptic":
            segments.sort(key=lambda segment: -segment["area"])
        segmentation = None if result.segmentation is None else result.segmentation.cpu()
        masks = None if result.masks is None else result.masks.cpu()
        height, width = size
        predictions.append(Prediction(task, (int(height), int(width)), segments, segmentation, masks))
    return predictions


def _resolve_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # What cannot hold a tensor cannot hold a model.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The device {str(device)!r} cannot be used here: {_first_line(error)}") from error


def _resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    resolved = torch.float32 if dtype is None else DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise ValueError(f"`dtype` must be one of {list(DTYPES)}, got {str(dtype)!r}.")
    return resolved


def _check_json(path: Path) -> None:
    """Refuse a configuration that says nothing of a model, before transformers explains it at length."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is no valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("model_type") not in MODEL_CLASSES:
        found = content.get("model_type") if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{str(path)!r} is no configuration of a model of ours: its `model_type` must be one of "
            f"{list(MODEL_CLASSES)}, found {found!r}."
        )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
