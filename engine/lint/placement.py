"""Rules about where Q/DQ stand: products with one integer side, casts between, chains, attention, residual sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from engine.graph import MOVES, constant, constant_tensor, shape_of, users
from engine.lint.claims import CONSUMERS, COST, FLOAT, REFUSED
from engine.lint.findings import Hit, Rule
from engine.lint.graph import LintGraph
from engine.lint.operators import INTEGER_OPS
from engine.operands import Q_DQ, THROUGH, Operand, operand_of, weight_behind

# What each consumer carries integers through, from a DequantizeLinear to a product.
CARRIED = {
    "onnxruntime": ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "MaxPool", "Cast"),
    "openvino": (*MOVES, "MaxPool", "Relu", "Cast"),
    "tensorrt": (*MOVES, "MaxPool", "Cast"),
    "tensorrt8": (*MOVES, "MaxPool", "Cast"),
}


def nothing_quantized(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield the first product of a file without any quantization."""
    if graph.products and not graph.nodes(*Q_DQ, *INTEGER_OPS):
        yield Hit(graph.products[0], "the file holds no Q/DQ at all: none of its products runs in INT8")


def float_product(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product that the file leaves float."""
    if not graph.nodes(*Q_DQ, *INTEGER_OPS):
        return
    for site in graph.products:
        if site.is_float:
            kind = "linear layer" if site.is_linear else "attention product"
            yield Hit(site, f"this {kind} has no Q/DQ: it stays float")


def one_sided(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product of which one side comes from integers and the other does not."""
    contexts = {attention.context.node for attention in graph.attentions}
    for site in graph.products:
        if site.is_quantized or site.is_float:
            continue
        if site.node in contexts and not site.sides[0].is_quantized:
            continue  # the softmax: `attention-softmax` says it with its own mend
        kind = next(side.dtype.name for side in site.sides if side.is_quantized)
        if site.is_linear:
            is_weight = any(side.is_quantized and side.weight is not None for side in site.sides)
            what = (
                f"its weight is {kind} and its input float"
                if is_weight
                else f"its input is {kind} and its weight float"
            )
        else:
            what = f"one of its two activations is {kind} and the other float"
        yield Hit(site, f"{what}: the {kind} side is dequantized first and the product runs in float")


def cast_between(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product with a Cast to another type between a DequantizeLinear and itself."""
    for site in graph.products:
        if any(side.dequantize is not None and side.casts for side in site.sides):
            yield Hit(site, "a Cast stands between its DequantizeLinear and the product, so the two are not fused")


def not_carried(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product with an operator before it, behind DequantizeLinear, that the consumer computes in float."""
    for site in graph.products:
        for side in site.sides:
            other = [node.op_type for node in side.between if node.op_type not in CARRIED[consumer]]
            if side.dequantize is not None and other:
                yield Hit(site, f"{', '.join(other)} between its DequantizeLinear and the product: {consumer} carries "
                          "no integers through and multiplies floats")  # fmt: skip
            elif consumer == "openvino" and _is_transposed_as_codes(side):
                yield Hit(site, "a Transpose stands between its QuantizeLinear and its DequantizeLinear: OpenVINO "
                          "multiplies floats", None,
                          "transpose before QuantizeLinear or behind DequantizeLinear")  # fmt: skip
            elif consumer == "openvino" and site.node.op_type == "Conv" and _moved_concat(side):
                yield Hit(site, "a Concat of uint8 along another axis than the channels: OpenVINO convolves floats")


def concat_of_uint8(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every MatMul or Gemm behind a Concat of uint8 along another axis than the last.

    OpenVINO 2026.4.1 stops there ("cannot be broadcasted", in its low precision transformations). Once
    `tests/engine/lint/test_lint_agreement.py` finds such a file accepted, this can go.
    """
    for site in graph.products:
        if site.node.op_type != "Conv" and any(_moved_concat(side) or _concat_before(side) for side in site.sides):
            yield Hit(site, "it reads a Concat of uint8 with a zero point along another axis than the last: OpenVINO "
                      "2026.4 stops at the file")  # fmt: skip


def moved_constants(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every operator but DequantizeLinear that reads an INT8 constant, and dequantized single numbers.

    TensorRT-RTX stops at both.
    """
    for node in graph.nodes("DequantizeLinear"):
        value, last = node.inputs[0], None
        while value is not None and (maker := value.producer()) is not None and maker.op_type in MOVES:
            value, last = maker.inputs[0], maker
        tensor = constant_tensor(value)
        if last is None and tensor is not None and not tensor.shape:
            yield Hit(node, "it dequantizes a single number (of rank 0), at which TensorRT-RTX stops", None,
                      "leave the number float, or give it the shape (1,)")  # fmt: skip
        if last is not None and tensor is not None:
            yield Hit(last, f"{last.op_type} reads integers of a constant; TensorRT-RTX takes a quantized constant "
                      "before DequantizeLinear alone and stops")  # fmt: skip


def _codes_path(side: Operand) -> list[ir.Node]:
    """Return the nodes between the DequantizeLinear of a side and the QuantizeLinear or constant behind it."""
    path: list[ir.Node] = []
    value = side.dequantize.inputs[0] if side.dequantize is not None else None
    while value is not None and (node := value.producer()) is not None and node.op_type in THROUGH:
        path.append(node)
        value = node.inputs[0]
    return path


def _is_transposed_as_codes(side: Operand) -> bool:
    return [node.op_type for node in _codes_path(side)] == ["Transpose"]  # with a Reshape or another one it stays INT8


def _moved_concat(side: Operand) -> bool:
    """Return whether a Concat of codes with a zero point, along another axis than OpenVINO's, stands behind a side."""
    if side.zero_points is None or not np.asarray(side.zero_points).astype(np.int64).any():
        return False
    for node in side.between:
        if node.op_type == "Concat":
            rank, axis = len(shape_of(node.outputs[0]) or (0, 0, 0)), node.attributes["axis"].as_int()
            return axis % rank != (1 if rank == 4 else rank - 1)
    return False


def _concat_before(side: Operand) -> bool:
    """Return whether what is quantized for a side is itself such a Concat."""
    source = side.quantize.inputs[0] if side.quantize is not None else None
    return source is not None and _moved_concat(operand_of(source))


def double_rounding(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every QuantizeLinear that reads, behind moves alone, what was just dequantized."""
    for node in graph.nodes("QuantizeLinear"):
        before = _dequantizer_before(node.inputs[0])
        if before is None or weight_behind(before.inputs[0]) is not None:
            continue
        if _same_grid(node, before):
            yield Hit(
                node,
                "it rounds again what was just dequantized with the same scale: no harm to the numbers, but "
                "one node too many",
                "note",
            )
        else:
            yield Hit(
                node,
                "it rounds a second time, with another scale, what was just dequantized: twice the rounding "
                "error and a conversion between two integer grids",
            )


def quantized_twice(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every tensor that several QuantizeLinear nodes read."""
    readers: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in graph.nodes("QuantizeLinear"):
        if node.inputs[0] is not None and constant_tensor(node.inputs[0]) is None:
            readers[node.inputs[0]].append(node)
    for nodes in readers.values():
        if len(nodes) < 2:
            continue
        if all(_same_grid(nodes[0], each) for each in nodes[1:]):
            yield Hit(
                nodes[0],
                "one tensor is quantized several times with the same scale; one QuantizeLinear would do",
                "note",
            )
        else:
            yield Hit(
                nodes[0],
                "one tensor is quantized several times with different scales: its consumers cannot share "
                "its integers, and their products (Q, K and V) cannot be joined",
            )


def table_dequantized_whole(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every INT8 embedding table that is dequantized before its rows are looked up."""
    for node in graph.nodes("DequantizeLinear"):
        if constant_tensor(node.inputs[0]) is None:
            continue
        if any(user.op_type == "Gather" and user.inputs[0] is node.outputs[0] for user in users(node.outputs[0])):
            yield Hit(node, "it dequantizes a whole embedding table at each call before a few rows are looked up")


def _dequantizer_before(value: ir.Value | None) -> ir.Node | None:
    operand: Operand | None = None if value is None else operand_of(value)
    return None if operand is None or operand.casts else operand.dequantize


def _same_grid(a: ir.Node, b: ir.Node) -> bool:
    """Return whether two Q/DQ nodes have the same constant scale and zero point."""
    for x, y in zip(a.inputs[1:], b.inputs[1:], strict=False):
        if x is not y:
            left, right = constant(x), constant(y)
            if left is None or right is None or not np.array_equal(left, right):
                return False
    return len(a.inputs) == len(b.inputs)


PLACEMENT_RULES = (
    Rule(
        "nothing-quantized", "warning", FLOAT, CONSUMERS, "export a checkpoint of 'python -m calib'", nothing_quantized
    ),
    Rule("one-sided", "error", FLOAT, CONSUMERS, "quantize both sides of the product, or neither", one_sided),
    Rule(
        "cast-between",
        "error",
        FLOAT,
        ("onnxruntime", "tensorrt8"),
        "export with --target onnxruntime or tensorrt8 (scales in the compute type), so that DequantizeLinear gives "
        "the product's own type",
        cast_between,
    ),
    Rule(
        "not-carried",
        "error",
        FLOAT,
        CONSUMERS,
        "put Q/DQ directly before the product, behind that operator",
        not_carried,
    ),
    Rule(
        "uint8-concat",
        "error",
        REFUSED,
        ("openvino",),
        "quantize to int8 (export with --target openvino), or leave what is joined float",
        concat_of_uint8,
    ),
    Rule(
        "moved-constant",
        "error",
        REFUSED,
        ("tensorrt",),
        "dequantize the constant first (an embedding table: leave it float)",
        moved_constants,
    ),
    Rule(
        "double-rounding",
        "warning",
        COST,
        CONSUMERS,
        "keep one of the two quantizers (either the norm's output or its consumers' inputs)",
        double_rounding,
    ),
    Rule(
        "quantized-twice",
        "warning",
        COST,
        CONSUMERS,
        "let all readers of one tensor share one QuantizeLinear",
        quantized_twice,
    ),
    Rule(
        "table-dequantized",
        "warning",
        COST,
        ("onnxruntime", "openvino"),
        "look the rows up first: Gather, then DequantizeLinear; this project's exports do",
        table_dequantized_whole,
    ),
    Rule(
        "float-product",
        "note",
        FLOAT,
        CONSUMERS,
        "none needed where the recipe says so; else add a rule to the recipe",
        float_product,
    ),
)
