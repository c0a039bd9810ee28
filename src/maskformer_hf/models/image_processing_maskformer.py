"""Images and targets to tensors, and outputs to segmentations, for the MaskFormer family.

As in the original, an image keeps its aspect ratio and is padded on the right and at the bottom with zeros after
normalisation. transformers' MaskFormer and Mask2Former instead stretch each side to a multiple of `size_divisor`; for
checkpoints that come with such a preprocessor_config.json this is kept (`round_to_divisor=True`), so that the pixel
values are theirs.
"""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import requires_backends

from .coco_rle import encode_coco_rle
from .image_reading import Reading, list_images, pad_images, padded_size, read_images, resized_size, size_of
from .image_targets import LabelRules, add_targets, read_maps, read_targets, sizes_of_targets
from .remote_code import CheckpointMixin
from .result_options import FACTS, ResultOptions
from .results import class_scores_of, draw_instances, iterate_results
from .saved_facts import facts_beside, take_saved_facts

try:
    from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
except ImportError:  # transformers before 5.23
    SemanticSegmentationPostProcessorOutput = BatchFeature

# Options of `from_pretrained` that say which file of the Hub is meant.
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")

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
    task, object_mask_threshold, overlap_mask_area_threshold, stuff_object_mask_threshold,
    stuff_overlap_mask_area_threshold, instance_threshold, duplicate_iou, intersect_with_mask, panoptic_merging,
    class_scores, mask_values, label_ids_to_fuse (*optional*):
        What the checkpoint says about its results: the fields of its configuration of these names, and the defaults of
        the post-processing functions.
    return_void_masks (`bool`, *optional*, defaults to `False`):
        Whether `void_masks` come with the targets: where an image belongs to nothing, for losses that leave it out.
    max_pixels (`int`, *optional*):
        Most pixels of an image that is opened; None is Pillow's limit.
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
    return_void_masks: bool
    max_pixels: int | None
    tile_size: int | None
    tile_overlap: int | None
    task: str
    object_mask_threshold: float | int
    overlap_mask_area_threshold: float | int
    stuff_object_mask_threshold: float | int | None
    stuff_overlap_mask_area_threshold: float | int | None
    instance_threshold: float | int
    duplicate_iou: float | int | None
    intersect_with_mask: bool
    panoptic_merging: str
    class_scores: str
    mask_values: str
    label_ids_to_fuse: list[int] | None


class MaskFormerHfImageProcessor(CheckpointMixin, TorchvisionBackend):
    """Prepares images and targets for, and reads the outputs of, the models of this package.

    Images are paths, URLs, bytes, open files, PIL images, numpy arrays or torch tensors (channels first or last, any
    dtype), one or several, with as many channels as `image_mean` has entries; where these are 3, anything becomes RGB.
    They are turned as EXIF says, unless targets come with them, and their values mean what `as_8_bits` says.
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
    return_void_masks = False
    max_pixels = None
    tile_size = None
    tile_overlap = None
    task = FACTS["task"]
    object_mask_threshold = FACTS["object_mask_threshold"]
    overlap_mask_area_threshold = FACTS["overlap_mask_area_threshold"]
    stuff_object_mask_threshold = FACTS["stuff_object_mask_threshold"]
    stuff_overlap_mask_area_threshold = FACTS["stuff_overlap_mask_area_threshold"]
    instance_threshold = FACTS["instance_threshold"]
    duplicate_iou = FACTS["duplicate_iou"]
    intersect_with_mask = FACTS["intersect_with_mask"]
    panoptic_merging = FACTS["panoptic_merging"]
    class_scores = FACTS["class_scores"]
    mask_values = FACTS["mask_values"]
    label_ids_to_fuse = FACTS["label_ids_to_fuse"]

    def __init__(self, **kwargs: Unpack[MaskFormerHfImageProcessorKwargs]) -> None:
        requires_backends(self, "torchvision")
        options: dict[str, Any] = dict(kwargs)
        # It names the code of the folder that was read; `save_pretrained` writes what is true of its own.
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

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; where the file has no facts of results, they are those of config.json."""
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        fields, others = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        return {**facts_beside(fields, pretrained_model_name_or_path, **hub), **fields}, others

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
        images = list_images(images)
        fields = {"image_mean": image_mean, "do_rescale": do_rescale, "rescale_factor": rescale_factor}
        reading = Reading.of(self, **fields, **kwargs)
        segmentation_maps = read_maps(segmentation_maps, len(images))
        sizes = sizes_of_targets(segmentation_maps, mask_labels, len(images))
        originals = read_images(images, reading, device, sizes)
        rules = LabelRules(ignore_index, do_reduce_labels, num_labels)
        targets = read_targets(
            segmentation_maps, instance_id_to_semantic_id, mask_labels, class_labels, originals, rules
        )
        processed = []
        for image in originals:
            if do_resize:
                height, width = resized_size(size_of(image), size, size_divisor if round_to_divisor else 0)
                image = self.resize(image, size=SizeDict(height=height, width=width), resample=resample)
            processed.append(
                self.rescale_and_normalize(image, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            )
        padded = padded_size(processed, pad_size, 0 if round_to_divisor else size_divisor)
        data = pad_images(processed, padded)
        if targets is None:
            return BatchFeature(data=data, tensor_type=return_tensors)
        sizes = [size_of(image) for image in processed]
        if return_void_masks:
            void = [target.void_mask(size, padded) for target, size in zip(targets, sizes, strict=True)]
            data["void_masks"] = torch.stack(void)
        features = BatchFeature(data=data, tensor_type=return_tensors)
        add_targets(features, [target.masks(size, padded) for target, size in zip(targets, sizes, strict=True)])
        return features

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As in transformers. Where the folder has a config.json of ours, the facts of results become those of it."""
        take_saved_facts(self, save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

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
        options = ResultOptions.of(self, "semantic", resize=resize)
        if not return_segmentation_scores:
            return [result.segmentation for result in iterate_results(outputs, options, target_sizes)]
        return [
            SemanticSegmentationPostProcessorOutput(
                data={"segmentation": scores.argmax(0), "segmentation_scores": scores}
            )
            for scores in class_scores_of(outputs, options, target_sizes)
        ]

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float | None = None,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float | None = None,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        return_coco_annotation: bool | None = False,
        return_binary_maps: bool | None = False,
        *,
        label_ids_to_fuse: Collection[int] | None = None,
        top_k: int | None = None,
        duplicate_iou: float | None = None,
    ) -> list[dict[str, Any]]:
        """Instances of each image, best first, as Mask2Former makes them.

        The `top_k` best pairs of query and class (100, or the number of queries if that is larger) are looked at. Those
        stay whose score, class probability times mean mask probability inside the mask, reaches `threshold`. Masks are
        where the mask probability exceeds `mask_threshold`. Classes in `label_ids_to_fuse` are stuff and give no
        instances. An instance whose IoU with a better one of its class exceeds `duplicate_iou` is left out.

        What is None is the checkpoint's: `instance_threshold`, `label_ids_to_fuse` and `duplicate_iou` of this
        processor.

        Each dict has
        - `segmentation`: by default one map (H, W) int32 of ids from 1, 0 = void, with better scores on top. With
          `overlap_mask_area_threshold` an instance of which less than this part is visible there is left out
          altogether. With `return_binary_maps` the masks (N, H, W) bool, with `return_coco_annotation` a list of
          pycocotools RLE dicts; these may overlap, and `overlap_mask_area_threshold` has no effect on them.
        - `segments_info`: id, label_id, was_fused (False), score, area in pixels of the mask, box (x0, y0, x1, y1) in
          pixels. With `return_binary_maps` ids count from 0, as what reads these maps indexes them by id.
        - `masks` (N, H, W) bool, possibly overlapping, and `boxes` (N, 4) float32, in the order of `segments_info`.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError("return_coco_annotation and return_binary_maps exclude each other; choose one.")
        options = ResultOptions.of(
            self,
            "instance",
            threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_mask_area_threshold=overlap_mask_area_threshold,
            label_ids_to_fuse=label_ids_to_fuse,
            max_instances=top_k,
            duplicate_iou=duplicate_iou,
        )
        found = []
        for result in iterate_results(outputs, options, target_sizes):
            if return_coco_annotation:
                segmentation: Any = encode_coco_rle(result.masks)  # pyrefly: ignore[bad-argument-type]
            elif return_binary_maps:
                segmentation = result.masks
            else:
                result = draw_instances(result, overlap_mask_area_threshold)
                segmentation = result.segmentation
            segments = [{**segment, "score": round(segment["score"], 6)} for segment in result.segments]
            if return_binary_maps:
                segments = [{**segment, "id": index} for index, segment in enumerate(segments)]
            arrays = {"masks": result.masks, "boxes": result.boxes}
            found.append({"segmentation": segmentation, "segments_info": segments, **arrays})
        return found

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float | None = None,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float | None = None,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        *,
        intersect_with_mask: bool | None = None,
        merging: str | None = None,
    ) -> list[dict[str, Any]]:
        """Panoptic segmentation of each image, as the original makes it.

        What is None is the checkpoint's: `object_mask_threshold`, `overlap_mask_area_threshold`, `label_ids_to_fuse`
        (stuff, of which all segments of a class become one), `intersect_with_mask` and `panoptic_merging` of this
        processor. `intersect_with_mask` cuts each segment to where its own mask probability reaches `mask_threshold`,
        as Mask2Former does. `merging="mask_wise"` paints whole masks, the best first, as Panoptic SegFormer does; with
        a merging that is not the checkpoint's, `threshold` is that of the merging's paper.

        Each dict has `segmentation`, (H, W) int32 with ids from 1 and 0 = void, and `segments_info`, one record an id:
        id, label_id, was_fused, score, area in pixels.
        """
        options = ResultOptions.of(
            self,
            "panoptic",
            threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_mask_area_threshold=overlap_mask_area_threshold,
            label_ids_to_fuse=label_ids_to_fuse,
            intersect_with_mask=intersect_with_mask,
            merging=merging,
        )
        return [
            {"segmentation": result.segmentation, "segments_info": result.segments}
            for result in iterate_results(outputs, options, target_sizes)
        ]


__all__ = ["MaskFormerHfImageProcessor", "MaskFormerHfImageProcessorKwargs"]
