"""Masks are resized by one rule, in the processor as in the matcher."""

import pytest
import torch
import torch.nn.functional as F

from maskformer_hf import MaskFormerImageProcessor, MaskFormerVideoProcessor
from maskformer_hf.models.masks import DenseMasks
from maskformer_hf.models.matcher import CostWeights, matching_costs
from maskformer_hf.models.resize import resize_nearest
from maskformer_hf.models.targets import Targets


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


@pytest.mark.parametrize(("size", "new_size"), [((60, 90), (40, 60)), ((60, 90), (87, 131)), ((61, 37), (100, 61))])
def test_a_box_stays_where_it_is(size, new_size):
    """To the pixel, on the paths of targets: through the processor, and as the matcher compares masks."""
    top, left, bottom, right = 11, 7, 48, 30
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    # By the definition: pixel i of the new side takes pixel floor(i * length / new_length).
    rows = torch.tensor([top <= i * size[0] // new_size[0] < bottom for i in range(new_size[0])])
    columns = torch.tensor([left <= i * size[1] // new_size[1] < right for i in range(new_size[1])])
    expected = rows[:, None] & columns
    assert torch.equal(resize_nearest(mask, new_size)[0], expected)

    processor = MaskFormerImageProcessor(size={"height": new_size[0], "width": new_size[1]}, size_divisor=0)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    by_mask = processor(image, mask_labels=mask, class_labels=torch.tensor([1]))
    assert torch.equal(by_mask.mask_labels[0][0], expected)
    by_map = processor(image, mask[0].long())
    assert torch.equal(by_map.mask_labels[0][1], expected)

    clips = MaskFormerVideoProcessor(size={"height": new_size[0], "width": new_size[1]}, size_divisor=0)
    tube = clips(image[None, None], mask[:, None], torch.tensor([1]))
    assert torch.equal(tube.mask_labels[0][0, 0], expected)

    # The matcher compares masks at the size of the predictions: a prediction that is the box there costs nothing.
    predicted = DenseMasks(torch.where(expected, 30.0, -30.0)[None, None, None])
    targets = Targets([mask], [torch.zeros(1, dtype=torch.int64)])
    weights = CostWeights(class_weight=0.0, mask_weight=0.0, dice_weight=1.0)
    assert matching_costs(torch.zeros(1, 1, 1, 2), predicted, targets, weights).abs().max() < 1e-6
