import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_hf.data import InstanceFolder, binary_masks
from maskformer_hf.data.files import read_image

IDS = np.array([[0, 7, 7, 0], [3, 0, 60000, 7]], dtype=np.uint16)


@pytest.fixture
def folder(tmp_path):
    """One image with the ids 3, 7 (in two regions) and 60000; one, in lossless WebP, without objects."""
    root = tmp_path / "train"
    for name in ("images", "instances"):
        (root / name).mkdir(parents=True)
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    Image.fromarray(pixels).save(root / "images/a.png")
    Image.fromarray(IDS).save(root / "instances/a.png")
    Image.fromarray(pixels).save(root / "images/b.webp", lossless=True)
    Image.fromarray(np.zeros((2, 4), np.uint8)).save(root / "instances/b.png")
    return root


def test_ids_become_segments(folder):
    data = InstanceFolder(folder)
    assert (len(data), data.task, data.id2label, data.label_ids_to_fuse) == (2, "instance", {0: "object"}, [])
    sample = data[0]
    assert np.array_equal(binary_masks(sample), np.stack([IDS == 3, IDS == 7, IDS == 60000]))
    assert sample["planes"].shape == (1, 2, 4)
    assert sample["labels"].tolist() == [0, 0, 0]
    assert not sample["is_crowd"].any()
    assert sample["image"][:, 0, 1].tolist() == [3, 4, 5]
    assert sample["name"] == data.image_paths[0] == str(folder / "images/a.png")
    empty = pickle.loads(pickle.dumps(data))[1]
    assert empty["labels"].shape == (0,)
    assert not empty["planes"].any()
    assert torch.equal(empty["image"], sample["image"])


def test_the_class_has_the_name_in_classes_txt(folder):
    (folder.parent / "classes.txt").write_text("nucleus\n\n")
    assert InstanceFolder(folder).id2label == {0: "nucleus"}
    (folder / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match="names 2 classes, but ids of objects"):
        InstanceFolder(folder)


def test_errors_name_file_and_remedy(folder):
    Image.fromarray(IDS[:1]).save(folder / "instances/a.png")
    with pytest.raises(ValueError, match=r"a.png is \(2, 4\) \(height, width\), its annotations are for \(1, 4\)"):
        InstanceFolder(folder)[0]
    Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(folder / "instances/a.png")
    with pytest.raises(ValueError, match=r"instances/a.png has shape \(2, 4, 3\)"):
        InstanceFolder(folder)[0]
    (folder / "instances/a.png").write_bytes((folder / "instances/b.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"instances/a.png cannot be read"):
        InstanceFolder(folder)[0]
    (folder / "instances/b.png").unlink()
    with pytest.raises(ValueError, match=r"1 images in .* no PNG of the same name in .*instances, first b.webp"):
        InstanceFolder(folder)
    (folder / "images/b.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="holds 2 images called b"):
        InstanceFolder(folder)
    with pytest.raises(ValueError, match="is no folder"):
        InstanceFolder(folder / "absent")


def test_photos_of_any_mode_are_rgb(tmp_path):
    grey = np.array([[0, 100], [200, 255]], dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").tolist() == [grey.tolist()] * 3
    Image.fromarray(np.dstack([grey, grey, grey, grey])).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "alpha.png").tolist() == [grey.tolist()] * 3
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").tolist() == [grey.tolist()] * 3
    # Each photo of a data set would be a guess of its own.
    Image.fromarray(grey.astype(np.uint16) * 10).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png holds values up to 2550, .* what is white: save it with 8 bits"):
        read_image(tmp_path / "deep.png")
