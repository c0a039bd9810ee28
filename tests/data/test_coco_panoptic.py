"""COCO's panoptic json, and panoptic targets from instances and semantic PNGs."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_hf.data import (
    VOID,
    CocoInstances,
    CocoInstancesAndStuff,
    CocoPanoptic,
    as_task,
    binary_masks,
    class_map,
)
from tests.data.coco_files import COCO4, HEIGHT, WIDTH, annotation, rectangle, write


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "maskformer_hf"


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
        ValueError, match=r"segment 4 of the annotation of image 1 of .*json \(a.png\) has category_id 4"
    ):
        CocoPanoptic(write_panoptic(tmp_path, [{"id": 4, "category_id": 4}]))
    with pytest.raises(ValueError, match="lists a segment twice"):
        CocoPanoptic(write_panoptic(tmp_path, SEGMENTS[:1] * 2))
    with pytest.raises(ValueError, match=r"categories \['cat'\] of .* have no isthing"):
        CocoPanoptic(write_panoptic(tmp_path, categories=[{"id": 3, "name": "cat"}, *CATEGORIES[1:]]))
    with pytest.raises(ValueError, match=r"a.png is \(19, 30\) \(height, width\), but .*panoptic.json says \(20, 30\)"):
        CocoPanoptic(write_panoptic(tmp_path, png=rgb(panoptic_ids()[1:])))[0]
    with pytest.raises(ValueError, match="has id 16777216; expected a whole number from 0 to 16777215"):
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
