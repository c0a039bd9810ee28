"""Images and targets to tensors, and outputs to segmentations, for the MaskFormer family.

As in the original, an image keeps its aspect ratio and is padded on the right and at the bottom with zeros after
normalisation. transformers' MaskFormer and Mask2Former instead stretch each side to a multiple of `size_divisor`; for
checkpoints that come with such a preprocessor_config.json this is kept (`round_to_divisor=True`), so that the pixel
values are theirs.
"""

import math
import os
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
    load_image,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import logging, requires_backends

from .post_processing import (
    encode_coco_rle,
    flatten_instances,
    image_geometries,
    instance_segmentation,
    is_per_pixel,
    keep_instances,
    panoptic_segmentation,
    per_pixel_scores,
    per_pixel_segmentation,
    semantic_scores,
    semantic_segmentation,
    without_duplicates,
)
from .remote_code import CodeOnTheHub
from .resize import resize_nearest

try:
    from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
except ImportError:  # transformers before 5.23
    SemanticSegmentationPostProcessorOutput = BatchFeature


logger = logging.get_logger(__name__)

# What transformers writes as image_processor_type (feature_extractor_type before 4.26) for processors that round sides.
ROUNDING_PROCESSORS = tuple(
    f"{model}{suffix}"
    for model in ("MaskFormer", "Mask2Former")
    for suffix in ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
)


class MaskFormerHfImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    ignore_index (`int`, *optional*): Semantic id of pixels that belong to nothing. They are background of every mask.
        Never compared with instance ids.
    do_reduce_labels (`bool`, *optional*, defaults to `False`): Whether semantic id 0 of a segmentation map is void
        and the others count from 1, as in ADE20K. 255 is void as well, unless more than 254 labels are declared.
    num_labels (`int`, *optional*):
        Number of classes; labels are checked against it.
    size_divisor (`int`, *optional*, defaults to 32):
        Height and width of `pixel_values` are multiples of it; 0 pads to the largest image of the batch only.
    round_to_divisor (`bool`, *optional*, defaults to `False`):
        Whether images are stretched to multiples of `size_divisor` instead of padded.
    label_ids_to_fuse (`list[int]`, *optional*):
        Stuff: classes of which a picture has one segment at most. Default of the post-processing functions.
    return_void_masks (`bool`, *optional*, defaults to `False`):
        Whether `void_masks` come with the targets: where an image belongs to nothing, for losses that leave it out.
    tile_size (`int`, *optional*):
        Side in pixels of the tiles into which `maskformer_hf.predict` cuts larger images; the processor itself never
        cuts. None or 0 is no tiles.
    tile_overlap (`int`, *optional*):
        Least number of pixels that neighbouring tiles share, at most half of `tile_size`; a quarter of it if None.
    """

    ignore_index: int | None
    do_reduce_labels: bool
    num_labels: int | None
    size_divisor: int
    round_to_divisor: bool
    label_ids_to_fuse: list[int] | None
    return_void_masks: bool
    tile_size: int | None
    tile_overlap: int | None


class MaskFormerHfImageProcessor(CodeOnTheHub, TorchvisionBackend):
    """Prepares images and targets for, and reads the outputs of, the models of this package.

    Images are PIL images, numpy arrays, torch tensors (channels first or last), paths or URLs, one or several, with
    as many channels as `image_mean` has entries.
    """

    valid_kwargs = MaskFormerHfImageProcessorKwargs
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 800, "longest_edge": 1333}  # noqa: RUF012
    default_to_square = False
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012
    ignore_index = None
    do_reduce_labels = False
    num_labels = None
    size_divisor = 32
    round_to_divisor = False
    label_ids_to_fuse = None
    return_void_masks = False
    tile_size = None
    tile_overlap = None

    def __init__(self, **kwargs: Unpack[MaskFormerHfImageProcessorKwargs]) -> None:
        requires_backends(self, "torchvision")
        options: dict[str, Any] = dict(kwargs)
        # Of a file from the Hub; what is saved from here on must not refer to the code of that repository.
        options.pop("auto_map", None)
        source = {options.pop("image_processor_type", None), options.pop("feature_extractor_type", None)}
        if source & set(ROUNDING_PROCESSORS):
            options.setdefault("round_to_divisor", True)
            # Names that files from before 4.27 have; today's transformers does not use the last one either.
            options.setdefault("do_reduce_labels", options.pop("reduce_labels", None))
            options.pop("size_divisibility", None)
        max_size = options.pop("max_size", options.pop("_max_size", None))
        size = options.pop("size", None)
        if size is None:
            size = {**self.size, **({} if max_size is None else {"longest_edge": max_size})}
        options["size"] = get_size_dict(size, max_size=max_size, default_to_square=False)
        if options.get("label_ids_to_fuse") is not None:
            options["label_ids_to_fuse"] = sorted(int(label) for label in options["label_ids_to_fuse"])
        super().__init__(**options)
        if self.size_divisor < 0:
            raise ValueError(f"size_divisor={self.size_divisor} is negative; 0 switches the rounding off.")

    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: Sequence[dict[int, int]] | dict[int, int] | None = None,
        mask_labels: Any = None,
        class_labels: Any = None,
        **kwargs: Unpack[MaskFormerHfImageProcessorKwargs],
    ) -> BatchFeature:
        """Turns images, and targets if there are any, into model inputs.

        Targets come in one of two forms, each with one entry an image:

        - `segmentation_maps` (H, W) of whole numbers, or paths to such PNG files. Without
          `instance_id_to_semantic_id` their values are semantic ids and every class is one target. With it (one dict
          for all, or one an image) they are segment ids, as in instance and panoptic maps, and every id is one
          target; id 0 is void unless the dict has it.
        - `mask_labels` (N, H, W) of zeros and ones, which may overlap, and `class_labels` (N,). These are final:
          neither `ignore_index` nor `do_reduce_labels` touches them.

        Both are resized with the image (nearest neighbour); masks of which no pixel is left are dropped.

        Returns pixel_values (B, C, H, W) float32, pixel_mask (B, H, W) int64 with 1 = image and 0 = padding, and with
        targets lists mask_labels of (N, H, W) bool, zero in the padding, and class_labels of (N,) int64; with
        `return_void_masks` also void_masks (B, H, W) bool, true where a map says void and false in the padding. Raises
        ValueError for images without pixels, with other channels than `image_mean` or with values that are not
        finite, and for labels that are not classes; the message names the image.
        """
        return super().preprocess(
            images, segmentation_maps, instance_id_to_semantic_id, mask_labels, class_labels, **kwargs
        )

    def _preprocess_image_like_inputs(  # pyrefly: ignore[bad-override]  (the base class has *args here)
        self,
        images: Any,
        segmentation_maps: Any,
        instance_id_to_semantic_id: Any,
        mask_labels: Any,
        class_labels: Any,
        *,
        do_convert_rgb: bool | None,
        input_data_format: Any,
        device: Any,
        do_resize: bool,
        size: SizeDict,
        pad_size: SizeDict | None,
        size_divisor: int,
        round_to_divisor: bool,
        resample: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        ignore_index: int | None,
        do_reduce_labels: bool,
        num_labels: int | None,
        return_void_masks: bool,
        return_tensors: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        originals = [
            self._read_image(image, index, do_convert_rgb, input_data_format, image_mean, device)
            for index, image in enumerate(_flat_list(images))
        ]
        if not originals:
            raise ValueError("There are no images; give at least one.")
        targets = None
        if segmentation_maps is not None:
            if mask_labels is not None or class_labels is not None:
                raise ValueError("Give targets as segmentation_maps or as mask_labels with class_labels, not both.")
            targets = _targets_from_maps(
                segmentation_maps,
                instance_id_to_semantic_id,
                originals,
                ignore_index=ignore_index,
                do_reduce_labels=do_reduce_labels,
                num_labels=num_labels,
            )
        elif mask_labels is not None or class_labels is not None:
            targets = _targets_from_masks(mask_labels, class_labels, originals, num_labels=num_labels)

        processed = []
        for image in originals:
            if do_resize:
                height, width = resized_size(_size_of(image), size, size_divisor if round_to_divisor else 0)
                image = self.resize(image, size=SizeDict(height=height, width=width), resample=resample)
            processed.append(
                self.rescale_and_normalize(image, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            )
        padded_size = _padded_size(processed, pad_size, 0 if round_to_divisor else size_divisor)
        pixel_values = torch.zeros(len(processed), processed[0].shape[0], *padded_size, device=processed[0].device)
        pixel_mask = torch.zeros(len(processed), *padded_size, dtype=torch.int64, device=processed[0].device)
        for index, image in enumerate(processed):
            pixel_values[index, :, : image.shape[1], : image.shape[2]] = image
            pixel_mask[index, : image.shape[1], : image.shape[2]] = 1

        data: dict[str, Any] = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        if targets is None:
            return BatchFeature(data=data, tensor_type=return_tensors)
        sizes = [_size_of(image) for image in processed]
        if return_void_masks:
            void = [target.void_mask(size, padded_size) for target, size in zip(targets, sizes, strict=True)]
            data["void_masks"] = torch.stack(void)
        features = BatchFeature(data=data, tensor_type=return_tensors)
        pairs = [target.masks(size, padded_size) for target, size in zip(targets, sizes, strict=True)]
        # Lists, since images differ in the number of targets.
        as_numpy = str(getattr(return_tensors, "value", return_tensors)) == "np"
        features["mask_labels"] = [masks.numpy(force=True) if as_numpy else masks for masks, _ in pairs]
        features["class_labels"] = [labels.numpy(force=True) if as_numpy else labels for _, labels in pairs]
        return features

    def _read_image(
        self, image: Any, index: int, do_convert_rgb: bool | None, data_format: Any, image_mean: Any, device: Any
    ) -> Tensor:
        """One image of any kind as (C, H, W), uint8 or float32."""
        if isinstance(image, (str, os.PathLike)):
            image = load_image(os.fspath(image))
        if isinstance(image, PIL.Image.Image):
            array = torch.from_numpy(np.array(image.convert("RGB") if do_convert_rgb else image))
            data_format = "channels_last"
        elif isinstance(image, np.ndarray):
            array = torch.from_numpy(np.ascontiguousarray(image))
        elif isinstance(image, Tensor):
            array = image
        else:
            raise ValueError(
                f"Image {index} is a {type(image).__name__}; give a PIL image, an array, a tensor, a path or a URL."
            )
        if array.ndim == 2:
            array, data_format = array[None], "channels_first"
        if array.ndim != 3:
            raise ValueError(f"Image {index} has shape {tuple(array.shape)}; give (C, H, W) or (H, W, C).")
        if array.numel() == 0:
            raise ValueError(f"Image {index} has 0 pixels: its shape is {tuple(array.shape)}. Leave it out.")
        channels = None if isinstance(image_mean, (int, float)) or image_mean is None else len(image_mean)
        if data_format is None:
            data_format = _guess_data_format(array, channels, index)
        if str(getattr(data_format, "value", data_format)) == "channels_last":
            array = array.permute(2, 0, 1)
        if do_convert_rgb and array.shape[0] in (1, 4):
            # As PIL does above: grey is repeated, transparency dropped.
            array = array.expand(3, -1, -1) if array.shape[0] == 1 else array[:3]
        if channels is not None and array.shape[0] != channels:
            raise ValueError(
                f"Image {index} has {array.shape[0]} channels (shape {tuple(array.shape)} as C, H, W) where image_mean "
                f"has {channels}; use do_convert_rgb=True for grey, palette or RGBA images, or give image_mean and "
                "image_std one entry a channel."
            )
        if array.is_floating_point() and not bool(torch.isfinite(array).all()):
            value = array[~torch.isfinite(array)][0].item()
            raise ValueError(f"Image {index} holds {value}; replace values that are not finite before the processor.")
        # torchvision resizes uint8 and float32 on every device.
        array = array if array.dtype == torch.uint8 else array.float()
        return array.contiguous().to(device) if device is not None else array.contiguous()

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        return_segmentation_scores: bool = False,
        *,
        resize: Literal["logits", "scores"] = "logits",
    ) -> list[Any]:
        """Class id of every pixel of each image: (H, W) int64, at `target_sizes` or else at the unpadded input size.

        With `return_segmentation_scores` each entry has `segmentation` and `segmentation_scores` (K, H, W) float32,
        which takes memory. `resize="scores"` computes class scores at the padded input size and resizes these, as the
        original does for models trained for semantic segmentation alone; the default resizes mask logits. The scores of
        a per-pixel model are its logits, and `resize` makes no difference to them.
        """
        get_scores: Any = partial(semantic_scores, resize=resize)
        get_segmentation: Any = partial(semantic_segmentation, resize=resize)
        if is_per_pixel(outputs):
            get_scores, get_segmentation = per_pixel_scores, per_pixel_segmentation
            images: Any = zip(outputs.logits, image_geometries(outputs, target_sizes), strict=True)
        else:
            images = _images_of(outputs, target_sizes)
        results: list[Any] = []
        for image in images:
            if return_segmentation_scores:
                scores = get_scores(*image)
                results.append(
                    SemanticSegmentationPostProcessorOutput(
                        data={"segmentation": scores.argmax(0), "segmentation_scores": scores}
                    )
                )
            else:
                results.append(get_segmentation(*image))
        return results

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        return_coco_annotation: bool | None = False,
        return_binary_maps: bool | None = False,
        *,
        label_ids_to_fuse: Collection[int] | None = None,
        top_k: int = 100,
        duplicate_iou: float | None = None,
    ) -> list[dict[str, Any]]:
        """Instances of each image, best first, as Mask2Former makes them.

        Of the `top_k` best pairs of query and class those stay whose score, class probability times mean mask
        probability inside the mask, reaches `threshold`; masks are where the mask probability exceeds
        `mask_threshold`. Classes in `label_ids_to_fuse` (default: the processor's own) are stuff and give no
        instances. An instance whose IoU with a better one of its class exceeds `duplicate_iou` is left out; by default
        all stay, as in the original.

        Each dict has
        - `segmentation`: by default one map (H, W) int32 of ids from 1, 0 = void, with better scores on top. There an
          instance of which less than `overlap_mask_area_threshold` is visible is left out altogether. With
          `return_binary_maps` the masks (N, H, W) bool, with `return_coco_annotation` a list of pycocotools RLE
          dicts; these may overlap, and `overlap_mask_area_threshold` has no effect on them.
        - `segments_info`: id, label_id, was_fused (False), score, area in pixels of the mask, box (x0, y0, x1, y1) in
          pixels.
        - `masks` (N, H, W) bool, possibly overlapping, and `boxes` (N, 4) float32, in the order of `segments_info`.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError("return_coco_annotation and return_binary_maps exclude each other; choose one.")
        results = []
        for class_logits, mask_logits, geometry in _images_of(outputs, target_sizes):
            instances = instance_segmentation(
                class_logits,
                mask_logits,
                geometry,
                threshold=threshold,
                mask_threshold=mask_threshold,
                top_k=top_k,
                excluded_label_ids=self._fused(label_ids_to_fuse),
            )
            if duplicate_iou is not None:
                instances = without_duplicates(instances, duplicate_iou)
            if return_coco_annotation:
                segmentation: Any = encode_coco_rle(instances.masks)
            elif return_binary_maps:
                segmentation = instances.masks
            else:
                segmentation, drawn = flatten_instances(instances, overlap_mask_area_threshold)
                instances = keep_instances(instances, drawn)
            rows = zip(
                instances.scores.tolist(),
                instances.labels.tolist(),
                instances.areas.tolist(),
                instances.boxes.tolist(),
                strict=True,
            )
            segments = [
                {
                    "id": index + 1,
                    "label_id": label,
                    "was_fused": False,
                    "score": round(score, 6),
                    "area": area,
                    "box": tuple(box),
                }
                for index, (score, label, area, box) in enumerate(rows)
            ]
            results.append(
                {
                    "segmentation": segmentation,
                    "segments_info": segments,
                    "masks": instances.masks,
                    "boxes": instances.boxes,
                }
            )
        return results

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        *,
        intersect_with_mask: bool = False,
    ) -> list[dict[str, Any]]:
        """Panoptic segmentation of each image, as the original MaskFormer makes it.

        `label_ids_to_fuse`: stuff, of which all segments become one; None means the processor's own.
        `intersect_with_mask` cuts each segment to where its own mask probability reaches `mask_threshold`, as
        Mask2Former does.

        Each dict has `segmentation`, (H, W) int32 with ids from 1 and 0 = void, and `segments_info`, one record an id:
        id, label_id, was_fused, score, area in pixels.
        """
        results = []
        for class_logits, mask_logits, geometry in _images_of(outputs, target_sizes):
            segmentation, segments = panoptic_segmentation(
                class_logits,
                mask_logits,
                geometry,
                threshold=threshold,
                mask_threshold=mask_threshold,
                overlap_mask_area_threshold=overlap_mask_area_threshold,
                label_ids_to_fuse=self._fused(label_ids_to_fuse),
                intersect_with_mask=intersect_with_mask,
            )
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results

    def _fused(self, label_ids_to_fuse: Collection[int] | None) -> frozenset[int]:
        return frozenset((self.label_ids_to_fuse or ()) if label_ids_to_fuse is None else label_ids_to_fuse)


class _Target:
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


def resized_size(size: tuple[int, int], wanted: SizeDict, round_up_to: int = 0) -> tuple[int, int]:
    """(height, width) of an image after resizing, by transformers' rules for `size`; then rounded up to a multiple."""
    if wanted.shortest_edge:
        height, width = get_size_with_aspect_ratio(size, wanted.shortest_edge, wanted.longest_edge)
    elif wanted.max_height and wanted.max_width:
        height, width = get_image_size_for_max_height_width(size, wanted.max_height, wanted.max_width)
    elif wanted.height and wanted.width:
        height, width = wanted.height, wanted.width
    else:
        raise ValueError(
            f"size={dict(wanted)} is not understood; give shortest_edge (and longest_edge), height and width, or "
            "max_height and max_width."
        )
    # A side of a very long image can round to 0.
    height, width = max(1, height), max(1, width)
    if round_up_to:
        height, width = (math.ceil(side / round_up_to) * round_up_to for side in (height, width))
    return height, width


def _size_of(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _flat_list(images: Any) -> list[Any]:
    """Nested lists and batches of arrays as one list."""
    if isinstance(images, (list, tuple)):
        return [image for entry in images for image in _flat_list(entry)]
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def _guess_data_format(image: Tensor, channels: int | None, index: int) -> str:
    """First or last dimension, whichever has the wanted number of channels, or else that of a common image."""
    for counts in ((channels,), (1, 3, 4)):
        if image.shape[0] in counts:
            return "channels_first"
        if image.shape[-1] in counts:
            return "channels_last"
    wanted = "1, 3 or 4" if channels is None else f"{channels} by image_mean"
    raise ValueError(
        f"Image {index} has shape {tuple(image.shape)}, in which neither the first nor the last side is the number of "
        f"channels ({wanted}); give image_mean and image_std one entry a channel, or input_data_format."
    )


def _padded_size(images: list[Tensor], pad_size: SizeDict | None, divisor: int) -> tuple[int, int]:
    largest = [max(image.shape[dim] for image in images) for dim in (1, 2)]
    if pad_size is not None:
        if pad_size.height is None or pad_size.width is None:
            raise ValueError(f"pad_size={dict(pad_size)} needs height and width.")
        if pad_size.height < largest[0] or pad_size.width < largest[1]:
            raise ValueError(
                f"pad_size={dict(pad_size)} is smaller than the largest image, {tuple(largest)}; enlarge it."
            )
        return pad_size.height, pad_size.width
    if divisor:
        largest = [math.ceil(side / divisor) * divisor for side in largest]
    return largest[0], largest[1]


def as_tensor(values: Any) -> Tensor:
    if isinstance(values, (str, os.PathLike)):
        with PIL.Image.open(values) as image:
            return torch.from_numpy(np.array(image))
    return values if isinstance(values, Tensor) else torch.as_tensor(np.array(values))


def _one_entry_an_image(values: Any, name: str, count: int, entry_ndim: int) -> list[Any]:
    """A list of `count` entries; a single entry for a single image needs no list."""
    single = isinstance(values, (PIL.Image.Image, str, os.PathLike)) or getattr(values, "ndim", None) == entry_ndim
    entries = [values] if single else list(values)
    if len(entries) != count:
        raise ValueError(f"{name} has {len(entries)} entries for {count} images; give one an image.")
    return entries


def _targets_from_maps(
    maps: Any,
    id_to_class: Any,
    images: list[Tensor],
    *,
    ignore_index: int | None,
    do_reduce_labels: bool,
    num_labels: int | None,
) -> list[_Target]:
    maps = _one_entry_an_image(maps, "segmentation_maps", len(images), 2)
    if id_to_class is None or isinstance(id_to_class, dict):
        id_to_class = [id_to_class] * len(images)
    elif len(id_to_class) != len(images):
        raise ValueError(
            f"instance_id_to_semantic_id has {len(id_to_class)} dicts for {len(images)} images; give one for all "
            "or one an image."
        )
    targets = []
    for index, (segmentation, mapping, image) in enumerate(zip(maps, id_to_class, images, strict=True)):
        pixels = as_tensor(segmentation)
        if pixels.ndim == 3 and 1 in (pixels.shape[0], pixels.shape[-1]):
            pixels = pixels.squeeze(0) if pixels.shape[0] == 1 else pixels.squeeze(-1)
        if pixels.shape != image.shape[-2:]:
            raise ValueError(
                f"Segmentation map {index} has shape {tuple(pixels.shape)} and its image is {_size_of(image)} "
                "(height, width); give a map of ids of the image's size. The ids of COCO's coloured panoptic files are "
                "R + 256 G + 65536 B."
            )
        whole = pixels.to(image.device, torch.int64)
        if pixels.is_floating_point() and not bool((pixels.to(image.device) == whole).all()):
            raise ValueError(f"Segmentation map {index} holds fractions; give whole numbers.")
        classes: dict[int, int] = {}
        for segment_id in torch.unique(whole).tolist():
            if mapping is None:
                semantic_id = segment_id
            elif segment_id in mapping:
                semantic_id = int(mapping[segment_id])
            elif segment_id == 0:
                continue  # void in maps of segment ids
            else:
                raise ValueError(
                    f"Segmentation map {index} holds id {segment_id}, which instance_id_to_semantic_id does not have "
                    f"(it has {_some(mapping)}); add it, or map it to ignore_index if it is void."
                )
            label = _class_of(semantic_id, ignore_index, do_reduce_labels, num_labels)
            if label is None:
                continue
            if label < 0 or (num_labels is not None and label >= num_labels):
                raise ValueError(
                    f"Segmentation map {index} holds label {semantic_id}, which is no class: "
                    + (f"num_labels is {num_labels}" if num_labels is not None else "labels count from 0")
                    + (", after label 0 has become void (do_reduce_labels)" if do_reduce_labels else "")
                    + f". Set ignore_index={semantic_id} if it means void, or correct num_labels."
                )
            classes[segment_id] = label
        targets.append(_Target(whole, classes))
    return targets


def _class_of(semantic_id: int, ignore_index: int | None, do_reduce_labels: bool, num_labels: int | None) -> int | None:
    """The class that a semantic id stands for, None for void."""
    if semantic_id == ignore_index:
        return None
    if not do_reduce_labels:
        return semantic_id
    # 8-bit maps mark void by 255 whatever else they do; only where label 255 exists can it be a class.
    if semantic_id == 0 or (semantic_id == 255 and (num_labels is None or num_labels <= 254)):
        return None
    return semantic_id - 1


def _targets_from_masks(
    mask_labels: Any, class_labels: Any, images: list[Tensor], *, num_labels: int | None
) -> list[_Target]:
    if mask_labels is None or class_labels is None:
        raise ValueError("mask_labels and class_labels belong together; give both.")
    mask_labels = _one_entry_an_image(mask_labels, "mask_labels", len(images), 3)
    class_labels = _one_entry_an_image(class_labels, "class_labels", len(images), 1)
    targets = []
    for index, (masks, labels, image) in enumerate(zip(mask_labels, class_labels, images, strict=True)):
        size = _size_of(image)
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
        binary = masks.bool()
        if not bool((masks == binary).all()):
            value = masks[masks != binary][0].item()
            raise ValueError(f"mask_labels[{index}] holds {value}; masks are of zeros and ones, padding included.")
        for label in labels.tolist():
            if label != int(label) or label < 0 or (num_labels is not None and label >= num_labels):
                raise ValueError(
                    f"class_labels[{index}] holds {label}, which is no class"
                    + (f": num_labels is {num_labels}." if num_labels is not None else ": labels count from 0.")
                    + " Leave out masks that belong to no class."
                )
        targets.append(_Target(binary, labels.to(image.device, torch.int64)))
    return targets


def _some(mapping: dict[int, int]) -> str:
    ids = sorted(mapping)
    return ", ".join(str(index) for index in ids[:8]) + (", ..." if len(ids) > 8 else "") if ids else "none"


def _images_of(outputs: Any, target_sizes: Any) -> list[tuple[Tensor, Tensor, Any]]:
    if is_per_pixel(outputs):
        raise ValueError(
            "These are outputs of a per-pixel model, which knows no masks of its own: only "
            "`post_process_semantic_segmentation` can read them."
        )
    if outputs.masks_queries_logits.dim() == 5:
        raise ValueError(
            "These are outputs of a video model: only `post_process_instance_segmentation` of "
            "`MaskFormerHfVideoProcessor` can read them."
        )
    geometries = image_geometries(outputs, target_sizes)
    return list(zip(outputs.class_queries_logits, outputs.masks_queries_logits, geometries, strict=True))


__all__ = ["MaskFormerHfImageProcessor", "MaskFormerHfImageProcessorKwargs"]
