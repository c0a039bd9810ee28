"""One training step side by side with transformers: time in one process, peak memory in a fresh process each.

    python benchmarks/training.py                # R50 and Swin-T, 512x512, batch 2, 12 objects an image, 2 CPU threads
    python benchmarks/training.py --quick        # fewer repeats: about 7 minutes
    python benchmarks/training.py --models r50 --sides floor dense --repeats 9

A step is forward, loss and backward, with deep supervision of all six decoder layers and random weights. The sides:

floor          our network alone: the loss is the plain sum of all predictions of all layers, so no step can be cheaper
their-floor    transformers' network alone, with the sum of its last predictions
transformers   MaskFormerForInstanceSegmentation with `output_hidden_states=True`, without which its auxiliary losses
               do not run
dense          ours, losses of all pixels
points         ours, losses on 12,544 points a mask (`mask_loss="points"`)

Time is wall time. The sides run in turns, each turn begun by another side, after one step each that is not counted;
the table has the medians, and the median of the ratios of a side to the floor of the same turn with the interval that
holds it in 19 of 20 such runs: on a shared machine equal steps differ by a tenth. Meanwhile glibc keeps freed memory
(as a GPU's allocator does): else it gives large blocks back, and much of a step on a virtual machine is the system's
clearing of pages for new ones. `--fresh-memory` leaves glibc as it is. Memory is how far the resident set of a process
that does nothing else rises during one step above what it was before (Linux: VmHWM, reset by writing 5 to
/proc/self/clear_refs), after a step on tiny images has loaded all code and made all gradients. In these processes
glibc returns every freed block of 64 KiB or more to the system (MALLOC_MMAP_THRESHOLD_), so that what is measured is
what is in use and not what the allocator keeps for later.

Last come the targets of one photo of 1024x1024 with 201 objects, from its map of ids: the bytes of the masks that the
image processors of both sides make.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from maskformer_hf import MaskFormerForUniversalSegmentation, MaskFormerImageProcessor
from maskformer_hf.models.interfaces import Ask
from maskformer_hf.models.masks import mask_logits
from maskformer_hf.presets import PRESETS

MODELS = {"r50": PRESETS["maskformer_resnet50_ade20k"], "swin-t": PRESETS["maskformer_swin_tiny_ade20k"]}
SIDES = ("floor", "their-floor", "transformers", "dense", "points")


def make_batch(images: int, objects: int, size: int, classes: int) -> dict[str, Any]:
    """Random pixels; masks are ellipses, boolean, one class each."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(size, dtype=torch.float32)

    def ellipse() -> torch.Tensor:
        row, column, height, width = torch.rand(4, generator=generator) * size
        return ((axis[:, None] - row) / (height / 3 + 2)) ** 2 + ((axis - column) / (width / 3 + 2)) ** 2 < 1

    return {
        "pixel_values": torch.randn(images, 3, size, size, generator=generator),
        "mask_labels": [torch.stack([ellipse() for _ in range(objects)]) for _ in range(images)],
        "class_labels": [torch.randint(classes, (objects,), generator=generator) for _ in range(images)],
    }


def make_step(side: str, model_name: str) -> Callable[[dict[str, Any]], float]:
    """A function of a batch that does one step with a new model, and returns the loss."""
    torch.manual_seed(0)
    config = MODELS[model_name]()
    if side in ("transformers", "their-floor"):
        theirs = transformers.MaskFormerForInstanceSegmentation(
            transformers.MaskFormerConfig(
                backbone_config=config.backbone_config, num_labels=config.num_labels, use_auxiliary_loss=True
            )
        ).train()

        def their_step(batch: dict[str, Any]) -> float:
            float_masks = [masks.float() for masks in batch["mask_labels"]]
            loss = theirs(**{**batch, "mask_labels": float_masks}, output_hidden_states=True).loss
            loss.backward()
            return loss.item()

        def their_network(batch: dict[str, Any]) -> float:
            outputs = theirs(batch["pixel_values"], output_hidden_states=True)
            # Without targets it returns no auxiliary predictions: less work than its training has.
            loss = outputs.class_queries_logits.sum() + outputs.masks_queries_logits.sum()
            loss.backward()
            return loss.item()

        return their_step if side == "transformers" else their_network
    if side == "points":
        config.mask_loss = "points"
    ours = MaskFormerForUniversalSegmentation(config).train()

    def our_network(batch: dict[str, Any]) -> float:
        ask = Ask(every_layer=True)
        encoded = ours.model.encode(batch["pixel_values"], ask)
        [predictions] = ours.head(ours.model.decode(encoded, ask), encoded, ask)
        masks = mask_logits(predictions.masks.mask_embeddings_LBQC, predictions.masks.pixel_embeddings_BChw)
        loss = predictions.class_logits.sum() + masks.sum()
        loss.backward()
        return loss.item()

    def our_step(batch: dict[str, Any]) -> float:
        loss = ours(**batch).loss
        loss.backward()
        return loss.item()

    return our_network if side == "floor" else our_step


def resident(field: str) -> int:
    """A size of this process in bytes: VmRSS now, VmHWM at its largest since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{field} is not in /proc/self/status")


def print_peak_memory(side: str, model_name: str, options: argparse.Namespace) -> None:
    """What the fresh process does: one measured step, the bytes that it needed at its peak as JSON."""
    classes = MODELS[model_name]().num_labels
    step = make_step(side, model_name)
    step(make_batch(options.images, options.objects, 64, classes))
    batch = make_batch(options.images, options.objects, options.size, classes)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step(batch)
    print(json.dumps({"peak": resident("VmHWM") - before}))


def peak_memory(side: str, model_name: str, arguments: list[str]) -> float:
    """MiB, measured in a fresh process; NaN where there is no /proc."""
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    command = [sys.executable, __file__, *arguments, "--measure-memory", side, model_name]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])["peak"] / 2**20


def measure_times(model_name: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each step, the sides in turns."""
    batch = make_batch(options.images, options.objects, options.size, MODELS[model_name]().num_labels)
    steps = {side: make_step(side, model_name) for side in options.sides}
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for repeat in range(options.repeats + 1):
        first = repeat % len(steps)
        for side in [*steps, *steps][first : first + len(steps)]:
            start = time.perf_counter()
            steps[side](batch)
            if repeat:
                seconds[side].append(time.perf_counter() - start)
    return seconds


def median_interval(ordered: list[float]) -> tuple[float, float]:
    """95 % confidence interval of the median, from the ranks around it that are as improbable by a fair coin."""
    margin = 0.98 * math.sqrt(len(ordered))
    low, high = math.floor(len(ordered) / 2 - margin), math.ceil(len(ordered) / 2 + margin) - 1
    return ordered[max(0, low)], ordered[min(len(ordered) - 1, high)]


def keep_freed_memory() -> None:
    """No block of its own for large tensors (M_MMAP_MAX), nothing given back (M_TRIM_THRESHOLD)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).mallopt(-4, 0)
        ctypes.CDLL(None).mallopt(-1, -1)


def print_targets(size: int = 1024, objects: int = 201) -> None:
    """Measure targets made of a map of `objects` rectangles in rows."""
    cells = int(np.ceil(np.sqrt(objects)))
    cell = np.arange(size) * cells // size
    ids = (cell[:, None] * cells + cell + 1).astype(np.int32)
    ids[ids > objects] = 0
    photo = np.zeros((size, size, 3), dtype=np.uint8)
    classes = {0: 0} | dict.fromkeys(range(1, objects + 1), 1)  # 0 is ignored by both
    print(f"\ntargets of one photo of {size}x{size} with {objects} objects")
    sides = {"transformers": transformers.MaskFormerImageProcessor, "maskformer_hf": MaskFormerImageProcessor}
    for name, processor_class in sides.items():
        processor = processor_class(do_resize=False, ignore_index=0)
        start = time.perf_counter()
        (masks,) = processor(photo, ids, instance_id_to_semantic_id=classes, return_tensors="pt")["mask_labels"]
        seconds = time.perf_counter() - start
        assert len(masks) == objects, len(masks)
        print(f"{name:16}{masks.numel() * masks.element_size() / 2**20:7.0f} MiB {masks.dtype}, {seconds:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="the first is divided by")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--objects", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="3 repeats")
    parser.add_argument("--fresh-memory", action="store_true", help="time with glibc as it is")
    parser.add_argument("--measure-memory", nargs=2, metavar=("SIDE", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.repeats = 3 if options.quick else options.repeats
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    if options.measure_memory:
        print_peak_memory(*options.measure_memory, options)
        return

    print(
        f"{options.images} images of {options.size}x{options.size}, {options.objects} objects each, {options.threads} "
        f"threads, torch {torch.__version__}, transformers {transformers.__version__}, median of {options.repeats}"
    )
    print(f"{'':8}{'':14}{'time':>9}{'of floor':>10}{'19 in 20':>15}{'peak':>11}{'above floor':>13}{'of theirs':>11}")
    for model_name in options.models:
        memory = {side: peak_memory(side, model_name, sys.argv[1:]) for side in options.sides}
        if not options.fresh_memory:
            keep_freed_memory()
        seconds = measure_times(model_name, options)
        first = options.sides[0]
        extra = {side: memory[side] - memory[first] for side in options.sides}
        for side in options.sides:
            ratios = sorted(a / b for a, b in zip(seconds[side], seconds[first], strict=True))
            low, high = median_interval(ratios)
            share = f"{extra[side] / extra['transformers']:10.3f}x" if extra.get("transformers") else ""
            print(
                f"{model_name:8}{side:14}{statistics.median(seconds[side]):7.2f} s{statistics.median(ratios):9.3f}x"
                f"{low:8.3f} -{high:5.3f}{memory[side]:7.0f} MiB{extra[side]:9.0f} MiB{share}",
                flush=True,
            )
    print_targets()


if __name__ == "__main__":
    main()
