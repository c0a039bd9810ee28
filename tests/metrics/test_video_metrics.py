"""Video AP against its definition in plain loops, region similarity and flicker against masks."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskformer_hf.metrics import MaskAP, RegionSimilarity, VideoAP

NUM_LABELS, NUM_FRAMES, SIZE = 2, 4, (20, 30)


def encoded(tubes: np.ndarray) -> list[list]:
    """(N, T, H, W) bool as `segmentations`."""
    return [
        [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) if mask.any() else None for mask in frames]
        for frames in tubes
    ]


def square(top: int, left: int, side: int = 8) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[max(0, top) : top + side, max(0, left) : left + side] = True
    return mask


def random_videos(count: int) -> list[dict]:
    """Objects that move and go, and detections that are near some of them."""
    random = np.random.default_rng(0)
    videos = []
    for _ in range(count):
        true = np.zeros((random.integers(0, 4), NUM_FRAMES, *SIZE), bool)
        found = np.zeros((random.integers(0, 6), NUM_FRAMES, *SIZE), bool)
        for frames in true:
            top, left = random.integers(0, 12), random.integers(0, 16)
            for number in range(NUM_FRAMES):
                if random.random() < 0.8 or number == 0:
                    frames[number] = square(top, left + number)
        true_labels, labels = (random.integers(0, NUM_LABELS, len(tubes)) for tubes in (true, found))
        for number, frames in enumerate(found):
            if len(true) and random.random() < 0.8:
                near = random.integers(len(true))
                frames[:] = np.roll(true[near], random.integers(-1, 2, 2), (1, 2))
                labels[number] = true_labels[near] if random.random() < 0.8 else labels[number]
            if random.random() < 0.3:
                frames[random.integers(NUM_FRAMES)] = False
        videos.append(
            {
                "found": found,
                "scores": random.random(len(found)),
                "labels": labels,
                "true": true,
                "true_labels": true_labels,
            }
        )
    return videos


def average_precision(videos: list[dict], label: int, threshold: float) -> float:
    """AP of one class at one threshold, by the text of the definition."""
    rows, num_objects = [], 0
    for number, video in enumerate(videos):
        true = video["true"][video["true_labels"] == label]
        num_objects += len(true)
        free = [True] * len(true)
        mine = video["labels"] == label
        for score, tube in sorted(
            zip(video["scores"][mine], video["found"][mine], strict=True), key=lambda item: -item[0]
        ):
            best, overlap = None, threshold
            for index, other in enumerate(true):
                union = (tube | other).sum()
                iou = (tube & other).sum() / union if union else 0
                if free[index] and iou >= overlap:
                    best, overlap = index, iou
            if best is not None:
                free[best] = False
            rows.append((-score, number, best is not None))
    if not num_objects:
        return float("nan")
    hits = np.cumsum([hit for _, _, hit in sorted(rows)])
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / num_objects
    return float(
        np.mean(
            [
                max((p for p, r in zip(precision, recall, strict=True) if r >= point), default=0.0)
                for point in np.linspace(0, 1, 101)
            ]
        )
    )


def add(measure, video: dict, **more) -> None:
    measure.update(
        {"segmentations": encoded(video["found"]), "scores": video["scores"], "labels": video["labels"]},
        {"segmentations": encoded(video["true"]), "labels": video["true_labels"], **more},
    )


def test_video_ap_is_its_definition():
    videos = random_videos(40)
    measure = VideoAP(NUM_LABELS)
    for video in videos:
        add(measure, video)
    result = measure.compute({0: "cow", 1: "dog"})
    expected = {
        threshold: np.mean([average_precision(videos, label, threshold) for label in range(NUM_LABELS)])
        for threshold in np.linspace(0.5, 0.95, 10)
    }
    assert result["ap50"] == pytest.approx(expected[0.5], abs=1e-9)
    assert result["ap"] == pytest.approx(np.mean(list(expected.values())), abs=1e-9)
    assert 0.05 < result["ap"] < result["ap50"] < 0.98
    assert [row["label"] for row in result["per_class"]] == ["cow", "dog"]
    assert sum(row["objects"] for row in result["per_class"]) == sum(len(video["true"]) for video in videos)
    assert not any("small" in name or "large" in name for name in result)


def test_videos_of_one_frame_are_images():
    measure, of_images = VideoAP(NUM_LABELS), MaskAP(NUM_LABELS)
    for video in random_videos(20):
        crowd = np.arange(len(video["true"])) == 0
        video["found"], video["true"] = video["found"][:, :1], video["true"][:, :1]
        add(measure, video, is_crowd=crowd)
        of_images.update(
            {"masks": video["found"][:, 0], "scores": video["scores"], "labels": video["labels"]},
            {"masks": video["true"][:, 0], "labels": video["true_labels"], "is_crowd": crowd},
        )
    result, expected = measure.compute(), of_images.compute()
    assert result["ap"] > 0
    for name in ("ap", "ap50", "ap75", "ar_1", "ar_10", "ar"):
        assert result[name] == pytest.approx(expected[name])


def test_merging_is_counting_all():
    videos = random_videos(12)
    whole, parts = VideoAP(NUM_LABELS), [VideoAP(NUM_LABELS), VideoAP(NUM_LABELS)]
    for number, video in enumerate(videos):
        add(whole, video)
        part = parts[number % 2]
        part._next_id = number
        add(part, video)
    parts[0].merge(parts[1])
    assert parts[0].compute() == whole.compute()


def test_region_similarity_pairs_each_object_with_one_detection():
    """The better detection of the first object is the only one of the second."""
    first, second = square(0, 0), square(0, 12)
    true = np.stack([np.stack([first] * 3), np.stack([second, second, np.zeros(SIZE, bool)])])
    found = np.stack([np.stack([first, first, np.zeros(SIZE, bool)]), np.stack([second] * 3)])
    measure = RegionSimilarity()
    measure.update({"segmentations": encoded(found)}, {"segmentations": encoded(true)})
    result = measure.compute()
    assert result["j"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert result["objects"] == 2
    # The first loses its detection in the last pair of frames; the second is in sight in the first pair alone.
    assert result["flicker"] == pytest.approx((1 / 2 + 0) / 2)


def test_an_object_that_nobody_found():
    true = np.stack([square(0, 0), np.zeros(SIZE, bool)])[None]
    measure = RegionSimilarity()
    measure.update({"segmentations": []}, {"segmentations": encoded(true)})
    result = measure.compute()
    assert result["j"] == pytest.approx(1 / 2)
    assert np.isnan(result["flicker"])
    measure.update(
        {"segmentations": encoded(true)}, {"segmentations": encoded(np.repeat(true, 2, 0)), "is_crowd": [0, 1]}
    )
    assert measure.compute()["j"] == pytest.approx(3 / 4)
    assert measure.compute()["objects"] == 2


def test_flicker_is_what_the_truth_does_not_do():
    """A detection that moves as the object does is steady, a frozen one too; one that jumps to and fro is not."""
    moving = np.stack([square(4, 2 * number) for number in range(6)])[None]
    frozen = np.repeat(moving[:, :1], 6, 1)
    jumping = np.stack([square(4 + number % 2, 2 * number) for number in range(6)])[None]
    flickers = []
    for found in (moving, frozen, jumping):
        measure = RegionSimilarity()
        measure.update({"segmentations": encoded(found)}, {"segmentations": encoded(moving)})
        flickers.append(measure.compute()["flicker"])
    assert flickers[:2] == [0, 0]
    # Squares of 8 x 8 that move by 2 share 6 x 8 pixels; those that also jump by 1 share 6 x 7.
    assert flickers[2] == pytest.approx(48 / 80 - 42 / 86)


def test_nothing_found_is_not_steady():
    """The object stands still. Losing it counts; frames in which it stays lost neither add nor excuse."""
    true = np.stack([square(0, 0)] * 5)[None]
    flickers = []
    for frames in ((0, 1), (0, 1, 2, 3), (0, 2, 4), (2,)):
        found = true.copy()
        found[:, [frame for frame in range(5) if frame not in frames]] = False
        measure = RegionSimilarity()
        measure.update({"segmentations": encoded(found)}, {"segmentations": encoded(true)})
        flickers.append(measure.compute()["flicker"])
    assert flickers == pytest.approx([1 / 2, 1 / 4, 1, 1])


def test_tubes_of_other_lengths_or_sizes_are_refused():
    true = np.ones((1, 3, *SIZE), bool)
    for found in (true[:, :2], true[..., :20]):
        with pytest.raises(ValueError, match="one entry a frame"):
            RegionSimilarity().update({"segmentations": encoded(found)}, {"segmentations": encoded(true)})
