"""`open_dataset`: formats found, splits joined, classes grouped, tasks changed."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from maskformer_hf.data import (
    VOID,
    Cached,
    CocoInstances,
    CocoInstancesAndStuff,
    CocoPanoptic,
    InstanceFolder,
    SemanticFolder,
    binary_masks,
    open_dataset,
)
from maskformer_hf.data.concatenate import concatenate
from maskformer_hf.data.relabel import Relabelled, as_task, regroup

COCO4 = Path(__file__).parent.parent / "fixtures/coco4"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class Given(torch.utils.data.Dataset):
    """A data set of one sample, with classes 0 cat, 1 dog, 2 grass, 3 sky, of which the last two are stuff."""

    def __init__(self, planes, labels, is_crowd=None, task="panoptic", names=("cat", "dog", "grass", "sky")):
        self.task = task
        self.id2label = dict(enumerate(names))
        self.label_ids_to_fuse = [label for label, name in self.id2label.items() if name in ("grass", "sky")]
        self.planes = torch.tensor(planes, dtype=torch.int32)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.is_crowd = torch.tensor(is_crowd or [False] * len(labels))

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {
            "image": tv_tensors.Image(torch.zeros(3, *self.planes.shape[1:], dtype=torch.uint8)),
            "planes": tv_tensors.Mask(self.planes),
            "labels": self.labels,
            "is_crowd": self.is_crowd,
            "name": "given",
        }


# Two cats, a dog, a crowd of dogs, grass, sky, void.
PANOPTIC = Given([[[1, 1, 2, 3, 4, 5, 6, VOID]]], [0, 0, 1, 1, 2, 3], [False, False, False, True, False, False])


def content(sample):
    return sample["planes"].tolist(), sample["labels"].tolist(), sample["is_crowd"].tolist()


@pytest.mark.parametrize(
    ("split", "form", "kind"),
    [
        ("instances", "auto", CocoInstances),
        ("instances.json", "auto", CocoInstances),
        ("panoptic", "auto", CocoPanoptic),
        ("instances", "coco_instances_and_stuff", CocoInstancesAndStuff),
    ],
)
def test_jsons_are_told_apart(split, form, kind):
    data = open_dataset(COCO4, split, format=form)
    assert isinstance(data, kind)
    assert len(data) == 4


def test_folders_are_told_apart(tmp_path):
    grey = Image.fromarray(np.zeros((2, 2), np.uint8))
    for split, kind in (("classes", "labels"), ("objects", "instances")):
        for name in ("images", kind):
            (tmp_path / split / name).mkdir(parents=True)
            grey.save(tmp_path / split / name / "a.png")
    (tmp_path / "classes.txt").write_text("sky\n")
    assert isinstance(open_dataset(tmp_path, "classes"), SemanticFolder)
    assert isinstance(open_dataset(tmp_path, "objects"), InstanceFolder)
    assert isinstance(open_dataset(tmp_path / "objects", "."), InstanceFolder)
    assert open_dataset(tmp_path, "objects").id2label == {0: "sky"}


@pytest.mark.parametrize(
    "path", ["annotations/instances_val.json", "instances_val.json", "val/_annotations.coco.json", "val.json"]
)
def test_jsons_are_found_where_they_usually_lie(tmp_path, path):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text((COCO4 / "instances.json").read_text())
    (tmp_path / "val").mkdir(exist_ok=True)
    for photo in (COCO4 / "images").iterdir():
        (tmp_path / "val" / photo.name).symlink_to(photo)
    if path == "val.json":
        (tmp_path / "val").rename(tmp_path / "images")
    assert len(open_dataset(tmp_path, "val")) == 4


def test_what_fits_nothing_is_described(tmp_path):
    with pytest.raises(ValueError, match=r"fits no format. Looked for:\n  semantic_folder") as error:
        open_dataset(COCO4, "train")
    assert "coco_panoptic: SPLIT.json or panoptic_SPLIT.json" in str(error.value)
    assert "holds ATTRIBUTION.txt, images/, instances.json, panoptic.json, panoptic/, semantic/;" in str(error.value)
    assert f"{COCO4 / 'train'} holds nothing: it does not exist" in str(error.value)
    with pytest.raises(
        ValueError, match=r"no COCO panoptic json for split 'instances': looked for .*panoptic_instances"
    ):
        open_dataset(COCO4, "instances", format="coco_panoptic")
    for name in ("instances", "panoptic"):
        (tmp_path / f"{name}_train.json").write_text((COCO4 / f"{name}.json").read_text())
    with pytest.raises(
        ValueError, match=r"fit several formats, \['coco_instances', 'coco_panoptic'\]; write the whole"
    ):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "coco"}, r"format is 'coco'; choose one of \['auto', 'semantic_folder'"),
        ({"task": "boxes"}, "task is 'boxes'; choose one of"),
        ({"unlabelled": "unknown"}, "unlabelled is 'unknown'; choose one of"),
        ({"class_groups": "category"}, "class_groups is 'category'; write 'supercategory' or"),
        ({"options": {"label_column": "x"}}, "format 'coco_instances' has no option 'label_column'; it has none"),
        (
            {"options": {"label_colum": "x"}, "format": "datasets"},
            "format 'datasets' has no option 'label_colum'; did you mean label_column",
        ),
        ({"split": []}, "no split of .* is named"),
        ({"void_classes": ["dogs"]}, "'dogs', in class_groups or void_classes, is no class .* did you mean 'dog'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(COCO4, **{"split": "instances", **options})


def test_semantic_from_panoptic_fuses_segments_of_a_class():
    data = as_task(PANOPTIC, "semantic")
    assert (data.task, data.label_ids_to_fuse) == ("semantic", [0, 1, 2, 3])
    assert content(data[0]) == ([[[1, 1, 1, 2, 2, 3, 4, VOID]]], [0, 1, 2, 3], [False] * 4)


def test_semantic_from_overlapping_instances_has_one_plane():
    data = Given([[[1, 1, 0, 3]], [[0, 2, 2, 0]]], [0, 1, 0], task="instance", names=("cat", "dog"))
    assert content(as_task(data, "semantic")[0]) == ([[[1, 2, 2, 1]]], [0, 1], [False] * 2)


def test_instances_from_panoptic_leave_stuff_out():
    data = as_task(PANOPTIC, "instance")
    assert (data.task, data.id2label, data.label_ids_to_fuse) == ("instance", {0: "cat", 1: "dog"}, [])
    assert content(data[0]) == ([[[1, 1, 2, 3, 4, 0, 0, VOID]]], [0, 0, 1, 1], [False, False, False, True])


def test_unlabelled_pixels_of_instances_are_void_in_panoptic_training():
    data = Given([[[1, 1, 0, 0]], [[0, 2, 2, 0]]], [0, 1], task="instance", names=("cat", "dog"))
    assert as_task(data, "instance") is data
    panoptic = as_task(data, "panoptic")
    assert (panoptic.task, panoptic.label_ids_to_fuse) == ("panoptic", [])
    # Void in plane 0 only, and only where no plane has a segment.
    assert content(panoptic[0])[0] == [[[1, 1, 0, VOID]], [[0, 2, 2, 0]]]
    assert content(as_task(data, "panoptic", "background")[0]) == content(data[0])
    assert content(as_task(PANOPTIC, "panoptic", "background")[0])[0] == [[[1, 1, 2, 3, 4, 5, 6, 0]]]
    with pytest.raises(ValueError, match="annotations are semantic"):
        as_task(Given([[[1]]], [0], task="semantic"), "instance")


def test_groups_keep_things_apart_and_fuse_stuff():
    data = regroup(PANOPTIC, {"land": ["grass", "sky"], "animal": ["dog", "cat"]})
    assert (data.id2label, data.label_ids_to_fuse, data.task) == ({0: "land", 1: "animal"}, [0], "panoptic")
    assert content(data[0]) == (
        [[[1, 1, 2, 3, 4, 5, 5, VOID]]],
        [1, 1, 1, 1, 0],
        [False, False, False, True, False],
    )


def test_classes_in_no_group_and_void_classes_are_void():
    assert content(regroup(PANOPTIC, {"animal": ["cat"]})[0]) == ([[[1, 1, 2] + [VOID] * 5]], [0, 0], [False] * 2)
    data = regroup(PANOPTIC, None, ["cat"])
    assert (data.id2label, data.label_ids_to_fuse) == ({0: "dog", 1: "grass", 2: "sky"}, [1, 2])
    assert content(data[0])[0] == [[[VOID] * 3 + [1, 2, 3, 4, VOID]]]
    assert regroup(PANOPTIC, None) is PANOPTIC
    # A void object upon nothing is void, upon another object it is that object.
    overlapping = Given([[[1, 1, 0, 0]], [[0, 2, 2, 0]]], [0, 1], task="instance", names=("cat", "dog"))
    assert content(regroup(overlapping, None, ["dog"])[0])[0] == [[[1, 1, VOID, 0]], [[0, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"nature": ["cat", "sky"]}, r"group 'nature' mixes things \(cat\) and stuff \(sky\)"),
        ({"a": ["cat"], "b": ["cat", "dog"]}, "class 'cat' of group 'b' is in another group"),
        ({"a": ["lion"]}, r"'lion', .*, is no class of the data; the classes are \['cat', 'dog'"),
        ("supercategory", "the data names none for class 'cat'; give groups as"),
    ],
)
def test_groups_that_cannot_be(groups, message):
    with pytest.raises(ValueError, match=message):
        regroup(PANOPTIC, groups)


def test_supercategories_of_coco():
    data = open_dataset(COCO4, "panoptic", class_groups="supercategory")
    assert len(data.id2label) == 27
    assert len(data.label_ids_to_fuse) == 15
    plain = open_dataset(COCO4, "panoptic")
    for grouped, sample in zip(data, plain, strict=True):
        groups = [plain.supercategories[plain.id2label[label]] for label in sample["labels"].tolist()]
        stuff = {data.id2label[label] for label in data.label_ids_to_fuse}
        things = [group for group in groups if group not in stuff]
        found = [data.id2label[label] for label in grouped["labels"].tolist()]
        assert [group for group in found if group not in stuff] == things
        assert sorted(group for group in found if group in stuff) == sorted(set(groups) & stuff)
        for label, mask in zip(grouped["labels"].tolist(), binary_masks(grouped), strict=True):
            if data.id2label[label] in stuff:
                members = [group == data.id2label[label] for group in groups]
                assert torch.equal(mask, binary_masks(sample)[torch.tensor(members)].any(0))


def test_instances_complete_panoptic_annotations(tmp_path):
    """Photos that both have keep their panoptic annotations; the others' unlabelled pixels are void."""
    panoptic = json.loads((COCO4 / "panoptic.json").read_text())
    panoptic["images"] = panoptic["images"][:3]
    panoptic["annotations"] = [item for item in panoptic["annotations"] if item["image_id"] != 370]
    (tmp_path / "panoptic.json").write_text(json.dumps(panoptic))
    (tmp_path / "instances.json").write_text((COCO4 / "instances.json").read_text())
    for name in ("images", "panoptic"):
        (tmp_path / name).symlink_to(COCO4 / name)
    data = open_dataset(tmp_path, ["panoptic", "instances"])
    assert len(data) == 4
    assert len(set(data.image_paths)) == 4
    assert (data.task, len(data.id2label), len(data.label_ids_to_fuse)) == ("panoptic", 133, 53)
    alone = open_dataset(tmp_path, "instances")
    last, same = data[3], alone[alone.image_paths.index(data.image_paths[3])]
    assert last["name"] == same["name"]
    assert [data.id2label[i] for i in last["labels"].tolist()] == [alone.id2label[i] for i in same["labels"].tolist()]
    assert torch.equal(binary_masks(last), binary_masks(same))
    assert bool((last["planes"][0] == VOID).any())
    assert not (same["planes"] == VOID).any()
    background = open_dataset(tmp_path, ["panoptic", "instances"], unlabelled="background")
    assert not any((sample["planes"] == VOID).any() for sample in background)
    with pytest.raises(IndexError):
        data[4]


def test_classes_are_united_by_name():
    first = Given([[[1, 2]]], [0, 1], names=("cat", "sky"))
    second = Given([[[1, 2, 3]]], [0, 1, 2], names=("sky", "dog", "cat"))
    data = concatenate([first, second])
    assert (data.id2label, data.label_ids_to_fuse) == ({0: "cat", 1: "sky", 2: "dog"}, [1])
    assert [sample["labels"].tolist() for sample in (data[0], data[1])] == [[0, 1], [1, 2, 0]]
    other = Given([[[1]]], [0], names=("cat",))
    other.label_ids_to_fuse = [0]
    with pytest.raises(ValueError, match=r"classes \['cat'\] are things in one part and stuff in another"):
        concatenate([first, other])
    semantic = Given([[[1]]], [0], task="semantic", names=("cat",))
    with pytest.raises(ValueError, match=r"tasks \['panoptic', 'semantic'\]; pass task='semantic'"):
        concatenate([first, semantic])
    joined = concatenate([first, semantic], task="semantic")
    assert (joined.task, joined.label_ids_to_fuse) == ("semantic", [0, 1])


def test_cache_keeps_samples_and_is_not_copied_to_workers():
    data = Cached(open_dataset(COCO4, "panoptic"))
    assert data[1] is data[1]
    copy = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 20_000
    assert torch.equal(copy[1]["planes"], data[1]["planes"])
    # What only the reader knows can be asked of what is made of it.
    assert Path(copy.image_paths[0]).is_file()
    assert isinstance(data.dataset, CocoPanoptic)
    assert not hasattr(Relabelled(PANOPTIC, range(4), id2label={}, label_ids_to_fuse=[], task="panoptic"), "problems")
