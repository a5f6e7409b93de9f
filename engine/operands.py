"""One side of a product: of what type the numbers are that a consumer could multiply, and what stands behind them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from engine.graph import MOVES, constant, constant_tensor, int_attribute, permutation, shape_of

# Beside moves, what some consumer carries integers through; `lint_placement.CARRIED` says which one what.
THROUGH = (*MOVES, "MaxPool", "Relu", "Cast")
# Q and DQ; ONNX Runtime's tool writes 16-bit ones in its own domain.
Q_DQ = ("QuantizeLinear", "DequantizeLinear")
INT8_TYPES = (ir.DataType.INT8, ir.DataType.UINT8)
FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Operand:
    """What one side of a product reads.

    Attributes:
        value: the tensor as the product reads it.
        dtype: the type of the numbers behind it: that of the integers (or FP8) where it is dequantized or they are
            read as they are, else its float type; FLOAT where the file does not tell.
        dequantize: the DequantizeLinear behind what stands between, None for a float side or bare integers.
        between: the nodes from the product back to that.
        weight: the constant at the end of the path, also behind Q/DQ.
        zero_point: of integers that are read as they are.
    """

    value: ir.Value
    dtype: ir.DataType
    dequantize: ir.Node | None = None
    between: tuple[ir.Node, ...] = ()
    weight: ir.Value | None = None
    zero_point: ir.Value | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether the side comes from integers or FP8 codes."""
        return self.dtype not in FLOAT_TYPES

    @property
    def is_int8(self) -> bool:
        """Whether the side comes from INT8 or UINT8."""
        return self.dtype in INT8_TYPES

    @property
    def casts(self) -> tuple[ir.Node, ...]:
        """The Cast nodes between to another type: exporters also write some that change nothing."""
        return tuple(node for node in self.between if node.op_type == "Cast" and not _is_idle_cast(node))

    @property
    def transposed(self) -> tuple[tuple[int, ...], ...]:
        """The permutations between, from the product back."""
        nodes = [node for node in self.between if node.op_type == "Transpose" and node.inputs[0] is not None]
        return tuple(tuple(permutation(node, len(shape_of(node.inputs[0]) or (0, 0)))) for node in nodes)

    @property
    def quantize(self) -> ir.Node | None:
        """The QuantizeLinear or DynamicQuantizeLinear whose codes are dequantized, None for a constant's."""
        value = self.dequantize.inputs[0] if self.dequantize is not None else None
        while value is not None and (node := value.producer()) is not None:
            if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
                return node
            if node.op_type not in THROUGH:
                return None
            value = node.inputs[0]
        return None

    @cached_property
    def zero_points(self) -> np.ndarray | None:
        """The zero points, 0 where they are left out; None where they are computed, or the side is float."""
        if self.dequantize is None:
            return constant(self.zero_point)
        if len(self.dequantize.inputs) < 3 or self.dequantize.inputs[2] is None:
            return np.zeros((), np.int8)
        return constant(self.dequantize.inputs[2])

    @property
    def num_scales(self) -> int | None:
        """How many scales there are, None where that is untold."""
        scale = self.dequantize.inputs[1] if self.dequantize is not None else None
        shape = None if scale is None else shape_of(scale)
        return None if shape is None or None in shape else int(np.prod([size or 1 for size in shape]))


def operand_of(value: ir.Value) -> Operand:
    """Return what stands behind a value that a product reads as floats."""
    between: list[ir.Node] = []
    source = value
    while (node := source.producer()) is not None and constant_tensor(source) is None:
        if node.op_type == "DequantizeLinear":
            codes = node.inputs[0]
            dtype = integer_type(node) or ir.DataType.UNDEFINED
            return Operand(value, dtype, node, tuple(between), weight_behind(codes))
        if node.op_type not in THROUGH or node.inputs[0] is None or not _joins_one_type(node):
            break
        between.append(node)
        source = node.inputs[0]
    weight = source if constant_tensor(source) is not None else None
    return Operand(value, float_type(value), None, tuple(between) if weight is not None else (), weight)


def integers_of(value: ir.Value, zero_point: ir.Value | None = None) -> Operand:
    """Return what stands behind a value that a product reads as integers, of the zero point's type if it is untold."""
    dtype = _type_of_codes(value) or (None if zero_point is None else _type_of_codes(zero_point))
    return Operand(value, dtype or ir.DataType.UNDEFINED, weight=weight_behind(value), zero_point=zero_point)


def integer_type(node: ir.Node) -> ir.DataType | None:
    """Return the type of the codes of a Q or DQ node: its zero point's, its input's, or its output_dtype; None if
    untold."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero_point = constant_tensor(node.inputs[2])
        dtype = zero_point.dtype if zero_point is not None else (node.inputs[2].dtype or _type_of_codes(node.inputs[2]))
        if dtype is not None:
            return dtype
    if node.op_type == "DequantizeLinear":
        return None if node.inputs[0] is None else _type_of_codes(node.inputs[0])
    declared = int_attribute(node, "output_dtype", 0)
    return ir.DataType(declared) if declared else None


def float_type(value: ir.Value) -> ir.DataType:
    """Return a value's own float type, FLOAT where the file does not tell."""
    tensor = constant_tensor(value)
    dtype = tensor.dtype if tensor is not None else value.dtype
    return dtype if dtype in FLOAT_TYPES else ir.DataType.FLOAT


def weight_behind(value: ir.Value | None) -> ir.Value | None:
    """Return the constant that `value` is, or is quantized from."""
    while value is not None and constant_tensor(value) is None:
        node = value.producer()
        if node is None or node.op_type not in ("QuantizeLinear", "Cast", *MOVES):
            return None
        value = node.inputs[0]
    return value


def _type_of_codes(value: ir.Value) -> ir.DataType | None:
    """Return the type of integers: the file's word, else that of the Q that made them."""
    tensor = constant_tensor(value)
    if tensor is not None:
        return tensor.dtype
    node = value.producer()
    if node is not None and node.op_type == "DynamicQuantizeLinear":
        return ir.DataType.UINT8
    if node is not None and node.op_type == "QuantizeLinear":
        return integer_type(node) or ir.DataType.UINT8  # ONNX: without a zero point the codes are uint8
    if node is not None and node.op_type == "Cast":
        return ir.DataType(int_attribute(node, "to", 0))
    if node is not None and node.op_type in THROUGH and node.inputs[0] is not None:
        return _type_of_codes(node.inputs[0])
    return value.dtype


def _joins_one_type(node: ir.Node) -> bool:
    """Return whether a node has one source, or joins dequantized ones of one integer type."""
    if node.op_type != "Concat":
        return True
    sides = [operand_of(value) for value in node.inputs if value is not None]
    return all(side.dequantize is not None for side in sides) and len({side.dtype for side in sides}) == 1


def _is_idle_cast(node: ir.Node) -> bool:
    source = node.inputs[0]
    return (
        source is not None
        and int_attribute(node, "to", 0) == int(float_type(source))
        and (source.dtype is not None or constant_tensor(source) is not None)
    )
