"""A pass that joins nodes without changing a number: products that read the same integers become one."""

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
    numbers,
    only_user,
    operand,
    replace,
    users,
)


def merge_siblings(model: ir.Model) -> int:
    """Join products that read one DequantizeLinear (Q, K and V) into one MatMul and one Add, then Split; return how
    many went.

    Each weight is an INT8 constant with scales along its last axis, so every output element is summed as before: exact.
    """
    removed = 0
    for node in list(model.graph):
        if not is_op(node, "DequantizeLinear") or constant_tensor(operand(node, 0)) is not None:
            continue
        siblings = [user for user in users(node.outputs[0]) if _is_mergeable(user, node.outputs[0])]
        if len(siblings) > 1:
            _merge(model.graph, node.outputs[0], siblings)
            removed += len(siblings) - 1
    return removed


def _is_mergeable(node: ir.Node, x: ir.Value) -> bool:
    """Return whether `node` is MatMul(x, DQ(INT8 constant, one scale per column)) behind which stands Add(constant)."""
    if not is_op(node, "MatMul") or operand(node, 0) is not x:
        return False
    weight = dequantizer(operand(node, 1), of_constant=True)
    if weight is None or int_attribute(weight, "axis", 1) % 2 != 1:
        return False
    shape, scale = constant_shape(operand(weight, 0)), constant_shape(operand(weight, 1))
    return shape is not None and len(shape) == 2 and scale == (shape[1],) and _bias(node) is not None


def _bias(product: ir.Node) -> tuple[ir.Node, np.ndarray] | None:
    """Return the Add behind a product and the constant vector it adds, or None."""
    add = only_user(product.outputs[0])
    if not is_op(add, "Add"):
        return None
    bias = constant(operand(add, 1) if operand(add, 0) is product.outputs[0] else operand(add, 0))
    return (add, bias) if bias is not None and bias.ndim == 1 else None


def _merge(graph: ir.Graph, x: ir.Value, products: list[ir.Node]) -> None:
    first = products[0]
    weights = [node for product in products if (node := operand(product, 1).producer()) is not None]
    adds, biases = zip(*(found for product in products if (found := _bias(product)) is not None), strict=True)
    integers_of, scales_of = ([numbers(operand(weight, index)) for weight in weights] for index in (0, 1))
    sizes = np.array([each.shape[1] for each in integers_of], dtype=np.int64)
    integers = add_constant(graph, f"{operand(weights[0], 0).name}_merged", np.concatenate(integers_of, axis=1))
    scales = add_constant(graph, f"{operand(weights[0], 1).name}_merged", np.concatenate(scales_of))
    zeros = add_constant(graph, f"{first.name}_zero_points", np.zeros(int(sizes.sum()), dtype=np.int8))
    bias = add_constant(graph, f"{first.name}_bias_merged", np.concatenate(biases))
    name = "+".join(product.name or "" for product in products)  # the manifest names products by their own names
    weight = ir.node("DequantizeLinear", [integers, scales, zeros], {"axis": 1}, name=f"{weights[0].name}_merged")
    product = ir.node("MatMul", [x, weight.outputs[0]], name=name)
    add = ir.node("Add", [product.outputs[0], bias], name=f"{first.name}_merged_bias")
    split = ir.node(
        "Split",
        [add.outputs[0], add_constant(graph, f"{first.name}_sizes", sizes)],
        {"axis": -1},
        num_outputs=len(products),
        name=f"{first.name}_split",
    )
    for value in (weight.outputs[0], product.outputs[0], add.outputs[0], *split.outputs):
        value.dtype = ir.DataType.FLOAT
    graph.insert_before(first, [weight, product, add, split])
    for old, new in zip(adds, split.outputs, strict=True):
        replace(old.outputs[0], new)
