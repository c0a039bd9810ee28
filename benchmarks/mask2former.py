"""Mask2Former side by side with transformers' own: the same weights, in one process run.

    python benchmarks/mask2former.py                # ResNet-50 and Swin-T at 512 and 1024, 2 CPU threads
    python benchmarks/mask2former.py --quick        # ResNet-50 at 256, once: does it run?

Forward: seconds of `model(pixel_values)` on one image, without gradients, in float32. Both models run in turns after
one call each that is not counted; the table has the medians. Ours has channels-last weights, which `load` gives it;
theirs is as `from_pretrained` gives it.

Training step: seconds, and how far the resident set of a fresh process rises above what it was before (Linux:
VmHWM), of forward, loss and backward for two images of ten objects each. The gradients of all weights are in it. At
1024 transformers' needs 13 GB.

Post-processing: seconds of a panoptic result at the size of the input of the logits that the model itself gave, by the
image processors with their defaults. `benchmarks/post_processing.py` has more of it.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

SIDES = ("transformers", "maskformer_hf")
STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet50": {"model_type": "resnet", "out_features": STAGES},
    "swin_tiny": {"model_type": "swin", "out_features": STAGES},
}
NUM_LABELS = 150
OBJECTS = 10


def make_theirs(backbone: str) -> Any:
    """transformers' model with the initial weights of its own."""
    import transformers

    torch.manual_seed(0)
    backbone_config = transformers.AutoConfig.for_model(**BACKBONES[backbone])
    config = transformers.Mask2FormerConfig(backbone_config=backbone_config, num_labels=NUM_LABELS)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        # As of a trained model: points away from the cells' centres, masks of both signs.
        for name, parameter in model.named_parameters():
            if "sampling_offsets.weight" in name:
                parameter.normal_(0, 0.02)
            if "mask_predictor" in name and name.endswith("weight"):
                parameter.mul_(3)
    return model


def make_ours(theirs: Any) -> Any:
    """Our model with the weights of theirs."""
    from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation
    from maskformer_hf.conversion.to_transformers import own_name

    config = MaskFormerConfig.from_dict(theirs.config.to_dict())
    model = MaskFormerForUniversalSegmentation(config).eval()
    state = {own_name(name): value for name, value in theirs.state_dict().items()}
    missing, _ = model.load_state_dict(state, strict=False)
    assert not missing, missing
    return model.to(memory_format=torch.channels_last)


def make_model(side: str, backbone: str) -> Any:
    theirs = make_theirs(backbone)
    return theirs if side == "transformers" else make_ours(theirs)


def make_images(number: int, size: int) -> torch.Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))


def in_turns(calls: dict[str, Any], repeats: int) -> dict[str, float]:
    """Median seconds of each call."""
    seconds: dict[str, list[float]] = {side: [] for side in calls}
    for repeat in range(repeats + 1):
        for side, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat:
                seconds[side].append(time.perf_counter() - start)
    return {side: statistics.median(times) for side, times in seconds.items()}


def measure_forward(models: dict[str, Any], size: int, repeats: int) -> tuple[dict[str, float], float]:
    """Seconds, and the largest difference of logits, relative to the largest logit."""
    images = make_images(1, size)
    outputs = {side: model(images) for side, model in models.items()}
    names = ("class_queries_logits", "masks_queries_logits")
    difference = max(
        float((outputs["maskformer_hf"][name] - outputs["transformers"][name]).abs().max())
        / float(outputs["transformers"][name].abs().max())
        for name in names
    )
    return in_turns({side: (lambda model=model: model(images)) for side, model in models.items()}, repeats), difference


def measure_post_processing(models: dict[str, Any], size: int, repeats: int) -> dict[str, float]:
    import transformers

    from maskformer_hf import MaskFormerImageProcessor

    outputs = models["maskformer_hf"](make_images(1, size))
    # Untrained, no class is ever sure; some queries are made so.
    outputs.class_queries_logits[:, ::3, 7] += 10
    processors = {"transformers": transformers.Mask2FormerImageProcessor(), "maskformer_hf": MaskFormerImageProcessor()}
    calls = {
        side: (
            lambda processor=processor: processor.post_process_panoptic_segmentation(
                outputs, target_sizes=[(size, size)], label_ids_to_fuse={7}
            )
        )
        for side, processor in processors.items()
    }
    return in_turns(calls, repeats)


def print_training_step(side: str, backbone: str, size: int) -> None:
    """What the fresh process does: a step as JSON, in MiB and seconds."""
    model = make_model(side, backbone).train()
    # The published recipe freezes the statistics; theirs cannot.
    generator = torch.Generator().manual_seed(1)
    masks = [torch.zeros(OBJECTS, size, size, dtype=torch.bool) for _ in range(2)]
    for mask in masks:
        for index in range(OBJECTS):
            top, left = (torch.rand(2, generator=generator) * size * 0.7).int().tolist()
            mask[index, top : top + size // 4, left : left + size // 4] = True
    if side == "transformers":
        masks = [mask.float() for mask in masks]
    labels = [torch.randint(0, NUM_LABELS, (OBJECTS,), generator=generator) for _ in masks]
    images = make_images(2, size)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmRSS"), time.perf_counter()
    model(images, mask_labels=masks, class_labels=labels).loss.backward()
    seconds = time.perf_counter() - start
    print(json.dumps({"memory": (resident("VmHWM") - before) / 2**20, "seconds": seconds}))


def resident(field: str) -> int:
    """A size of this process in bytes: VmRSS now, VmHWM at its largest since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{field} is not in /proc/self/status")


def measure_training_step(side: str, backbone: str, size: int, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--threads", str(threads), "--training-step", side, backbone, str(size)]
    # Freed blocks go back to the system, so that what is measured is in use and not kept for later.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="ResNet-50 at 256, one repeat.")
    parser.add_argument("--training-step", nargs=3, metavar=("SIDE", "BACKBONE", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    import transformers

    transformers.logging.set_verbosity_error()
    if options.training_step:
        side, backbone, size = options.training_step
        print_training_step(side, backbone, int(size))
        return
    if options.quick:
        options.backbones, options.sizes, options.repeats = ["resnet50"], [256], 1
    print(
        f"{options.threads} threads, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"median of {options.repeats}"
    )
    print(f"{'':28}{'transformers':>14}{'maskformer_hf':>16}{'ratio':>8}")

    def row(name: str, values: dict[str, float], unit: str, digits: int) -> None:
        theirs, ours = (values[side] for side in SIDES)
        columns = "".join(f"{value:{width}.{digits}f} {unit}" for value, width in ((theirs, 11), (ours, 13)))
        print(f"{name:28}{columns}{ours / theirs:8.2f}", flush=True)

    for backbone in options.backbones:
        theirs = make_theirs(backbone)
        models = {"transformers": theirs, "maskformer_hf": make_ours(theirs)}
        for size in options.sizes:
            with torch.no_grad():
                seconds, difference = measure_forward(models, size, options.repeats)
                row(f"{backbone} {size} forward", seconds, "s ", 3)
                print(f"{'':28}largest difference of logits {difference:.1e}")
                seconds = measure_post_processing(models, size, options.repeats)
                row(f"{backbone} {size} panoptic", seconds, "s ", 3)
            steps = {side: measure_training_step(side, backbone, size, options.threads) for side in SIDES}
            row(f"{backbone} {size} step", {side: step["seconds"] for side, step in steps.items()}, "s ", 2)
            memory = {side: step["memory"] for side, step in steps.items()}
            row(f"{backbone} {size} step, memory", memory, "MiB", 0)


if __name__ == "__main__":
    main()
