"""An ONNX model with int8 convolutions and matrix products, by onnxruntime's quantiser.

Weights are int8 with a scale for each output channel, and so are the inputs of these operators. Everything else, above
all softmax and norms, stays float32.
"""

import tempfile
from pathlib import Path
from typing import Any

from .calibration import CalibrationPhotos

OPERATORS = ["Conv", "MatMul", "Gemm"]
# Static int8 has to know activations as well, to measure the ranges of the convolutions before them.
ACTIVATIONS = ["Relu", "Clip"]


def quantise(proto: Any, photos: CalibrationPhotos | None) -> Any:
    """The ONNX model with int8 weights: dynamic without photos, static with them."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, folded, target = (Path(folder) / f"{name}.onnx" for name in ("source", "folded", "target"))
        onnx.save_model(proto, source)
        # Folds frozen norms into their convolutions.
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        nodes = onnx.load_model(folded)
        if photos is None:
            quantize_dynamic(
                folded,
                target,
                op_types_to_quantize=OPERATORS,
                nodes_to_exclude=_grouped_convolutions(nodes),
                per_channel=True,
                # onnxruntime's integer convolution takes no signed weights.
                weight_type=QuantType.QUInt8,
            )
        else:
            reader: Any = photos
            quantize_static(
                folded,
                target,
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS + ACTIVATIONS,
                nodes_to_exclude=_products_of_activations(nodes),
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
    """Matrix products without a weight, which are attention. Dynamic quantisation leaves them alone by itself."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [node.name for node in proto.graph.node if node.op_type == "MatMul" and weights.isdisjoint(node.input)]


def count_int8(proto: Any) -> dict[str, int]:
    """How many convolutions and matrix products are int8, by kind.

    Dynamic quantisation has operators of its own; those of static quantisation read the output of DequantizeLinear.
    """
    dequantised = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    kinds = {"Conv": "convolutions", "MatMul": "matrix products", "Gemm": "matrix products"}
    counts = dict.fromkeys(kinds.values(), 0)
    for node in proto.graph.node:
        kind = kinds.get(node.op_type.removesuffix("Integer"))
        if kind and (node.op_type.endswith("Integer") or node.input[0] in dequantised):
            counts[kind] += 1
    return counts
