"""ONNX Runtime's own operators, put in when an engine is built: integer products with their bias.

ONNX Runtime's Q/DQ fusion leaves the bias as a separate Add. The numbers stay: sums run over the same integers.
Attention as one MultiHeadAttention was tried and did not pay (MiniLM, 8 x 64: 2.25 instead of 2.50 times float).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from engine.graph import (
    add_constant,
    constant_shape,
    constant_tensor,
    dequantizer,
    int_attribute,
    is_op,
    numbers,
    only_user,
    operand,
    replace,
    sweep,
)

MICROSOFT = "com.microsoft"


def prepared_model(model: onnx.ModelProto, is_avoiding: bool) -> tuple[onnx.ModelProto, int, int]:
    """Return the model that a session optimizes, how many products are fused in it and how many constants copied."""
    graph_model = ir.from_proto(model)
    fused = fuse_integer_products(graph_model, is_avoiding)
    sweep(graph_model)
    copied = own_constants(graph_model) if is_avoiding else 0
    return ir.to_proto(graph_model), fused, copied


def fuse_integer_products(model: ir.Model, is_avoiding: bool = False) -> int:
    """Turn MatMul(DQ, DQ weight) and the Add of a bias into one MatMulIntegerToFloat; return how many.

    Args: is_avoiding: the session will make weights uint8 (session.x64quantprecision): a product with int8 activations
        is left to ONNX Runtime then, which makes both sides uint8; it has no kernel of int8 by uint8.
    """
    fused = 0
    for node in list(model.graph):
        if not is_op(node, "MatMul"):
            continue
        a, b = dequantizer(operand(node, 0), of_constant=False), dequantizer(operand(node, 1), of_constant=True)
        if a is None or b is None or not _is_per_tensor(a) or not _is_per_tensor_or_column(b):
            continue
        if is_avoiding and _is_int8(operand(a, 0)):
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


def _is_int8(value: ir.Value) -> bool:
    """Return whether the codes that a QuantizeLinear makes are int8, by its zero point (left out: uint8)."""
    quantize = value.producer()
    while quantize is not None and not is_op(quantize, "QuantizeLinear") and quantize.inputs:
        quantize = None if quantize.inputs[0] is None else quantize.inputs[0].producer()
    if quantize is None:
        return value.dtype == ir.DataType.INT8
    zero = constant_tensor(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    return zero is not None and zero.dtype == ir.DataType.INT8


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


def own_constants(model: ir.Model) -> int:
    """Give each INT8 product a weight and a zero point that no other reads; return how many were copied.

    ONNX Runtime's session.x64quantprecision turns each product's weight and zero point into uint8; where another
    product reads the same one it fails (1.31.1: "Attempt to replace the existing tensor"). Zero points are shared by
    whole models, weights by few (DeBERTa's, of tokens and of positions).
    `tests/engine/backends/test_saturation.py` says when this can go.
    """
    taken: set[ir.Value] = set()
    copied = 0
    for node in model.graph:
        weight, zero_point = _replaced_inputs(node)
        for index in (weight, zero_point):
            value = node.inputs[index] if 0 <= index < len(node.inputs) else None
            if value is None or constant_tensor(value) is None:
                continue
            is_shared = value in taken or (index == zero_point and len(value.uses()) > 1)
            taken.add(value)
            if not is_shared:
                continue  # before any number is read: a large weight stands in a file, not here
            array = numbers(value)
            if array.dtype == np.int8:
                node.replace_input_with(index, add_constant(model.graph, f"{value.name}_own", array))
                copied += 1
    return copied


# Where an operator has its weight and the weight's zero point.
WEIGHT_INPUTS = {
    "MatMulIntegerToFloat": (1, 5), "DynamicQuantizeMatMul": (1, 3), "MatMulInteger": (1, 3), "ConvInteger": (1, 3),
    "QLinearMatMul": (3, 5), "QLinearConv": (3, 5), "QGemm": (3, 5),
}  # fmt: skip


def _replaced_inputs(node: ir.Node) -> tuple[int, int]:
    """Return which inputs are a weight and its zero point; (-1, -1) where there are none."""
    if is_op(node, "DequantizeLinear"):
        return (0, 2) if constant_tensor(operand(node, 0)) is not None else (-1, -1)
    return WEIGHT_INPUTS.get(node.op_type, (-1, -1))
