"""COCO's formats. tests/fixtures/coco4 holds four photos of COCO with their instances, panoptic and semantic files."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

from maskformer_hf.data import (
    VOID,
    CocoInstances,
    CocoInstancesAndStuff,
    CocoPanoptic,
    as_task,
    binary_masks,
    class_map,
    coco_json,
)
from maskformer_hf.data.run_lengths import _decompressed

COCO4 = Path(__file__).parent.parent / "fixtures/coco4"
HEIGHT, WIDTH = 20, 30


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "maskformer_hf"


def rectangle(top, left, bottom, right):
    return [left, top, right, top, right, bottom, left, bottom]


def mask_of(top, left, bottom, right):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def photo(path, height=HEIGHT, width=WIDTH, **options):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path, **options)


def annotation(segmentation, category_id=1, image_id=1, annotation_id=1, **fields):
    fields = {"iscrowd": 0, **fields}
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        **fields,
    }


def write(folder, annotations, categories=("cat",), images=("a.png",), name="instances.json", **image_fields):
    """A json, and its photos where there are none. Categories are names, numbered from 1, or records."""
    content = {
        "images": [
            {"id": number, "file_name": image, "height": HEIGHT, "width": WIDTH, **image_fields}
            for number, image in enumerate(images, start=1)
        ],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": category} if isinstance(category, str) else category
            for number, category in enumerate(categories, start=1)
        ],
    }
    for image in images:
        if not (folder / "images" / image).exists():
            photo(folder / "images" / image)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_masks_are_those_of_pycocotools(tmp_path):
    """Polygons of several parts, reaching out of the image, with fractions; run lengths of both kinds; crowds."""
    mask = np.asfortranarray(np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.3).astype(np.uint8, order="F")
    compressed = run_lengths.encode(mask)
    flat = mask.ravel(order="F")
    counts, value = [], 0
    for run in np.split(flat, np.flatnonzero(np.diff(flat)) + 1):
        if run[0] != value:
            counts.append(0)
        counts.append(len(run))
        value = 1 - run[0]
    segmentations = [
        [rectangle(2, 3, 9.5, 12.2), rectangle(12, 20, 15, 40)],
        [rectangle(-5, -7, 6, 5)],
        {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()},
        {"size": [HEIGHT, WIDTH], "counts": [int(count) for count in counts]},
        [[3.3, 4.1, 20.7, 6.5, 9.9, 18.2, 1.2, 11.0]],
    ]
    path = write(
        tmp_path,
        [
            annotation(segmentation, annotation_id=10 + number, iscrowd=int(number == 3))
            for number, segmentation in enumerate(segmentations)
        ],
    )
    sample = CocoInstances(path)[0]
    reference = COCO(path)
    expected = np.stack([reference.annToMask(item) for item in reference.imgToAnns[1]])
    assert np.array_equal(binary_masks(sample).numpy(), expected.astype(bool))
    assert np.array_equal(expected[2], mask)
    assert sample["is_crowd"].tolist() == [False, False, False, True, False]
    assert len(sample["planes"]) > 1
    assert sample["planes"].dtype == torch.int32
    assert not (sample["planes"] == VOID).any()


def test_real_photos_equal_pycocotools():
    data = CocoInstances(COCO4 / "instances.json")
    reference = COCO(COCO4 / "instances.json")
    categories = sorted(reference.cats)
    count = 0
    for image_id, sample in zip(reference.imgs, data, strict=True):
        annotations = reference.imgToAnns[image_id]
        assert sample["labels"].tolist() == [categories.index(item["category_id"]) for item in annotations]
        assert sample["is_crowd"].tolist() == [bool(item["iscrowd"]) for item in annotations]
        expected = np.stack([reference.annToMask(item) for item in annotations]).astype(bool)
        assert np.array_equal(binary_masks(sample).numpy(), expected)
        count += len(annotations)
    assert count == 66
    assert data.problems == []
    assert len(data.id2label) == 80
    assert data.supercategories["dog"] == "animal"


def test_category_ids_may_have_gaps_and_be_zero(tmp_path):
    categories = [{"id": 90, "name": "zebra"}, {"id": 0, "name": "ant"}, {"id": 7, "name": "dog"}]
    shape = [rectangle(1, 1, 5, 5)]
    path = write(tmp_path, [annotation(shape, category) for category in (7, 90, 0)], categories)
    data = CocoInstances(path)
    assert data.id2label == {0: "ant", 1: "dog", 2: "zebra"}
    assert data[0]["labels"].tolist() == [1, 2, 0]
    # Exporters write a root category of the project's name, which may be a class as well.
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "cat"}]
    path = write(tmp_path, [annotation(shape, 1), annotation(shape, 0)], categories)
    data = CocoInstances(path)
    assert data.id2label == {0: "cat"}
    assert data[0]["labels"].tolist() == [0, 0]


def test_images_without_annotations_are_samples(tmp_path):
    data = CocoInstances(write(tmp_path, [annotation([rectangle(1, 1, 5, 5)], image_id=2)], images=["a.png", "b.jpg"]))
    assert len(data) == 2
    assert data[0]["labels"].shape == (0,)
    assert data[0]["planes"].shape == (1, HEIGHT, WIDTH)
    assert not data[0]["planes"].any()
    assert data[1]["labels"].tolist() == [0]
    assert data.image_paths == [str(tmp_path / "images/a.png"), str(tmp_path / "images/b.jpg")]


def test_what_marks_nothing_is_left_out_and_counted(tmp_path):
    bad = {
        1: [[1, 1, 5, 5]],  # two points
        2: [[1, 1, 5, 5, 3]],
        3: [[1, 1, 5, 1, 9, 1]],  # on a line
        4: [rectangle(50, 50, 60, 60)],  # outside
        5: [[1, 1, float("nan"), 4, 3, 3]],  # pycocotools never ends on these two
        6: [[1, 1, 1e12, 4, 3, 3]],
        7: [],
        8: {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
    }
    annotations = [annotation(segmentation, annotation_id=number) for number, segmentation in bad.items()]
    annotations.append(annotation([rectangle(1, 1, 5, 5), [1, 1, 2, 2]], annotation_id=20))
    annotations.append(annotation(rectangle(6, 6, 9, 9), annotation_id=21))  # not a list of polygons, but one
    annotations.append(annotation([rectangle(1, 1, 5, 5)], annotation_id=22, image_id=5))
    data = CocoInstances(write(tmp_path, annotations))
    sample = data[0]
    assert np.array_equal(binary_masks(sample).numpy(), np.stack([mask_of(1, 1, 5, 5), mask_of(6, 6, 9, 9)]))
    assert data.records[0]["annotation_id"] == ["20", "21"]
    problems = {problem.what: problem for problem in data.problems}
    few_points = problems["polygon of less than three points, or with an odd number of coordinates"]
    assert few_points.count == 3
    assert few_points.examples[0] == f"annotation 1 of {tmp_path / 'instances.json'} (a.png)"
    assert problems["annotation that covers no pixel of its image"].count == 3
    assert problems["polygon with a coordinate that is no number, or beyond 1000000"].count == 2
    assert problems["annotation without segmentation"].count == 1
    assert problems["annotation of an image that the json does not list"].examples == [
        f"annotation 22 of {tmp_path / 'instances.json'}: image 5"
    ]


SHAPE = [rectangle(1, 1, 5, 5)]


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([annotation(SHAPE, 9, annotation_id=44)], r"annotation 44 of .*instances.json \(a.png\) has category_id 9,"),
        (
            [annotation({"size": [20, 31], "counts": "x"})],
            r"run lengths for \(20, 31\) \(height, width\), but its image",
        ),
        (
            [annotation({"counts": [5, 5]})],
            "annotation 1 of .* run lengths with a sum of 10, but its image has 20 x 30",
        ),
        ([annotation({"counts": "55"})], "run lengths with a sum of 10, but"),
        ([annotation({"counts": "~~"})], "run lengths with no valid numbers"),
        ([annotation({"counts": [700, -100]})], "run lengths with a sum of 600"),
        ([annotation({"size": [20, 30]})], r"a segmentation without counts; its keys are \['size'\]"),
        ([{"id": 3, "image_id": 1}], "annotation 3 of .* has no category_id"),
        ([annotation([]), annotation(None)], r"marks a pixel \(2 x annotation without segmentation\); .* boxes"),
    ],
)
def test_errors_name_annotation_and_file(tmp_path, annotations, message):
    with pytest.raises(ValueError, match=message):
        CocoInstances(write(tmp_path, annotations))


def test_errors_of_the_json_name_it(tmp_path):
    path = write(tmp_path, [annotation(SHAPE)])
    content = json.loads(path.read_text())

    def message_of(**changes):
        path.write_text(json.dumps({**content, **changes}))
        with pytest.raises(ValueError, match=r"instances.json") as error:
            CocoInstances(path)
        return str(error.value)

    assert "two images of id 1" in message_of(images=content["images"] * 2)
    assert "lists no images" in message_of(images=[])
    assert "image 1 of" in message_of(images=[{"id": 1, "file_name": "a.png", "height": 3}])
    assert "two categories of id 1" in message_of(categories=content["categories"] * 2)
    assert "no categories" in message_of(categories=[])
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"instances.json is no valid json"):
        CocoInstances(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds a list at its top"):
        CocoInstances(path)
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"has no \['annotations', 'categories'\]; its keys are \['images'\]"):
        CocoInstances(path)
    with pytest.raises(ValueError, match="there is no json at"):
        CocoInstances(tmp_path / "absent.json")


def test_missing_photos_are_named(tmp_path):
    path = write(tmp_path, [annotation(SHAPE)], images=["a.png", "b.png"])
    (tmp_path / "images/b.png").unlink()
    with pytest.raises(
        ValueError, match=r"1 of the 2 photos that .*instances.json names are missing, first .*images/b"
    ):
        CocoInstances(path)


@pytest.mark.parametrize(
    "place", ["images", ".", "train2017", "..", "../images", "../train2017", "../images/train2017"]
)
def test_photos_are_found_in_the_usual_places(tmp_path, place):
    folder = tmp_path / "annotations"
    folder.mkdir()
    path = write(folder, [annotation(SHAPE)], name="instances_train2017.json")
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "images/a.png").rename(folder / place / "a.png")
    assert len(CocoInstances(path)) == 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / place / "a.png").rename(elsewhere / "a.png")
    assert CocoInstances(path, images=elsewhere)[0]["name"] == str(elsewhere / "a.png")


def test_a_size_that_is_not_the_photos_is_an_error(tmp_path):
    path = write(tmp_path, [annotation(SHAPE)], height=HEIGHT + 1)
    with pytest.raises(ValueError, match=r"a.png is \(20, 30\) \(height, width\), its annotations are for \(21, 30\)"):
        CocoInstances(path)[0]


def test_exif_turns_a_photo_only_if_it_was_annotated_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    photo(tmp_path / "images/a.png", exif=exif)
    stored = torch.from_numpy(np.array(Image.open(tmp_path / "images/a.png"))).permute(2, 0, 1)
    sample = CocoInstances(write(tmp_path, [annotation(SHAPE)]))[0]
    assert torch.equal(sample["image"], stored)
    turned = CocoInstances(write(tmp_path, [annotation(SHAPE)], height=WIDTH, width=HEIGHT))[0]
    assert torch.equal(turned["image"], stored.rot90(-1, (1, 2)))
    assert turned["planes"].shape == (1, WIDTH, HEIGHT)


def test_a_json_is_parsed_once_and_again_when_it_changes(tmp_path, monkeypatch, cache_folder):
    path = write(tmp_path, [annotation(SHAPE, annotation_id=number) for number in range(300)])
    parsed = []
    read_json = coco_json.read_json
    monkeypatch.setattr("maskformer_hf.data.coco_json.read_json", lambda *args: parsed.append(1) or read_json(*args))
    data = CocoInstances(path)
    assert CocoInstances(path).records[0] == data.records[0]
    assert len(parsed) == 1
    assert [file.suffix for file in cache_folder.iterdir()] == [".arrow"]
    # What worker processes get is the path of the table, whatever its length.
    large = pickle.dumps(data)
    assert torch.equal(pickle.loads(large)[0]["planes"], data[0]["planes"])
    write(tmp_path, [annotation(SHAPE)])
    assert len(CocoInstances(path)[0]["labels"]) == 1
    assert abs(len(pickle.dumps(CocoInstances(path))) - len(large)) < 100
    assert len(parsed) == 2


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(ValueError, match=r"cannot be written to .*file.*; set HF_DATASETS_CACHE"):
        CocoInstances(write(tmp_path, [annotation(SHAPE)]))


def test_decompression_is_that_of_pycocotools():
    generator = np.random.default_rng(3)
    for share in (0.0, 0.02, 0.5, 1.0):
        for shape in ((1, 1), (7, 5), (300, 211)):
            mask = np.asfortranarray((generator.random(shape) < share).astype(np.uint8))
            lengths = _decompressed(run_lengths.encode(mask)["counts"])
            assert lengths.sum() == mask.size
            assert np.array_equal(np.repeat(np.arange(len(lengths)) % 2, lengths), mask.ravel(order="F"))


# Panoptic

CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 8, "name": "grass", "isthing": 0},
    {"id": 200, "name": "sky", "isthing": 0},
]
BIG = 200 + 256 * 100 + 65536 * 9
SEGMENTS = [
    {"id": 300, "category_id": 3, "iscrowd": 0},
    {"id": BIG, "category_id": 8, "iscrowd": 0},
    {"id": 5, "category_id": 8, "iscrowd": 0},
    {"id": 6, "category_id": 3, "iscrowd": 1},
    {"id": 77, "category_id": 200, "iscrowd": 0},  # covers nothing
]


def panoptic_ids():
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    ids[2:5, 3:9], ids[6:, :4], ids[6:, 20:25], ids[7:9, 10:14] = 300, BIG, 5, 6
    return ids


def rgb(ids):
    return Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8))


def write_panoptic(folder, segments=SEGMENTS, categories=CATEGORIES, png=None, **options):
    (folder / "panoptic").mkdir(exist_ok=True)
    (png or rgb(panoptic_ids())).save(folder / "panoptic/a.png")
    record = {"image_id": 1, "file_name": "a.png", "segments_info": segments}
    return write(folder, [record], categories, name="panoptic.json", **options)


def test_panoptic_ids_become_segments(tmp_path):
    data = CocoPanoptic(write_panoptic(tmp_path))
    assert (data.task, data.id2label, data.label_ids_to_fuse) == ("panoptic", {0: "cat", 1: "grass", 2: "sky"}, [1, 2])
    sample, ids = data[0], panoptic_ids()
    # Both pieces of grass are one segment; the sky has no pixel.
    assert sample["labels"].tolist() == [0, 1, 0]
    assert sample["is_crowd"].tolist() == [False, False, True]
    expected = np.stack([ids == 300, (ids == BIG) | (ids == 5), ids == 6])
    assert np.array_equal(binary_masks(sample).numpy(), expected)
    assert np.array_equal(sample["planes"][0] == VOID, ids == 0)
    assert sample["planes"].shape == (1, HEIGHT, WIDTH)


def test_panoptic_ids_may_be_in_one_channel(tmp_path):
    ids = np.where(panoptic_ids() == BIG, 40000, panoptic_ids())
    segments = [{**segment, "id": 40000 if segment["id"] == BIG else segment["id"]} for segment in SEGMENTS]
    deep = CocoPanoptic(write_panoptic(tmp_path, segments, png=Image.fromarray(ids.astype(np.uint16))))[0]
    (tmp_path / "other").mkdir()
    colours = CocoPanoptic(write_panoptic(tmp_path / "other"))[0]
    assert torch.equal(deep["planes"], colours["planes"])
    # An id 0 that the json lists is a segment.
    segments[0]["id"], ids = 0, np.where(ids == 300, 1, ids)
    png = Image.fromarray(np.where(ids == 0, 1, np.where(ids == 1, 0, ids)).astype(np.uint16))
    write_panoptic(tmp_path, [*segments, {"id": 1, "category_id": 200}], png=png)
    sample = CocoPanoptic(tmp_path / "panoptic.json")[0]
    assert np.array_equal(binary_masks(sample)[0].numpy(), ids == 1)
    assert not (sample["planes"] == VOID).any()


def test_real_panoptic_areas_are_those_of_the_json():
    data = CocoPanoptic(COCO4 / "panoptic.json")
    content = json.loads((COCO4 / "panoptic.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    crowds = 0
    for record, sample in zip(content["annotations"], data, strict=True):
        assert Path(sample["name"]).stem == Path(record["file_name"]).stem
        areas = binary_masks(sample).sum((1, 2)).tolist()
        labels = [data.id2label[label] for label in sample["labels"].tolist()]
        segments = record["segments_info"]
        assert list(zip(labels, areas, strict=True)) == [
            (names[item["category_id"]], item["area"]) for item in segments
        ]
        crowds += int(sample["is_crowd"].sum())
    assert crowds == 1
    assert (len(data.id2label), len(data.label_ids_to_fuse)) == (133, 53)


def test_panoptic_errors_name_file_and_id(tmp_path):
    with pytest.raises(
        ValueError, match=r"a.png has pixels of id 5, which is no segment of this image in .*panoptic.js"
    ):
        CocoPanoptic(write_panoptic(tmp_path, [item for item in SEGMENTS if item["id"] != 5]))[0]
    with pytest.raises(
        ValueError, match=r"segment 4 of the annotation of image 1 in .*json \(a.png\) has category_id 4"
    ):
        CocoPanoptic(write_panoptic(tmp_path, [{"id": 4, "category_id": 4}]))
    with pytest.raises(ValueError, match="lists a segment twice"):
        CocoPanoptic(write_panoptic(tmp_path, SEGMENTS[:1] * 2))
    with pytest.raises(ValueError, match=r"categories \['cat'\] of .* have no isthing"):
        CocoPanoptic(write_panoptic(tmp_path, categories=[{"id": 3, "name": "cat"}, *CATEGORIES[1:]]))
    with pytest.raises(ValueError, match=r"a.png is \(19, 30\) \(height, width\), but .*panoptic.json says \(20, 30\)"):
        CocoPanoptic(write_panoptic(tmp_path, png=rgb(panoptic_ids()[1:])))[0]
    with pytest.raises(ValueError, match="ids have 24 bits"):
        CocoPanoptic(write_panoptic(tmp_path, [{"id": 2**24, "category_id": 3}]))
    path = write_panoptic(tmp_path, images=["a.png", "b.png"])
    data = CocoPanoptic(path)
    assert len(data) == 1
    assert data.problems[0] == ("image without annotation", 1, [f"image 2 of {path} (b.png)"])
    (tmp_path / "panoptic/a.png").unlink()
    with pytest.raises(ValueError, match=r"1 of the 1 PNGs that .*panoptic.json names are missing, first .*a.png"):
        CocoPanoptic(path)


# Panoptic targets from instances and semantic PNGs


def write_semantic(folder, ids, classes=None):
    (folder / "semantic").mkdir(exist_ok=True)
    Image.fromarray(ids.astype(np.uint16 if ids.max() > 255 else np.uint8)).save(folder / "semantic/a.png")
    if classes is not None:
        (folder / "semantic/classes.txt").write_text("\n".join(classes))
    return folder / "semantic"


def stuff_ids():
    """Sky above, grass below, a column of cat, a column of void."""
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    ids[10:], ids[:, 20:24], ids[:, 26:] = 2, 3, 255
    return ids


OBJECTS = [
    annotation([rectangle(1, 1, 4, 4)], annotation_id=1),  # small, upon the next
    annotation([rectangle(0, 0, 12, 12)], annotation_id=2),
    annotation([rectangle(2, 10, 14, 22)], annotation_id=3, iscrowd=1),
]


def expected_map():
    """Segment numbers: sky 1, grass 2, the large cat 3, the small one 4, the crowd 5."""
    ids = stuff_ids()
    expected = np.select([ids == 0, ids == 2], [1, 2], default=VOID)
    expected[2:14, 10:22] = 5
    expected[:12, :12] = 3
    expected[1:4, 1:4] = 4
    return expected


@pytest.mark.parametrize("with_file", [True, False])
def test_instances_and_stuff_make_panoptic_targets(tmp_path, with_file):
    if with_file:
        path = write(tmp_path, OBJECTS, ["cat"])
        semantic = write_semantic(tmp_path, stuff_ids(), ["sky", "void", "grass", "cat", "Void", "water"])
        names = {0: "cat", 1: "sky", 2: "grass", 3: "water"}
    else:
        categories = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 300, "name": "sky", "isthing": 0}]
        path = write(tmp_path, OBJECTS, [*categories, {"id": 2, "name": "grass", "isthing": 0}])
        ids = stuff_ids()
        semantic = write_semantic(tmp_path, np.select([ids == 0, ids == 3, ids == 255], [300, 1, 0], ids))
        names = {0: "cat", 1: "grass", 2: "sky"}
    data = CocoInstancesAndStuff(path, semantic)
    assert (data.id2label, data.label_ids_to_fuse) == (names, list(range(1, len(names))))
    sample = data[0]
    kinds = [names[label] for label in sample["labels"].tolist()]
    number = {name: kinds.index(name) + 1 for name in ("sky", "grass")}
    crowd, *cats = [position + 1 for position, name in enumerate(kinds) if name == "cat"]
    assert sample["is_crowd"].nonzero().flatten().tolist() == [crowd - 1]
    expected = expected_map()
    planes = sample["planes"][0].numpy()
    assert len(sample["labels"]) == 5
    assert np.array_equal(planes == VOID, expected == VOID)
    for segment, value in zip((number["sky"], number["grass"], *cats, crowd), range(1, 6), strict=True):
        assert np.array_equal(planes == segment, expected == value)


def test_instances_and_stuff_errors(tmp_path):
    path = write(tmp_path, OBJECTS, ["cat"])
    semantic = write_semantic(tmp_path, stuff_ids())
    with pytest.raises(ValueError, match=r"nothing says what the ids in .*semantic mean: write a classes.txt"):
        CocoInstancesAndStuff(path, semantic)
    write_semantic(tmp_path, stuff_ids() + 1, ["sky", "grass"])
    with pytest.raises(ValueError, match=r"semantic/a.png has pixels of id \d+, which is no class; name it in classes"):
        CocoInstancesAndStuff(path, semantic)[0]
    write_semantic(tmp_path, stuff_ids()[1:])
    with pytest.raises(ValueError, match=r"semantic/a.png is \(19, 30\) \(height, width\), but .*instances.json says"):
        CocoInstancesAndStuff(path, semantic)[0]
    write_semantic(tmp_path, stuff_ids(), ["sky", "sky"])
    with pytest.raises(ValueError, match=r"classes.txt names \['sky'\] more than once"):
        CocoInstancesAndStuff(path, semantic)
    write_semantic(tmp_path, stuff_ids(), ["sky"])
    (semantic / "a.png").unlink()
    with pytest.raises(ValueError, match=r"1 images of .*instances.json have no PNG, first .*semantic/a.png"):
        CocoInstancesAndStuff(path, semantic)


def test_three_readings_of_the_same_photos_agree():
    panoptic = CocoPanoptic(COCO4 / "panoptic.json")
    semantic = as_task(panoptic, "semantic")
    composed = CocoInstancesAndStuff(COCO4 / "instances.json", COCO4 / "semantic")
    instances = CocoInstances(COCO4 / "instances.json")
    category_of = {
        category["name"]: category["id"] for category in json.loads((COCO4 / "panoptic.json").read_text())["categories"]
    }
    stuff_names = {panoptic.id2label[label] for label in panoptic.label_ids_to_fuse}
    assert stuff_names == {composed.id2label[label] for label in composed.label_ids_to_fuse}
    matched = objects = 0
    for index, (whole, by_class, together, single) in enumerate(
        zip(panoptic, semantic, composed, instances, strict=True)
    ):
        assert whole["name"] == single["name"] == together["name"]
        # semantic: exactly COCO's own PNG, whose 0 is void
        png = np.array(Image.open(COCO4 / "semantic" / f"{Path(whole['name']).stem}.png")).astype(np.int64)
        ids = torch.tensor([category_of[name] for name in panoptic.id2label.values()] + [0] * 123)
        assert np.array_equal(ids[class_map(by_class)].numpy(), png)
        assert len(by_class["labels"].unique()) == len(by_class["labels"])
        # composed: stuff as in the panoptic PNG, but for pixels that the instances' polygons take
        for label, mask in zip(together["labels"].tolist(), binary_masks(together), strict=True):
            name = composed.id2label[label]
            if name in stuff_names:
                truth = torch.from_numpy(png == category_of[name])
                assert not (mask & ~truth).any()
                assert (mask & truth).sum() > 0.7 * truth.sum(), (index, name)
        # instances: nearly every thing of the panoptic PNG is one of them
        whole_masks, single_masks = binary_masks(whole), binary_masks(single)
        for position, label in enumerate(whole["labels"].tolist()):
            name = panoptic.id2label[label]
            if name in stuff_names:
                continue
            same = [
                mask
                for mask, other in zip(single_masks, single["labels"].tolist(), strict=True)
                if instances.id2label[other] == name
            ]
            truth = whole_masks[position]
            best = max(float((mask & truth).sum() / (mask | truth).sum()) for mask in same)
            objects += 1
            matched += best > 0.5
    assert objects > 40
    assert matched / objects > 0.9
