"""A checkpoint as one file that runs without this package: an ONNX model, or a program of `torch.export`.

The graph takes `pixel_values` (batch, C, height, width) float32, scaled, normalised and padded as the image processor
does it, and gives

- `class_queries_logits` (batch, Q, K + 1) and `masks_queries_logits` (batch, Q, h, w), or
- with post-processing `segmentation` (batch, height, width) int64: the class of every pixel of the input, padding
  included. An image that fills the upper left corner is `segmentation[i, :image_height, :image_width]`; this equals the
  image processor's `post_process_semantic_segmentation` without `target_sizes`.

Shapes: B images, Q queries, K classes, h w mask cells, H W pixels of the input.
"""

import importlib
import json
import re
import tempfile
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from .data.files import IMAGE_SUFFIXES
from .inference.images import read_image
from .inference.load import load
from .models.modeling_auto import sees_clips

ExportFormat = Literal["onnx", "torch-export"]
FORMAT_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
# What torch's exporter is made and tested for; every onnxruntime since 1.14 (2023) reads it.
OPSET = 18
LOGITS = ["class_queries_logits", "masks_queries_logits"]
SEGMENTATION = ["segmentation"]
# Odd, different, and no multiples of a stride or a window: a size that fits by chance would be baked into the graph.
EXAMPLE_SIZE = (235, 197)
CHECKED_SIZES = ((1, 160, 224), (3, 203, 138))
TOLERANCE = 1e-3
# int8 weights, a scale for each output channel, and int8 inputs; everything else, softmax and norms above all, stays
# float32. Static int8 must know of activations as well, to measure the ranges of convolutions behind them.
INT8_OPERATORS = ["Conv", "MatMul", "Gemm"]
INT8_ACTIVATIONS = ["Relu", "Clip"]
CALIBRATION_IMAGES = 64


@dataclass
class ExportResult:
    """What was written.

    Attributes:
        metadata: What the file says of itself, all values strings: lists are JSON.
        largest_difference: Between the file's logits and the model's, in shares of the largest logit, over some sizes
            and batches; for class maps the difference in score of two classes where one is taken for the other. None
            for int8, which is no rewrite but an approximation.
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
        post_process: The graph gives the class of every pixel and not logits. Memory: 8 Q H W bytes an image.
        int8: Quantise convolutions and matrix products (ONNX only), to about a quarter of the size: activations by the
            range they have in each image (dynamic), which is no faster than float32, or with `calibration` by the range
            they had on those photos (static), which takes half the time. Depthwise convolutions of dynamic files stay
            float32: they hold few weights, and quantised they lose the most. `benchmarks/int8.py` measures both.
        calibration: A folder of photos such as the model will see; the first 64 are used.
        static_size: One (height, width) for all inputs, where a backbone or a target allows no other way.

    Raises:
        ImportError: A library of the extra `export` is missing.
        ValueError: An unknown format, options that exclude each other, a backbone that allows no dynamic sizes, or a
            file that gives other results than the model.
    """
    if format not in FORMAT_SUFFIXES:
        raise ValueError(f"`format` must be one of {list(FORMAT_SUFFIXES)}, got {format!r}.")
    if (int8 or calibration) and format != "onnx":
        raise ValueError(f"`int8` is for format 'onnx' alone, got {format!r}.")
    if calibration and not int8:
        raise ValueError(f"`calibration` ({str(calibration)!r}) is for int8 alone: add `int8`.")
    path = Path(output)
    if path.suffix != FORMAT_SUFFIXES[format]:
        raise ValueError(f"The file of format {format!r} must end in {FORMAT_SUFFIXES[format]}, got {str(path)!r}.")
    photos = _photos(Path(calibration)) if calibration else []
    if format == "onnx":
        require_libraries("onnx", "onnxscript", "onnxruntime")
    loaded: Any = load(checkpoint, device="cpu")
    model, processor = loaded
    if sees_clips(model.config):
        raise ValueError(
            f"{str(checkpoint)!r} is a model of videos, of which nothing is exported; `predict_video` and `maskformer "
            "segment` run it. Models of images are exported."
        )
    model.to(memory_format=torch.contiguous_format)
    graph = _Graph(model, post_process).eval()
    program = _export_program(graph, static_size)
    metadata = _metadata(model, processor, post_process, static_size)
    if format == "torch-export":
        difference = _compare(graph, program.module(), static_size)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})
        return ExportResult(path, metadata, difference)

    import onnx

    proto = _to_onnx(program, graph.output_names, static_size)
    session = onnx_session(proto)
    difference = _compare(graph, lambda pixel_values: run_session(session, pixel_values), static_size)
    quantised: dict[str, int] = {}
    if int8:
        proto = _quantise(proto, model, processor, photos, static_size)
        quantised = _count_int8(proto)
        metadata["quantisation"] = "static int8" if photos else "dynamic int8"
    metadata["opset"] = str(OPSET)
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(proto, path)
    return ExportResult(path, metadata, None if int8 else difference, quantised)


def require_libraries(*names: str) -> None:
    """Raises ImportError, with the line that installs them, unless all are there."""
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ImportError(f"Export needs {' and '.join(missing)}: pip install 'maskformer-hf[export]'")


def semantic_class_scores(class_logits: torch.Tensor, mask_logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Score of each class at each pixel of the padded input: (B, Q, K + 1) and (B, Q, h, w) to (B, K, H, W).

    The plain form of `semantic.semantic_segmentation`, whose short cuts depend on the values.
    """
    masks_BQHW = F.interpolate(mask_logits, size=tuple(size), mode="bilinear", align_corners=False).sigmoid()
    return torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(-1)[..., :-1], masks_BQHW)


class _Graph(nn.Module):
    """What is exported: tensors in, tensors out."""

    def __init__(self, model: nn.Module, post_process: bool):
        super().__init__()
        self.model = model
        self.post_process = post_process
        self.output_names = SEGMENTATION if post_process else LOGITS

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(pixel_values)
        if not self.post_process:
            return outputs.class_queries_logits, outputs.masks_queries_logits
        return (self.class_scores(pixel_values, outputs).argmax(1),)

    def class_scores(self, pixel_values: torch.Tensor, outputs: Any) -> torch.Tensor:
        size = pixel_values.shape[-2:]
        return semantic_class_scores(outputs.class_queries_logits, outputs.masks_queries_logits, size)


def _export_program(graph: _Graph, static_size: tuple[int, int] | None) -> torch.export.ExportedProgram:
    model: Any = graph.model
    height, width = static_size or EXAMPLE_SIZE
    example = torch.zeros(2, model.config.num_channels, height, width)
    dynamic = [0] if static_size else [0, 2, 3]
    shapes = {"pixel_values": dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC)}
    try:
        with torch.no_grad(), _for_any_size(model):
            return torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)
    # Most of torch.export's errors are private classes without a common base.
    except Exception as error:
        if static_size:
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"The backbone {model.config.backbone_config.model_type!r} cannot be exported for every height and width "
            f"({reason}): choose one with --static HEIGHTxWIDTH, or `static_size`."
        ) from error


def _metadata(model: Any, processor: Any, post_process: bool, static_size: tuple[int, int] | None) -> dict[str, str]:
    """What a caller must know to feed the file and to read its results."""
    config = model.config
    height, width = static_size or ("height", "width")
    output = (
        "segmentation: (batch, height, width) int64, the class of each pixel of the padded input"
        if post_process
        else "class_queries_logits: (batch, queries, classes + 1), no-object last; "
        "masks_queries_logits: (batch, queries, ceil(height / 4), ceil(width / 4))"
    )
    return {
        "task": "semantic" if post_process else config.task,
        "input": f"pixel_values: (batch, {config.num_channels}, {height}, {width}) float32, RGB, "
        "(value * rescale_factor - image_mean) / image_std, then zeros on the right and below up to size_divisor",
        "output": output,
        "class_names": json.dumps([config.id2label[label] for label in range(config.num_labels)]),
        "label_ids_to_fuse": json.dumps(config.label_ids_to_fuse or []),
        "rescale_factor": json.dumps(processor.rescale_factor),
        "image_mean": json.dumps(list(processor.image_mean)),
        "image_std": json.dumps(list(processor.image_std)),
        "size": json.dumps(dict(processor.size)),
        "size_divisor": json.dumps(processor.size_divisor),
    }


def _to_onnx(program: torch.export.ExportedProgram, output_names: list[str], static_size: Any) -> Any:
    import onnx

    exported: Any = torch.onnx.export(
        program,
        input_names=["pixel_values"],
        output_names=output_names,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    # Shapes that are not those of inputs and outputs are dropped: ONNX has no words for most of torch's.
    proto = exported.model_proto
    del proto.graph.value_info[:]
    # Which line of which file of this machine an operator comes from.
    for item in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del item.metadata_props[:]
    del proto.graph.metadata_props[:]
    names = ["batch", *(() if static_size else ("height", "width"))]
    dimensions = [dim for dim in proto.graph.input[0].type.tensor_type.shape.dim if dim.dim_param]
    renamed = {dim.dim_param: name for dim, name in zip(dimensions, names, strict=True)}
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda match: renamed.get(match[0], match[0]), dim.dim_param)
    onnx.checker.check_model(proto)
    return proto


def onnx_session(proto: Any) -> Any:
    """An ONNX model in onnxruntime on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Warnings about nodes of the graph it could not fold.
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_session(session: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The outputs of `onnx_session` for `pixel_values` (B, C, H, W) float32."""
    return tuple(torch.from_numpy(array) for array in session.run(None, {"pixel_values": pixel_values.numpy()}))


@torch.no_grad()
def _compare(graph: _Graph, exported: Any, static_size: tuple[int, int] | None) -> float:
    """The largest difference between what was exported and the model, at batches and sizes the export has not seen."""
    model: Any = graph.model
    largest = 0.0
    for batch_size, height, width in [(size[0], *(static_size or size[1:])) for size in CHECKED_SIZES]:
        generator = torch.manual_seed(batch_size)
        pixel_values = torch.randn(batch_size, model.config.num_channels, height, width, generator=generator)
        outputs = model(pixel_values)
        got = exported(pixel_values)
        if graph.post_process:
            scores = graph.class_scores(pixel_values, outputs)
            found = scores.gather(1, got[0][:, None])
            difference = float((scores.amax(1, keepdim=True) - found).max())
        else:
            difference = max(
                float((logits - outputs[name]).abs().max() / outputs[name].abs().max().clamp(min=1))
                for name, logits in zip(LOGITS, got, strict=True)
            )
        if not difference <= TOLERANCE:
            raise ValueError(
                f"At batch {batch_size} of {height}x{width} pixels the exported file gives other results than the "
                f"model (by {difference:.2g}), so nothing was written. Try --static HEIGHTxWIDTH, and please report it."
            )
        largest = max(largest, difference)
    return largest


class _Photos:
    """What the quantiser calibrates on: one photo after the other, through the image processor."""

    def __init__(self, paths: Sequence[Path], processor: Any, num_channels: int, static_size: tuple[int, int] | None):
        self.inputs = (self._read(path, processor, num_channels, static_size) for path in paths)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.inputs, None)

    @staticmethod
    def _read(path: Path, processor: Any, num_channels: int, static_size: tuple[int, int] | None) -> dict[str, Any]:
        pixel_values = processor.preprocess([read_image(path, num_channels)], return_tensors="pt")["pixel_values"]
        if static_size:
            pixel_values = F.interpolate(pixel_values, size=static_size, mode="bilinear", align_corners=False)
        return {"pixel_values": pixel_values.numpy()}


def _photos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r} to calibrate on.")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(f"The folder {str(folder)!r} holds no photos to calibrate on.")
    # Evenly spaced, because neighbours are often frames of one scene.
    step = max(1, len(found) // CALIBRATION_IMAGES)
    return found[::step][:CALIBRATION_IMAGES]


def _quantise(proto: Any, model: Any, processor: Any, photos: list[Path], static_size: tuple[int, int] | None) -> Any:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, folded, target = (Path(folder) / f"{name}.onnx" for name in ("source", "folded", "target"))
        onnx.save_model(proto, source)
        # Folds norms of frozen statistics into their convolutions.
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        if not photos:
            quantize_dynamic(
                folded,
                target,
                op_types_to_quantize=INT8_OPERATORS,
                nodes_to_exclude=_grouped_convolutions(onnx.load_model(folded)),
                per_channel=True,
                # onnxruntime's integer convolution takes no signed weights.
                weight_type=QuantType.QUInt8,
            )
        else:
            reader: Any = _Photos(photos, processor, model.config.num_channels, static_size)
            quantize_static(
                folded,
                target,
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=INT8_OPERATORS + INT8_ACTIVATIONS,
                nodes_to_exclude=_products_of_activations(onnx.load_model(folded)),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        return onnx.load_model(target)


def _grouped_convolutions(proto: Any) -> list[str]:
    return [
        node.name
        for node in proto.graph.node
        if node.op_type == "Conv" and any(item.name == "group" and item.i > 1 for item in node.attribute)
    ]


def _products_of_activations(proto: Any) -> list[str]:
    """Attention: matrix products without a weight, which dynamic quantisation leaves alone by itself."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [node.name for node in proto.graph.node if node.op_type == "MatMul" and weights.isdisjoint(node.input)]


def _count_int8(proto: Any) -> dict[str, int]:
    """Dynamic quantisation has operators of its own; static ones read the output of DequantizeLinear."""
    dequantised = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    kinds = {"Conv": "convolutions", "MatMul": "matrix products", "Gemm": "matrix products"}
    counts = dict.fromkeys(kinds.values(), 0)
    for node in proto.graph.node:
        kind = kinds.get(node.op_type.removesuffix("Integer"))
        if kind and (node.op_type.endswith("Integer") or node.input[0] in dequantised):
            counts[kind] += 1
    return counts


@contextmanager
def _for_any_size(model: nn.Module) -> Iterator[None]:
    """Let some layers of backbones compute the same without branches on sizes, which would be baked into the graph."""
    patched: list[tuple[nn.Module, str]] = []
    configs: dict[int, Any] = {}
    for module in model.modules():
        if type(module).__name__ == "SwinAttention":
            configs[id(module.config)] = module.config
    implementations = [config._attn_implementation for config in configs.values()]
    for config in configs.values():
        # The ONNX exporter takes fused attention apart, and its result then has other strides than were written down.
        config._attn_implementation = "eager"
    for module in model.modules():
        method = _METHODS.get(type(module).__name__)
        if method is not None:
            name, function = method
            setattr(module, name, types.MethodType(function, module))
            patched.append((module, name))
    try:
        yield
    finally:
        for module, name in patched:
            delattr(module, name)
        for config, implementation in zip(configs.values(), implementations, strict=True):
            config._attn_implementation = implementation


def _round_up(length: int, divisor: int) -> int:
    return (length + divisor - 1) // divisor * divisor


def _remainder(numbers: torch.Tensor, divisor: int) -> torch.Tensor:
    """`numbers % divisor` for numbers from 0 on; the ONNX exporter knows no remainder by a size."""
    return numbers - numbers // divisor * divisor


def _conv_same(self: Any, x: torch.Tensor) -> torch.Tensor:
    """timm's Conv2dSame, TensorFlow's padding: as many outputs as strides begin in the input, its surplus on the right
    and below."""
    padding: list[int] = []
    for axis in (1, 0):
        length, stride = x.shape[axis + 2], self.stride[axis]
        span = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
        # Kernels that are smaller than their stride are 1x1 and need no padding.
        total = (length + stride - 1) // stride * stride - stride + span - length if span >= stride else 0
        padding += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _pad_to_patches(self: Any, pixel_values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    patch_height, patch_width = self.patch_size
    return F.pad(pixel_values, (0, _round_up(width, patch_width) - width, 0, _round_up(height, patch_height) - height))


def _pad_to_even(self: Any, input_feature: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.pad(input_feature, (0, 0, 0, _round_up(width, 2) - width, 0, _round_up(height, 2) - height))


def _swin_layer(
    self: Any, hidden_states: torch.Tensor, input_dimensions: tuple[int, int], *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, Any]:
    """SwinLayer's forward. Padding, cyclic shift and cutting into windows are one gather, and so is the way back.

    All indices, those of the images of a batch too, lie on one axis that is never of length 1: where a picture has a
    single row, column or window, torch.export takes reshapes and broadcasts for special cases of this size.
    """
    height, width = input_dimensions
    batch_size, num_cells, channels = hidden_states.shape
    window, shift = self.window_size, self.shift_size
    area = window * window
    padded_height, padded_width = _round_up(height, window), _round_up(width, window)
    columns = padded_width // window
    device = hidden_states.device

    # Row and column of each cell of the shifted maps, in the order of windows; then those it had before the shift.
    index = torch.arange(batch_size * padded_height * padded_width, device=device)
    number, cell = index // area, index % area
    row = number // columns * window + cell // window
    image, row = row // padded_height, _remainder(row, padded_height)
    column = _remainder(number, columns) * window + cell % window
    source_row, source_column = _remainder(row + shift, padded_height), _remainder(column + shift, padded_width)
    is_inside = (source_row < height) & (source_column < width)
    # Padding reads the zeros behind the last cell of each image.
    source = torch.where(is_inside, source_row * width + source_column, num_cells) + image * (num_cells + 1)
    normed = F.pad(self.layernorm_before(hidden_states), (0, 0, 0, 1)).view(-1, channels)
    windows = normed.index_select(0, source).view(-1, area, channels)

    mask = None
    if shift > 0:
        region = 3 * ((row >= padded_height - window).long() + (row >= padded_height - shift).long())
        region = region + (column >= padded_width - window).long() + (column >= padded_width - shift).long()
        region = region.view(-1, area)
        mask = torch.where(region.unsqueeze(1) == region.unsqueeze(2), 0.0, -100.0).to(hidden_states.dtype)
    attended, weights = self.attention(windows, mask, **kwargs)

    index = torch.arange(batch_size * num_cells, device=device)
    row, column = index // width, _remainder(index, width)
    image, row = row // height, _remainder(row, height)
    row = _remainder(row + padded_height - shift, padded_height)
    column = _remainder(column + padded_width - shift, padded_width)
    number = (image * (padded_height // window) + row // window) * columns + column // window
    target = number * area + row % window * window + column % window
    attended = attended.reshape(-1, channels).index_select(0, target).view(batch_size, num_cells, channels)
    hidden_states = hidden_states + attended
    return hidden_states + self.mlp(self.layernorm_after(hidden_states)), weights


_METHODS = {
    "Conv2dSame": ("forward", _conv_same),
    "SwinPatchEmbeddings": ("maybe_pad", _pad_to_patches),
    "SwinPatchMerging": ("maybe_pad", _pad_to_even),
    "SwinLayer": ("forward", _swin_layer),
}
