"""The one form in which every data set gives an image and its segments.

Shapes: N segments, P planes, H W pixels.
"""

from typing import Literal, NamedTuple, Protocol, TypedDict

import torch
from torchvision import tv_tensors

Task = Literal["semantic", "instance", "panoptic"]

VOID = -1
"""In plane 0: a pixel about which nothing is known. 0 is known to be no segment."""


class Sample(TypedDict):
    """One image of a data set.

    image: (3, H, W) uint8 RGB.
    planes: (P, H, W) int32, P >= 1. The value i > 0 belongs to segment i - 1 of `labels`, 0 to none. Segments that
        overlap lie in different planes; each segment lies in one. Void pixels are `VOID` in plane 0. A plane takes
        four bytes a pixel whatever the number of segments, where N masks would take N.
    labels: (N,) int64, the class of each segment.
    is_crowd: (N,) bool. A crowd is a region of many objects that nobody told apart. It is no target, and what is found
        in it is not counted as false.
    name: how a message calls the image, such as the path of its file.
    """

    image: tv_tensors.Image
    planes: tv_tensors.Mask
    labels: torch.Tensor
    is_crowd: torch.Tensor
    name: str


class Problem(NamedTuple):
    """Annotations that a reader left out, or that mean something else than one might think, for the same reason.

    what: such as "polygon without area".
    examples: the first ten, with file and id.
    """

    what: str
    count: int
    examples: list[str]


class SegmentationDataset(Protocol):
    """What readers give. Samples are decoded at each access, so that a data set may be of any size.

    A reader may also have `image_paths` (the images' files, by which duplicates are found), `problems` (a list of
    `Problem`) and `supercategories` (class name -> name of its group).

    Attributes:
        task: What its annotations can teach. Semantic samples have one segment a class.
        id2label: Names of the classes, numbered from 0 without gaps.
        label_ids_to_fuse: Classes that are stuff; empty for "instance".
    """

    task: Task
    id2label: dict[int, str]
    label_ids_to_fuse: list[int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def binary_masks(sample: Sample) -> torch.Tensor:
    """The mask of each segment: (N, H, W) bool."""
    planes_PHW = sample["planes"].as_subclass(torch.Tensor)
    ids_N = torch.arange(1, len(sample["labels"]) + 1, dtype=planes_PHW.dtype, device=planes_PHW.device)
    masks_NHW = planes_PHW[0] == ids_N[:, None, None]
    for plane_HW in planes_PHW[1:]:
        masks_NHW |= plane_HW == ids_N[:, None, None]
    return masks_NHW


def void_mask(sample: Sample) -> torch.Tensor:
    """Pixels from which nothing is learned, (H, W) bool: void and crowds."""
    planes_PHW = sample["planes"].as_subclass(torch.Tensor)
    void_HW = planes_PHW[0] == VOID
    for index in sample["is_crowd"].nonzero().flatten().tolist():
        void_HW = void_HW | (planes_PHW == index + 1).any(0)
    return void_HW


def class_map(sample: Sample, ignore_index: int = 255) -> torch.Tensor:
    """The class of each pixel, (H, W) int64; `ignore_index` where there is none. Higher planes cover lower ones."""
    planes_PHW = sample["planes"].as_subclass(torch.Tensor).long()
    # Entry 0, and the last one, which index `VOID` = -1 reaches, stand for no class.
    classes = torch.cat((sample["labels"], sample["labels"].new_full((1,), ignore_index))).roll(1)
    classes = torch.cat((classes, classes.new_full((1,), ignore_index)))
    result_HW = classes[planes_PHW[0]]
    for plane_HW in planes_PHW[1:]:
        result_HW = torch.where(plane_HW > 0, classes[plane_HW], result_HW)
    return result_HW


def planes_from_masks(masks_NHW: torch.Tensor) -> torch.Tensor:
    """Planes (P, H, W) int32 of masks (N, H, W) bool which may overlap. Each goes to the first plane with room."""
    planes: list[torch.Tensor] = [torch.zeros(masks_NHW.shape[-2:], dtype=torch.int32)]
    for index, mask_HW in enumerate(masks_NHW, start=1):
        for plane_HW in planes:
            if not bool((plane_HW[mask_HW] != 0).any()):
                break
        else:
            plane_HW = torch.zeros_like(planes[0])
            planes.append(plane_HW)
        plane_HW[mask_HW] = index
    return torch.stack(planes)


def flat_map(planes_PHW: torch.Tensor) -> torch.Tensor:
    """The planes as one map (H, W), in which segments of higher planes cover those of lower ones."""
    flat_HW = planes_PHW[0]
    for plane_HW in planes_PHW[1:]:
        flat_HW = torch.where(plane_HW > 0, plane_HW, flat_HW)
    return flat_HW
