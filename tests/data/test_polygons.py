"""YOLO and labelme, in folders made here."""

import base64
import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from maskformer_hf.data import open_dataset
from maskformer_hf.data.labelme import labelme
from maskformer_hf.data.sample import VOID, binary_masks, void_mask
from maskformer_hf.data.yolo import yolo

HEIGHT, WIDTH = 40, 60


def write_photo(path, size=(HEIGHT, WIDTH), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path, **options)


def drawn(*polygons, size=(HEIGHT, WIDTH)):
    """The union of polygons, drawn by pycocotools alone."""
    runs = coco_mask.frPyObjects([np.ravel(polygon).tolist() for polygon in polygons], *size)
    return torch.from_numpy(coco_mask.decode(coco_mask.merge(runs)).astype(bool))


# --- YOLO ------------------------------------------------------------------------------------------------------------

TRIANGLE = np.array([[0.1, 0.1], [0.6, 0.15], [0.35, 0.9]])
SQUARE = np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]])


def line(label, points):
    return " ".join([str(label), *(f"{value:.6f}" for value in np.ravel(points))]) + "\n"


@pytest.fixture
def yolo_root(tmp_path):
    """Two overlapping objects, a photo with an empty txt, one without; ids 0, 2 and 7 have names."""
    for name in ("a", "b", "c"):
        write_photo(tmp_path / f"images/train/{name}.jpg")
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text(line(7, TRIANGLE) + "\n" + line(0, SQUARE))
    (tmp_path / "labels/train/b.txt").write_text("")
    (tmp_path / "data.yaml").write_text(
        "path: /somebody/elses/computer\ntrain: images/train\nval: images/train\nnames: {7: cat, 0: dog, 2: fox}\n"
    )
    return tmp_path


def test_yolo(yolo_root):
    data = yolo(yolo_root, "train")
    assert (data.task, data.label_ids_to_fuse) == ("instance", [])
    assert data.id2label == {0: "dog", 1: "fox", 2: "cat"}
    sample = data[0]
    assert sample["labels"].tolist() == [2, 0]
    assert sample["planes"].shape == (2, HEIGHT, WIDTH)
    assert sample["image"].shape == (3, HEIGHT, WIDTH)
    scale = np.array([WIDTH, HEIGHT])
    triangle, square = binary_masks(sample)
    assert torch.equal(triangle, drawn(TRIANGLE * scale))
    assert torch.equal(square, drawn(SQUARE * scale))
    assert (triangle & square).any()
    for empty in (data[1], data[2]):
        assert len(empty["labels"]) == 0
        assert not empty["planes"].any()
    assert [path[-5:] for path in data.image_paths] == ["a.jpg", "b.jpg", "c.jpg"]
    assert torch.equal(pickle.loads(pickle.dumps(data))[0]["planes"], sample["planes"])


def test_yolo_lists_names_and_folders(yolo_root):
    (yolo_root / "data.yaml").write_text("train: [list.txt, images/train]\nval: ../valid/images\nnames: [dog, fox]\n")
    (yolo_root / "list.txt").write_text("./images/train/b.jpg\n\nimages/train/c.jpg\n")
    (yolo_root / "labels/train/a.txt").write_text(line(1, SQUARE))
    assert len(yolo(yolo_root, "train")) == 5
    # Roboflow: the folder is called valid, and lies beside data.yaml whatever that says.
    write_photo(yolo_root / "valid/images/d.png")
    (yolo_root / "valid/labels").mkdir()
    (yolo_root / "valid/labels/d.txt").write_text(line(1, SQUARE))
    for split in ("val", "valid"):
        assert yolo(yolo_root, split)[0]["labels"].tolist() == [1]
    assert open_dataset(yolo_root, "val").id2label == {0: "dog", 1: "fox"}
    # Without data.yaml; in the folders of a split, and beside the photos.
    (yolo_root / "data.yaml").unlink()
    (yolo_root / "classes.txt").write_text("dog\nfox\n")
    assert len(open_dataset(yolo_root, "train", format="auto")) == 3
    write_photo(yolo_root / "flat/e.png")
    (yolo_root / "flat/e.txt").write_text(line(1, SQUARE))
    assert yolo(yolo_root, "flat")[0]["labels"].tolist() == [1]


def test_yolo_photos_are_turned_as_exif_says(yolo_root):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    write_photo(yolo_root / "images/train/a.jpg", exif=exif)
    assert yolo(yolo_root, "train")[0]["image"].shape == (3, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line(7, SQUARE) + "7 0.5 0.5 0.2 0.2\n", r"a.txt, line 2 is a box: detection labels have no masks"),
        (line(1, SQUARE), r"a.txt, line 1 has class 1; the classes are \[0, 2, 7\]"),
        ("7 0.1 0.1 0.2 0.2 0.3\n", "has 5 coordinates"),
        ("7 10 10 20 20 30 10\n", "line 1 has coordinate 10.0; they are shares"),
        ("7 nan 0.1 0.2 0.2 0.3 0.3\n", "has coordinate nan"),
        ("cat 0.1 0.1 0.2 0.2 0.3 0.3\n", "line 1: invalid literal"),
    ],
)
def test_yolo_errors_name_file_and_line(yolo_root, text, message):
    (yolo_root / "labels/train/a.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        yolo(yolo_root, "train")


def test_yolo_errors_of_folders(yolo_root):
    with pytest.raises(
        ValueError, match=r"no split 'test': looked for .*images/test'.* keys \['path', 'train', 'val'\]"
    ):
        yolo(yolo_root, "test")
    (yolo_root / "labels").rename(yolo_root / "texts")
    with pytest.raises(ValueError, match="none of the 3 images of split 'train' has labels"):
        yolo(yolo_root, "train")
    (yolo_root / "data.yaml").write_text("train: absent\nnames: [a, a]\n")
    with pytest.raises(ValueError, match="names a class twice"):
        yolo(yolo_root, "train")
    (yolo_root / "data.yaml").write_text("train: absent\nnames: [a, b]\n")
    with pytest.raises(ValueError, match="train is absent, but there is none of"):
        yolo(yolo_root, "train")
    (yolo_root / "data.yaml").unlink()
    with pytest.raises(ValueError, match=r"neither a YAML file with `names` nor classes.txt"):
        yolo(yolo_root, "train")


# --- labelme ---------------------------------------------------------------------------------------------------------

OUTLINE = [[5.5, 4.0], [30.0, 6.25], [20.0, 30.0]]


def shape(label, points, kind="polygon", **rest):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **rest}


def write_labelme(path, shapes, photo="a.jpg", size=(HEIGHT, WIDTH), **rest):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": photo, "imageData": None}
    path.write_text(json.dumps({**content, "imageHeight": size[0], "imageWidth": size[1], **rest}))


@pytest.fixture
def labelme_root(tmp_path):
    write_photo(tmp_path / "train/a.jpg")
    write_labelme(
        tmp_path / "train/a.json",
        [
            shape("dog", OUTLINE),
            shape("cat", [[40, 30], [50, 35]], "rectangle"),
            shape("cat", [[10, 10], [13, 14]], "circle"),
            shape("dog", [[1, 30], [8, 30], [8, 38]], group_id=4),
            shape("dog", [[50, 1], [58, 1], [58, 9]], group_id=4),
            shape("cat", [[20, 1], [28, 1], [28, 9]], group_id=4),
            shape("dog", [[1, 1], [9, 9]], "linestrip"),
            shape("dog", [[1, 1]], "point"),
            shape("_background_", OUTLINE),
            shape("__ignore__", [[0, 0], [12, 12]], "rectangle"),
        ],
    )
    write_photo(tmp_path / "val/b.png")
    write_labelme(tmp_path / "val/b.json", [shape("bird", OUTLINE, None)], photo="b.png")
    return tmp_path


def test_labelme(labelme_root, caplog):
    data = labelme(labelme_root, "train")
    # The labels of all splits, so that they agree.
    assert data.id2label == {0: "bird", 1: "cat", 2: "dog"}
    assert labelme(labelme_root, "val").id2label == data.id2label
    sample = data[0]
    assert sample["labels"].tolist() == [2, 1, 1, 2, 1]
    masks = binary_masks(sample)
    assert torch.equal(masks[0], drawn(OUTLINE))
    assert masks[1].sum() == 50
    assert masks[1, 30:35, 40:50].all()
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    circle = (x - 10) ** 2 + (y - 10) ** 2 <= 25
    assert (masks[2] ^ circle).sum() <= 4
    assert torch.equal(masks[3], drawn([[1, 30], [8, 30], [8, 38]], [[50, 1], [58, 1], [58, 9]]))
    region = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    region[:12, :12] = True
    assert torch.equal(void_mask(sample), region & ~masks.any(0))
    assert {(problem.what, problem.count) for problem in data.problems} == {
        ("shape of type linestrip, which has no area", 1),
        ("shape of type point, which has no area", 1),
    }
    assert "1 x shape of type point, which has no area, first" in caplog.text
    assert torch.equal(binary_masks(labelme(labelme_root, "val")[0])[0], drawn(OUTLINE))


def test_labelme_photos_within_and_elsewhere(labelme_root):
    buffer = io.BytesIO()
    Image.open(labelme_root / "val/b.png").save(buffer, "png")
    expected = labelme(labelme_root, "val")[0]["image"]
    (labelme_root / "val/b.png").rename(labelme_root / "photos.png")
    with pytest.raises(ValueError, match=r"b.json is about b.png, which is neither a file there nor embedded"):
        labelme(labelme_root, "val")
    embedded = base64.b64encode(buffer.getvalue()).decode()
    write_labelme(labelme_root / "val/b.json", [shape("bird", OUTLINE)], photo="b.png", imageData=embedded)
    assert torch.equal(labelme(labelme_root, "val")[0]["image"], expected)
    write_labelme(labelme_root / "val/b.json", [shape("bird", OUTLINE)], photo="..\\photos.png")
    assert torch.equal(labelme(labelme_root, "val")[0]["image"], expected)


def test_labels_drawn_on_pixels_as_stored(labelme_root):
    """Some tools ignore EXIF: the size in the json then tells how the photo was seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    write_photo(labelme_root / "val/b.png", exif=exif)
    stored = torch.from_numpy(np.array(Image.open(labelme_root / "val/b.png"))).permute(2, 0, 1)
    for size, expected in (((HEIGHT, WIDTH), stored), ((WIDTH, HEIGHT), stored.rot90(-1, (1, 2)))):
        write_labelme(labelme_root / "val/b.json", [shape("bird", OUTLINE)], photo="b.png", size=size)
        sample = labelme(labelme_root, "val")[0]
        assert torch.equal(sample["image"].as_subclass(torch.Tensor), expected)
        assert sample["planes"].shape[-2:] == size


def test_labelme_masks(labelme_root):
    inside = np.zeros((6, 8), dtype=np.uint8)
    inside[2:5, 1:7] = 255
    buffer = io.BytesIO()
    Image.fromarray(inside).save(buffer, "png")
    png = base64.b64encode(buffer.getvalue()).decode()
    parts = [
        shape("bird", [[10, 20], [17, 25]], "mask", mask=png, group_id=1),
        shape("bird", [[55, 36], [62, 41]], "mask", mask=png, group_id=1),  # goes on beyond the edge
        shape("bird", OUTLINE, group_id=1),
    ]
    write_labelme(labelme_root / "val/b.json", parts, photo="b.png")
    expected = drawn(OUTLINE)
    expected[22:25, 11:17] = True
    expected[38:40, 56:60] = True
    [mask] = binary_masks(labelme(labelme_root, "val")[0])
    assert torch.equal(mask, expected)
    write_labelme(labelme_root / "val/b.json", [shape("bird", [[1, 1], [2, 2]], "mask")], photo="b.png")
    with pytest.raises(ValueError, match=r"b.json, shape 0 is a mask, but holds no PNG"):
        labelme(labelme_root, "val")


def test_labelme_class_files_and_errors(labelme_root):
    (labelme_root / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\nbrid\n")
    assert labelme(labelme_root, "train").id2label == {0: "dog", 1: "cat", 2: "brid"}
    with pytest.raises(ValueError, match=r"b.json, shape 0 is labelled 'bird', .*labels.txt; did you mean 'brid'"):
        labelme(labelme_root, "val")
    write_photo(labelme_root / "train/new.jpg")
    [problem] = [item for item in labelme(labelme_root, "train").problems if "photo" in item.what]
    assert problem.count == 1
    assert problem.examples[0].endswith("new.jpg")
    write_labelme(labelme_root / "train/a.json", [shape("dog", OUTLINE)], size=(HEIGHT, WIDTH + 1))
    with pytest.raises(ValueError, match=r"a.jpg is \(40, 60\) .*a.json outlines a photo of \(40, 61\)"):
        labelme(labelme_root, "train")[0]
    write_labelme(labelme_root / "train/a.json", [shape("dog", [[1, 1], [float("nan"), 2], [3, 3]])])
    with pytest.raises(ValueError, match=r"shape 0 has a point that is no number"):
        labelme(labelme_root, "train")
    (labelme_root / "train/a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a.json is no valid json"):
        labelme(labelme_root, "train")
    (labelme_root / "train/a.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no json of labelme"):
        labelme(labelme_root, "train")


def test_labelme_by_the_front_door(labelme_root):
    data = open_dataset(labelme_root, ["train", "val"], task="semantic", unlabelled="void")
    assert len(data) == 2
    assert data.task == "semantic"
    sample = data[0]
    assert sorted(sample["labels"].tolist()) == [1, 2]
    assert (sample["planes"][0] == VOID).any()
