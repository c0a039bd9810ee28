"""Clips and their targets to tensors, and outputs to tracks, for Mask2Former-VIS.

A clip is a video whose frames have one size. Everything that is done to an image is done to each frame, so the options
are those of the image processor; its file, preprocessor_config.json, and transformers' `AutoImageProcessor` and
`AutoVideoProcessor` serve here as well.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import Unpack

from .coco_rle import encode_seen
from .image_files import IMAGE_SUFFIXES, files_in
from .image_geometry import image_geometries
from .image_processing_maskformer import MaskFormerHfImageProcessor, MaskFormerHfImageProcessorKwargs
from .image_reading import Reading, as_tensor, read_images, size_of
from .image_targets import add_targets, as_binary
from .image_values import as_8_bits
from .instances import best_tracks, tube_masks
from .resize import resize_nearest


def frames_of(video: Any) -> Sequence[Any]:
    """The frames of one video, in order: those of a folder as paths, those of an array or a list as they are.

    Files are ordered by the numbers in their names, so that 10.jpg comes after 9.jpg.

    Raises:
        ValueError: If there is no frame.
    """
    if isinstance(video, (str, os.PathLike)):
        folder = Path(video)
        if not folder.is_dir():
            remedy = f"`ffmpeg -i {folder.name} frames/%05d.jpg` makes one of a video file" if folder.is_file() else ""
            raise ValueError(f"{str(folder)!r} is no folder of frames{remedy and f': {remedy}'}.")
        paths = files_in(folder, IMAGE_SUFFIXES)
        if not paths:
            raise ValueError(f"The folder {str(folder)!r} has no frames: none of {', '.join(IMAGE_SUFFIXES)} is there.")
        return paths
    frames: Any = video if isinstance(video, (np.ndarray, Tensor)) else list(video)
    if len(frames) == 0:
        raise ValueError("A video has no frames; give at least one.")
    return frames


class MaskFormerHfVideoProcessor(MaskFormerHfImageProcessor):
    """Prepares clips and targets for, and reads the outputs of, [`MaskFormerHfForVideoSegmentation`].

    A clip is a folder of frames, a list of images as the image processor takes them, or an array (T, H, W, C) or
    (T, C, H, W); several clips are a list of such, with as many frames each. The options for segmentation maps,
    void, stuff and tiles mean nothing here.
    """

    # The original's for ResNets; its Swins were tested with 480.
    size = {"shortest_edge": 360, "longest_edge": 1333}  # noqa: RUF012
    task = "instance"

    def __call__(self, videos: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(videos, *args, **kwargs)

    def preprocess(  # pyrefly: ignore[bad-override]  (images have other targets)
        self,
        videos: Any,
        mask_labels: Any = None,
        class_labels: Any = None,
        **kwargs: Unpack[MaskFormerHfImageProcessorKwargs],
    ) -> BatchFeature:
        """Turns clips, and targets if there are any, into model inputs.

        Args:
            mask_labels: Of each clip (N, T, H, W), zeros and ones; they may overlap. For a single clip no list is
                needed.
            class_labels: Of each clip (N,), or (N, T) with a negative number where an object is out of sight: its class
                is that of any frame where it is not.

        Returns pixel_values (B, T, C, H, W) float32, pixel_mask (B, T, H, W) int64 with 1 = frame and 0 = padding, and
        with targets lists mask_labels of (N, T, H, W) bool, zero in the padding, and class_labels of (N,) int64.
        Objects without a pixel in any frame are left out. Raises ValueError for clips of different lengths, frames of
        different sizes, and whatever the image processor refuses.
        """
        clips = [frames_of(clip) for clip in _list_of_clips(videos)]
        lengths = sorted({len(clip) for clip in clips})
        if len(lengths) != 1:
            raise ValueError(
                f"Clips of a batch need as many frames each, these have {', '.join(map(str, lengths))}: cut them."
            )
        num_frames = lengths[0]
        options: dict[str, Any] = dict(kwargs)
        return_tensors = options.pop("return_tensors", None)
        reading = Reading.of(self, **options)
        if reading.is_8_bit:
            # What the numbers of a clip mean is decided for all its frames together.
            clips = [as_8_bits(clip, "The clip") if hasattr(clip, "dtype") else clip for clip in clips]
        is_annotated = mask_labels is not None or class_labels is not None
        frames = read_images(
            (frame for clip in clips for frame in clip),
            reading,
            options.get("device"),
            [None] * (num_frames * len(clips)) if is_annotated else None,
        )
        original_sizes = [_size_of_clip(frames[i : i + num_frames], i) for i in range(0, len(frames), num_frames)]
        options["input_data_format"] = "channels_first"
        features = super().preprocess(frames, return_tensors="pt", **options)
        del frames
        data = {name: features[name].unflatten(0, (len(clips), num_frames)) for name in ("pixel_values", "pixel_mask")}
        batch = BatchFeature(data=data, tensor_type=return_tensors)
        if is_annotated:
            num_labels = options.get("num_labels", self.num_labels)
            pairs = _pair_targets(mask_labels, class_labels, len(clips))
            targets = [
                ClipTarget(index, masks, labels, (num_frames, *size))
                for index, ((masks, labels), size) in enumerate(zip(pairs, original_sizes, strict=True))
            ]
            pixel_masks = data["pixel_mask"][:, 0]
            add_targets(batch, [item.tubes(mask, num_labels) for item, mask in zip(targets, pixel_masks, strict=True)])
        return batch

    def post_process_instance_segmentation(  # pyrefly: ignore[bad-override]  (tubes cannot lie in one map)
        self,
        outputs: Any,
        threshold: float = 0.0,
        mask_threshold: float = 0.5,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        return_coco_annotation: bool = False,
        *,
        top_k: int = 10,
    ) -> list[dict[str, Any]]:
        """The objects of each clip, best first, as Mask2Former-VIS finds them.

        The `top_k` best pairs of query and class are looked at. Those stay whose probability, which is their score,
        reaches `threshold`: one query can give two objects, of different classes. `target_sizes` is one (height, width)
        a clip; else that of its frames without padding.

        Each dict has `segments_info` (id, label_id, score) and, in its order, `masks` (N, T, H, W) bool, where the mask
        probability exceeds `mask_threshold`, possibly overlapping; or with `return_coco_annotation` instead
        `segmentations`, one list an object as in YouTube-VIS's files: pycocotools' RLE of each frame, None where the
        object is out of sight. These take a frame's masks of memory at a time.
        """
        if outputs.masks_queries_logits.dim() != 5:
            raise ValueError("These are no outputs of a video model: their masks have no frames.")
        results = []
        for class_logits, mask_logits, geometry in zip(
            outputs.class_queries_logits,
            outputs.masks_queries_logits,
            image_geometries(outputs, target_sizes),
            strict=True,
        ):
            tracks = best_tracks(class_logits, threshold=threshold, top_k=top_k)
            frames = tube_masks(mask_logits, tracks.queries, geometry, mask_threshold=mask_threshold)
            segments = [
                {"id": index, "label_id": label, "score": round(score, 6)}
                for index, (label, score) in enumerate(
                    zip(tracks.labels.tolist(), tracks.scores.tolist(), strict=True), start=1
                )
            ]
            if return_coco_annotation:
                rles = [encode_seen(masks) for masks in frames]
                tubes: Any = [[frame[index] for frame in rles] for index in range(len(segments))]
                results.append({"segments_info": segments, "segmentations": tubes})
            else:
                results.append({"segments_info": segments, "masks": torch.stack(list(frames), dim=1)})
        return results


class ClipTarget:
    """Targets of one clip before resizing; T frames, N objects.

    Raises ValueError for masks that do not fit the clip, and for values that are not 0 or 1.
    """

    def __init__(self, clip: int, masks: Any, labels: Any, size: tuple[int, int, int]) -> None:
        """`masks` (N, T, H, W) and `labels` (N,) or (N, T) of clip number `clip`, whose `size` is (T, H, W)."""
        masks, labels = as_tensor(masks), as_tensor(labels)
        if len(masks) == 0:
            masks, labels = masks.new_zeros((0, *size)), labels.new_zeros(0, dtype=torch.int64)
        if tuple(masks.shape[1:]) != size:
            raise ValueError(
                f"mask_labels[{clip}] has shape {tuple(masks.shape)}; its clip has {size[0]} frames of {size[1:]} "
                "(height, width): give (N, frames, height, width)."
            )
        self.clip = clip
        self.masks_NTHW = as_binary(masks, f"mask_labels[{clip}]")
        self.labels = labels

    def tubes(self, pixel_mask_HW: Tensor, num_labels: int | None) -> tuple[Tensor, Tensor]:
        """Masks (N, T, H, W) bool at the size of `pixel_mask_HW`, and classes (N,), of the objects that are seen."""
        seen = self.masks_NTHW.flatten(1).any(1)
        classes = [self._class_of(index, num_labels) for index in seen.nonzero()[:, 0].tolist()]
        rows, columns = int(pixel_mask_HW.any(1).sum()), int(pixel_mask_HW.any(0).sum())
        resized = resize_nearest(self.masks_NTHW[seen], (rows, columns))
        alive = resized.flatten(1).any(1)
        padded = torch.zeros((int(alive.sum()), resized.shape[1], *pixel_mask_HW.shape), dtype=torch.bool)
        padded[..., :rows, :columns] = resized[alive].to(padded.device)
        return padded, torch.tensor(classes, dtype=torch.int64)[alive.cpu()]

    def _class_of(self, index: int, num_labels: int | None) -> int:
        """The one class of an object, whichever frames tell it."""
        count = len(self.masks_NTHW)
        if len(self.labels) != count:
            raise ValueError(
                f"Clip {self.clip} has {count} masks and {len(self.labels)} class labels; give one label an object."
            )
        found = {int(label) for label in self.labels[index].flatten().tolist() if label >= 0}
        if len(found) != 1:
            told = f"the classes {sorted(found)}" if found else "no class in any frame"
            raise ValueError(f"Object {index} of clip {self.clip} has {told}; an object that is seen has one.")
        label = found.pop()
        if num_labels is not None and label >= num_labels:
            raise ValueError(f"class_labels[{self.clip}] holds {label}, which is no class: num_labels is {num_labels}.")
        return label


def _size_of_clip(frames: list[Tensor], first: int) -> tuple[int, int]:
    sizes = [size_of(frame) for frame in frames]
    for index, size in enumerate(sizes):
        if size != sizes[0]:
            raise ValueError(
                f"Frames {first} and {first + index} belong to one clip, but have sizes {sizes[0]} and {size} "
                "(height, width): resize one of them."
            )
    return sizes[0]


def _list_of_clips(videos: Any) -> list[Any]:
    """Several clips as they are, one alone as a list of one."""
    if isinstance(videos, (np.ndarray, Tensor)):
        return list(videos) if videos.ndim == 5 else [videos]
    if isinstance(videos, (str, os.PathLike)):
        return [videos]
    entries = list(videos)
    first = entries[0] if entries else None
    is_clip = (
        isinstance(first, (list, tuple))
        or (isinstance(first, (np.ndarray, Tensor)) and first.ndim == 4)
        or (isinstance(first, (str, os.PathLike)) and Path(first).is_dir())
    )
    return entries if is_clip else [entries]


def _pair_targets(mask_labels: Any, class_labels: Any, num_clips: int) -> list[tuple[Any, Any]]:
    if mask_labels is None or class_labels is None:
        raise ValueError("mask_labels and class_labels belong together; give both.")
    if isinstance(mask_labels, (np.ndarray, Tensor)) and mask_labels.ndim == 4 and num_clips == 1:
        mask_labels, class_labels = [mask_labels], [class_labels]
    if not len(mask_labels) == len(class_labels) == num_clips:
        raise ValueError(
            f"mask_labels has {len(mask_labels)} entries and class_labels {len(class_labels)} for {num_clips} clips; "
            "give one a clip."
        )
    return list(zip(mask_labels, class_labels, strict=True))


__all__ = ["MaskFormerHfVideoProcessor"]
