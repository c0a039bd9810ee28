"""Where training images and their targets come from: readers, augmentation, collation."""

from .augmentation import AugmentationArguments, augmentation
from .cached import Cached
from .clips import Clips, ClipTransform
from .coco import CocoInstances, CocoPanoptic
from .coco_stuff import CocoInstancesAndStuff
from .collate import Batch, Collator
from .davis import DavisFolder
from .from_datasets import from_datasets
from .instance_folder import InstanceFolder
from .iterable_stream import FirstRows, StreamPart, is_streamed, streamed_loader
from .open import FORMATS, find_data, open_dataset
from .relabel import as_task
from .sample import (
    VOID,
    Problem,
    Sample,
    SegmentationDataset,
    Task,
    binary_masks,
    class_map,
    planes_from_masks,
    void_mask,
)
from .semantic_folder import SemanticFolder
from .stream import SampleStream
from .video import ClipSample, VideoDataset, VideoFrames, videos_in
from .youtube_vis import YoutubeVis

__all__ = [
    "FORMATS",
    "VOID",
    "AugmentationArguments",
    "Batch",
    "Cached",
    "ClipSample",
    "ClipTransform",
    "Clips",
    "CocoInstances",
    "CocoInstancesAndStuff",
    "CocoPanoptic",
    "Collator",
    "DavisFolder",
    "FirstRows",
    "InstanceFolder",
    "Problem",
    "Sample",
    "SampleStream",
    "SegmentationDataset",
    "SemanticFolder",
    "StreamPart",
    "Task",
    "VideoDataset",
    "VideoFrames",
    "YoutubeVis",
    "as_task",
    "augmentation",
    "binary_masks",
    "class_map",
    "find_data",
    "from_datasets",
    "is_streamed",
    "open_dataset",
    "planes_from_masks",
    "streamed_loader",
    "videos_in",
    "void_mask",
]
