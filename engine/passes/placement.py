"""Passes that place Q/DQ where consumers fuse them: one per tensor, behind the Gather of a table, in the integer
type that is fast."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from engine.graph import (
    MOVES,
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
    set_type,
    users,
)
from engine.integers import symmetric_zero


def dedupe(model: ir.Model) -> int:
    """Keep one of all Q (or DQ) nodes that read one tensor with equal scale, zero point and axis; return how many
    went."""
    seen: dict[tuple, ir.Value] = {}
    removed = 0
    model.graph.sort()  # producers first: equal Q nodes are merged before the DQ nodes that read them are looked at
    for node in model.graph:
        if not is_op(node, "QuantizeLinear", "DequantizeLinear"):
            continue
        numbers = tuple(_content(value) for value in node.inputs[1:])
        key = (
            node.op_type,
            operand(node, 0),
            numbers,
            tuple(sorted((k, str(a.value)) for k, a in node.attributes.items())),
        )
        if key in seen and not node.outputs[0].is_graph_output():
            replace(node.outputs[0], seen[key])
            removed += 1
        else:
            seen.setdefault(key, node.outputs[0])
    return removed


def _content(value: ir.Value | None) -> object:
    array = constant(value)
    return value if array is None else (array.dtype.str, array.shape, array.tobytes())


def gather_before_dequantize(model: ir.Model) -> int:
    """Turn DequantizeLinear(INT8 table) -> Gather into Gather -> DequantizeLinear; return how many tables moved.

    Else the whole table is dequantized at each call. One scale, or one per column (axis 1, then the last), can move.
    """
    moved = 0
    for node in model.graph:
        if not is_op(node, "DequantizeLinear"):
            continue
        table, scale = constant_shape(operand(node, 0)), constant_shape(operand(node, 1))
        if table is None or scale is None:
            continue
        is_per_column = len(scale) == 1 and scale[0] != 1
        if is_per_column and int_attribute(node, "axis", 1) % len(table) != len(table) - 1:
            continue
        for gather in users(node.outputs[0]):
            is_lookup = is_op(gather, "Gather") and operand(gather, 0) is node.outputs[0]
            if not is_lookup or int_attribute(gather, "axis", 0) != 0:
                continue
            rows = ir.node("Gather", [operand(node, 0), operand(gather, 1)], {"axis": 0}, name=gather.name)
            attributes = {"axis": -1} if is_per_column else {}
            dequantize = ir.node(
                "DequantizeLinear", [rows.outputs[0], *node.inputs[1:]], attributes, name=f"{gather.name}_dequantize"
            )
            set_type(rows.outputs[0], ir.DataType.INT8, gather.outputs[0].shape)
            model.graph.insert_before(gather, [rows, dequantize])
            replace(gather.outputs[0], dequantize.outputs[0])
            moved += 1
    return moved


def activations_to_uint8(model: ir.Model) -> int:
    """Make every INT8 activation uint8 with its symmetric zero point, the same numbers; return how many Q changed.

    ONNX Runtime's x86 kernels are several times faster with it. Weights (Q/DQ of constants) stay int8.
    """
    return _to_uint8(model, lambda dequantizers: True)


def conv_inputs_to_uint8(model: ir.Model) -> int:
    """Make the INT8 activations uint8 that a convolution reads; return how many Q nodes changed.

    OpenVINO 2026.4.1 convolves int8 wrongly behind a Concat (by a third of the output) and depthwise with a zero bias;
    uint8 it convolves rightly. `tests/engine/passes/test_qdq.py` says when this can go.
    """
    return _to_uint8(model, lambda dequantizers: any(_feeds_conv(each.outputs[0]) for each in dequantizers))


def _feeds_conv(value: ir.Value) -> bool:
    return any(is_op(user, "Conv") or (is_op(user, *MOVES) and _feeds_conv(user.outputs[0])) for user in users(value))


def _to_uint8(model: ir.Model, is_wanted: Callable[[list[ir.Node]], bool]) -> int:
    """Let the activations whose DequantizeLinear nodes are wanted be uint8; return how many Q nodes changed."""
    zero_point = None
    changed = 0
    for node in list(model.graph):
        if not is_op(node, "QuantizeLinear") or constant_tensor(operand(node, 0)) is not None:
            continue
        zeros = constant(operand(node, 2)) if len(node.inputs) > 2 else None
        if zeros is None or zeros.dtype != np.int8 or zeros.size != 1 or zeros.any():
            continue
        dequantizers, between = _readers(node.outputs[0])
        if dequantizers is None or not is_wanted(dequantizers):
            continue
        if zero_point is None:
            middle = np.array(symmetric_zero(np.dtype(np.uint8)), np.uint8)
            zero_point = add_constant(model.graph, "zero_point_uint8", middle)
        for each in (node, *dequantizers):
            each.replace_input_with(2, zero_point)
        for value in (node.outputs[0], *between):
            value.dtype = ir.DataType.UINT8
        changed += 1
    return changed


def _readers(value: ir.Value) -> tuple[list[ir.Node] | None, list[ir.Value]]:
    """Return the DQ nodes that read `value`, also behind moves, and the values between; (None, []) if others read
    it."""
    found: list[ir.Node] = []
    between: list[ir.Value] = []
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if current.is_graph_output():
            return None, []
        for user in users(current):
            if is_op(user, "DequantizeLinear") and len(user.inputs) > 2:
                found.append(user)
            elif (
                is_op(user, *MOVES)
                and operand(user, 0) is current
                and not (user.op_type == "Concat" and len(user.inputs) > 1)
            ):
                between.extend(user.outputs)
                waiting.extend(user.outputs)
            else:
                return None, []
    return found, between


def split_gemms(model: ir.Model) -> int:
    """Turn Gemm(DQ, DQ weight, bias) into MatMul + Add, which consumers fuse with a float bias; return how many.

    Only with alpha = beta = 1 and no transposed input; transB over an INT8 constant is folded into it.
    """
    split = 0
    for node in list(model.graph):
        if not is_op(node, "Gemm"):
            continue
        weight = operand(node, 1)
        dequantize = dequantizer(weight, of_constant=True)
        if dequantize is None or dequantizer(operand(node, 0), of_constant=False) is None:
            continue
        factors = [node.attributes[k].as_float() for k in ("alpha", "beta") if k in node.attributes]
        if any(factor != 1.0 for factor in factors) or int_attribute(node, "transA", 0):
            continue
        if int_attribute(node, "transB", 0):
            transpose = ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{dequantize.name}_transpose")
            model.graph.insert_before(node, transpose)
            weight = transpose.outputs[0]
        product = ir.node("MatMul", [operand(node, 0), weight], name=node.name)
        new = [product]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            new.append(ir.node("Add", [product.outputs[0], operand(node, 2)], name=f"{node.name}_bias"))
        for each in new:
            set_type(each.outputs[0], node.outputs[0].dtype, node.outputs[0].shape)
        model.graph.insert_before(node, new)
        replace(node.outputs[0], new[-1].outputs[0])
        split += 1
    return split


def hoist_quantizers(model: ir.Model) -> int:
    """Move the Q/DQ of attention's Q, K and V before the Reshape and Transpose behind their linear layers.

    T -> Q -> DQ becomes Q -> DQ -> T, and a product with one number and a narrow format's Clip pass T the same way: the
    same numbers to the bit.
    OpenVINO then fuses the rounding into the linear layer and moves integers. Returns how many moves there were.
    """
    moves = 0
    is_moving = True
    while is_moving:
        is_moving = False
        for node in list(model.graph):
            is_pair = is_op(node, "QuantizeLinear") and _hoist_pair(model, node)
            if is_pair or (is_op(node, "Mul", "Clip") and _hoist_numbers(model, node)):
                moves, is_moving = moves + 1, True
    return moves


def _hoist_pair(model: ir.Model, quantize: ir.Node) -> bool:
    """Turn T -> Q -> DQ into Q -> DQ -> T if T and Q have no other reader and the scale is one number."""
    mover, readers = _only_mover(operand(quantize, 0)), users(quantize.outputs[0])
    if mover is None or len(readers) != 1 or not is_op(readers[0], "DequantizeLinear"):
        return False
    if constant_shape(operand(quantize, 1)) != () or quantize.outputs[0].is_graph_output():
        return False
    dequantize, source = readers[0], operand(mover, 0)
    first = ir.node("QuantizeLinear", [source, *quantize.inputs[1:]], name=quantize.name)
    second = ir.node("DequantizeLinear", [first.outputs[0], *dequantize.inputs[1:]], name=dequantize.name)
    moved = ir.node(mover.op_type, [second.outputs[0], *mover.inputs[1:]], mover.attributes.copy(), name=mover.name)
    set_type(first.outputs[0], ir.DataType.INT8, source.shape)
    set_type(second.outputs[0], source.dtype, source.shape)
    set_type(moved.outputs[0], dequantize.outputs[0].dtype, dequantize.outputs[0].shape)
    model.graph.insert_before(dequantize, [first, second, moved])
    _take_over(model, dequantize, moved, [quantize, mover])
    return True


def _hoist_numbers(model: ir.Model, node: ir.Node) -> bool:
    """Turn T -> Mul(number) -> Q into Mul(number) -> T -> Q, and T -> Clip(numbers) -> Q the same way."""
    mover = _only_mover(operand(node, 0))
    if mover is None or not _is_rounded_alone(node.outputs[0]):
        return False
    shapes = [None if value is None else constant_shape(value) for value in node.inputs[1:]]
    if any(shape not in ((), (1,)) for shape in shapes):
        return False
    source = operand(mover, 0)
    first = ir.node(node.op_type, [source, *node.inputs[1:]], name=node.name)
    moved = ir.node(mover.op_type, [first.outputs[0], *mover.inputs[1:]], mover.attributes.copy(), name=mover.name)
    set_type(first.outputs[0], source.dtype, source.shape)
    set_type(moved.outputs[0], node.outputs[0].dtype, node.outputs[0].shape)
    model.graph.insert_before(node, [first, moved])
    _take_over(model, node, moved, [mover])
    return True


def _is_rounded_alone(value: ir.Value) -> bool:
    """Return whether one QuantizeLinear is all that reads `value`, maybe behind a Clip."""
    reader = only_user(value)
    return is_op(reader, "QuantizeLinear") or (is_op(reader, "Clip") and _is_rounded_alone(reader.outputs[0]))


def _only_mover(value: ir.Value) -> ir.Node | None:
    """Return the Reshape or Transpose that made `value`, if nothing else reads it."""
    node = value.producer()
    if node is None or not is_op(node, "Reshape", "Transpose") or len(users(value)) != 1 or value.is_graph_output():
        return None
    return node if constant_tensor(operand(node, 0)) is None else None


def _take_over(model: ir.Model, old: ir.Node, new: ir.Node, dead: list[ir.Node]) -> None:
    """Let `new` stand for `old`, and remove `old` and what only it read."""
    replace(old.outputs[0], new.outputs[0])
    model.graph.remove([old, *dead], safe=True)
