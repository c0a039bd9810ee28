"""Jsons whose fields have other types, polygons nested in other ways, and text in other encodings."""

import json

import numpy as np
import pytest
from PIL import Image

from maskformer_hf.data import CocoInstances, CocoPanoptic, binary_masks, from_datasets, open_dataset
from maskformer_hf.data.labelme import labelme
from maskformer_hf.data.youtube_vis import YoutubeVis
from maskformer_hf.training.arguments import read_recipe
from tests.data.coco_files import HEIGHT, WIDTH, annotation, mask_of, photo, rectangle, write
from tests.layouts import LAYOUTS

SHAPE = [rectangle(1, 1, 5, 5)]


def change(path, **fields):
    """Other values in the first image, annotation or category of a json."""
    content = json.loads(path.read_text())
    for name, values in fields.items():
        content[name][0].update(values)
    path.write_text(json.dumps(content))
    return path


# --- types in jsons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("iscrowd", "is_crowd"),
    [("0", False), ("false", False), ("False", False), ("1", True), ("true", True), (0.0, False), (None, False)],
)
def test_a_crowd_that_is_text(tmp_path, iscrowd, is_crowd):
    data = CocoInstances(write(tmp_path, [annotation(SHAPE, annotation_id=7, iscrowd=iscrowd)]))
    assert data[0]["is_crowd"].tolist() == [is_crowd]
    assert [(problem.what, problem.count) for problem in data.problems] == (
        [("iscrowd that is text, and was taken for what it says", 1)] if isinstance(iscrowd, str) else []
    )


@pytest.mark.parametrize("iscrowd", ["maybe", 2, [0], float("nan")])
def test_a_crowd_that_is_neither(tmp_path, iscrowd):
    path = write(tmp_path, [annotation(SHAPE, annotation_id=7, iscrowd=iscrowd)])
    with pytest.raises(ValueError, match=r"annotation 7 of .*json \(a.png\) has iscrowd .*; expected true or"):
        CocoInstances(path)


def panoptic(folder, segments, isthing=1):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 3, "name": "cat", "isthing": isthing}, {"id": 4, "name": "sky", "isthing": "0"}],
    }
    photo(folder / "images/a.png")
    (folder / "panoptic").mkdir(exist_ok=True)
    ids = np.full((HEIGHT, WIDTH), 9, dtype=np.uint8)
    ids[:10] = 8
    Image.fromarray(ids).save(folder / "panoptic/a.png")
    (folder / "panoptic.json").write_text(json.dumps(content))
    return folder / "panoptic.json"


def test_a_thing_that_is_text(tmp_path):
    segments = [{"id": "8", "category_id": "3", "iscrowd": "false"}, {"id": 9, "category_id": 4}]
    data = CocoPanoptic(panoptic(tmp_path, segments, isthing="true"))
    assert data.label_ids_to_fuse == [1]
    assert data[0]["labels"].tolist() == [0, 1]
    assert data[0]["is_crowd"].tolist() == [False, False]
    assert {problem.what.split()[0] for problem in data.problems} == {"isthing", "id", "category_id", "iscrowd"}
    with pytest.raises(ValueError, match=r"category 3 of .*panoptic.json has isthing 'maybe'; expected true or false"):
        CocoPanoptic(panoptic(tmp_path, segments, isthing="maybe"))


def test_segments_that_are_null(tmp_path):
    with pytest.raises(ValueError, match=r"annotation of image 1 of .*panoptic.json has segments_info null"):
        CocoPanoptic(panoptic(tmp_path, None))


def test_ids_and_sizes_that_are_text(tmp_path):
    path = write(tmp_path, [annotation(SHAPE, category_id="1", image_id="1")], height=str(HEIGHT), width=f"{WIDTH}.0")
    data = CocoInstances(change(path, images={"id": "1"}, categories={"id": "1"}))
    assert np.array_equal(binary_masks(data[0])[0].numpy(), mask_of(1, 1, 5, 5))
    assert {problem.what.split()[0] for problem in data.problems} == {
        "image_id",
        "category_id",
        "id",
        "height",
        "width",
    }
    # Ids that are no numbers are ids, too.
    names = {"images": {"id": "frame_a"}, "annotations": {"image_id": "frame_a", "category_id": "x"}}
    assert len(CocoInstances(change(path, **names, categories={"id": "x"}))[0]["labels"]) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": {"height": -1}}, r"image 1 of .* has height -1; expected a whole number from 1 to"),
        ({"images": {"height": None}}, "image 1 of .* has height null; expected a whole number"),
        ({"images": {"width": 30.5}}, "image 1 of .* has width 30.5; expected a whole number"),
        ({"images": {"width": True}}, "image 1 of .* has width true; expected a whole number"),
        ({"images": {"height": 10**6, "width": 10**6}}, "image 1 of .* is 1000000 x 1000000, which is more than"),
        ({"images": {"file_name": None}}, "image 1 of .* has file_name null; expected text"),
        ({"annotations": {"image_id": None}}, "annotation 1 of .* has image_id null; expected a number or text"),
        ({"annotations": {"category_id": [1]}}, "annotation 1 of .* has category_id a list of 1; expected"),
        ({"categories": {"name": ""}}, "category 1 of .* has name ''; expected text"),
        ({"categories": {"id": {}}}, r"categories\[0\] of .* has id {}; expected a number"),
    ],
)
def test_fields_of_other_types(tmp_path, fields, message):
    path = write(tmp_path, [annotation(SHAPE)])
    with pytest.raises(ValueError, match=message):
        CocoInstances(change(path, **fields))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("annotations", [None], r"annotations\[0\] of .*instances.json is null; expected an object"),
        ("annotations", None, "instances.json has annotations null; expected a list"),
        ("images", {"1": {}}, "instances.json has images an object with .*; expected a list"),
        ("categories", ["cat"], r"categories\[0\] of .*instances.json is 'cat'; expected an object"),
    ],
)
def test_objects_that_are_none(tmp_path, name, value, message):
    path = write(tmp_path, [annotation(SHAPE)])
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ValueError, match=message):
        CocoInstances(path)


def test_types_in_videos_and_tables(tmp_path):
    photo(tmp_path / "JPEGImages/a.png")
    content = {
        "videos": [{"id": "4", "file_names": ["a.png"], "height": "20", "width": 30}],
        "annotations": [{"id": 1, "video_id": 4, "category_id": "1", "iscrowd": "0", "segmentations": [SHAPE]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path = tmp_path / "videos.json"
    path.write_text(json.dumps(content))
    assert YoutubeVis(path).objects(0).is_crowd == [False]
    with pytest.raises(ValueError, match=r"video 4 of .* has file_names\[0\] null; expected text"):
        YoutubeVis(change(path, videos={"file_names": [None]}))
    import datasets

    objects = [{"segmentation": json.dumps([[1, 1], [5, 1], [5, 5]]), "category_id": 1, "iscrowd": "false"}]
    table = datasets.Dataset.from_dict({"image": [Image.new("RGB", (WIDTH, HEIGHT))], "objects": [objects]})
    sample = from_datasets(table, "image", "objects", id2label={1: "cat"})[0]
    assert sample["is_crowd"].tolist() == [False]


# --- polygons --------------------------------------------------------------------------------------------------------

FLAT = rectangle(1, 1, 5, 5)
PAIRS = [[1, 1], [5, 1], [5, 5], [1, 5]]
POINTS = [{"x": x, "y": y} for x, y in PAIRS]
APART = [[[10, 1], [12, 1], [12, 3]], PAIRS]
WAYS = {
    "flat": FLAT,
    "once more": [[FLAT]],
    "pairs": PAIRS,
    "list of pairs": [PAIRS],
    "pairs once more": [[[PAIRS]]],
    "points": POINTS,
    "list of points": [POINTS],
    "text": json.dumps([FLAT]),
    "text of numbers": " ".join(map(str, FLAT)),
    "text of pairs": "1,1 5,1 5,5 1,5",
    "numbers that are text": [list(map(str, FLAT))],
    "pairs that are text": [[str(x), str(y)] for x, y in PAIRS],
    "arrays": [np.array(PAIRS).tolist()],
}


@pytest.mark.parametrize("way", WAYS)
def test_polygons_nested_in_other_ways(tmp_path, way):
    data = CocoInstances(write(tmp_path, [annotation(WAYS[way])]))
    assert np.array_equal(binary_masks(data[0])[0].numpy(), mask_of(1, 1, 5, 5))
    assert bool(data.problems) == ("text" in way)


def test_parts_of_an_object_in_pairs(tmp_path):
    data = CocoInstances(write(tmp_path, [annotation(APART), annotation([APART])]))
    one, other = binary_masks(data[0])
    assert one.equal(other)
    assert one[1:5, 1:5].all()
    assert 16 < one.sum() <= 20


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, None, 5, 5, 5]], "has null in its outline, where a coordinate is expected"),
        ([[1, 1, "wide", 5, 5, 5]], "has 'wide' in its outline, where a coordinate is expected"),
        ([[1, 1, True, 5, 5, 5]], "has true in its outline"),
        ("somewhere", "has the text 'somewhere' as its outline, which is no list of polygons"),
        (5, "has 5 in its outline; expected polygons"),
        ([FLAT, 5], "has 5 in its outline; expected polygons"),
        ([[[[[[[[[FLAT]]]]]]]]], "lists in lists, more than 6 deep"),
        ([PAIRS, [[2, 2], [3, 2], [3, 3]]], "a polygon of 2 rings, one within another, which may be a hole or not"),
        ({"counts": None, "size": [20, 30]}, "has run lengths null; expected text or a list of numbers"),
        ({"counts": [5, "many"]}, "run lengths with no valid numbers"),
        ({"counts": "é"}, "run lengths with no valid numbers"),
        ({"counts": "0", "size": None, "x": 1}, "run lengths with a sum of 0"),
        ({"counts": "0", "size": 20}, r"run lengths for 20 \(height, width\), but its image is"),
    ],
)
def test_polygons_that_may_mean_anything(tmp_path, segmentation, message):
    with pytest.raises(ValueError, match=f"annotation 1 of .*{message}"):
        CocoInstances(write(tmp_path, [annotation(segmentation)]))


# --- labelme ---------------------------------------------------------------------------------------------------------

SQUARE = {"label": "cat", "points": PAIRS, "shape_type": "polygon", "group_id": None}


def write_labelme(folder, shapes, **fields):
    photo(folder / "train/a.png")
    content = {"imagePath": "a.png", "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
    (folder / "train/a.json").write_text(json.dumps({**content, **fields}))
    return folder


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([SQUARE, {**SQUARE, "label": None}], "a.json, shape 1 has label null; expected text"),
        ([{**SQUARE, "label": ""}], "a.json, shape 0 has label ''; expected text"),
        ([{**SQUARE, "points": None}], "a.json, shape 0 has points null; expected a list"),
        ([{**SQUARE, "points": [[1, 1], [5]]}], "a.json, shape 0 has points that are no pairs x, y: a list of 2"),
        ([{**SQUARE, "points": [1, 2, 3]}], "a.json, shape 0 has points that are no pairs"),
        ([{**SQUARE, "group_id": []}], r"a.json, shape 0 has group_id \[\]; expected a number"),
        ([None], "a.json, shape 0 is null; expected an object"),
        (None, "a.json has shapes null; expected a list"),
    ],
)
def test_shapes_of_labelme(tmp_path, shapes, message):
    with pytest.raises(ValueError, match=message):
        labelme(write_labelme(tmp_path, shapes), "train")


def test_labels_that_are_numbers(tmp_path):
    data = labelme(
        write_labelme(tmp_path, [{**SQUARE, "label": 3}, {**SQUARE, "label": "3", "points": POINTS}]), "train"
    )
    assert data.id2label == {0: "3"}
    assert data[0]["labels"].tolist() == [0, 0]
    assert data.problems[0].what == "label that is a number and no text"
    assert labelme(write_labelme(tmp_path, [SQUARE], imageHeight="20"), "train")[0]["labels"].tolist() == [0]
    with pytest.raises(ValueError, match=r"a.json has imageHeight -1; expected a whole number"):
        labelme(write_labelme(tmp_path, [SQUARE], imageHeight=-1), "train")


# --- text files ------------------------------------------------------------------------------------------------------

# Formats with text of their own, and which files these are.
TEXTS = {
    "semantic_folder": "classes.txt",
    "color_folder": "class_dict.csv",
    "coco_instances": "instances_*.json",
    "coco_panoptic": "panoptic_*.json",
    "coco_instances_and_stuff": "semantic_*/classes.txt",
    "mapillary": "config.json",
    "yolo": "**/*.*[tm][xl][tl]*",
    "labelme": "*/*.json",
    "youtube_vis": "*/instances.json",
    "datasets": "id2label.json",
}


def rewrite(root, pattern, encode):
    paths = [path for path in root.glob(pattern) if path.is_file()]
    assert paths
    for path in paths:
        path.write_bytes(encode(path.read_text()))


def opened(root, name):
    data = open_dataset(root, "train", format=name)
    return data, [data[index]["labels"].tolist() for index in range(len(data))]


@pytest.mark.parametrize("name", TEXTS)
def test_text_of_windows(tmp_path, name):
    LAYOUTS[name](tmp_path)
    before, labels = opened(tmp_path, name)
    rewrite(tmp_path, TEXTS[name], lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    after, again = opened(tmp_path, name)
    assert (after.id2label, again) == (before.id2label, labels)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda text: text.encode("utf-16"), "line 1 is UTF-16 or UTF-32; save the file as UTF-8: iconv"),
        (lambda text: text.encode("utf-16-le"), "line 1 is UTF-16 or UTF-32; save the file as UTF-8: iconv"),
        (lambda text: b"\n\xe9" + text.encode(), r"line 2 is not UTF-8 \(byte 0xe9\); save the file as UTF-8, for"),
    ],
    ids=["utf-16", "utf-16 without a mark", "cp1252"],
)
def test_text_in_other_encodings(tmp_path, name, encode, message):
    LAYOUTS[name](tmp_path)
    rewrite(tmp_path, TEXTS[name], encode)
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*, {message}"):
        opened(tmp_path, name)


def test_a_recipe_of_windows(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfdata: {root: photos}\r\nsteps: 3\r\nbatch_size: 1\r\nmodel: {checkpoint: street}\r\n"
    )
    assert read_recipe(path).steps == 3
    path.write_bytes(b"# caf\xe9\nsteps: 3\n")
    with pytest.raises(ValueError, match=r"recipe.yaml, line 1 is not UTF-8 \(byte 0xe9\)"):
        read_recipe(path)


def test_names_of_the_only_class(tmp_path):
    LAYOUTS["instance_folder"](tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfnucl\xc3\xa9us\r\n")
    assert open_dataset(tmp_path, "train").id2label == {0: "nucléus"}
