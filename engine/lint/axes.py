"""Rules about the axes that scales lie along."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from engine.graph import constant_shape, int_attribute, shape_of
from engine.lint.claims import NUMBERS, REFUSED
from engine.lint.findings import Hit
from engine.lint.graph import LintGraph
from engine.operands import Operand
from engine.products import Product


def activation_axis(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product of an activation with more than one scale."""
    for site in graph.products:
        for side in site.sides:
            if side.dequantize is not None and side.weight is None and (side.num_scales or 1) > 1:
                stops = consumer == "onnxruntime" and side.dtype == ir.DataType.UINT8
                reason = "its activation has several scales; integer products need one per tensor"
                yield Hit(site, reason + ("; ONNX Runtime fuses it and fails when it runs" if stops else ""),
                          claim=REFUSED if stops else None)  # fmt: skip


def block_size(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every DequantizeLinear in blocks that do not divide its axis, which OpenVINO's importer refuses."""
    for node in graph.nodes("DequantizeLinear"):
        size, shape = int_attribute(node, "block_size", 0), shape_of(node.inputs[0])
        if size and shape:
            length = shape[int_attribute(node, "axis", 1) % len(shape)]
            if length is not None and length % size:
                yield Hit(node, f"its blocks of {size} do not divide their axis of {length}; OpenVINO stops")


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
            reason = "its weight's scales do not lie along the output channels, so no integer kernel can use them"
            if consumer == "onnxruntime" and site.node.op_type == "MatMul":
                is_square = len(set(shape_of(side.weight) or ())) == 1
                what = "uses them along the outputs all the same: wrong numbers" if is_square else "fails when it runs"
                yield Hit(site, f"{reason}; ONNX Runtime {what}", claim=NUMBERS if is_square else REFUSED)
            else:
                yield Hit(site, reason)


def _output_axis(site: Product, side: Operand) -> int | None:
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
