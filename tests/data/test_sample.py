import torch
from torchvision import tv_tensors

from maskformer_hf.data import VOID, binary_masks, class_map, planes_from_masks, void_mask


def sample(planes, labels, is_crowd=None):
    planes = torch.tensor(planes, dtype=torch.int32)
    return {
        "image": tv_tensors.Image(torch.zeros(3, *planes.shape[-2:], dtype=torch.uint8)),
        "planes": tv_tensors.Mask(planes),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "is_crowd": torch.tensor(is_crowd or [False] * len(labels)),
        "name": "sample",
    }


OVERLAPPING = sample([[[1, 1, VOID], [0, 3, 3]], [[0, 2, 2], [0, 0, 2]]], [5, 6, 5], [False, True, False])


def test_masks_of_all_planes():
    masks = binary_masks(OVERLAPPING)
    assert masks.dtype == torch.bool
    assert masks.int().tolist() == [[[1, 1, 0], [0, 0, 0]], [[0, 1, 1], [0, 0, 1]], [[0, 0, 0], [0, 1, 1]]]
    assert binary_masks(sample([[[0, VOID]]], [])).shape == (0, 1, 2)


def test_void_is_what_nobody_knows_and_crowds():
    assert void_mask(OVERLAPPING).int().tolist() == [[0, 1, 1], [0, 0, 1]]


def test_class_of_each_pixel():
    assert class_map(OVERLAPPING).tolist() == [[5, 6, 6], [255, 5, 6]]
    assert class_map(sample([[[0, VOID]]], []), ignore_index=9).tolist() == [[9, 9]]


def test_planes_hold_all_masks_and_no_more_planes_than_needed():
    masks = torch.zeros(4, 2, 6, dtype=torch.bool)
    masks[0, :, :2] = masks[1, :, 1:3] = masks[2, :, 2:4] = masks[3, 1, 5:] = True
    planes = planes_from_masks(masks)
    assert planes.shape == (2, 2, 6)
    assert planes.dtype == torch.int32
    assert torch.equal(binary_masks(sample(planes.tolist(), [0, 0, 0, 0])), masks)
    assert planes_from_masks(masks[:0]).tolist() == [[[0] * 6] * 2]
