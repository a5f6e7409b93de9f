"""ONNX Runtime's own operators, put in when an engine is built: integer products with their bias.

ONNX Runtime's Q/DQ fusion leaves the bias as a separate Add. The numbers stay: sums run over the same integers.
Attention as one MultiHeadAttention was tried and did not pay (MiniLM, 8 x 64: 2.25 instead of 2.50 times float).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from engine.graph import (
    add_constant,
    constant,
    constant_shape,
    constant_tensor,
    dequantizer,
    int_attribute,
    is_op,
    only_user,
    operand,
    replace,
)

MICROSOFT = "com.microsoft"


def fuse_integer_products(model: ir.Model) -> int:
    """Turn MatMul(DQ, DQ weight) and the Add of a bias into one MatMulIntegerToFloat; return how many."""
    fused = 0
    for node in list(model.graph):
        if not is_op(node, "MatMul"):
            continue
        a, b = dequantizer(operand(node, 0), of_constant=False), dequantizer(operand(node, 1), of_constant=True)
        if a is None or b is None or not _is_per_tensor(a) or not _is_per_tensor_or_column(b):
            continue
        bias, last = _bias_and_end(node, (constant_shape(operand(b, 0)) or ())[-1])
        zero_points = [operand(each, 2) if len(each.inputs) > 2 else None for each in (a, b)]
        product = ir.node(
            "MatMulIntegerToFloat",
            [operand(a, 0), operand(b, 0), operand(a, 1), operand(b, 1), *zero_points, bias],
            domain=MICROSOFT,
            name=node.name,
        )
        model.graph.insert_before(last, product)
        replace(last.outputs[0], product.outputs[0])
        fused += 1
    if fused:
        model.graph.opset_imports.setdefault(MICROSOFT, 1)
    return fused


def _is_per_tensor(node: ir.Node) -> bool:
    return constant_shape(operand(node, 1)) in ((), (1,))


def _is_per_tensor_or_column(node: ir.Node) -> bool:
    shape = constant_shape(operand(node, 0))
    return shape is not None and len(shape) == 2 and (_is_per_tensor(node) or int_attribute(node, "axis", 1) % 2 == 1)


def _bias_and_end(product: ir.Node, columns: int) -> tuple[ir.Value | None, ir.Node]:
    """Return the constant bias vector added to a product with the Add that does it, or (None, the product)."""
    add = only_user(product.outputs[0])
    if is_op(add, "Add"):
        bias = operand(add, 1) if operand(add, 0) is product.outputs[0] else operand(add, 0)
        if constant_shape(bias) == (columns,):
            return bias, add
    return None, product


def own_zero_points(model: ir.Model) -> int:
    """Give each INT8 weight a zero point that nothing else reads; return how many were copied.

    ONNX Runtime's session.x64quantprecision turns each weight and its zero point into uint8; where another weight has
    the same one it fails (1.31.1: "Attempt to replace the existing tensor"). `tests/engine/test_saturation.py` says
    when this can go.
    """
    taken: set[ir.Value] = set()
    copied = 0
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is None or not _is_zero_point(node, index):
                continue  # before any number is read: a large weight stands in a file, not here
            array = constant(value)
            if array is None or array.dtype != np.int8:
                continue
            if value in taken or len(value.uses()) > 1:
                node.replace_input_with(index, add_constant(model.graph, f"{value.name}_own", array))
                copied += 1
            taken.add(value)
    return copied


def _is_zero_point(node: ir.Node, index: int) -> bool:
    if is_op(node, "DequantizeLinear"):
        return index == 2 and constant_tensor(operand(node, 0)) is not None
    return node.op_type == "MatMulIntegerToFloat" and node.domain == MICROSOFT and index == 5


# What an engine is built with, in this order.
PASSES = (fuse_integer_products,)
