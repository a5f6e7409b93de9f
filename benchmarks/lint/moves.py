"""Small ONNX files for the linter: Q/DQ around operators that move numbers, and around those that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from benchmarks.lint.files import FILES, WIDTH, ZEROS, constant, file, flat, weight
from benchmarks.lint.layers import convolution, image
from tests.engine.graphs import LENGTH, Graph


def ints(g: Graph, *values: int) -> str:
    return g.constant(np.array(values, np.int64))


def rows_first(g: Graph, x: str) -> str:
    return g.op("Reshape", x, ints(g, 2, LENGTH, WIDTH))


# What a file does between DequantizeLinear and its product, every one from and to three axes.
BETWEEN: dict[str, Callable[[Graph, str], str]] = {
    "Transpose": lambda g, x: g.op("Transpose", x, perm=[0, 2, 1]),
    "Reshape": lambda g, x: g.op("Reshape", x, ints(g, 1, 2 * LENGTH, WIDTH)),
    "Flatten": lambda g, x: g.op("Flatten", x, axis=2),
    "Identity": lambda g, x: g.op("Identity", x),
    "Unsqueeze": lambda g, x: g.op("Unsqueeze", x, ints(g, 0)),
    "Squeeze": lambda g, x: g.op("Squeeze", g.op("Slice", x, ints(g, 0), ints(g, 1), ints(g, 0)), ints(g, 0)),
    "Expand": lambda g, x: g.op("Expand", x, ints(g, 3, 2, LENGTH, WIDTH)),
    "Slice": lambda g, x: g.op("Slice", x, ints(g, 0), ints(g, 4), ints(g, 1)),
    "Gather": lambda g, x: g.op("Gather", x, ints(g, 0, 2), axis=1),
    "Concat": lambda g, x: g.op("Concat", x, x, axis=1),
    "Concat of two": lambda g, x: g.op("Concat", x, g.op("Transpose", x, perm=[0, 2, 1]), axis=1),
    "Relu": lambda g, x: g.op("Relu", x),
    "MaxPool": lambda g, x: g.op("MaxPool", x, kernel_shape=[2], strides=[2], pads=[0, 0]),
    "Add": lambda g, x: g.op("Add", x, x),
    "Softmax": lambda g, x: g.op("Softmax", x, axis=-1),
}  # fmt: skip
RANKS = {"Flatten": 2, "Unsqueeze": 4, "Squeeze": 2, "Expand": 4}


def between_file(name: str, kind: str, inside: bool) -> Callable[[], onnx.ModelProto]:
    """Return the maker of Q, DQ, the operator, MatMul; with `inside` the operator stands between Q and DQ."""

    def make() -> onnx.ModelProto:
        g = Graph()
        zero = ZEROS[kind]
        move = BETWEEN[name]
        x = g.dq(move(g, g.q("x", zero=zero)), zero=zero) if inside else move(g, g.qdq("x", zero=zero))
        columns = 16 if name == "MaxPool" else WIDTH
        w = g.dq(constant(g, "int8", (columns, WIDTH)), np.full(WIDTH, 0.01), np.zeros(WIDTH, np.int8), 1)
        return flat(g, g.linear(x, w), RANKS.get(name, 3))

    return make


for _name in BETWEEN:
    for _kind in ("int8", "uint8"):
        FILES[f"{_kind} x int8, {_name} behind DQ"] = between_file(_name, _kind, False)
for _name in ("Transpose", "Reshape", "Gather", "Concat", "Slice", "Flatten"):
    for _kind in ("int8", "uint8"):
        FILES[f"{_kind} x int8, {_name} between Q and DQ"] = between_file(_name, _kind, True)


@file("int8 x int8, batch transposed between Q and DQ")
def batch_transposed() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.dq(g.op("Transpose", g.q("x"), perm=[1, 0, 2])), weight(g)))


@file("int8 x int8, dequantized number")
def dequantized_number() -> onnx.ModelProto:
    g = Graph()
    factor = g.dq(g.constant(np.int8(50)), 0.01)
    return g.model(g.linear(g.qdq(g.op("Mul", "x", factor)), weight(g)))


@file("int8 x int8, dequantized vector")
def dequantized_vector() -> onnx.ModelProto:
    g = Graph()
    factor = g.dq(g.constant(np.full(WIDTH, 50, np.int8)), 0.01)
    return g.model(g.linear(g.qdq(g.op("Mul", "x", factor)), weight(g)))


@file("int8 x int8, Transpose and Reshape between Q and DQ")
def transposed_and_reshaped() -> onnx.ModelProto:
    g = Graph()
    codes = g.op("Reshape", g.op("Transpose", g.q("x"), perm=[0, 2, 1]), ints(g, 4, LENGTH // 2, WIDTH))
    return g.model(g.linear(g.dq(codes), weight(g)))


@file("uint8 x int8, Concat of two grids")
def two_grids() -> onnx.ModelProto:
    g = Graph()
    zero = ZEROS["uint8"]
    both = g.op("Concat", g.qdq("x", 0.02, zero), g.qdq(g.op("Neg", "x"), 0.03, zero), axis=1)
    return g.model(g.linear(both, weight(g)))


@file("uint8 x int8, Concat along the columns")
def columns() -> onnx.ModelProto:
    g = Graph()
    zero = ZEROS["uint8"]
    both = g.op("Concat", g.qdq("x", 0.02, zero), g.qdq(g.op("Neg", "x"), 0.02, zero), axis=2)
    codes = constant(g, "int8", (2 * WIDTH, WIDTH))
    return g.model(g.linear(both, g.dq(codes, np.full(WIDTH, 0.01), np.zeros(WIDTH, np.int8), 1)))


def concat_conv(kind: str, axis: int) -> Callable[[], onnx.ModelProto]:
    """Return the maker of a convolution behind a Concat of two dequantized images."""

    def make() -> onnx.ModelProto:
        g = Graph()
        zero = ZEROS[kind]
        left, right = (g.qdq(x, 0.02, zero) for x in (image(g, 2), g.op("Neg", image(g, 2))))
        joined = g.op("Concat", left, right, axis=axis)
        return flat(g, convolution(g, joined, channels=4 if axis == 1 else 2), 4)

    return make


for _kind in ("int8", "uint8"):
    FILES[f"{_kind} x int8, Conv behind Concat of channels"] = concat_conv(_kind, 1)
    FILES[f"{_kind} x int8, Conv behind Concat of rows"] = concat_conv(_kind, 2)


@file("uint8 x int8, Q/DQ around Concat")
def around_concat() -> onnx.ModelProto:
    g = Graph()
    zero = ZEROS["uint8"]
    both = g.op("Concat", g.qdq("x", 0.02, zero), g.qdq(g.op("Neg", "x"), 0.02, zero), axis=1)
    return g.model(g.linear(g.qdq(both, 0.02, zero), weight(g)))


@file("int8 x int8, Q/DQ around Concat")
def signed_around_concat() -> onnx.ModelProto:
    g = Graph()
    both = g.op("Concat", g.qdq("x"), g.qdq(g.op("Neg", "x")), axis=1)
    return g.model(g.linear(g.qdq(both), weight(g)))


@file("uint8 x int8, Concat with a float side")
def half_concat() -> onnx.ModelProto:
    g = Graph()
    both = g.op("Concat", g.qdq("x", 0.02, ZEROS["uint8"]), g.op("Neg", "x"), axis=1)
    return g.model(g.linear(both, weight(g)))


@file("uint8 x int8, Split")
def split() -> onnx.ModelProto:
    g = Graph()
    x = g.qdq("x", zero=ZEROS["uint8"])
    node = onnx.helper.make_node("Split", [x], ["left", "right"], name="split", axis=1, num_outputs=2)
    g.nodes.append(node)
    return g.model(g.op("Add", g.linear("left", weight(g)), g.linear("right", weight(g))))


@file("uint8 x int8, Cast to float behind DQ")
def cast_behind() -> onnx.ModelProto:
    g = Graph()
    x = g.op("Cast", g.qdq("x", zero=ZEROS["uint8"]), to=TensorProto.FLOAT)
    return g.model(g.linear(x, weight(g)))


@file("uint8 x int8, weight Transpose behind DQ")
def transposed_weight() -> onnx.ModelProto:
    g = Graph()
    w = g.dq(constant(g, "int8"), np.full(WIDTH, 0.01), np.zeros(WIDTH, np.int8), 0)
    return g.model(g.linear(g.qdq("x", zero=ZEROS["uint8"]), g.op("Transpose", w, perm=[1, 0])))


@file("int8 x int8, weight Transpose behind DQ")
def signed_transposed_weight() -> onnx.ModelProto:
    g = Graph()
    w = g.dq(constant(g, "int8"), np.full(WIDTH, 0.01), np.zeros(WIDTH, np.int8), 0)
    return g.model(g.linear(g.qdq("x"), g.op("Transpose", w, perm=[1, 0])))


@file("int8 x int8, codes of the weight transposed")
def transposed_codes() -> onnx.ModelProto:
    g = Graph()
    codes = g.op("Transpose", constant(g, "int8"), perm=[1, 0])
    return g.model(g.linear(g.qdq("x"), g.dq(codes, np.full(WIDTH, 0.01), np.zeros(WIDTH, np.int8), 1)))


@file("uint8 x int8, codes of the weight transposed")
def unsigned_transposed_codes() -> onnx.ModelProto:
    g = Graph()
    codes = g.op("Transpose", constant(g, "int8"), perm=[1, 0])
    x = g.qdq("x", zero=ZEROS["uint8"])
    return g.model(g.linear(x, g.dq(codes, np.full(WIDTH, 0.01), np.zeros(WIDTH, np.int8), 1)))


@file("table, Gather behind DQ")
def table() -> onnx.ModelProto:
    g = Graph()
    rows = g.op("Gather", weight(g), g.op("Cast", "x", to=TensorProto.INT64))
    return g.model(g.op("ReduceSum", rows, ints(g, -1), keepdims=0))


@file("table, Gather of codes")
def codes_first() -> onnx.ModelProto:
    g = Graph()
    rows = g.op("Gather", constant(g, "int8"), g.op("Cast", "x", to=TensorProto.INT64))
    return g.model(g.op("ReduceSum", g.dq(rows), ints(g, -1), keepdims=0))


@file("uint8 x int8, quantized twice on two grids")
def twice() -> onnx.ModelProto:
    g = Graph()
    zero = ZEROS["uint8"]
    left, right = (g.linear(g.qdq("x", scale, zero), weight(g)) for scale in (0.02, 0.03))
    return g.model(g.op("Mul", left, right))


def relu_file(kind: str, has_bias: bool, zero: Any = None) -> Callable[[], onnx.ModelProto]:
    """Return the maker of MatMul, a bias or none, Relu, Q/DQ, MatMul."""

    def make() -> onnx.ModelProto:
        g = Graph()
        y = g.op("MatMul", g.qdq("x", zero=ZEROS[kind]), weight(g), name="first")
        if has_bias:
            y = g.op("Add", y, g.constant(np.full(1, 0.1, np.float32)))
        return g.model(g.linear(g.qdq(g.op("Relu", y), 0.02, ZEROS[kind] if zero is None else zero), weight(g)))

    return make


for _kind in ("int8", "uint8"):
    FILES[f"{_kind} x int8, Relu and Q behind MatMul"] = relu_file(_kind, False)
    FILES[f"{_kind} x int8, Relu and Q behind MatMul and bias"] = relu_file(_kind, True)
FILES["uint8 x int8, Relu and Q of zero point 0 behind MatMul"] = relu_file("uint8", False, np.uint8(0))


@file("uint8 x int8, rounded twice")
def rounded_twice() -> onnx.ModelProto:
    g = Graph()
    zero = ZEROS["uint8"]
    return g.model(g.linear(g.qdq(g.qdq("x", 0.02, zero), 0.05, zero), weight(g)))


@file("int8 x int8, residual INT8 on both sides")
def residual() -> onnx.ModelProto:
    g = Graph()
    x = g.qdq("x")
    return g.model(g.op("Add", g.qdq(g.linear(x, weight(g)), 0.1), x))
