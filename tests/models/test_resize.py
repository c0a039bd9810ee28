"""Masks are resized by one rule, in the processor as in the matcher."""

import pytest
import torch
import torch.nn.functional as F

from maskformer_hf.models.resize import resize_nearest


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize("size", [(7, 5), (60, 31), (61, 90), (200, 333), (1, 1)])
def test_as_torch_resizes(size, dtype):
    masks = torch.randint(0, 2 if dtype == torch.bool else 200, (3, 60, 90)).to(dtype)
    resized = resize_nearest(masks, size)
    assert resized.dtype == dtype
    assert torch.equal(resized.float(), F.interpolate(masks[None].float(), size=size, mode="nearest")[0])
    assert torch.equal(resize_nearest(masks[0], size), resized[0])


def test_every_length_takes_the_pixels_that_torch_takes():
    """The exact floor(i * length / new_length) differs by a pixel for some lengths, as float32 rounds."""
    for length in range(1, 300, 3):
        values = torch.arange(length).view(1, length)
        for new_length in range(1, 300, 7):
            expected = F.interpolate(values[None].float(), size=new_length, mode="nearest")[0]
            assert torch.equal(resize_nearest(values, (1, new_length)).float(), expected)


def test_the_same_size_is_no_copy():
    masks = torch.zeros(2, 6, 9, dtype=torch.bool)
    assert resize_nearest(masks, (6, 9)) is masks
