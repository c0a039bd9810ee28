"""Metrics side by side with what people use: time an image, and memory in a fresh process each.

    python benchmarks/metrics.py                          # under a minute, one thread
    python benchmarks/metrics.py --images 200 --size 512 683

Mean IoU is compared with `evaluate.load("mean_iou")` where the Hub can be reached. Elsewhere with the same definition,
histograms of each image by numpy, in an `evaluate.Metric` of the same inputs: it is `evaluate` itself that writes every
map to a file and reads all of them back in `compute`. The histograms alone, without `evaluate`, are timed as well.
Panoptic quality is compared with a plain implementation, one image and one segment at a time by numpy; mask AP with
pycocotools' COCOeval. All sides see the same maps, and their results must be equal. Times are those of the processor
on one thread, for the median image.

Maps are wavy patches of 1/16 of the image's side; in predictions a fifth of the patches have another class. There are
as many classes as in ADE20K, and 20 segments, or 60 objects, an image. Memory is how far the resident set rises above
what it was before the first image (Linux: VmHWM), results included; in brackets the file that `evaluate` writes.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np

NUM_LABELS = 150
IGNORE_INDEX = 255
PATCHES = 16
SIDES = ("evaluate", "numpy", "maskformer_hf")


@cache
def patch_of_pixels(size: tuple[int, int]) -> np.ndarray:
    """Which of the patches each pixel lies in, (H, W); their outlines are wavy."""
    y, x = np.indices(size)
    rows = (y + size[0] / 60 * np.sin(x * 40 / size[1])) * PATCHES / size[0]
    columns = (x + size[1] / 60 * np.sin(y * 50 / size[0])) * PATCHES / size[1]
    rows, columns = (part.astype(int).clip(0, PATCHES - 1) for part in (rows, columns))
    return (rows * PATCHES + columns).astype(np.int32)


def class_maps(index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and reference of an image, (H, W) uint8; a tenth of the reference is void."""
    random = np.random.default_rng(index)
    reference = random.integers(0, NUM_LABELS, PATCHES**2)
    others = random.integers(0, NUM_LABELS, PATCHES**2)
    prediction = np.where(random.random(PATCHES**2) < 0.8, reference, others)
    reference[random.random(PATCHES**2) < 0.1] = IGNORE_INDEX
    return tuple(part.astype(np.uint8)[patch_of_pixels(size)] for part in (prediction, reference))


def histograms(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Pixels of each class in the intersection, the prediction and the reference, (3, K): `mean_iou`'s definition."""
    labelled = reference != IGNORE_INDEX
    prediction, reference = prediction[labelled], reference[labelled]
    parts = prediction[prediction == reference], prediction, reference
    return np.stack([np.histogram(part, bins=NUM_LABELS, range=(0, NUM_LABELS - 1))[0] for part in parts])


def mean_iou(counts: np.ndarray) -> float:
    return float(np.nanmean(counts[0] / (counts[1] + counts[2] - counts[0])))


def evaluate_metric():
    """The Hub's metric, or one of its definition, and which of the two it is."""
    import datasets
    import evaluate

    class HistogramIoU(evaluate.Metric):
        def _info(self):
            features = datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()})
            return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

        def _compute(self, predictions, references, num_labels, ignore_index):
            pairs = zip(predictions, references, strict=True)
            return {"mean_iou": mean_iou(sum(histograms(np.array(a), np.array(b)) for a, b in pairs))}

    # Nobody waits for a Hub that does not answer.
    try:
        subprocess.run(
            [sys.executable, "-c", "import evaluate; evaluate.load('mean_iou')"],
            check=True, capture_output=True, timeout=15,
        )  # fmt: skip
        return evaluate.load("mean_iou", cache_dir=tempfile.mkdtemp()), "evaluate's mean_iou"
    except (subprocess.SubprocessError, OSError):
        return HistogramIoU(cache_dir=tempfile.mkdtemp()), "its definition in an evaluate.Metric"


def resident(field: str) -> int:
    """A size of this process in bytes: VmRSS now, VmHWM at its largest since the last reset. 0 without /proc."""
    if not Path("/proc/self/status").exists():
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(side: str, images: int, size: tuple[int, int]) -> dict:
    """What a fresh process does for mean IoU: seconds an image without making the maps, result, rise of memory."""
    name, folder = side, None
    if side == "evaluate":
        metric, name = evaluate_metric()
        folder = Path(metric.data_dir)
        options = {"num_labels": NUM_LABELS, "ignore_index": IGNORE_INDEX}
    elif side == "maskformer_hf":
        import torch

        from maskformer_hf.metrics import MeanIoU

        torch.set_num_threads(1)
        metric = MeanIoU(NUM_LABELS, ignore_index=IGNORE_INDEX)
    counts = np.zeros((3, NUM_LABELS), np.int64)
    seconds = []
    for index in range(-1, images):
        if index == 0:
            # The first image loaded all code, and does not count.
            if side == "evaluate":
                metric.compute(**options)
            elif side == "maskformer_hf":
                metric.reset()
            counts[:] = 0
            seconds.clear()
            gc.collect()
            with contextlib.suppress(OSError):
                ctypes.CDLL(None).malloc_trim(0)
                Path("/proc/self/clear_refs").write_text("5")
            before = resident("VmRSS")
        prediction, reference = class_maps(index + 1, size)
        start = time.process_time()
        if side == "evaluate":
            metric.add_batch(predictions=[prediction], references=[reference])
        elif side == "numpy":
            counts += histograms(prediction, reference)
        else:
            metric.update(torch.from_numpy(prediction), torch.from_numpy(reference))
        seconds.append(time.process_time() - start)
    file_bytes = sum(path.stat().st_size for path in folder.rglob("*.arrow")) if folder else 0
    start = time.process_time()
    if side == "evaluate":
        score = metric.compute(**options)["mean_iou"]
    else:
        score = mean_iou(counts) if side == "numpy" else metric.compute()["mean_iou"]
    end = time.process_time() - start
    return {
        "name": name,
        # `evaluate` does its work at the end.
        "milliseconds": 1e3 * (float(np.median(seconds)) + end / images),
        "score": float(score),
        "extra": resident("VmHWM") - before,
        "file": file_bytes,
    }


def compare_mean_iou(images: int, size: tuple[int, int]) -> None:
    results = {}
    for side in SIDES:
        for count in (images // 4, images):
            command = [sys.executable, __file__, "--images", str(count), "--size", *map(str, size), "--measure", side]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            results[side, count] = json.loads(output.splitlines()[-1])
    scores = [results[side, images]["score"] for side in SIDES]
    assert np.allclose(scores, scores[0]), scores
    print(f"mean IoU, {images} images of {size[0]} x {size[1]}, {NUM_LABELS} classes: all {scores[0]:.4f}")
    print(f"  {'':38} ms an image   memory, {images // 4} images   memory, {images} images")
    for side in SIDES:
        few, many = results[side, images // 4], results[side, images]
        name = {"numpy": "its histograms alone, numpy", "maskformer_hf": "maskformer_hf MeanIoU"}.get(
            side, many["name"]
        )
        cells = []
        for result in (few, many):
            file = f" (+{result['file'] / 2**20:.1f})" if result["file"] else ""
            text = f"{max(0, result['extra']) / 2**20:.1f}{file} MiB"
            cells.append(f"{text:>20}")
        print(f"  {name:38} {many['milliseconds']:11.2f}" + "".join(cells))
    ours = results["maskformer_hf", images]["milliseconds"]
    factors = [results[side, images]["milliseconds"] / ours for side in SIDES[:2]]
    print(f"  maskformer_hf is {factors[0]:.0f} times as fast as the first, {factors[1]:.1f} times as the histograms\n")


def panoptic_maps(index: int, size: tuple[int, int], num_segments: int, step: int) -> tuple[dict, dict]:
    """Prediction and reference with ids `step`, 2 `step`, ...; some void, some crowd, some wrong classes."""
    random = np.random.default_rng(index)
    reference = random.integers(0, num_segments + 1, PATCHES**2)
    prediction = np.where(random.random(PATCHES**2) < 0.8, reference, np.roll(reference, 1))
    labels = random.integers(0, NUM_LABELS, num_segments + 1)
    found_labels = np.where(random.random(num_segments + 1) < 0.8, labels, 0)
    return tuple(
        {
            "segmentation": (part * step).astype(np.int32)[patch_of_pixels(size)],
            "segments_info": [
                {"id": int(i * step), "label_id": int(names[i]), "iscrowd": int(i % 8 == 0)}
                for i in np.unique(part)
                if i
            ],
        }
        for part, names in ((prediction, found_labels), (reference, labels))
    )


def plain_panoptic_counts(prediction: dict, reference: dict, counts: np.ndarray) -> None:
    """IoU, TP, FP, FN of each class, added to `counts` (4, K): one pair of segments at a time."""
    joint = reference["segmentation"] * np.int64(2**24) + prediction["segmentation"]
    overlap = {
        (int(key) // 2**24, int(key) % 2**24): int(n)
        for key, n in zip(*np.unique(joint, return_counts=True), strict=True)
    }
    areas = {whose: {} for whose in (0, 1)}
    for pair, pixels in overlap.items():
        for whose in (0, 1):
            areas[whose][pair[whose]] = areas[whose].get(pair[whose], 0) + pixels
    true = {item["id"]: item for item in reference["segments_info"]}
    found = {item["id"]: item for item in prediction["segments_info"]}
    matched = set()
    for (a, b), pixels in overlap.items():
        if a in true and b in found and not true[a]["iscrowd"] and true[a]["label_id"] == found[b]["label_id"]:
            iou = pixels / (areas[0][a] + areas[1][b] - pixels - overlap.get((0, b), 0))
            if iou > 0.5:
                counts[:2, true[a]["label_id"]] += iou, 1
                matched |= {(0, a), (1, b)}
    for a, item in true.items():
        if not item["iscrowd"] and (0, a) not in matched:
            counts[3, item["label_id"]] += 1
    for b, item in found.items():
        excused = overlap.get((0, b), 0)
        for a, other in true.items():
            if other["iscrowd"] and other["label_id"] == item["label_id"]:
                excused += overlap.get((a, b), 0)
        if (1, b) not in matched and excused <= 0.5 * areas[1][b]:
            counts[2, item["label_id"]] += 1


def compare_panoptic_quality(images: int, size: tuple[int, int]) -> None:
    import torch

    from maskformer_hf.metrics import PanopticQuality

    for title, step in (("ids from 1", 1), ("ids of colours, as in COCO's files", 700_001)):
        times = {"plain numpy": [], "maskformer_hf": []}
        plain, metric = np.zeros((4, NUM_LABELS)), PanopticQuality(NUM_LABELS)
        for index in range(images):
            prediction, reference = panoptic_maps(index, size, 20, step)
            start = time.process_time()
            plain_panoptic_counts(prediction, reference, plain)
            middle = time.process_time()
            tensors = [
                {**part, "segmentation": torch.from_numpy(part["segmentation"])} for part in (prediction, reference)
            ]
            metric.update(*tensors)
            times["maskformer_hf"].append(time.process_time() - middle)
            times["plain numpy"].append(middle - start)
        assert np.allclose(metric.counts, plain)
        pq = metric.compute()["pq"]
        medians = {name: 1e3 * float(np.median(values)) for name, values in times.items()}
        print(f"panoptic quality, {images} images of {size[0]} x {size[1]}, 20 segments, {title}: both {pq:.4f}")
        for name, value in medians.items():
            print(f"  {name:38} {value:11.2f}")
        print(f"  maskformer_hf is {medians['plain numpy'] / medians['maskformer_hf']:.1f} times as fast\n")


def compare_mask_ap(images: int, size: tuple[int, int]) -> None:
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from maskformer_hf.metrics import MaskAP

    random = np.random.default_rng(0)
    rows, columns = np.ogrid[: size[0], : size[1]]

    def disk(center: np.ndarray, radius: float) -> dict:
        inside = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2
        return coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))

    cases = []
    for _ in range(images):
        centers, radii = random.random((60, 2)) * size, random.uniform(5, 60, 60)
        labels = random.integers(0, 5, 60)
        shifted = centers + random.normal(0, 3, centers.shape)
        reference = {"masks": [disk(*pair) for pair in zip(centers, radii, strict=True)], "labels": labels}
        prediction = {"masks": [disk(*pair) for pair in zip(shifted, radii, strict=True)], "labels": labels}
        cases.append(({**prediction, "scores": random.random(60)}, reference))
    truth, annotations, results = COCO(), [], []
    for index, (prediction, reference) in enumerate(cases):
        for rle, label in zip(reference["masks"], reference["labels"], strict=True):
            annotation = {"image_id": index, "category_id": int(label), "segmentation": rle, "iscrowd": 0}
            annotations.append({**annotation, "id": len(annotations) + 1, "area": float(coco_mask.area(rle))})
        for rle, label, score in zip(prediction["masks"], prediction["labels"], prediction["scores"], strict=True):
            results.append({"image_id": index, "category_id": int(label), "segmentation": rle, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = {
            "images": [{"id": index, "height": size[0], "width": size[1]} for index in range(images)],
            "annotations": annotations,
            "categories": [{"id": label} for label in range(5)],
        }
        truth.createIndex()
        found = truth.loadRes(results)
        start = time.process_time()
        evaluator = COCOeval(truth, found, "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    theirs = time.process_time() - start
    metric = MaskAP(5)
    start = time.process_time()
    for case in cases:
        metric.update(*case)
    ap = metric.compute()["ap"]
    ours = time.process_time() - start
    assert np.isclose(ap, evaluator.stats[0]), (ap, evaluator.stats[0])
    kept = sum(part.nbytes for record in metric.detections for part in record[1:])
    masks = sum(len(item["segmentation"]["counts"]) for item in (*results, *annotations))
    print(f"mask AP, {images} images of {size[0]} x {size[1]}, 60 objects of 5 classes: both {ap:.4f}")
    for name, seconds, bytes_kept in (("pycocotools", theirs, masks), ("maskformer_hf", ours, kept)):
        print(f"  {name:38} {1e3 * seconds / images:11.2f}   keeps {bytes_kept / 1024 / images:.1f} KiB an image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = tuple(options.size)
    if options.measure:
        print(json.dumps(measure(options.measure, options.images, size)))
        return
    import torch

    torch.set_num_threads(1)
    compare_mean_iou(options.images, size)
    compare_panoptic_quality(options.images, size)
    compare_mask_ap(max(1, options.images // 4), size)


if __name__ == "__main__":
    main()
