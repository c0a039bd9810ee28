"""Post-processing side by side with transformers: time in one process, extra peak memory in a fresh process each.

    python benchmarks/post_processing.py                  # 1024x2048, 100 queries, 150 classes, 2 CPU threads
    python benchmarks/post_processing.py --kinds smooth noise --repeats 9

Both sides get the same logits at a quarter of the target size and are called through their image processors with a
target size and the thresholds that are transformers' defaults; for the panoptic task both fuse the same half of the
classes.

Logits. "smooth" imitates a trained model: 10 queries share the picture as winding regions, 20 more are ellipses in
front of them, masks are +-9 apart from a transition of a few cells and some texture; 70 queries are no-object with
0.1 to 3 percent of their probability spread over the classes, and weak masks. "noise" is independent at every cell:
nothing can be decided for a block at once, so this is the worst case of our method, not something that a model puts
out.

Time is wall time. Both sides run in turns, after one call each that is not counted; the table has the medians. Memory
is how far the resident set of a process that does nothing else rises during the call above what it was before (Linux:
VmHWM, reset by writing 5 to /proc/self/clear_refs; freed pages are given back by malloc_trim first; a tiny call
before loads all code). It includes the results.
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

TASKS = ("semantic", "instance", "panoptic")
SIDES = ("transformers", "maskformer_hf")


def make_logits(kind: str, queries: int, classes: int, height: int, width: int) -> SimpleNamespace:
    """Model outputs for one image: class_queries_logits (1, Q, K + 1), masks_queries_logits (1, Q, h, w)."""
    generator = torch.Generator().manual_seed(0)
    objects, regions = max(1, queries * 3 // 10), max(1, queries // 10)
    class_logits = torch.randn(queries, classes + 1, generator=generator)
    class_logits[torch.arange(objects), torch.randint(classes, (objects,), generator=generator)] += 10
    class_logits[objects:, classes] += 10
    if kind == "noise":
        masks = torch.randn(queries, height, width, generator=generator) * 4
        return SimpleNamespace(class_queries_logits=class_logits[None], masks_queries_logits=masks[None])

    def waves(count: int, cells: int) -> torch.Tensor:
        coarse = torch.randn(1, count, height // cells + 2, width // cells + 2, generator=generator)
        return F.interpolate(coarse, size=(height, width), mode="bicubic")[0]

    masks = torch.empty(queries, height, width)
    fields = waves(regions, 64) + 0.2 * waves(regions, 24)
    best = fields.topk(min(2, regions), dim=0)
    for index in range(regions):
        rival = torch.where(best.indices[0] == index, best.values[-1], best.values[0])
        masks[index] = 9 * torch.tanh(8 * (fields[index] - rival))
    rows = torch.arange(height, dtype=torch.float32)[:, None]
    columns = torch.arange(width, dtype=torch.float32)
    for index in range(regions, objects):
        center = torch.rand(2, generator=generator) * torch.tensor([height, width])
        radius = (0.03 + 0.16 * torch.rand(2, generator=generator)) * min(height, width)
        distance = 1 - (((rows - center[0]) / radius[0]) ** 2 + ((columns - center[1]) / radius[1]) ** 2).sqrt()
        masks[index] = 9 * torch.tanh(distance * radius.min() / 3)
        masks[:regions] = torch.minimum(masks[:regions], -masks[index])
    masks[objects:] = 2 * waves(queries - objects, 32) - 6
    masks += 0.5 * waves(queries, 8)
    return SimpleNamespace(class_queries_logits=class_logits[None], masks_queries_logits=masks[None])


def make_call(side: str, task: str, classes: int):
    """A function of outputs and a target size."""
    import transformers

    transformers.logging.set_verbosity_error()
    if side == "transformers":
        processor = transformers.MaskFormerImageProcessor()
    else:
        from maskformer_hf import MaskFormerImageProcessor

        processor = MaskFormerImageProcessor()
    method = getattr(processor, f"post_process_{task}_segmentation")
    # Ours are the checkpoint's unless they are given.
    options: dict[str, Any] = {} if task == "semantic" else {"threshold": 0.5, "overlap_mask_area_threshold": 0.8}
    if task == "panoptic":
        options["label_ids_to_fuse"] = set(range(0, classes, 2))
    return lambda outputs, size: method(outputs, target_sizes=[size], **options)


def resident(field: str) -> int:
    """A size of this process in bytes: VmRSS now, VmHWM at its largest since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{field} is not in /proc/self/status")


def print_extra_memory(side: str, task: str, kind: str, options: argparse.Namespace) -> None:
    """What the fresh process does: one measured call, its extra bytes as JSON."""
    call = make_call(side, task, options.classes)
    call(make_logits(kind, options.queries, options.classes, 16, 16), (64, 64))
    outputs = make_logits(kind, options.queries, options.classes, options.height // 4, options.width // 4)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = call(outputs, (options.height, options.width))
    print(json.dumps({"extra": resident("VmHWM") - before, "results": len(result)}))


def extra_memory(side: str, task: str, kind: str, arguments: list[str]) -> float:
    """MiB, measured in a fresh process; NaN where there is no /proc."""
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    command = [sys.executable, __file__, *arguments, "--measure-memory", side, task, kind]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])["extra"] / 2**20


def measure_times(task: str, kind: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each call, both sides in turns."""
    outputs = make_logits(kind, options.queries, options.classes, options.height // 4, options.width // 4)
    calls = {side: make_call(side, task, options.classes) for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(options.repeats + 1):
        for side, call in calls.items():
            start = time.perf_counter()
            call(outputs, (options.height, options.width))
            if repeat:
                seconds[side].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--kinds", nargs="+", choices=("smooth", "noise"), default=["smooth", "noise"])
    parser.add_argument("--measure-memory", nargs=3, metavar=("SIDE", "TASK", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    if options.measure_memory:
        side, task, kind = options.measure_memory
        print_extra_memory(side, task, kind, options)
        return

    import transformers

    print(
        f"{options.height}x{options.width}, {options.queries} queries, {options.classes} classes, "
        f"{options.threads} threads, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"median of {options.repeats}"
    )
    print(f"{'logits':8}{'task':10}{'transformers':>22}{'maskformer_hf':>22}{'faster':>9}{'memory':>9}")
    for kind in options.kinds:
        for task in options.tasks:
            seconds = {side: statistics.median(times) for side, times in measure_times(task, kind, options).items()}
            memory = {side: extra_memory(side, task, kind, sys.argv[1:]) for side in SIDES}
            columns = "".join(f"{seconds[side]:10.3f} s {memory[side]:6.0f} MiB" for side in SIDES)
            theirs, ours = SIDES
            faster, memory_share = seconds[theirs] / seconds[ours], memory[ours] / memory[theirs]
            print(f"{kind:8}{task:10}{columns}{faster:8.1f}x{memory_share:8.0%}", flush=True)


if __name__ == "__main__":
    main()
