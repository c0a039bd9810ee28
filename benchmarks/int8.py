"""What int8 costs and brings: float32, dynamic int8 and, with --calibration, static int8 side by side.

    python benchmarks/int8.py street camvid/val --calibration camvid/train/images

Exports the checkpoint three times to ONNX, runs each over a folder with images/, labels/ and classes.txt in onnxruntime
on the CPU, and compares mean IoU at the photos' own size, file size and time a photo (the network alone, without
decoding, resizing and post-processing). All run over the same photo in turns, so that a busy machine hurts them alike.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import onnx
import torch
from tqdm import tqdm

from maskformer_hf.data import SemanticFolder, class_map
from maskformer_hf.export import LOGITS, export_checkpoint, onnx_session, run_session
from maskformer_hf.inference.load import load
from maskformer_hf.metrics import MeanIoU
from maskformer_hf.training.classes import check_classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a bundled name, a folder, or a name on the Hub")
    parser.add_argument("data", help="a folder with images/, labels/ (class ids as PNG) and classes.txt")
    parser.add_argument("--calibration", help="a folder of training photos, for static int8")
    parser.add_argument("--limit", type=int, help="take only this many photos, evenly spaced")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")

    dataset = SemanticFolder(options.data)
    model, processor = load(options.checkpoint, device="cpu")
    check_classes(model.config.id2label, dataset.id2label, options.checkpoint, options.data)
    variants = {"float32": {}, "int8, dynamic": {"int8": True}}
    if options.calibration:
        variants["int8, static"] = {"int8": True, "calibration": options.calibration}
    sessions, sizes, counts = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in tqdm(variants.items(), desc="export", unit="file"):
            path = Path(folder) / "model.onnx"
            counts[name] = export_checkpoint(options.checkpoint, path, **settings).quantised
            sizes[name] = path.stat().st_size
            sessions[name] = onnx_session(onnx.load(path))

    metrics = {name: MeanIoU(len(dataset.id2label)) for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    step = max(1, len(dataset) // options.limit) if options.limit else 1
    chosen = range(0, len(dataset), step)[: options.limit]
    for index in tqdm(chosen, desc="evaluate", unit="photo"):
        sample = dataset[index]
        image, target = sample["image"].as_subclass(torch.Tensor), class_map(sample)
        inputs = processor(images=[image], return_tensors="pt")
        padded_size = tuple(inputs["pixel_values"].shape[-2:])
        image_size = (int(inputs["pixel_mask"][0, :, 0].sum()), int(inputs["pixel_mask"][0, 0].sum()))
        for name, session in sessions.items():
            start = time.perf_counter()
            logits = run_session(session, inputs["pixel_values"])
            seconds[name].append(time.perf_counter() - start)
            outputs = SimpleNamespace(
                **dict(zip(LOGITS, logits, strict=True)), padded_sizes=[padded_size], image_sizes=[image_size]
            )
            [prediction] = processor.post_process_semantic_segmentation(outputs, target_sizes=[tuple(target.shape)])
            metrics[name].update(prediction, target)

    print(f"{options.checkpoint} on {options.data}: {len(chosen)} photos, {options.threads} threads, onnxruntime, CPU")
    print(f"{'':14}{'mean IoU':>10}{'change':>9}{'file':>11}{'median time':>13}  int8")
    reference = None
    for name, metric in metrics.items():
        mean_iou = metric.compute()["mean_iou"]
        reference = mean_iou if reference is None else reference
        what = ", ".join(f"{count} {kind}" for kind, count in counts[name].items()) or "-"
        print(
            f"{name:14}{mean_iou:10.4f}{mean_iou - reference:+9.4f}{sizes[name] / 1e6:8.1f} MB"
            f"{1000 * statistics.median(seconds[name]):10.0f} ms  {what}"
        )


if __name__ == "__main__":
    main()
