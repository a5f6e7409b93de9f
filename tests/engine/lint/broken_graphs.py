"""Graphs that each break one rule of the linter alone, whom each is judged for, and a clean one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.lint.tools import FILES
from engine.passes.qdq import prepare_for_target
from tests.engine.graphs import LAYER_WIDTH as WIDTH
from tests.engine.graphs import Graph, linear_model, table_model


def clean(opset: int = 20) -> onnx.ModelProto:
    """An attention with all its Q/DQ, then one more layer."""
    g = Graph()
    return g.model(g.op("Gelu" if opset >= 20 else "Relu", g.attention()), opset)


def uint8() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x", zero=np.uint8(128))))


def zero_point() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x", zero=np.int8(3))))


def int32_bias() -> onnx.ModelProto:
    g = Graph()
    bias = g.dq(g.constant(np.zeros(WIDTH, np.int32), "bias"), zero=np.int32(0))
    return g.model(g.op("Add", g.op("MatMul", g.qdq("x"), g.weight()), bias))


def bad_scale() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x", scale=np.nan)))


def activation_axis() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x", np.full(WIDTH, 0.02), np.zeros(WIDTH, np.int8), axis=2)))


def weight_axis() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x"), g.weight(axis=0)))


def int8_activations() -> onnx.ModelProto:
    g = Graph()
    x = g.qdq("x")
    return g.model(g.op("Mul", g.linear(x), g.linear(x)))


def float_file() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear("x", g.float_weight()))


def integer_operators() -> onnx.ModelProto:
    g = Graph()
    weight = g.constant(np.ones((WIDTH, WIDTH), np.int8))
    g.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"], name="dynamic"))
    g.op("Cast", g.op("MatMulInteger", "xq", weight, "xz"), to=TensorProto.FLOAT)
    return g.model(g.linear(g.qdq("x")))


def one_sided() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear("x"))


def cast_between() -> onnx.ModelProto:
    g = Graph()
    weight = g.op("Cast", g.weight(), to=TensorProto.FLOAT16)
    return g.model(g.op("MatMul", g.op("Cast", g.qdq("x"), to=TensorProto.FLOAT16), weight))


def attention_without_softmax() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.attention(softmax=False))


def attention_without_output() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.attention(output=False))


def attention_scaled_late() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.attention(scale_scores=True), opset=17)


def attention_of_odd_heads() -> onnx.ModelProto:
    g = Graph(width=96)
    return g.model(g.attention())


def double_rounding() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq(g.qdq("x"), 0.05)))


def quantized_twice() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.op("Mul", g.linear(g.qdq("x")), g.linear(g.qdq("x", 0.03))))


def residual() -> onnx.ModelProto:
    g = Graph()
    skip = g.qdq(g.op("Relu", "x"))
    return g.model(g.op("Add", g.linear("x", g.float_weight()), skip))


def table() -> onnx.ModelProto:
    model = table_model(per_column=True)
    for node in model.graph.node:  # as `gather_before_dequantize` finds it: an INT8 table before its DequantizeLinear
        if node.op_type == "QuantizeLinear":
            integers = numpy_helper.from_array(np.ones((50, 16), np.int8), "t_q")
    model.graph.initializer.append(integers)
    del model.graph.node[0]
    return model


def float_product() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.op("Relu", g.linear(g.qdq("x"))), g.float_weight()))


def odd_width() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x"), g.weight(outputs=36)))


def gemv() -> onnx.ModelProto:
    g = Graph()
    whole = g.linear(g.qdq("x"))
    first = g.op("Gather", whole, g.constant(np.int64(0)), axis=1)
    return g.model(g.linear(g.qdq(first)), rank=2)


def new_opset() -> onnx.ModelProto:
    return clean(opset=20)


def gemm() -> onnx.ModelProto:
    return prepare_without_split(linear_model(as_gemm=True))


def prepare_without_split(model: onnx.ModelProto) -> onnx.ModelProto:
    model = prepare_for_target(model, "onnxruntime")
    product = next(node for node in model.graph.node if node.op_type == "MatMul")
    add = next(node for node in model.graph.node if node.op_type == "Add")
    product.op_type = "Gemm"
    product.input.append(next(name for name in add.input if name != product.output[0]))
    product.output[0] = add.output[0]
    model.graph.node.remove(add)
    return model


# Rule → a graph that breaks it and nothing else, and whom it is judged for.
BREAKS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "integer-type": (uint8, "tensorrt"),
    "zero-point": (zero_point, "tensorrt"),
    "int32-bias": (int32_bias, "tensorrt"),
    "scale": (bad_scale, "openvino"),
    "activation-axis": (activation_axis, "tensorrt"),
    "weight-axis": (weight_axis, "tensorrt"),
    "int8-activations": (int8_activations, "onnxruntime"),
    "nothing-quantized": (float_file, "tensorrt"),
    "integer-operators": (integer_operators, "tensorrt"),
    "one-sided": (one_sided, "tensorrt"),
    "cast-between": (cast_between, "onnxruntime"),
    "attention-softmax": (attention_without_softmax, "tensorrt"),
    "attention-output": (attention_without_output, "tensorrt"),
    "attention-scaling": (attention_scaled_late, "tensorrt8"),
    "attention-size": (attention_of_odd_heads, "tensorrt"),
    "double-rounding": (double_rounding, "tensorrt"),
    "quantized-twice": (quantized_twice, "tensorrt"),
    "residual": (residual, "tensorrt"),
    "table-dequantized": (table, "onnxruntime"),
    "float-product": (float_product, "tensorrt"),
    "width": (odd_width, "tensorrt"),
    "gemv": (gemv, "tensorrt"),
    "opset": (new_opset, "tensorrt8"),
    "float-output": (gemm, "onnxruntime"),
}


# The same of the small files on which the consumers are asked, see `test_lint_agreement.py`.
SMALL_FILES = {
    "not-seen": ("no product", "openvino"),
    "body-not-shown": ("int8 x int8, If branch", "openvino"),
    "local-function": ("int8 x int8, local function", "openvino"),
    "integers-unfused": ("dynamic, MatMulInteger", "openvino"),
    "scan": ("uint8 x int8, Scan body", "tensorrt"),
    "attention-operator": ("int8 Attention of opset 23, fp16", "tensorrt"),
    "no-kernel": ("int8 x int8, Einsum", "onnxruntime"),
    "fp8": ("fp8 x fp8, MatMul", "onnxruntime"),
    "other-type": ("int16 x int8, MatMul", "openvino"),
    "weight-zero-point": ("int8 x uint8, MatMul", "openvino"),
    "computed-grid": ("int8 x int8, zero point is an input", "onnxruntime"),
    "half-scales": ("int8 x int8, fp16", "onnxruntime"),
    "not-carried": ("int8 x int8, Flatten behind DQ", "onnxruntime"),
    "uint8-concat": ("uint8 x int8, Concat behind DQ", "openvino"),
    "block-size": ("float x int4, blocks longer than the axis", "openvino"),
    "moved-constant": ("int8 x int8, dequantized number", "tensorrt"),
}
BREAKS |= {rule: (FILES[name], consumer) for rule, (name, consumer) in SMALL_FILES.items()}
