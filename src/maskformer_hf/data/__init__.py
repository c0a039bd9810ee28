"""Where training images and their targets come from: readers, augmentation, collation."""

from .augment import augmentation
from .coco import CocoInstances, CocoInstancesAndStuff, CocoPanoptic
from .collate import Batch, ClipCollator, Collator
from .from_datasets import from_datasets
from .instance_folder import InstanceFolder
from .iterable_stream import FirstRows, is_streamed, streamed_loader
from .open import FORMATS, open_dataset
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
from .video import (
    Clips,
    ClipSample,
    ClipTransform,
    DavisFolder,
    VideoDataset,
    VideoFrames,
    YoutubeVis,
    videos_in,
)

__all__ = [
    "FORMATS",
    "VOID",
    "Batch",
    "ClipCollator",
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
    "Task",
    "VideoDataset",
    "VideoFrames",
    "YoutubeVis",
    "augmentation",
    "binary_masks",
    "class_map",
    "from_datasets",
    "is_streamed",
    "open_dataset",
    "planes_from_masks",
    "streamed_loader",
    "videos_in",
    "void_mask",
]
