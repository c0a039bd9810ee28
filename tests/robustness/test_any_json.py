"""No json makes a reader fail with anything but one line that names the file.

Each example takes a json that is right and puts other values into some of its places.
"""

import json
import shutil

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskformer_hf.data.coco import CocoInstances, CocoPanoptic
from maskformer_hf.data.labelme import labelme
from maskformer_hf.data.mapillary import mapillary
from maskformer_hf.data.yolo import yolo
from maskformer_hf.data.youtube_vis import YoutubeVis
from tests.data.coco_files import HEIGHT, WIDTH, photo

OUTLINE = [2, 2, 12, 2, 12, 9, 2, 9]
CATEGORY = {"id": 1, "name": "cat", "isthing": 1, "supercategory": "animal"}
IMAGE = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
ANNOTATION = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [OUTLINE]}
RUN_LENGTHS = {"size": [HEIGHT, WIDTH], "counts": [5, 10, HEIGHT * WIDTH - 15]}

INSTANCES = {
    "images": [IMAGE],
    "annotations": [ANNOTATION, {**ANNOTATION, "id": 2, "segmentation": RUN_LENGTHS}],
    "categories": [CATEGORY],
}
PANOPTIC = {
    "images": [IMAGE],
    "annotations": [
        {"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 0, "category_id": 1, "iscrowd": 0}]}
    ],
    "categories": [CATEGORY],
}
VIDEOS = {
    "videos": [{"id": 1, "file_names": ["a.png"], "height": HEIGHT, "width": WIDTH}],
    "annotations": [{"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": [[OUTLINE]]}],
    "categories": [CATEGORY],
}
LABELME = {
    "imagePath": "a.png",
    "imageData": None,
    "imageHeight": HEIGHT,
    "imageWidth": WIDTH,
    "shapes": [
        {"label": "cat", "points": [[2, 2], [12, 2], [12, 9]], "group_id": None, "shape_type": "polygon"},
        {"label": "cat", "points": [[2, 2], [5, 5]], "group_id": 1, "shape_type": "circle"},
    ],
}
VISTAS = {"labels": [{"name": "a--b", "readable": "cat", "evaluate": True, "instances": True}]}
YOLO = {"names": {"0": "cat"}, "train": "images", "path": "."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("any")
    cache = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = root / "cache"
    for name in ("images", "training/images", "labelme/train"):
        photo(root / name / "a.png")
    for name in ("panoptic", "training/labels"):
        (root / name).mkdir()
        Image.fromarray(np.zeros((HEIGHT, WIDTH), dtype=np.uint8)).save(root / name / "a.png")
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text("0 0.1 0.1 0.9 0.1 0.5 0.9\n")
    yield root
    datasets.config.HF_DATASETS_CACHE = cache


def places(value, path=()):
    """The path to each value within a json, and to the whole."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def changed(value, path, new):
    if not path:
        return new
    value = value.copy()
    value[path[0]] = changed(value[path[0]], path[1:], new)
    return value


ODD_NUMBERS = st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**400, -0.0, 0.5, 1e300, float("nan"), float("inf")])
ODD_TEXTS = st.sampled_from(
    [
        *(
            "",
            " ",
            "0",
            "1",
            "-1",
            "20",
            "1.0",
            "true",
            "False",
            "no",
            "nan",
            "NaN",
            "1e5",
            "\ufeffcat",
            "\0",
            "\ud800",
        ),
        *("\n", "a.png", "images\\a.png", "..", "/", "C:\\x\\a.png", "%00", "a%2Epng", "[[1, 2, 3, 4, 5, 6]]"),
        *("1,2 3,4 5,6", "[", "polygon", "mask"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | ODD_NUMBERS | st.floats() | ODD_TEXTS | st.text(max_size=8)
POINTS = st.lists(st.lists(st.integers(0, 30) | SCALARS, min_size=2, max_size=2), max_size=4)
KEYS = st.sampled_from(["x", "y", "id", "size", "counts", "name", "file_name"])
VALUES = st.recursive(
    SCALARS | POINTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


def jsons(valid):
    """A json with other values in up to three of its places, one after the other."""

    @st.composite
    def draw(draw):
        value = valid
        for _ in range(draw(st.integers(1, 3))):
            value = changed(value, draw(st.sampled_from(list(places(value)))), draw(VALUES))
        return value

    return draw()


def read_all(data):
    """Opens samples too, for what is only found then."""
    if hasattr(data, "clip"):
        assert len(data.clip(0, [0])["labels"]) == len(data.objects(0).labels)
    else:
        assert [len(data[index]["labels"]) >= 0 for index in range(len(data))]


READERS = {
    "coco_instances": (INSTANCES, "instances.json", lambda root: CocoInstances(root / "instances.json")),
    "coco_panoptic": (PANOPTIC, "panoptic.json", lambda root: CocoPanoptic(root / "panoptic.json")),
    "youtube_vis": (VIDEOS, "videos.json", lambda root: YoutubeVis(root / "videos.json", root / "images")),
    "labelme": (LABELME, "labelme/train/a.json", lambda root: labelme(root / "labelme", "train")),
    "mapillary": (VISTAS, "config.json", lambda root: mapillary(root, "train")),
    # YAML reads json.
    "yolo": (YOLO, "data.yaml", lambda root: yolo(root / "data.yaml", "train")),
}


def check(folder, reader, value):
    _, name, read = READERS[reader]
    # The records of a json are kept until it changes, which takes longer than an example.
    shutil.rmtree(folder / "cache", ignore_errors=True)
    # json has escapes for halves of characters, and Python's has words for NaN.
    (folder / name).write_text(json.dumps(value))
    problem = None
    try:
        read_all(read(folder))
    except ValueError as error:
        problem = error
    if problem is not None:
        assert type(problem) is ValueError
        assert str(folder) in str(problem)
        assert str(problem).encode()


@pytest.mark.parametrize("reader", READERS)
def test_the_json_that_is_changed_is_right(folder, reader):
    valid, name, read = READERS[reader]
    (folder / name).write_text(json.dumps(valid))
    read_all(read(folder))


def settings_of(examples):
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )


@pytest.mark.parametrize("reader", READERS)
def test_a_few_jsons(folder, reader):
    @settings_of(40)
    @given(jsons(READERS[reader][0]))
    def run(value):
        check(folder, reader, value)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_many_jsons(folder, reader):
    @settings_of(500)
    @given(jsons(READERS[reader][0]))
    def run(value):
        check(folder, reader, value)

    run()
