"""Where training images and their targets come from: readers, augmentation, collation."""

from .augment import augmentation
from .collate import Batch, Collator
from .sample import VOID, Sample, SegmentationDataset, Task, binary_masks, class_map, planes_from_masks, void_mask
from .semantic_folder import SemanticFolder
from .stream import SampleStream

__all__ = [
    "VOID",
    "Batch",
    "Collator",
    "Sample",
    "SampleStream",
    "SegmentationDataset",
    "SemanticFolder",
    "Task",
    "augmentation",
    "binary_masks",
    "class_map",
    "planes_from_masks",
    "void_mask",
]
