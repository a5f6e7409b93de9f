"""From a Q/DQ file back to the float graph with the same tensor names: what implicit quantization is built from."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from engine.graph import (
    MOVES,
    add_constant,
    constant,
    constant_tensor,
    int_attribute,
    is_op,
    label,
    numbers,
    operand,
    replace,
    set_type,
    sweep,
)
from engine.integers import symmetric_zero


def without_quantization(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without Q/DQ: activations pass unrounded, INT8 weights become the float numbers they stand for.

    Raises: ValueError: for integers that lie behind other operators than moves.
    """
    graph_model = ir.from_proto(model)
    nodes = list(graph_model.graph)
    for node in nodes:
        if is_op(node, "DequantizeLinear"):
            _dequantize_constant(graph_model.graph, node)
    for node in nodes:
        if is_op(node, "QuantizeLinear", "DequantizeLinear") and node.graph is not None:
            source, output = operand(node, 0), node.outputs[0]
            set_type(output, source.dtype)
            _retype_moves(output)
            replace(output, source)
    graph_model.metadata_props.pop("int8kit.target", None)  # it is no longer made for that consumer
    sweep(graph_model)
    return ir.to_proto(graph_model)


def activation_scales(model: onnx.ModelProto) -> dict[str, float]:
    """Return the scale of every quantized activation by its tensor's name; of several the largest.

    Raises: ValueError: if a zero point is not that of symmetric integers, or a scale is no single positive constant.
    """
    scales: dict[str, float] = {}
    for node in ir.from_proto(model).graph:
        if not is_op(node, "QuantizeLinear") or constant_tensor(operand(node, 0)) is not None:
            continue
        name, scale = operand(node, 0).name or label(node), constant(operand(node, 1))
        zeros = constant(operand(node, 2)) if len(node.inputs) > 2 else np.zeros((), np.uint8)
        if scale is None or scale.size != 1 or not np.isfinite(scale).all() or not (scale > 0).all():
            raise ValueError(f"tensor {name} is not quantized by one positive constant scale; calibrate it per tensor")
        if zeros is None or (zeros != symmetric_zero(zeros.dtype)).any():
            raise ValueError(
                f"tensor {name} has a zero point other than int8 0 or uint8 128; TensorRT's implicit quantization is "
                "symmetric: calibrate it symmetrically"
            )
        scales[name] = max(scales.get(name, 0.0), float(scale.reshape(())))
    return scales


def _dequantize_constant(graph: ir.Graph, node: ir.Node) -> None:
    """Replace DequantizeLinear of a constant, or of rows looked up in one, by float numbers."""
    source, gather = operand(node, 0), None
    producer = source.producer()
    if is_op(producer, "Gather") and constant_tensor(operand(producer, 0)) is not None:
        gather, source = producer, operand(producer, 0)
    integers, scale = constant(source), numbers(operand(node, 1)).astype(np.float32)
    if integers is None:
        return
    zeros = numbers(operand(node, 2)).astype(np.int32) if len(node.inputs) > 2 else np.zeros((), np.int32)
    shape = [1] * integers.ndim
    if scale.size > 1:
        axis = -1 if gather is not None else int_attribute(node, "axis", 1)
        shape[axis] = -1
    values = (integers.astype(np.int32) - zeros.reshape(shape)) * scale.reshape(shape)
    floats = add_constant(graph, f"{source.name}_float", values.astype(np.float32))
    if gather is None:
        replace(node.outputs[0], floats)
        return
    rows = ir.node("Gather", [floats, *gather.inputs[1:]], gather.attributes.copy(), name=gather.name)
    graph.insert_before(node, rows)
    replace(node.outputs[0], rows.outputs[0])


def _retype_moves(value: ir.Value) -> None:
    """Tell the values behind moves of integers that they hold floats now."""
    for use in list(value.uses()):
        node = use.node
        if is_op(node, *MOVES) and (use.idx == 0 or node.op_type == "Concat"):
            for output in node.outputs:
                set_type(output, value.dtype)
                _retype_moves(output)
        elif not is_op(node, "DequantizeLinear", "QuantizeLinear") and value.dtype in (
            ir.DataType.INT8,
            ir.DataType.UINT8,
        ):
            raise ValueError(f"node {label(node)} ({node.op_type}) computes with integers; only Q/DQ can be taken out")
