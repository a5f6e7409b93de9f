"""Rules about the numbers of Q/DQ: integer types, zero points, scales and the axes they lie along."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from engine.graph import constant, constant_tensor
from engine.integers import symmetric_zero
from engine.lint.axes import activation_axis, block_size, weight_axis
from engine.lint.claims import CONSUMERS, FLOAT, NUMBERS, REFUSED, TENSORRT
from engine.lint.findings import Hit, Rule, is_int8_for
from engine.lint.graph import LintGraph, is_quantized_next
from engine.operands import Q_DQ, Operand, integer_type
from engine.products import Product

FP8_TYPES = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ)
# What TensorRT's Q/DQ take; INT32 has a rule and a mend of its own.
TENSORRT_TYPES = (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT32)
# The onnxruntime target of this project, and its reason (MiniLM, 1 x 32 tokens, AVX512-VNNI: 21.5 ms against 1.8).
UINT8_MEND = "export with --target onnxruntime, or quantize activations to uint8 (activation_type=QuantType.QUInt8)"


def refused_types(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every Q/DQ whose integers TensorRT's parser stops at, and those it reads otherwise than ONNX."""
    for node in graph.nodes(*Q_DQ):
        kind = integer_type(node)
        codes = None if node.inputs[0] is None else constant_tensor(node.inputs[0])
        if kind is None or (kind == ir.DataType.UINT8 and _is_unsigned_and_unmoved(node)):
            if node.op_type == "QuantizeLinear":
                what = "it has no zero point, which ONNX reads as uint8" if kind is None else "its integers are uint8"
                reason = f"{what} and TensorRT-RTX as int8: negative numbers differ; give an int8 zero point of 0"
                yield Hit(node, reason, "warning", claim=NUMBERS)
            elif codes is not None and codes.dtype not in TENSORRT_TYPES:
                yield Hit(node, f"its constant is {codes.dtype.name.lower()}; TensorRT's Q/DQ take signed INT8")
        elif kind not in TENSORRT_TYPES:
            reason = f"its codes are {kind.name.lower()}; TensorRT's Q/DQ take signed INT8, INT4 weights and FP8 E4M3"
            yield Hit(node, f"{reason} alone, and the parser stops here")
    for site in graph.products:
        kinds = {side.dtype for side in site.sides}
        if ir.DataType.FLOAT8E4M3FN in kinds and site.is_quantized and len(kinds) > 1:
            yield Hit(site, f"its factors are {site.types}: TensorRT-RTX multiplies FP8 with FP8 alone and stops")


def _is_unsigned_and_unmoved(node: ir.Node) -> bool:
    zeros = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(())
    is_weight = node.op_type == "DequantizeLinear" and constant_tensor(node.inputs[0]) is not None
    return zeros is not None and not zeros.any() and not is_weight


def refused_fp8(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product of FP8 codes: ONNX Runtime fuses it into an operator that does not take them."""
    for site in graph.products:
        if site.is_quantized and any(side.dtype in FP8_TYPES for side in site.sides):
            yield Hit(site, f"its factors are {site.types}: ONNX Runtime 1.31 makes an invalid graph of it and stops")


def other_types(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product whose factors are quantized, but not to 8 bits."""
    for site in graph.products:
        stops = consumer == "onnxruntime" and any(side.dtype in FP8_TYPES for side in site.sides)  # `fp8` says it
        if site.is_quantized and not is_int8_for(site, consumer) and not stops:
            is_fp8 = all(side.dtype == ir.DataType.FLOAT8E4M3FN for side in site.sides) and consumer in TENSORRT
            where = "it runs in FP8, not in INT8" if is_fp8 else "no INT8 kernel multiplies these"
            yield Hit(site, f"its factors are {site.types}: {where}", "note" if is_fp8 else None)


def zero_point(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every Q/DQ whose zero point moves the numbers."""
    for node in graph.nodes(*Q_DQ):
        value = node.inputs[2] if len(node.inputs) > 2 else None
        zeros = constant(value)
        if zeros is not None and zeros.dtype in (np.int8, np.uint8):
            is_middle = zeros.dtype == np.uint8 and bool((zeros == symmetric_zero(zeros.dtype)).all())
            if zeros.any() and not is_middle:
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
    """Yield every Q/DQ whose scale is no positive number.

    ONNX Runtime computes rightly with a negative one, and every consumer with those that its tool gives INT4 weights.
    """
    for node in graph.nodes(*Q_DQ):
        scale = constant(node.inputs[1])
        if scale is None:
            continue
        is_lost = not np.isfinite(scale.astype(np.float64)).all() or not (scale != 0).all()
        has_negative = bool((scale < 0).any()) and integer_type(node) not in (ir.DataType.INT4, ir.DataType.UINT4)
        if is_lost or (has_negative and consumer != "onnxruntime"):
            what = "zero, infinite or NaN values: its numbers are lost" if is_lost else "negative values"
            yield Hit(node, f"its scale holds {what}", claim=REFUSED if consumer in TENSORRT else NUMBERS)


def computed_grids(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product with a scale or zero point that is computed at run time where that costs the INT8 kernel.

    ONNX Runtime alone runs a computed scale in INT8.
    """
    for site in graph.products:
        for side in site.sides:
            if side.dequantize is None:
                continue
            has_fixed_scale = constant_tensor(side.dequantize.inputs[1]) is not None
            is_dynamic = side.quantize is not None and side.quantize.op_type == "DynamicQuantizeLinear"
            if not has_fixed_scale and consumer != "onnxruntime":
                yield Hit(site, "its scale is computed at run time: the product runs in float")
            elif side.zero_points is None and not (is_dynamic and consumer == "onnxruntime"):
                yield Hit(site, "its zero point is computed at run time: the product runs in float")


def weight_zero_point(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product that OpenVINO computes in float for a zero point, or an unsigned weight."""
    for site in graph.products:
        if site.node.op_type == "ConvTranspose" or not site.is_int8:
            continue
        x, weight = site.sides if site.sides[1].weight is not None else site.sides[::-1]
        if weight.weight is not None and (weight.dtype == ir.DataType.UINT8 or _is_moved(weight)):
            yield Hit(site, "its weight is unsigned or has zero points; OpenVINO multiplies signed symmetric weights")
        elif weight.weight is None and _has_moved_activations(site):
            yield Hit(
                site,
                "its activations have zero points; OpenVINO multiplies such activations in float",
                None,
                "quantize Q and the softmax symmetrically in int8 (export with --target openvino)",
            )
        elif any(each.op_type == "Relu" for each in x.between) and _is_moved(x):
            yield Hit(site, "a Relu stands behind a DequantizeLinear with a zero point; OpenVINO computes it in float")


def _has_moved_activations(site: Product) -> bool:
    """Return whether OpenVINO keeps a zero point of two activations: of the second it drops a uint8 middle of 128."""
    first, second = site.sides
    zeros = second.zero_points
    is_middle = zeros is not None and zeros.dtype == np.uint8 and bool((zeros == 128).all())
    return _is_moved(first) or (_is_moved(second) and not is_middle)


def _is_moved(side: Operand) -> bool:
    return side.zero_points is not None and bool(np.asarray(side.zero_points).astype(np.int64).any())


def int8_activations(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product whose first factor is int8 and stays so: ONNX Runtime on x86 multiplies uint8 from the left.

    It turns int8 into uint8 itself where one QuantizeLinear with a zero point is read by one DequantizeLinear alone.
    """
    for site in graph.products:
        side = site.sides[0]
        if not site.is_int8 or side.dtype != ir.DataType.INT8 or site.has_integer_operator:
            continue
        if side.weight is not None:
            yield Hit(site, "its int8 weight stands on the left, where ONNX Runtime on x86 takes uint8 alone", None,
                      "write it as (x^T W^T)^T, or leave it float")  # fmt: skip
            continue
        why = _why_it_stays_int8(side)
        if why:
            yield Hit(site, f"its activation is int8 and {why}: ONNX Runtime on x86 dequantizes it (MiniLM, 1 x 32 "
                      "tokens: 21.5 ms, uint8 with zero point 128 1.8 ms, the same numbers)")  # fmt: skip


def _why_it_stays_int8(side: Operand) -> str | None:
    quantize = side.quantize
    if quantize is None or side.dequantize is None:
        return "no QuantizeLinear makes it"
    if side.dequantize.inputs[0] is not quantize.outputs[0]:
        return "something stands between its QuantizeLinear and its DequantizeLinear"
    if len(quantize.inputs) < 3 or quantize.inputs[2] is None:
        return "its QuantizeLinear has no zero point"
    if len(quantize.outputs[0].uses()) > 1 or len(side.dequantize.outputs[0].uses()) > 1:
        return "several nodes read it"
    return None


def half_scales(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product with a half-precision scale and a float output, which ONNX Runtime does not fuse on a CPU."""
    for site in graph.products:
        if is_quantized_next(site.node.outputs[0]):
            continue
        grids = [side.dequantize.inputs[1] for side in site.sides if side.dequantize is not None]
        tensors = [constant_tensor(scale) for scale in grids]
        if any(t is not None and t.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for t in tensors):
            yield Hit(site, "its scale is half precision; ONNX Runtime's CPU provider fuses fp32 scales alone")


SYMMETRIC_MEND = (
    "export with --target tensorrt, or calibrate symmetrically (ONNX Runtime's tool: extra_options "
    "ActivationSymmetric and WeightSymmetric)"
)
NUMBER_RULES = (
    Rule(
        "integer-type",
        "error",
        REFUSED,
        TENSORRT,
        "export with --target tensorrt, or quantize activations to int8 (ONNX Runtime's tool: "
        "activation_type=QuantType.QInt8)",
        refused_types,
    ),
    Rule("fp8", "error", REFUSED, ("onnxruntime",), "quantize to INT8; FP8 runs in TensorRT", refused_fp8),
    Rule("other-type", "error", FLOAT, CONSUMERS, "quantize both factors to INT8", other_types),
    Rule("zero-point", "error", REFUSED, TENSORRT, SYMMETRIC_MEND, zero_point),
    Rule(
        "weight-zero-point",
        "error",
        FLOAT,
        ("openvino",),
        "quantize weights to int8 symmetrically (ONNX Runtime's tool: weight_type=QuantType.QInt8, WeightSymmetric)",
        weight_zero_point,
    ),
    Rule(
        "int32-bias",
        "error",
        REFUSED,
        TENSORRT,
        "leave the bias float (ONNX Runtime's tool: extra_options QuantizeBias False)",
        int32_bias,
    ),
    Rule("scale", "error", NUMBERS, CONSUMERS, "calibrate again and export again", scales),
    Rule("computed-grid", "error", FLOAT, CONSUMERS, "calibrate statically; an engine needs constants", computed_grids),
    Rule(
        "activation-axis",
        "error",
        FLOAT,
        CONSUMERS,
        "calibrate activations per tensor; spread channels by SmoothQuant",
        activation_axis,
    ),
    Rule("block-size", "error", REFUSED, ("openvino",), "quantize in smaller blocks", block_size),
    Rule(
        "weight-axis",
        "error",
        FLOAT,
        CONSUMERS,
        "quantize weights per output channel: axis 1 of MatMul's (in, out), 0 of Gemm's transB and of Conv",
        weight_axis,
    ),
    Rule("int8-activations", "error", FLOAT, ("onnxruntime",), UINT8_MEND, int8_activations),
    Rule("half-scales", "error", FLOAT, ("onnxruntime",), "export with --target onnxruntime, in fp32", half_scales),
)
