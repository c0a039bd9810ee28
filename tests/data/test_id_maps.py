"""Cityscapes, Mapillary Vistas, ADE20K and folders of colours, in folders made here as the originals are laid out."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_hf.data import open_dataset
from maskformer_hf.data.ade20k import ade20k
from maskformer_hf.data.cityscapes import cityscapes
from maskformer_hf.data.color_folder import color_folder
from maskformer_hf.data.id_maps import class_list
from maskformer_hf.data.mapillary import mapillary
from maskformer_hf.data.sample import VOID, binary_masks, class_map, void_mask


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)


def photo_like(ids):
    return np.random.default_rng(0).integers(0, 255, (*np.shape(ids)[:2], 3), dtype=np.uint8)


def named_masks(data, index=0):
    """[(class name, crowd, mask as nested list)] of a sample."""
    sample = data[index]
    assert sample["planes"].dtype == torch.int32
    assert sample["labels"].dtype == torch.int64
    return [
        (data.id2label[label], crowd, mask.int().tolist())
        for label, crowd, mask in zip(
            sample["labels"].tolist(), sample["is_crowd"].tolist(), binary_masks(sample), strict=True
        )
    ]


# --- Cityscapes ------------------------------------------------------------------------------------------------------

# Two cars, a group of cars, road, a caravan (30, not evaluated), ego vehicle (1, void).
CITY_IDS = np.array([[26001, 26000, 26, 7], [26001, 30002, 1, 7]], dtype=np.uint16)


@pytest.fixture
def city(tmp_path):
    for name in ("a_000000_000019", "b_000001_000019"):
        place = tmp_path / "leftImg8bit/train" / name[0] / f"{name}_leftImg8bit.png"
        write(place, photo_like(CITY_IDS))
        truth = tmp_path / "gtFine/train" / name[0]
        write(truth / f"{name}_gtFine_instanceIds.png", CITY_IDS)
        write(
            truth / f"{name}_gtFine_labelIds.png", np.where(CITY_IDS > 999, CITY_IDS // 1000, CITY_IDS).astype("uint8")
        )
    return tmp_path


def test_cityscapes_semantic(city):
    data = cityscapes(city, "train")
    assert (data.task, len(data), len(data.id2label)) == ("semantic", 2, 19)
    assert data.id2label[0] == "road"
    assert named_masks(data) == [
        ("road", False, [[0, 0, 0, 1], [0, 0, 0, 1]]),
        ("car", False, [[1, 1, 1, 0], [1, 0, 0, 0]]),
    ]
    assert class_map(data[0]).tolist() == [[13, 13, 13, 0], [13, 255, 255, 0]]


def test_cityscapes_panoptic(city):
    data = cityscapes(city, "train", "panoptic")
    assert data.label_ids_to_fuse == list(range(11))
    assert named_masks(data) == [
        ("road", False, [[0, 0, 0, 1], [0, 0, 0, 1]]),
        ("car", True, [[0, 0, 1, 0], [0, 0, 0, 0]]),
        ("car", False, [[0, 1, 0, 0], [0, 0, 0, 0]]),
        ("car", False, [[1, 0, 0, 0], [1, 0, 0, 0]]),
    ]
    assert void_mask(data[0]).int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 0]]


def test_cityscapes_instance(city):
    data = cityscapes(city, "train", "instance")
    assert list(data.id2label.values()) == ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert [name for name, _, _ in named_masks(data)] == ["car", "car", "car"]
    # Road is background; what Cityscapes does not evaluate is void.
    assert data[0]["planes"][0].tolist() == [[3, 2, 1, 0], [3, VOID, VOID, 0]]


def test_cityscapes_errors(city):
    write(city / "gtFine/train/a/a_000000_000019_gtFine_labelIds.png", np.full((2, 4), 77, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"a_000000_000019_gtFine_labelIds.png holds id 77, which is not one of"):
        cityscapes(city, "train")[0]
    (city / "gtFine/train/b/b_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(ValueError, match=r"1 photos of .* have no labelIds, first .*b_000001"):
        cityscapes(city, "train")
    with pytest.raises(ValueError, match=r"holds no \*_leftImg8bit.png"):
        cityscapes(city, "val")


# --- Mapillary Vistas ------------------------------------------------------------------------------------------------

VISTAS = {
    "labels": [
        {"readable": "Bird", "evaluate": True, "instances": True},
        {"readable": "Road", "evaluate": True, "instances": False},
        {"readable": "Ego Vehicle", "evaluate": False, "instances": False},
        {"readable": "Car", "evaluate": True, "instances": True},
        {"readable": "Unlabeled", "evaluate": False, "instances": False},
    ]
}
VISTAS_IDS = np.array([[3 * 256, 3 * 256 + 1, 256], [2 * 256, 4 * 256, 256]], dtype=np.uint16)


@pytest.fixture(params=["", "v1.2"])
def vistas(tmp_path, request):
    """An evaluated class of each kind, in either layout of the download."""
    truth = tmp_path / "training" / request.param
    write(tmp_path / "training/images/p.jpg", photo_like(VISTAS_IDS))
    write(truth / "instances/p.png", VISTAS_IDS)
    labels = Image.fromarray((VISTAS_IDS // 256).astype(np.uint8), mode="P")
    labels.putpalette([9, 8, 7] * 256)
    (truth / "labels").mkdir()
    labels.save(truth / "labels/p.png")
    name = f"config_{request.param}.json" if request.param else "config.json"
    (tmp_path / name).write_text(json.dumps(VISTAS))
    return tmp_path


def test_mapillary(vistas):
    semantic = mapillary(vistas, "train")
    assert semantic.id2label == {0: "Bird", 1: "Road", 2: "Car"}
    assert class_map(semantic[0]).tolist() == [[2, 2, 1], [255, 255, 1]]
    panoptic = mapillary(vistas, "training", "panoptic")
    assert panoptic.label_ids_to_fuse == [1]
    assert [name for name, _, _ in named_masks(panoptic)] == ["Road", "Car", "Car"]
    assert panoptic[0]["planes"][0].tolist() == [[2, 3, 1], [VOID, VOID, 1]]
    instance = mapillary(vistas, "train", "instance")
    assert instance.id2label == {0: "Bird", 1: "Car"}
    assert instance[0]["planes"][0].tolist() == [[1, 2, 0], [VOID, VOID, 0]]


def test_mapillary_errors(vistas):
    with pytest.raises(ValueError, match=r"has no labels/ for split 'val'"):
        mapillary(vistas, "val")
    write(next(vistas.rglob("labels")) / "p.png", np.full((2, 3), 5, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"p.png holds id 5, which is not one of the 5 classes of config"):
        mapillary(vistas, "train")[0]
    next(vistas.glob("config*")).write_text("{}")
    with pytest.raises(ValueError, match=r"config.*json has no labels"):
        mapillary(vistas, "train")


# --- ADE20K ----------------------------------------------------------------------------------------------------------

# wall (1) is stuff, bed (8) the first thing, sky (3) stuff; 0 is void.
ADE_CLASSES = np.array([[1, 1, 8, 8], [0, 3, 8, 1]], dtype=np.uint8)


@pytest.fixture
def ade(tmp_path):
    write(tmp_path / "images/training/x.jpg", photo_like(ADE_CLASSES))
    write(tmp_path / "annotations/training/x.png", ADE_CLASSES)
    objects = np.zeros((2, 4, 3), dtype=np.uint8)
    # Category (red) and number (green); the third pixel of bed has no outline, one of the beds covers some wall.
    objects[0, 2] = 1, 1, 0
    objects[0, 3] = 1, 2, 0
    objects[1, 3] = 1, 2, 0
    write(tmp_path / "annotations_instance/training/x.png", objects)
    return tmp_path


def test_ade20k_semantic(ade):
    data = ade20k(ade, "train")
    assert len(data.id2label) == 150
    assert class_map(data[0]).tolist() == [[0, 0, 7, 7], [255, 2, 7, 0]]
    (ade / "annotations").rename(ade / "annotations_detectron2")
    write(ade / "annotations_detectron2/training/x.png", ADE_CLASSES - 1)
    assert class_map(ade20k(ade, "training")[0]).tolist() == [[0, 0, 7, 7], [255, 2, 7, 0]]


def test_ade20k_instance_and_panoptic(ade):
    data = ade20k(ade, "train", "instance")
    assert len(data.id2label) == 100
    assert named_masks(data) == [
        ("bed", False, [[0, 0, 1, 0], [0, 0, 0, 0]]),
        ("bed", False, [[0, 0, 0, 1], [0, 0, 0, 1]]),
    ]
    assert not void_mask(data[0]).any()
    data = ade20k(ade, "train", "panoptic")
    assert len(data.id2label) == 150
    assert len(data.label_ids_to_fuse) == 50
    assert named_masks(data)[0] == ("wall", False, [[1, 1, 0, 0], [0, 0, 0, 0]])
    assert [name for name, _, _ in named_masks(data)] == ["wall", "sky", "bed", "bed"]
    assert void_mask(data[0]).int().tolist() == [[0, 0, 0, 0], [1, 0, 1, 0]]
    write(ade / "annotations_instance/training/x.png", np.full((2, 4, 3), 101, dtype=np.uint8))
    with pytest.raises(ValueError, match="100 categories"):
        ade20k(ade, "train", "instance")[0]


def test_ade20k_categories_are_the_things_in_order():
    # Number in the 100 categories of annotations_instance -> number in the 150 classes, a sample of the official list.
    official = {1: 8, 2: 9, 3: 11, 4: 13, 9: 21, 19: 37, 30: 51, 50: 81, 66: 104, 75: 119, 88: 135, 100: 150}
    things = [label + 1 for label, (_, is_thing, _) in enumerate(class_list("ade20k_150")) if is_thing]
    assert {category: things[category - 1] for category in official} == official


def test_ade20k_full(tmp_path):
    write(tmp_path / "images_detectron2/validation/x.jpg", photo_like(ADE_CLASSES))
    write(tmp_path / "annotations_detectron2/validation/x.tif", np.array([[0, 846, 300, 65535]] * 2, dtype=np.uint16))
    data = ade20k(tmp_path, "val")
    assert len(data.id2label) == 847
    assert class_map(data[0], ignore_index=-7)[0].tolist() == [0, 846, 300, -7]
    with pytest.raises(ValueError, match="847 classes"):
        ade20k(tmp_path, "val", "panoptic")


# --- colours ---------------------------------------------------------------------------------------------------------

COLORS = np.array([[[128, 64, 128], [0, 0, 0]], [[70, 70, 70], [128, 64, 128]]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_dict.csv", "name,r,g,b\nRoad,128,64,128\nvoid,0,0,0\nThe building, 70, 70, 70\n"),
        ("classes.txt", "Road 128 64 128\nvoid 0 0 0\nThe building 70 70 70\n"),
        ("label_colors.txt", "128 64 128\tRoad\n0 0 0\t\tvoid\n70 70 70\tThe building\n"),
    ],
)
@pytest.mark.parametrize("layout", ["folders", "camvid", "palette"])
def test_colors(tmp_path, name, text, layout):
    (tmp_path / name).write_text(text)
    photos, maps = ("train", "train_labels/a_L.png") if layout == "camvid" else ("train/images", "train/labels/a.png")
    write(tmp_path / photos / "a.png", photo_like(COLORS))
    write(tmp_path / maps, COLORS)
    if layout == "palette":
        Image.fromarray(COLORS).quantize(4).save(tmp_path / maps)
    data = color_folder(tmp_path, "train")
    assert data.id2label == {0: "Road", 1: "The building"}
    assert class_map(data[0]).tolist() == [[0, 255], [1, 0]]
    assert data.task == "semantic"


def test_errors_of_colors(tmp_path):
    write(tmp_path / "train/images/a.png", photo_like(COLORS))
    write(tmp_path / "train/labels/a.png", COLORS)
    (tmp_path / "classes.txt").write_text("road 128 64 128\nvoid 0 0 0\n")
    with pytest.raises(ValueError, match=r"a.png holds id 4605510, which is not the colour .* of classes.txt"):
        color_folder(tmp_path, "train")[0]
    (tmp_path / "classes.txt").write_text("road 128 64 128\nwall 128 64 128\n")
    with pytest.raises(ValueError, match="one colour to two classes"):
        color_folder(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("road\nwall\n")
    with pytest.raises(ValueError, match=r"has none of .* with a colour a class"):
        color_folder(tmp_path, "train")
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nroad,1,2\n")
    with pytest.raises(ValueError, match="class 1 is"):
        color_folder(tmp_path, "train")


# --- all of them -----------------------------------------------------------------------------------------------------


def test_the_front_door_finds_them(city, vistas, ade, tmp_path_factory):
    # All three lie in one folder here, and their layouts do not get in each other's way.
    with pytest.raises(ValueError, match=r"several formats, \['cityscapes', 'mapillary'\]"):
        open_dataset(city, "train")
    (ade / "objectInfo150.txt").touch()
    with pytest.raises(ValueError, match=r"several formats, \['ade20k', 'cityscapes', 'mapillary'\]"):
        open_dataset(ade, "train")
    classes = {
        name: len(open_dataset(ade, "train", format=name).id2label) for name in ("ade20k", "cityscapes", "mapillary")
    }
    assert classes == {"ade20k": 150, "cityscapes": 19, "mapillary": 3}
    (ade / "leftImg8bit").rename(ade / "elsewhere")
    (ade / "objectInfo150.txt").unlink()
    assert len(open_dataset(ade, "train", task="instance").id2label) == 2

    root = tmp_path_factory.mktemp("colors")
    (root / "classes.txt").write_text("road 128 64 128\nvoid 0 0 0\nwall 70 70 70\n")
    write(root / "train/images/a.png", photo_like(COLORS))
    write(root / "train/labels/a.png", COLORS)
    assert open_dataset(root, "train").id2label == {0: "road", 1: "wall"}
    # Names without colours: the maps hold ids.
    (root / "classes.txt").write_text("road\nwall\n")
    write(root / "train/labels/a.png", np.array([[0, 1], [1, 255]], dtype=np.uint8))
    assert class_map(open_dataset(root, "train")[0]).tolist() == [[0, 1], [1, 255]]


def test_classes_can_be_grouped(city):
    groups = {"ground": ["road", "sidewalk"], "vehicle": ["car", "bus"]}
    data = open_dataset(city, "train", task="panoptic", class_groups=groups)
    assert [name for name, _, _ in named_masks(data)] == ["ground", "vehicle", "vehicle", "vehicle"]


def test_worker_processes_can_be_sent_one(city):
    data = pickle.loads(pickle.dumps(cityscapes(city, "train", "panoptic")))
    assert len(named_masks(data)) == 4
