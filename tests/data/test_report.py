"""The report on a data set: what it counts, and that each kind of problem is found and named."""

import json

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from maskformer_hf.data import VOID, Problem, planes_from_masks
from maskformer_hf.data.inspection import LOST, TINY, TrainingView, inspect_dataset
from maskformer_hf.data.report import format_report, shared_images

LABELS = {0: "sky", 1: "car", 2: "person"}


def sample(name, boxes, *, size=(40, 60), void=(), crowd=(), seed=None):
    """A noisy photo with a box (label, top, left, bottom, right) a segment, and void boxes without label."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (_, top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    planes = planes_from_masks(masks)
    for top, left, bottom, right in void:
        planes[0, top:bottom, left:right] = VOID
    seed = sum(name.encode()) if seed is None else seed
    photo = np.random.default_rng(seed).integers(0, 255, (3, *size), dtype=np.uint8)
    return {
        "image": tv_tensors.Image(torch.from_numpy(photo)),
        "planes": tv_tensors.Mask(planes),
        "labels": torch.tensor([box[0] for box in boxes], dtype=torch.int64),
        "is_crowd": torch.tensor([index in crowd for index in range(len(boxes))], dtype=torch.bool),
        "name": name,
    }


class Samples:
    """Samples, or the errors that reading them raises."""

    def __init__(self, items, task="panoptic", problems=()):
        self.items, self.task, self.id2label = items, task, LABELS
        self.label_ids_to_fuse = [0] if task == "panoptic" else []
        self.problems = list(problems)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


def inspect(*items, task="panoptic", problems=(), **options):
    return inspect_dataset(Samples(items, task, problems), progress=False, **options)


def problem(problems, what):
    [found] = [item for item in problems if item.what.startswith(what)]
    return found


def test_what_is_there_is_counted():
    report = inspect(
        sample("a", [(0, 0, 0, 10, 60), (1, 20, 10, 30, 20), (1, 20, 30, 22, 33)], void=[(30, 0, 40, 60)]),
        sample("b", [(0, 0, 0, 20, 60)]),
        sample("c", [(2, 0, 0, 20, 20), (2, 5, 5, 25, 25), (1, 30, 30, 40, 40)], size=(50, 40), crowd=[2]),
        name="train",
    )
    assert (report.images, report.inspected, report.segments, report.crowds) == (3, 3, 6, 1)
    sky, car, person = report.classes
    assert (sky.images, sky.segments, sky.pixels, sky.smallest, sky.is_thing) == (2, 2, 1800, 600, False)
    assert (car.images, car.segments, car.pixels, car.smallest, car.is_thing) == (1, 2, 106, 6, True)
    assert (person.images, person.segments, person.pixels) == (1, 2, 800)
    total = 40 * 60 * 2 + 50 * 40
    assert report.void == pytest.approx((600 + 100) / total)
    background = (2400 - 600 - 600 - 106) + (2400 - 1200) + (2000 - 400 - 400 + 15 * 15 - 100)
    assert report.background == pytest.approx(background / total)
    assert report.sizes == [((40, 60), 2), ((50, 40), 1)]
    assert report.most_segments == (3, "a")
    assert [(item.label, item.area, item.image, item.number) for item in report.smallest[:2]] == [
        ("car", 6, "a", 3),
        ("car", 100, "a", 2),
    ]
    assert report.errors == report.warnings == []
    text = format_report(report)
    assert text.startswith("train: 3 images, panoptic, 3 classes")
    for row in (
        "40 x 60 (2), 50 x 40 (1)",
        "6, 2.0 an image, at most 3 (a); 1 crowds",
        "car 6 px (a)",
        "thing",
        "stuff",
    ):
        assert row in text, row
    assert "warnings" not in text


def test_whether_things_or_stuff_is_said_only_where_there_are_both():
    for task, said in (("semantic", False), ("instance", False), ("panoptic", True)):
        report = inspect(sample("a", [(0, 0, 0, 10, 10), (1, 10, 10, 20, 20), (2, 20, 0, 30, 9)]), task=task)
        assert ("stuff" in format_report(report)) == said


def test_errors_are_collected_with_file_and_id():
    unlisted = sample("unlisted", [(0, 0, 0, 10, 10)])
    unlisted["planes"][0, 20, 20] = 2
    no_class = sample("no class", [(0, 0, 0, 10, 10), (3, 10, 10, 20, 20)])
    cut = sample("cut", [(0, 0, 0, 10, 10)])
    cut["image"] = tv_tensors.Image(cut["image"][:, :30])
    report = inspect(
        sample("good", [(1, 0, 0, 10, 10)]),
        ValueError("labels/x.png has pixels of id 9, which is no class; name it\nin classes.txt"),
        OSError("photo.jpg is truncated"),
        unlisted,
        no_class,
        cut,
    )
    assert report.inspected == 1
    assert report.images == 6
    unread = problem(report.errors, "image or annotation that cannot be read")
    assert unread.count == 2
    assert unread.examples == [
        "image 1: labels/x.png has pixels of id 9, which is no class; name it",
        "image 2: photo.jpg is truncated",
    ]
    assert problem(report.errors, "pixels of a segment that is not listed").examples == ["unlisted: number 2 of 1"]
    assert problem(report.errors, "label that is no class").examples == [
        "no class: segment 2 has label 3, of 3 classes"
    ]
    assert problem(report.errors, "photo and labels of different sizes").examples == ["cut: (30, 60) and (40, 60)"]
    assert "2 x image or annotation that cannot be read\n      image 1: labels/x.png" in format_report(report)


def test_examples_are_few_and_the_count_is_right():
    report = inspect(*(OSError(f"{index}.jpg is broken") for index in range(30)))
    [unread] = report.errors
    assert unread.count == 30
    assert len(unread.examples) == 10
    assert format_report(report).count("is broken") == 3


def test_an_empty_data_set_is_an_error():
    assert problem(inspect(name="val").errors, "data set without an image").examples == ["val"]


def test_warnings():
    report = inspect(
        sample("a", [(0, 0, 0, 10, 60)]),
        sample("b", [(0, 0, 0, 10, 60)], seed=7),
        sample("c", [(1, 0, 0, 10, 60)], seed=7),
        sample("d", [], void=[(0, 0, 40, 60)]),
        sample("e", [(1, 0, 0, 0, 0)]),
        problems=[Problem("polygon without area", 2, ["x.json: annotation 5", "x.json: annotation 8"])],
    )
    assert not report.errors
    found = {item.what: item for item in report.warnings}
    assert found["photo that is there twice"].examples == ["c is b"]
    assert found["image of which nothing is known"].examples == ["d"]
    assert found["segment without a pixel"].examples == ["e: segment 1, car"]
    assert found["class without a segment"].examples == ["person"]
    assert found["polygon without area"].count == 2
    assert len(found) == 5
    assert report.empty_images == 2


def test_what_resizing_for_training_loses():
    # A pixel is left of every second one; and of those cells of 4 are predicted.
    report = inspect(
        sample("a", [(0, 0, 0, 20, 20), (1, 31, 31, 32, 32), (1, 30, 30, 31, 31), (2, 32, 32, 36, 36)]),
        training=TrainingView(size_of=lambda size: (size[0] // 2, size[1] // 2)),
    )
    assert problem(report.warnings, LOST).examples == ["a: segment 2, car, 1 px"]
    assert problem(report.warnings, TINY).examples == ["a: segment 3, car, 1 px"]
    assert [row.lost for row in report.classes] == [0, 1, 0]
    assert "lost" in format_report(report).split("class", 2)[-1]


def test_resizing_is_that_of_training():
    from maskformer_hf.data.augment import ShortEdgeResize
    from maskformer_hf.training.arguments import AugmentationArguments
    from maskformer_hf.training.data_check import smallest_training_size

    random = np.random.default_rng(0)
    for size in ((97, 143), (160, 91), (480, 640)):
        boxes = []
        for _ in range(40):
            top, left = (int(random.integers(0, side - 4)) for side in size)
            boxes.append((1, top, left, top + int(random.integers(1, 4)), left + int(random.integers(1, 4))))
        item = sample("a", boxes, size=size)
        resized = ShortEdgeResize([50, 50], 70)(item)["planes"]
        left = set(resized.unique().tolist()) - {0}
        arguments = AugmentationArguments(short_edge=[50, 80], long_edge=70)
        report = inspect(item, training=TrainingView(size_of=smallest_training_size(arguments)))
        assert report.classes[1].lost == len(boxes) - len(left)


def test_more_segments_than_queries():
    report = inspect(
        sample("a", [(1, 10 * i, 0, 10 * i + 5, 5) for i in range(4)]), training=TrainingView(num_queries=3)
    )
    assert problem(report.warnings, "image of more segments than the 3 queries").examples == ["a: 4 segments"]


def test_more_segments_than_queries_in_a_window_of_training():
    apart = sample("apart", [(1, 0, 0, 5, 5), (1, 0, 50, 5, 55), (1, 30, 0, 35, 5), (1, 30, 50, 35, 55)])
    together = sample("together", [(1, 22, 32 + 4 * i, 38, 34 + 4 * i) for i in range(5)], crowd=[0])
    report = inspect(apart, together, training=TrainingView(num_queries=3, crop_size=(20, 30)))
    assert problem(report.warnings, "window of 20 x 30").examples == ["together: 4 segments"]
    # At half the size a window sees four times as much.
    report = inspect(
        apart,
        together,
        training=TrainingView(num_queries=3, crop_size=(20, 30), size_of=lambda size: (size[0] // 2, size[1] // 2)),
    )
    assert problem(report.warnings, "window of 20 x 30").count == 2


def test_some_of_many_images_evenly_spaced():
    report = inspect(*(sample(f"{index}", [(index // 40, 0, 0, 10, 10)]) for index in range(120)), max_images=6)
    assert (report.images, report.inspected) == (120, 6)
    assert [row.images for row in report.classes] == [2, 2, 2]
    assert "120 images, 6 of them looked at" in format_report(report)
    few = inspect(*(sample(f"{index}", [(0, 0, 0, 10, 10)]) for index in range(5)), max_images=2)
    assert "in what was looked at" in problem(few.warnings, "class without a segment").what


def test_photos_of_two_splits():
    train = inspect(sample("train/a", [], seed=1), sample("train/b", [], seed=2), name="train")
    val = inspect(sample("val/c", [], seed=3), sample("val/d", [], seed=2), name="val")
    shared = shared_images(train, val)
    assert shared == Problem("photo of val that is in train too", 1, ["val/d is train/b"])
    assert shared_images(train, inspect(sample("e", [], seed=9))) is None


def test_picks_show_every_class_and_the_odd_images():
    many = [(1, 4 * i, 0, 4 * i + 3, 3) for i in range(9)]
    items = [sample(f"{i}", [(0, 0, 0, 10, 10)]) for i in range(20)]
    items += [sample("many", many), sample("rare", [(2, 0, 0, 1, 2)]), sample("empty", [])]
    report = inspect(*items)
    reasons = {pick.index: pick.reason for pick in report.picks if pick.number is None}
    shown = {label for pick in report.picks for label in items[pick.index]["labels"].tolist()}
    assert shown == {0, 1, 2}
    assert 20 in reasons
    assert reasons[22] == "no segment"
    window = next(pick for pick in report.picks if pick.number is not None)
    assert (window.index, window.reason, window.number) == (21, "smallest: person, 2 px", 1)
    assert len(report.picks) == 12
    assert len({pick[:3:2] for pick in report.picks}) == 12
    assert len(inspect(*items, max_picks=2).picks) == 2


def test_json_is_plain():
    report = inspect(
        sample("a", [(0, 0, 0, 10, 60), (1, 20, 10, 30, 20)]),
        OSError("b.jpg is broken"),
        name="train",
        training=TrainingView(num_queries=1),
    )
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["name"] == "train"
    assert plain["sizes"] == [{"height": 40, "width": 60, "images": 1}]
    assert plain["classes"][1]["label"] == "car"
    assert plain["smallest"][0] == {"label": "car", "area": 100, "image": "a", "segment": 2}
    assert plain["errors"][0]["examples"] == ["image 1: b.jpg is broken"]
    assert not {"picks", "fingerprints"} & plain.keys()
