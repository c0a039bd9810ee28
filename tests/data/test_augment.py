import math

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from maskformer_hf import MaskFormerImageProcessor
from maskformer_hf.data import VOID, augmentation
from maskformer_hf.data.augment import DetrResize, QuarterTurn, ShortEdgeResize

# Red, green and blue are the bits of a segment's number, so that the image tells what is where.
BITS = torch.tensor([1, 2, 4])


def coded(height=300, width=400):
    """Overlapping segments in two planes, and void: the image shows the sum of the planes."""
    planes = torch.zeros(2, height, width, dtype=torch.int32)
    planes[0, 20:200, 30:180], planes[0, 100:280, 200:390], planes[0, 210:290, 5:150] = 1, 2, 3
    planes[0, :15] = VOID
    planes[1, 60:240, 120:320] = 4
    shown = planes.sum(0).clamp(min=0)
    return {
        "image": tv_tensors.Image(((shown[None] & BITS[:, None, None]) > 0).to(torch.uint8) * 255),
        "planes": tv_tensors.Mask(planes),
        "labels": torch.tensor([0, 1, 2, 0]),
        "is_crowd": torch.tensor([False, False, False, True]),
        "name": "coded",
    }


KINDS = {
    "short edge": {"short_edge": [150, 450], "crop_size": [200, 240], "crop_max_class_share": 0.75},
    "listed short edges": {"short_edge": [150, 200, 250, 450], "long_edge": 500},
    "large scale": {"kind": "large_scale_jitter", "crop_size": [256, 320]},
    "magnified": {"kind": "magnification_jitter", "crop_size": [200, 240], "scale": [0.5, 2.0]},
    "detr": {"kind": "detr", "short_edge": [200, 300, 400], "long_edge": 450},
    "turned": {"short_edge": [150, 450], "crop_size": [200, 240], "quarter_turns": True},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
def test_planes_follow_the_image(options):
    transform = augmentation(**options, color_jitter=False)
    torch.manual_seed(0)
    sizes = set()
    for _ in range(15):
        sample = transform(coded())
        image, planes = sample["image"], sample["planes"]
        assert image.shape[1:] == planes.shape[1:]
        assert (planes.dtype, len(planes)) == (torch.int32, 2)
        sizes.add(image.shape[1:])
        read = ((image > 127) * BITS[:, None, None]).sum(0)
        # Resizing blurs the borders in the image, not in the planes: about a pixel along some ten sides.
        assert (read != planes.sum(0).clamp(min=0)).float().mean() < 12 / min(image.shape[1:])
        assert sample["is_crowd"].tolist() == [False, False, False, True]
    assert options.get("crop_size") or len(sizes) > 2


def test_short_edges():
    resize = ShortEdgeResize([40, 60])
    shorter = {min(resize(coded())["image"].shape[1:]) for _ in range(200)}
    assert shorter == set(range(40, 61))
    resize = ShortEdgeResize([40, 50, 60], long_edge=70)
    assert {tuple(resize(coded())["image"].shape[1:]) for _ in range(40)} == {(40, 53), (50, 66), (52, 70)}


def resized_box(size, new_size, box):
    """Where a box (top, left, bottom, right) comes to lie: pixel i of n takes the value of pixel floor(i * N / n)."""
    sides = zip(box[:2], box[2:], size, new_size, strict=True)
    ((top, bottom), (left, right)) = (
        (math.ceil(start * new / old), math.ceil(stop * new / old)) for start, stop, old, new in sides
    )
    return top, left, bottom, right


@pytest.mark.parametrize(("length", "new_size"), [(60, (60, 80)), (150, (150, 200)), (45, (45, 60)), (40, (40, 53))])
def test_a_box_stays_where_it_is_to_the_pixel(length, new_size):
    """The same pixels belong to it by a recipe's resizing, by torchvision's of masks, and by the image processor's."""
    size, box = (90, 120), (20, 31, 57, 98)
    planes = torch.zeros(1, *size, dtype=torch.int32)
    planes[:, box[0] : box[2], box[1] : box[3]] = 1
    sample = {**coded(*size), "planes": tv_tensors.Mask(planes), "labels": torch.tensor([0])}
    resized = ShortEdgeResize([length, length])(sample)["planes"]
    top, left, bottom, right = resized_box(size, new_size, box)
    expected = torch.zeros(1, *new_size, dtype=torch.int32)
    expected[:, top:bottom, left:right] = 1
    assert torch.equal(resized, expected)
    assert torch.equal(functional.resize(sample["planes"], [length]), expected)
    processor = MaskFormerImageProcessor(size={"height": new_size[0], "width": new_size[1]}, do_reduce_labels=False)
    processed = processor(sample["image"], planes[0].numpy())
    [masks], [labels] = processed["mask_labels"], processed["class_labels"]
    assert torch.equal(masks[labels == 1][:, : new_size[0], : new_size[1]].int(), expected)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
def test_planes_are_resized_as_torchvision_resizes_masks(options, monkeypatch):
    """What recipes trained with before there was one rule for all."""
    transform = augmentation(**options, color_jitter=False)
    for seed in range(10):
        torch.manual_seed(seed)
        sample = transform(coded())
        with monkeypatch.context() as patch:
            patch.setattr(
                "maskformer_hf.data.augment.resize_nearest",
                lambda planes, size: functional.resize(tv_tensors.Mask(planes), list(size)),
            )
            torch.manual_seed(seed)
            before = transform(coded())
        assert torch.equal(sample["image"], before["image"])
        assert torch.equal(sample["planes"], before["planes"])


def test_large_scale_jitter():
    """Half of 300 x 400 fits a window of 150 x 400: from there 0.1 to 2 times, cut to the window."""
    transform = augmentation(kind="large_scale_jitter", crop_size=[150, 400], color_jitter=False)
    torch.manual_seed(0)
    heights, widths = zip(*(transform(coded())["image"].shape[1:] for _ in range(100)), strict=True)
    assert 15 <= min(heights) < 25
    assert max(heights) == 150
    assert 20 <= min(widths) < 32
    assert 380 < max(widths) <= 400
    assert sum(height == 150 for height in heights) == pytest.approx(100 / 1.9, abs=15)


def test_magnification_jitter():
    """300 x 400 shrunk to a half fits into 240 x 320 whole; magnified twice, a window of 120 x 160 fills it."""
    transform = augmentation(
        kind="magnification_jitter", crop_size=[240, 320], scale=[0.5, 2.0], color_jitter=False, flip_probability=0.0
    )
    torch.manual_seed(0)
    heights, widths = zip(*(transform(coded())["image"].shape[1:] for _ in range(100)), strict=True)
    assert 150 <= min(heights) < 165
    assert max(heights) == 240
    assert 200 <= min(widths) < 220
    # From 0.8 on the window is full: log(2 / 0.8) / log(4) of the draws.
    assert sum(height == 240 for height in heights) == pytest.approx(66, abs=14)
    exact = augmentation(
        kind="magnification_jitter", crop_size=[30, 40], scale=[1.0, 1.0], color_jitter=False, flip_probability=0.0
    )
    whole, window = coded(), exact(coded())
    assert any(
        torch.equal(whole["image"][:, top : top + 30, left : left + 40], window["image"])
        and torch.equal(whole["planes"][:, top : top + 30, left : left + 40], window["planes"])
        for top in range(271)
        for left in range(361)
    )


def test_detr_cuts_out_a_window_half_of_the_time():
    resize = DetrResize([300, 300])
    torch.manual_seed(0)
    shapes = [resize(coded())["image"].shape[1:] for _ in range(100)]
    whole = sum(tuple(shape) == (300, 400) for shape in shapes)
    assert 35 < whole < 65
    assert all(min(shape) == 300 for shape in shapes)
    # A window of 384 to 533 by 384 to 600
    assert all(max(shape) <= 300 * 600 / 384 for shape in shapes)


def test_quarter_turns_are_exact():
    torch.manual_seed(0)
    sample = coded()
    seen = set()
    for _ in range(30):
        turned = QuarterTurn()(sample)
        [turns] = [k for k in range(4) if torch.equal(torch.rot90(sample["planes"], k, (1, 2)), turned["planes"])]
        assert torch.equal(torch.rot90(sample["image"], turns, (1, 2)), turned["image"])
        assert isinstance(turned["planes"], tv_tensors.Mask)
        seen.add(turns)
    assert seen == {0, 1, 2, 3}


def test_no_picture_is_too_small():
    torch.manual_seed(0)
    sample = coded(3, 2)
    for options in KINDS.values():
        for _ in range(10):
            assert min(augmentation(**options)(sample)["image"].shape) >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "short_edge is missing"),
        ({"kind": "detr"}, "short_edge is missing"),
        ({"kind": "large_scale_jitter"}, "crop_size is missing"),
        (
            {"kind": "large_scale_jitter", "crop_size": [4, 4], "short_edge": [3, 4]},
            r"short_edge is \[3, 4\], for which",
        ),
        ({"kind": "detr", "crop_size": [4, 4], "short_edge": [3, 4]}, r"crop_size is \[4, 4\], for which"),
    ],
)
def test_keys_that_a_kind_needs_and_those_it_ignores(options, message):
    with pytest.raises(ValueError, match=message):
        augmentation(**options)
