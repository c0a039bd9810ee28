"""From a checkpoint to a file that was compared with its model."""

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..inference.load import load
from ..inference.reparameterise import reparameterise
from ..output_files import whole_file
from .calibration import CalibrationPhotos, find_photos
from .check import largest_difference
from .graph import Graph, export_program
from .int8 import count_int8, quantise
from .metadata import metadata_of
from .onnx_file import OPSET, onnx_session, run_session, to_onnx

ExportFormat = Literal["onnx", "torch-export"]
FORMAT_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}


@dataclass
class ExportResult:
    """What was written.

    Attributes:
        metadata: What the file says of itself. All values are strings; lists are JSON.
        largest_difference: The largest difference between the file's logits and the model's, in shares of the largest
            logit, over several sizes and batches. For class maps it is the largest difference in score between two
            classes where the file and the model disagree. None for int8, which only approximates the model.
        quantised: How many convolutions and matrix products became int8.
    """

    path: Path
    metadata: dict[str, str]
    largest_difference: float | None
    quantised: dict[str, int] = field(default_factory=dict)


def export_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    format: ExportFormat = "onnx",
    *,
    post_process: bool = False,
    int8: bool = False,
    calibration: str | Path | None = None,
    static_size: tuple[int, int] | None = None,
) -> ExportResult:
    """Write a checkpoint as one file for any batch, height and width from 33 pixels on, and compare it with the model.

    Args:
        checkpoint: As for `load`.
        post_process: The graph gives the class of every pixel instead of logits. Memory: 8 Q H W bytes per image.
        int8: Quantise convolutions and matrix products (ONNX only), to about a quarter of the size. Activations are
            scaled by the range they have in each image (dynamic), which is no faster than float32, or with
            `calibration` by the range they had on those photos (static), which takes half the time. Depthwise
            convolutions of dynamic files stay float32: they hold few weights, and lose the most when quantised.
            `benchmarks/int8.py` measures both.
        calibration: A folder of photos like those the model will see; 64 of them are used.
        static_size: One (height, width) for all inputs, where a backbone or a target allows no other way.

    Raises:
        ImportError: A library of the extra `export` is missing.
        ValueError: An unknown format, options that exclude each other, a model that cannot be exported or not for
            dynamic sizes, or a file that gives other results than the model.
    """
    path = Path(output)
    _check_options(path, format, int8, calibration)
    photos = find_photos(Path(calibration)) if calibration else []
    if format == "onnx":
        _require_libraries("onnx", "onnxscript", "onnxruntime")
    loaded: Any = load(checkpoint, device="cpu")
    model, processor = loaded
    _check_model(model.config, str(checkpoint))
    reparameterise(model)
    model.to(memory_format=torch.contiguous_format)
    graph = Graph(model, post_process).eval()
    program = export_program(graph, static_size)
    metadata = metadata_of(model, processor, post_process, static_size)
    if format == "torch-export":
        difference = largest_difference(graph, program.module(), static_size)
        with whole_file(path) as unfinished:
            torch.export.save(program, unfinished, extra_files={"metadata.json": json.dumps(metadata)})
        return ExportResult(path, metadata, difference)

    proto = to_onnx(program, graph.output_names, static_size)
    session = onnx_session(proto)
    difference = largest_difference(graph, lambda pixel_values: run_session(session, pixel_values), static_size)
    metadata["opset"] = str(OPSET)
    if not int8:
        _save_onnx(proto, path, metadata)
        return ExportResult(path, metadata, difference)
    metadata["quantisation"] = "static int8" if photos else "dynamic int8"
    reader = CalibrationPhotos(photos, processor, static_size) if photos else None
    proto = quantise(proto, reader)
    _save_onnx(proto, path, metadata)
    return ExportResult(path, metadata, None, count_int8(proto))


def _check_options(path: Path, format: str, int8: bool, calibration: str | Path | None):
    if format not in FORMAT_SUFFIXES:
        raise ValueError(f"`format` must be one of {list(FORMAT_SUFFIXES)}, got {format!r}.")
    if (int8 or calibration) and format != "onnx":
        raise ValueError(f"`int8` is for format 'onnx' alone, got {format!r}.")
    if calibration and not int8:
        raise ValueError(f"`calibration` ({str(calibration)!r}) is for int8 alone: add `int8`.")
    if path.suffix != FORMAT_SUFFIXES[format]:
        raise ValueError(f"The file of format {format!r} must end in {FORMAT_SUFFIXES[format]}, got {str(path)!r}.")


def _check_model(config: Any, checkpoint: str):
    if config.kind == "clip":
        raise ValueError(
            f"{checkpoint!r} is a model of videos, which cannot be exported: run it by `predict_video` or `maskformer "
            "segment`, or export a model of images."
        )
    if config.is_per_pixel:
        raise ValueError(
            f"{checkpoint!r} is a per-pixel baseline, which cannot be exported: run it by `predict` or `maskformer "
            "segment`, or export a model with queries."
        )


def _require_libraries(*names: str):
    """Raises an ImportError, with the line that installs them, unless all are there."""
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ImportError(f"Export needs {' and '.join(missing)}: pip install 'maskformer-hf[export]'")


def _save_onnx(proto: Any, path: Path, metadata: dict[str, str]):
    import onnx

    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    with whole_file(path) as unfinished:
        onnx.save_model(proto, unfinished)
