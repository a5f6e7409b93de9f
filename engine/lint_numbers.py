"""Rules about the numbers of Q/DQ: integer types, zero points, scales and the axes they lie along."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from engine.graph import constant, constant_shape, constant_tensor, int_attribute
from engine.integers import symmetric_zero
from engine.lint_findings import CONSUMERS, TENSORRT, Hit, Rule
from engine.lint_graph import LintGraph, Operand, ProductSite, shape_of, weight_behind

Q_DQ = ("QuantizeLinear", "DequantizeLinear")
# The onnxruntime target of this project, and its reason (MiniLM, 1 x 32 tokens, AVX512-VNNI: 21.5 ms against 1.8).
UINT8_MEND = "export with --target onnxruntime, or quantize activations to uint8 (activation_type=QuantType.QUInt8)"


def integer_type(node: ir.Node) -> ir.DataType | None:
    """Return the integer type of a Q or DQ node: its zero point's, its input's, or its output_dtype; None if untold."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero_point = constant_tensor(node.inputs[2])
        return zero_point.dtype if zero_point is not None else node.inputs[2].dtype
    if node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
        source = constant_tensor(node.inputs[0])
        producer = node.inputs[0].producer()
        if producer is not None and producer.op_type == "QuantizeLinear":
            return integer_type(producer)
        return source.dtype if source is not None else node.inputs[0].dtype
    declared = int_attribute(node, "output_dtype", 0)
    return ir.DataType(declared) if declared else None


def uint8(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every Q/DQ whose integers are unsigned, or of no told type."""
    for node in graph.nodes(*Q_DQ):
        kind = integer_type(node)
        if kind == ir.DataType.UINT8:
            yield Hit(node, "its integers are uint8; TensorRT's Q/DQ take signed INT8 alone and the parser stops here")
        elif kind is None and node.op_type == "QuantizeLinear":
            yield Hit(node, "it has no zero point, which ONNX reads as uint8; give an int8 zero point of 0", "warning")


def zero_point(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every Q/DQ whose zero point moves the numbers."""
    for node in graph.nodes(*Q_DQ):
        value = node.inputs[2] if len(node.inputs) > 2 else None
        zeros = constant(value)
        if zeros is not None and zeros.dtype in (np.int8, np.uint8):
            if (zeros != symmetric_zero(zeros.dtype)).any():
                yield Hit(node, "its zero point is not that of symmetric integers; TensorRT takes symmetric INT8 alone")
        elif value is not None and zeros is None:
            yield Hit(node, "its zero point is computed at run time; TensorRT needs a constant 0")


def int32_bias(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every DequantizeLinear of an INT32 constant."""
    for node in graph.nodes("DequantizeLinear"):
        source = constant_tensor(node.inputs[0])
        if source is not None and source.dtype == ir.DataType.INT32:
            yield Hit(node, "it dequantizes an INT32 bias, which TensorRT's parser refuses; biases stay float there")


def scales(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every Q/DQ whose scale is no positive number, or no constant."""
    for node in graph.nodes(*Q_DQ):
        scale = constant(node.inputs[1])
        if scale is None:
            yield Hit(node, "its scale is computed at run time; an engine needs it as a constant")
        elif not (np.isfinite(scale.astype(np.float64)).all() and (scale > 0).all()):
            yield Hit(node, "its scale holds zero, negative, infinite or NaN values: its numbers are lost")


def activation_axis(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every Q of an activation with more than one scale."""
    for node in graph.nodes("QuantizeLinear"):
        shape = constant_shape(node.inputs[1]) if node.inputs[1] is not None else None
        if shape is not None and np.prod(shape, dtype=int) > 1 and weight_behind(node.inputs[0]) is None:
            yield Hit(node, "it quantizes an activation with several scales; integer products need one per tensor")


def weight_axis(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every linear layer or convolution whose weight scales lie along another axis than the output channels."""
    for site in graph.products:
        side = site.sides[1]
        if side.dequantize is None or side.weight is None or side.dequantize.inputs[1] is None:
            continue
        scale = constant_shape(side.dequantize.inputs[1])
        wanted = _output_axis(site, side)
        if scale is None or len(scale) != 1 or scale[0] == 1 or wanted is None:
            continue
        rank = len(shape_of(side.weight) or ())
        if rank and int_attribute(side.dequantize, "axis", 1) % rank != wanted:
            yield Hit(
                site, "its weight's scales do not lie along the output channels, so no integer kernel can use them"
            )


def _output_axis(site: ProductSite, side: Operand) -> int | None:
    """Return the axis of the stored weight along which its output channels lie, None where a Reshape hides it."""
    shape = shape_of(side.weight)
    node = side.value.producer()
    if shape is None or (len(shape) != 2 and site.node.op_type != "Conv"):
        return None
    while node is not None and node is not side.dequantize:
        if node.op_type not in ("Transpose", "Identity", "Cast") or node.inputs[0] is None:
            return None
        node = node.inputs[0].producer()
    axis = len(shape) - 1
    if site.node.op_type == "Conv" or int_attribute(site.node, "transB", 0):
        axis = 0
    for order in side.transposed:
        axis = order[axis] if axis < len(order) else axis
    return axis


def int8_activations(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every activation that ONNX Runtime would carry in int8."""
    for node in graph.nodes("QuantizeLinear"):
        if integer_type(node) == ir.DataType.INT8 and weight_behind(node.inputs[0]) is None:
            yield Hit(
                node,
                "its activation is int8: on x86 ONNX Runtime fuses few of these and takes slow paths (MiniLM, 1 x 32 "
                "tokens: 21.5 ms, uint8 with zero point 128 1.8 ms, the same numbers)",
            )


def half_scales(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every Q/DQ with a half-precision scale, which ONNX Runtime's CPU kernels do not fuse."""
    for node in graph.nodes(*Q_DQ):
        scale = constant_tensor(node.inputs[1])
        if scale is not None and scale.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            yield Hit(
                node, "its scale is half precision; ONNX Runtime's CPU provider fuses Q/DQ with fp32 scales alone"
            )


NUMBER_RULES = (
    Rule(
        "uint8",
        "error",
        TENSORRT,
        "export with --target tensorrt, or quantize activations to int8 (ONNX Runtime's "
        "tool: activation_type=QuantType.QInt8)",
        uint8,
    ),
    Rule(
        "zero-point",
        "error",
        TENSORRT,
        "export with --target tensorrt, or calibrate symmetrically (ONNX Runtime's "
        "tool: extra_options ActivationSymmetric and WeightSymmetric)",
        zero_point,
    ),
    Rule(
        "int32-bias",
        "error",
        TENSORRT,
        "leave the bias float (ONNX Runtime's tool: extra_options QuantizeBias False)",
        int32_bias,
    ),
    Rule("scale", "error", CONSUMERS, "calibrate again and export again", scales),
    Rule(
        "activation-axis",
        "error",
        CONSUMERS,
        "calibrate activations per tensor; spread channels by SmoothQuant",
        activation_axis,
    ),
    Rule(
        "weight-axis",
        "error",
        CONSUMERS,
        "quantize weights per output channel: axis 1 of MatMul's (in, out), 0 of Gemm's transB and of Conv",
        weight_axis,
    ),
    Rule("int8-activations", "warning", ("onnxruntime",), UINT8_MEND, int8_activations),
    Rule("half-scales", "warning", ("onnxruntime",), "export with --target onnxruntime, in fp32", half_scales),
)
