"""ONNX Runtime's own operators, put in when an engine is built: integer products with their bias, attention in one
operator.

ONNX Runtime's Q/DQ fusion leaves the bias as a separate Add, and its attention fusion does not know the dynamo
exporter's graph.
The numbers stay: sums run over the same integers, the float part of attention over the same floats.
"""

from __future__ import annotations

import onnx_ir as ir

from engine.graph import (
    constant,
    constant_shape,
    dequantizer,
    int_attribute,
    is_op,
    only_user,
    operand,
    permutation,
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


def fuse_attention(model: ir.Model) -> int:
    """Turn the dynamo exporter's softmax(q k^T scale + mask) v on float tensors into MultiHeadAttention; return how
    many."""
    fused = 0
    for softmax in list(model.graph):
        if is_op(softmax, "Softmax") and _fuse_one_attention(model.graph, softmax):
            fused += 1
    if fused:
        model.graph.opset_imports.setdefault(MICROSOFT, 1)
    return fused


def _fuse_one_attention(graph: ir.Graph, softmax: ir.Node) -> bool:
    mask, scores = None, operand(softmax, 0).producer()
    if is_op(scores, "Add"):
        left = operand(scores, 0).producer()
        mask, scores = (
            (operand(scores, 1), left)
            if is_op(left, "Mul", "Div")
            else (operand(scores, 0), operand(scores, 1).producer())
        )
    if not is_op(scores, "Mul", "Div"):
        return False
    factor = constant(operand(scores, 1))
    product = operand(scores, 0).producer()
    if factor is None or factor.size != 1 or not is_op(product, "MatMul"):
        return False
    scale = float(factor.reshape(())) if scores.op_type == "Mul" else 1.0 / float(factor.reshape(()))
    weighted = only_user(softmax.outputs[0])
    if not is_op(weighted, "MatMul") or operand(weighted, 0) is not softmax.outputs[0]:
        return False
    q, k, v = (
        _heads(operand(product, 0), [0, 2, 1, 3]),
        _heads(operand(product, 1), [0, 2, 3, 1]),
        _heads(operand(weighted, 1), [0, 2, 1, 3]),
    )
    transpose = only_user(weighted.outputs[0])
    if not (q and k and v and is_op(transpose, "Transpose") and permutation(transpose, 4) == [0, 2, 1, 3]):
        return False
    reshape = only_user(transpose.outputs[0])
    if not is_op(reshape, "Reshape") or len({q[1], k[1], v[1]}) != 1:
        return False
    node = ir.node(
        "MultiHeadAttention",
        [q[0], k[0], v[0], None, None, mask],
        {"num_heads": q[1], "scale": scale},
        domain=MICROSOFT,
        name=weighted.name,
    )
    graph.insert_before(reshape, node)
    replace(reshape.outputs[0], node.outputs[0])
    return True


def _heads(value: ir.Value, axes: list[int]) -> tuple[ir.Value, int] | None:
    """Return what is reshaped to (B, S, H, D) and transposed into `value`, with H, or None."""
    transpose = value.producer()
    if not is_op(transpose, "Transpose") or permutation(transpose, 4) != axes:
        return None
    reshape = operand(transpose, 0).producer()
    if not is_op(reshape, "Reshape"):
        return None
    shape = reshape.outputs[0].shape
    if shape is None or len(shape) != 4 or not isinstance(shape[2], int):
        return None
    source = operand(reshape, 0)
    return (source, shape[2]) if source.shape is None or len(source.shape) == 3 else None


# What an engine is built with, in this order.
PASSES = (fuse_integer_products,)
