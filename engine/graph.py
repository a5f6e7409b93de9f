"""Small questions about an ONNX graph that every pass asks: constants, uses, new constants, dead nodes.

The passes work on onnx-ir, whose initializers are views of the file's bytes: a weight is read only by the pass that
needs its
numbers, and the caller's ModelProto is never changed.
"""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

# Operators that move numbers and leave them as they are: a Q before them and a DQ behind them change their type
# together. Which consumer carries integers through which of them stands in `lint_placement.CARRIED`.
MOVES = (
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "Split", "Slice", "Gather",
    "Concat",
)  # fmt: skip


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the numbers of an initializer or of a Constant node's output, else None."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the constant behind `value` without reading its numbers, else None (a graph input with a default is
    none)."""
    if value is None or value.is_graph_input():
        return None
    producer = value.producer()
    if producer is None:
        return value.const_value
    if producer.op_type == "Constant" and (attribute := producer.attributes.get("value")) is not None:
        return attribute.as_tensor()
    return None


def numbers(value: ir.Value) -> np.ndarray:
    """Return the numbers of a constant.

    Raises: ValueError: if `value` is computed or fed (the callers ask only for what they know to be constant).
    """
    array = constant(value)
    if array is None:
        raise ValueError(f"{value.name} is no constant of this graph; the ONNX file is malformed: export it again")
    return array


def constant_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return the shape of a constant without reading its numbers, or None if `value` is no constant."""
    tensor = constant_tensor(value)
    return None if tensor is None else tuple(tensor.shape.numpy())


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Return a new initializer that holds `array`; a taken name gets a number at its end."""
    free, number = name, 1
    while free in graph.initializers:
        free, number = f"{name}_{number}", number + 1
    value = ir.val(free, const_value=ir.tensor(np.asarray(array, order="C"), name=free))
    graph.register_initializer(value)
    return value


def label(node: ir.Node) -> str:
    """Return a node's name, or its first output's where it has none."""
    return node.name or node.outputs[0].name or node.op_type


def shape_of(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Return the sizes of `value` that the file tells, None for those it does not, or None without a known rank."""
    if value is None or value.shape is None:
        return None if value is None else constant_shape(value)
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def users(value: ir.Value) -> list[ir.Node]:
    """Return each node that reads `value`, once, in the order of their use."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads `value` at one input, or None if there are several, none, or it is a graph
    output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def operand(node: ir.Node, index: int) -> ir.Value:
    """Return the input of `node` at `index`.

    Raises: ValueError: if it is left out there (a malformed graph: the callers ask only for inputs that the operator
    requires).
    """
    value = node.inputs[index]
    if value is None:
        raise ValueError(
            f"node {node.name} ({node.op_type}) lacks its input {index}; the ONNX file is malformed: export it again"
        )
    return value


def is_op(node: ir.Node | None, *op_types: str) -> TypeGuard[ir.Node]:
    """Return whether `node` is one of the standard operators named."""
    return node is not None and node.op_type in op_types and node.domain in ("", "ai.onnx")


def dequantizer(value: ir.Value | None, *, of_constant: bool) -> ir.Node | None:
    """Return the DequantizeLinear that makes `value` from a constant (or from anything else), or None."""
    node = None if value is None else value.producer()
    if not is_op(node, "DequantizeLinear") or (constant_tensor(operand(node, 0)) is not None) != of_constant:
        return None
    return node


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute of `node`, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def permutation(node: ir.Node, rank: int) -> list[int]:
    """Return the axes of a Transpose node over `rank` axes (reversed where it names none)."""
    attribute = node.attributes.get("perm")
    return list(reversed(range(rank))) if attribute is None else list(attribute.as_ints())


def set_type(value: ir.Value, dtype: ir.DataType | None, shape: ir.Shape | None = None) -> None:
    """Tell the element type and shape of `value` where they are known."""
    if dtype is not None:
        value.dtype = dtype
    if shape is not None:
        value.shape = shape


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old`, and the graph's outputs, read `new`, of the same type; an output keeps its name."""
    set_type(new, old.dtype, old.shape)
    if old.is_graph_output():
        name = old.name
        old.name, new.name = f"{name}_before", name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def sweep(model: ir.Model) -> None:
    """Remove nodes, initializers and operator sets that nothing reads, and put the nodes in the order of their
    inputs."""
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    model.graph.sort()
