"""fp32 graph → strongly typed fp16 or bf16 graph: every type is written into the file and the builder chooses none.

What needs fp32's range or precision stays fp32 between Casts: squares and their means (RMSNorm), and what is computed
from positions alone (rotary angles). No Cast stands between a DequantizeLinear and its product. Inputs and outputs of
the file stay fp32, so that feeds and scores are the same as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from engine.graph import add_constant, constant, constant_tensor, is_op, operand

HALF_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
# Operators whose results leave fp16's range (squares of outliers) or lose too much in 11 bits (angles, variances).
FP32_OPS = frozenset(
    {"Pow", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "Sqrt", "Reciprocal", "Sin", "Cos", "Exp", "Log",
     "Range", "CumSum"}
)  # fmt: skip
# They follow their inputs: fp32 where all computed ones are.
FOLLOWING_OPS = frozenset(
    {"Abs", "Add", "Ceil", "Clip", "Concat", "Div", "Floor", "Max", "Min", "Mul", "Neg", "Reshape", "Sign", "Squeeze",
     "Sub", "Transpose", "Unsqueeze", "Where"}
)  # fmt: skip
# fp16 ends at 65504 and a mask is added to scores, so a mask's lowest float becomes this: exp(-10000) is 0 too.
MASKED_SCORE = -1e4
FP16_MAX = 65504.0


def to_half(dtype_name: str) -> Callable[[ir.Model], int]:
    """Return the pass that types an fp32 graph as fp16 or bf16; it returns how many Casts it put in.

    Raises (the pass): ValueError: a weight beyond fp16's range.
    """
    return lambda model: _HalfPass(model, HALF_TYPES[dtype_name]).run()


class _HalfPass:
    """One conversion: decides which nodes stay fp32, then retypes constants and puts Casts where the two meet."""

    def __init__(self, model: ir.Model, dtype: ir.DataType) -> None:
        self.graph, self.dtype = model.graph, dtype
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.constants: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.types: dict[ir.Value, ir.DataType] = {}

    def run(self) -> int:
        self.graph.sort()
        nodes = list(self.graph)
        for value in self.graph.inputs:
            self._note(value, ir.DataType.FLOAT)
        for node in nodes:
            self._convert(node)
        for index, output in enumerate(list(self.graph.outputs)):
            if self.types.get(output) == self.dtype:
                self._restore_output(index, output)
        return len(self.casts)

    def _note(self, value: ir.Value, dtype: ir.DataType) -> None:
        """Remember the new type of a float value."""
        if value.dtype in (ir.DataType.FLOAT, None) or value in self.types:
            self.types[value] = dtype

    def _convert(self, node: ir.Node) -> None:
        if is_op(node, "Constant"):
            return  # read through `constant` by its readers
        if is_op(node, "Cast"):
            to_float = node.attributes["to"].as_int() == ir.DataType.FLOAT
            if to_float:
                self.types[node.outputs[0]] = ir.DataType.FLOAT  # from integers: positions, masks
            return
        if is_op(node, "QuantizeLinear", "DequantizeLinear"):
            self._convert_qdq(node)
            return
        wanted = ir.DataType.FLOAT if self._stays_float(node) else self.dtype
        for index, value in enumerate(node.inputs):
            if value is not None and self._is_float(value):
                node.replace_input_with(index, self._as(value, wanted, node))
        if "value" in node.attributes and is_op(node, "ConstantOfShape"):
            array = node.attributes["value"].as_tensor().numpy()
            if array.dtype == np.float32:
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array.astype(wanted.numpy())))
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT or (output.dtype is None and self._makes_float(node)):
                output.dtype = self.types[output] = wanted

    def _convert_qdq(self, node: ir.Node) -> None:
        """Give a Q/DQ pair half scales; a Q's input is cast before it, never a DQ's output.

        The exporter's scales are numbers of the type already (`rounded_scales` in `quant`), so nothing is rounded here.
        """
        if is_op(node, "QuantizeLinear"):
            node.replace_input_with(0, self._as(operand(node, 0), self.dtype, node))
        node.replace_input_with(1, self._as(operand(node, 1), self.dtype, node))
        if is_op(node, "DequantizeLinear"):
            node.outputs[0].dtype = self.types[node.outputs[0]] = self.dtype

    def _stays_float(self, node: ir.Node) -> bool:
        if node.op_type in FP32_OPS:
            return True
        computed = [v for v in node.inputs if v is not None and self._is_float(v) and constant_tensor(v) is None]
        follows = node.op_type in FOLLOWING_OPS and bool(computed)
        return follows and all(self.types.get(v) == ir.DataType.FLOAT and not v.is_graph_input() for v in computed)

    def _is_float(self, value: ir.Value) -> bool:
        tensor = constant_tensor(value)
        if tensor is not None:
            return tensor.dtype == ir.DataType.FLOAT
        return value in self.types

    def _makes_float(self, node: ir.Node) -> bool:
        """Whether an output of unknown type is float: that of an operator that reads a float and is no comparison."""
        return any(v is not None and v.dtype in (ir.DataType.FLOAT, self.dtype) for v in node.inputs)

    def _as(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node) -> ir.Value:
        """Return `value` in the wanted type: a converted constant, itself, or the output of a Cast made once."""
        if constant_tensor(value) is not None:
            return value if wanted == ir.DataType.FLOAT else self._constant(value)
        if self.types.get(value) == wanted:
            return value
        key = (value, wanted)
        if key not in self.casts:
            name = f"{value.name}_{wanted.name.lower()}"
            cast = ir.node("Cast", [value], {"to": int(wanted)}, name=name)
            cast.outputs[0].name = name
            cast.outputs[0].dtype, cast.outputs[0].shape = wanted, value.shape
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], cast)
            else:
                self.graph.insert_after(producer, cast)
            self.casts[key] = cast.outputs[0]
            self.types[cast.outputs[0]] = wanted
        return self.casts[key]

    def _constant(self, value: ir.Value) -> ir.Value:
        key = (value, self.dtype)
        if key not in self.constants:
            array = constant(value)
            assert array is not None
            limit = FP16_MAX if self.dtype == ir.DataType.FLOAT16 else float(np.finfo(np.float32).max)
            if array.size == 1 and array <= -limit:
                array = np.full(array.shape, MASKED_SCORE, np.float32)
            if array.size and float(np.abs(array).max()) > limit:
                raise ValueError(
                    f"weight {value.name} holds {float(np.abs(array).max()):g}, beyond fp16's 65504; "
                    "export with --dtype bf16"
                )
            self.constants[key] = add_constant(self.graph, f"{value.name}_half", array.astype(self.dtype.numpy()))
        return self.constants[key]

    def _restore_output(self, index: int, output: ir.Value) -> None:
        """Let a graph output stay fp32 under its name."""
        name = output.name
        cast = ir.node("Cast", [output], {"to": int(ir.DataType.FLOAT)}, name=f"{name}_cast")
        output.name = f"{name}_{self.dtype.name.lower()}"
        cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = name, ir.DataType.FLOAT, output.shape
        self.graph.append(cast)
        self.graph.outputs[index] = cast.outputs[0]
