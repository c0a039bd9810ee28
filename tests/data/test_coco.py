"""COCO's json of instances. tests/fixtures/coco4 holds four photos of COCO with all their files."""

import json
import pickle

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
    binary_masks,
    coco_json,
)
from maskformer_hf.data.run_lengths import _decompressed
from tests.data.coco_files import COCO4, HEIGHT, WIDTH, annotation, mask_of, photo, rectangle, write


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "maskformer_hf"


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
