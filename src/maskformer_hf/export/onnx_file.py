"""An ONNX model of torch's program, and onnxruntime to run it."""

import re
from typing import Any

import torch

# What torch's exporter is made and tested for; every onnxruntime since 1.14 (2023) reads it.
OPSET = 18


def to_onnx(program: torch.export.ExportedProgram, output_names: list[str], static_size: tuple[int, int] | None) -> Any:
    """The ONNX model of a program, with "batch", and unless there is a `static_size` "height" and "width", as names."""
    import onnx

    exported: Any = torch.onnx.export(
        program,
        input_names=["pixel_values"],
        output_names=output_names,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    # Only inputs and outputs keep their shapes: ONNX cannot express most of torch's.
    proto = exported.model_proto
    del proto.graph.value_info[:]
    # These name the file and line on this machine that an operator comes from.
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
    # Hides warnings about nodes of the graph that it could not fold.
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_session(session: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The outputs of `onnx_session` for `pixel_values` (B, C, H, W) float32."""
    return tuple(torch.from_numpy(array) for array in session.run(None, {"pixel_values": pixel_values.numpy()}))
