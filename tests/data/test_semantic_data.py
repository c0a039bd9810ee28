import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from maskformer_hf.data import (
    VOID,
    Collator,
    SampleStream,
    SemanticFolder,
    augmentation,
    class_map,
    planes_from_masks,
)
from maskformer_hf.data.augment import ClassShareLimitedCrop, PhotometricDistortion

IDS = np.array([[0, 1, 2, 3], [4, 255, 0, 0]], dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """classes.txt one level up; the second class is void by its name; ids 4 and 255 are void."""
    (tmp_path / "classes.txt").write_text("sky\nvoid\nroad\ncar\n")
    for name in ("images", "labels"):
        (tmp_path / "train" / name).mkdir(parents=True)
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3)).save(tmp_path / "train/images/a.png")
    Image.fromarray(IDS).save(tmp_path / "train/labels/a.png")
    return tmp_path / "train"


def test_ids_become_classes(folder):
    data = SemanticFolder(folder)
    assert data.id2label == {0: "sky", 1: "road", 2: "car"}
    sample = data[0]
    assert sample["image"].shape == (3, 2, 4)
    assert sample["image"].dtype == torch.uint8
    assert sample["planes"].dtype == torch.int32
    assert sample["image"][:, 0, 1].tolist() == [3, 4, 5]
    assert sample["planes"].tolist() == [[[1, VOID, 2, 3], [VOID, VOID, 1, 1]]]
    assert sample["labels"].tolist() == [0, 1, 2]
    assert sample["name"].endswith("train/images/a.png")
    assert (data.task, data.label_ids_to_fuse) == ("semantic", [0, 1, 2])
    assert SemanticFolder(folder, void_classes=["car"]).id2label == {0: "sky", 1: "road"}


def test_absent_classes_are_no_segments(folder):
    Image.fromarray(np.where(IDS == 0, 255, IDS).astype(np.uint8)).save(folder / "labels/a.png")
    sample = SemanticFolder(folder)[0]
    assert sample["labels"].tolist() == [1, 2]
    assert class_map(sample).tolist() == [[255, 255, 1, 2], [255, 255, 255, 255]]


def test_sixteen_bit_maps_and_many_classes_are_read(folder):
    Image.fromarray(IDS.astype(np.uint16)).save(folder / "labels/a.png")
    assert class_map(SemanticFolder(folder)[0]).tolist() == [[0, 255, 1, 2], [255, 255, 0, 0]]
    (folder.parent / "classes.txt").write_text("".join(f"class {number}\n" for number in range(300)))
    Image.fromarray(np.array([[0, 256, 299, 299], [65535, 300, 0, 255]], dtype=np.uint16)).save(folder / "labels/a.png")
    sample = SemanticFolder(folder)[0]
    assert sample["labels"].tolist() == [0, 255, 256, 299]
    assert sample["planes"].tolist() == [[[1, 3, 4, 4], [VOID, VOID, 1, 2]]]


def test_errors_name_file_and_remedy(folder):
    with pytest.raises(ValueError, match="are not in classes"):
        SemanticFolder(folder, void_classes=["tree"])
    Image.fromarray(IDS + 5).save(folder / "labels/a.png")
    with pytest.raises(
        ValueError, match=r"a.png holds id \d+, which is not one of the 3 classes of classes.txt, nor void"
    ):
        SemanticFolder(folder)[0]
    Image.fromarray(IDS[:1]).save(folder / "labels/a.png")
    with pytest.raises(
        ValueError, match=r"images/a.png is \(2, 4\) \(height, width\), its annotations are for \(1, 4\)"
    ):
        SemanticFolder(folder)[0]
    (folder / "labels/a.png").unlink()
    with pytest.raises(ValueError, match=r"no PNG of the same name in .*labels, first a.png"):
        SemanticFolder(folder)
    (folder.parent / "classes.txt").unlink()
    Image.fromarray(IDS).save(folder / "labels/a.png")
    with pytest.raises(ValueError, match="no classes"):
        SemanticFolder(folder)
    with pytest.raises(ValueError, match="is no folder"):
        SemanticFolder(folder / "absent")


def square(height=40, width=60):
    """A bright square (class 1) on black (class 0): where it is can be read from the image and from the planes."""
    bright = torch.zeros(height, width, dtype=torch.bool)
    bright[8:28, 30:54] = True
    return {
        "image": tv_tensors.Image((bright * 255).to(torch.uint8).expand(3, -1, -1).clone()),
        "planes": tv_tensors.Mask(planes_from_masks(torch.stack((~bright, bright)))),
        "labels": torch.tensor([0, 1]),
        "is_crowd": torch.zeros(2, dtype=torch.bool),
        "name": "square",
    }


class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return square()


def test_augmentation_moves_image_and_planes_together():
    transform = augmentation(short_edge=[30, 80], crop_size=[32, 48], color_jitter=False)
    stream = SampleStream(Squares(), transform, seed=1, start=0, stop=30)
    sides = set()
    for index in range(len(stream)):
        sample = stream[index]
        map_HW = class_map(sample)
        assert sample["image"].shape[1:] == map_HW.shape
        assert map_HW.shape[0] <= 32
        assert map_HW.shape[1] <= 48
        bright = sample["image"][0] > 127
        # resizing blurs the edge of the image, not of the map: less than a pixel all around
        assert (bright != map_HW.bool()).float().mean() < 0.06
        assert set(map_HW.unique().tolist()) <= {0, 1}
        sides.add(float(map_HW.float().mean()))
    assert len(sides) > 10


def test_stream_is_a_function_of_the_number():
    transform = augmentation(short_edge=[30, 80], crop_size=[32, 48])
    whole = SampleStream(Squares(), transform, seed=1, start=0, stop=12)
    torch.manual_seed(5)
    later = SampleStream(Squares(), transform, seed=1, start=7, stop=12)
    before = torch.random.get_rng_state()
    assert torch.equal(whole[9]["image"], later[2]["image"])
    assert torch.equal(torch.random.get_rng_state(), before)
    other = SampleStream(Squares(), transform, seed=2, start=7, stop=12)
    assert any(not torch.equal(other[i]["image"], later[i]["image"]) for i in range(5))
    with pytest.raises(IndexError):
        later[5]


def test_every_photo_comes_once_an_epoch():
    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 7

        def __getitem__(self, index):
            return index

    stream = SampleStream(Numbers(), lambda sample: sample, seed=0, start=0, stop=21)
    numbers = [stream[index] for index in range(21)]
    epochs = [numbers[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_crop_limits_the_share_of_a_class():
    right = torch.zeros(64, 64, dtype=torch.bool)
    right[:, 40:] = True
    sample = {**square(64, 64), "planes": tv_tensors.Mask(planes_from_masks(torch.stack((right, ~right))))}
    torch.manual_seed(0)

    def shares(max_share):
        crop = ClassShareLimitedCrop([16, 16], max_share)
        windows = [crop(sample)["planes"][0] for _ in range(60)]
        assert all(window.shape == (16, 16) for window in windows)
        return sum(bool((window == window[0, 0]).all()) for window in windows)

    assert shares(1.0) > 20
    assert shares(0.9) < 10
    # Classes count, not segments: two objects of one class have no boundary between classes.
    sample["labels"] = torch.tensor([1, 1])
    assert shares(0.9) > 20


def test_photometric_distortion_changes_colours_only():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    sample = {"image": tv_tensors.Image(image), "planes": tv_tensors.Mask(torch.ones(1, 8, 8, dtype=torch.int32))}
    changed = 0
    for _ in range(20):
        result = PhotometricDistortion()(sample)
        assert result["image"].dtype == torch.uint8
        assert torch.equal(result["planes"], sample["planes"])
        changed += not torch.equal(result["image"], sample["image"])
    assert changed > 10


def test_collation_pads_with_zeros():
    small, large = square(40, 60), square(50, 90)
    small["planes"][0, 0, :5] = VOID
    batch = Collator([0.5, 0.4, 0.3], [0.25, 0.5, 1.0], size_divisor=32)([small, large])
    assert batch["pixel_values"].shape == (2, 3, 64, 96)
    assert batch["pixel_mask"][0].sum() == 40 * 60
    assert not batch["pixel_mask"][0, 40:].any()
    assert not batch["pixel_values"][0, :, 40:].any()
    assert not batch["pixel_values"][0, :, :, 60:].any()
    torch.testing.assert_close(
        batch["pixel_values"][0, :, 10, 40],
        (torch.ones(3) - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.25, 0.5, 1]),
    )
    assert [labels.tolist() for labels in batch["class_labels"]] == [[0, 1], [0, 1]]
    masks = batch["mask_labels"][0]
    assert masks.dtype == torch.bool
    assert masks.shape == (2, 64, 96)
    assert torch.equal(masks[1, :40, :60], class_map(small) == 1)
    assert not masks[:, 40:].any()
    assert not masks[:, 0, :5].any()
    assert "void_masks" not in batch


def test_collation_of_objects():
    """Overlap, a crowd, void, and a segment that cropping has lost."""
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    masks[0, :4], masks[1, 2:6, :3], masks[2, 6:] = True, True, True
    sample = {
        **square(8, 8),
        "planes": tv_tensors.Mask(planes_from_masks(masks)),
        "labels": torch.tensor([5, 0, 1, 2]),
        "is_crowd": torch.tensor([False, False, True, False]),
    }
    sample["planes"][0, 4:6, 6:] = VOID
    batch = Collator([0.5] * 3, [0.5] * 3, size_divisor=10, return_void_masks=True)([sample])
    assert batch["class_labels"][0].tolist() == [5, 0]
    assert torch.equal(batch["mask_labels"][0][:, :8, :8], masks[:2])
    assert not batch["mask_labels"][0][:, 8:].any()
    void = torch.zeros(10, 10, dtype=torch.bool)
    void[6:8, :8], void[4:6, 6:8] = True, True
    assert torch.equal(batch["void_masks"][0], void)


def test_collation_of_a_void_photo_and_to_a_fixed_size():
    sample = square()
    sample["planes"][:] = VOID
    batch = Collator([0.5] * 3, [0.5] * 3, size_divisor=16, size=[48, 64])([sample])
    assert batch["pixel_values"].shape == (1, 3, 48, 64)
    assert batch["mask_labels"][0].shape == (0, 48, 64)
    assert batch["class_labels"][0].dtype == torch.int64


def test_collation_without_a_divisor():
    batch = Collator([0.5] * 3, [0.5] * 3, size_divisor=0)([square(40, 60), square(50, 33)])
    assert batch["pixel_values"].shape == (2, 3, 50, 60)
