"""Logits of made-up models, for tests of what is read from them."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from maskformer_hf.models.image_geometry import ImageGeometry
from maskformer_hf.models.instances import instance_segmentation
from maskformer_hf.models.panoptic import panoptic_segmentation
from maskformer_hf.models.result_options import ResultOptions

# Two scores this close may change places between two ways of adding the same numbers.
NEAR_TIE = 3e-5


def example(queries=20, classes=7, height=18, width=23, seed=0, smooth=True):
    """Queries, one in three of them without an object, with smooth masks of both signs, or with noise."""
    generator = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(queries, classes + 1, generator=generator) * 2
    class_logits[torch.arange(queries), torch.randint(classes, (queries,), generator=generator)] += 4
    class_logits[::3, -1] += 6
    if smooth:
        coarse = torch.randn(1, queries, max(2, height // 5), max(2, width // 5), generator=generator) * 6
        mask_logits = F.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    else:
        mask_logits = torch.randn(queries, height, width, generator=generator) * 4
    return class_logits, mask_logits


# (mask size, padded size, image size, target size)
GEOMETRIES = {
    "stride 4": ((16, 24), (64, 96), (64, 96), (64, 96)),
    "cropped": ((24, 24), (96, 96), (70, 60), (70, 60)),
    "odd sizes": ((18, 23), (70, 90), (70, 90), (70, 90)),
    "cropped and enlarged": ((24, 24), (96, 96), (70, 90), (84, 108)),
    "cropped and reduced": ((24, 24), (96, 96), (70, 90), (31, 17)),
    "much enlarged": ((6, 5), (24, 20), (23, 17), (133, 250)),
    "much reduced": ((40, 30), (160, 120), (150, 120), (7, 5)),
    "one pixel": ((12, 12), (48, 48), (40, 40), (1, 1)),
    "one cell": ((1, 1), (4, 4), (3, 2), (9, 11)),
    "one row": ((1, 30), (4, 120), (1, 119), (1, 119)),
    "mask finer than input": ((40, 40), (20, 20), (17, 20), (17, 20)),
    "tall and narrow": ((50, 2), (200, 8), (199, 5), (398, 10)),
}


def named_geometry(name):
    mask_size, *sizes = GEOMETRIES[name]
    return mask_size, ImageGeometry(*sizes)


def as_outputs(class_logits, mask_logits, **sizes):
    if class_logits.ndim == 2:
        class_logits, mask_logits = class_logits[None], mask_logits[None]
    sizes = {name: torch.tensor(value) for name, value in sizes.items()}
    return SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=mask_logits, **sizes)


def confident(labels, num_labels, probability=0.99):
    """Class logits that give each query its label with this probability; -1 is no-object."""
    other = (1 - probability) / num_labels
    logits = torch.full((len(labels), num_labels + 1), other).log()
    logits[torch.arange(len(labels)), torch.tensor(labels)] = torch.tensor(probability).log()
    return logits


def rectangle(height, width, top, left, bottom, right, value=8.0):
    logits = torch.full((height, width), -value)
    logits[top:bottom, left:right] = value
    return logits


def panoptic_of(class_logits, mask_logits, geometry, threshold=0.8, **options):
    options = ResultOptions("panoptic", threshold, **options)
    return panoptic_segmentation(class_logits, mask_logits, geometry, options)


def instances_of(class_logits, mask_logits, geometry, threshold=0.5, **options):
    return instance_segmentation(class_logits, mask_logits, geometry, ResultOptions("instance", threshold, **options))
