"""Where training images and their targets come from: readers, augmentation, collation."""

from .augment import augmentation
from .collate import SemanticCollator
from .semantic_folder import IGNORE_INDEX, SemanticFolder, SemanticSample
from .stream import SampleStream

__all__ = ["IGNORE_INDEX", "SampleStream", "SemanticCollator", "SemanticFolder", "SemanticSample", "augmentation"]
