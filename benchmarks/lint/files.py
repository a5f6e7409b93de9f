"""Small ONNX files on which the linter is compared with the consumers: hand-made ones, each of one form.

A name says the types of both factors first (activation x weight), then where the Q/DQ stand or what the product is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto

from tests.engine.graphs import LAYER_WIDTH, Graph

WIDTH = LAYER_WIDTH
# Activation type of a file → its zero point: the middle of the range, as every consumer's own tool chooses it.
ZEROS: dict[str, Any] = {
    "int8": np.int8(0), "uint8": np.uint8(128), "int16": np.int16(0), "uint16": np.uint16(32768),
    "int4": np.asarray(0, ml_dtypes.int4), "fp8": np.asarray(0, ml_dtypes.float8_e4m3fn),
    "fp8e5": np.asarray(0, ml_dtypes.float8_e5m2),
}  # fmt: skip
MICROSOFT = "com.microsoft"
Maker = Callable[[], onnx.ModelProto]
FILES: dict[str, Maker] = {}


def file(name: str) -> Callable[[Maker], Maker]:
    """Enter a maker under a name."""

    def enter(make: Maker) -> Maker:
        FILES[name] = make
        return make

    return enter


def constant(g: Graph, kind: str, shape: tuple[int, ...] = (WIDTH, WIDTH)) -> str:
    """Return random integers of a type, of 7 bits at most: a CPU without VNNI adds wider ones in 16 bits, too few."""
    low, high = {"int4": (-7, 8), "uint4": (0, 16), "uint8": (65, 192)}.get(kind, (-63, 64))
    numbers = g.random.integers(low, high, shape)
    types = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4, "fp8": ml_dtypes.float8_e4m3fn,
             "fp8e5": ml_dtypes.float8_e5m2}  # fmt: skip
    return g.constant(numbers.astype(types.get(kind, kind)), "layer.weight")


def weight(g: Graph, kind: str = "int8", per_column: bool = True, zero: int = 0, **more: Any) -> str:
    """Return a dequantized weight of (WIDTH, WIDTH), one scale for each column or one in all."""
    codes = constant(g, kind, more.pop("shape", (WIDTH, WIDTH)))
    zeros = np.full(WIDTH if per_column else (), zero).astype(g.constants[codes].dtype)
    return g.dq(codes, np.full(WIDTH, 0.01) if per_column else 0.01, zeros, 1 if per_column else None)


def flat(g: Graph, value: str, rank: int = 3) -> onnx.ModelProto:
    """Return the model that ends in `value`, reshaped to three axes."""
    if rank != 3:
        value = g.op("Reshape", value, g.constant(np.array([2, -1, 4], np.int64)))
    return g.model(value)


def linear_file(kind: str, weight_kind: str = "int8", out: bool = False, opset: int = 20, **more: Any) -> Maker:
    """Return the maker of one linear layer; with `out`, its output is quantized too."""

    def make() -> onnx.ModelProto:
        g = Graph()
        zero = ZEROS[kind]
        y = g.linear(g.qdq("x", zero=zero), weight(g, weight_kind, **more))
        return g.model(g.op("Relu", g.qdq(y, 0.02, zero)) if out else y, opset)

    return make


for _kind in ("int8", "uint8"):
    FILES[f"{_kind} x int8, MatMul"] = linear_file(_kind)
    FILES[f"{_kind} x int8, MatMul, output quantized"] = linear_file(_kind, out=True)
    FILES[f"{_kind} x int8, MatMul, weight per tensor"] = linear_file(_kind, per_column=False)
    FILES[f"{_kind} x uint8, MatMul"] = linear_file(_kind, "uint8", zero=128)
    FILES[f"{_kind} x int4, MatMul"] = linear_file(_kind, "int4", opset=21)
for _opset in (13, 17, 21, 23):
    FILES[f"uint8 x int8, opset {_opset}"] = linear_file("uint8", opset=_opset)
for _kind, _weight in (("int16", "int8"), ("uint16", "uint8"), ("int16", "int16"), ("uint16", "int8")):
    FILES[f"{_kind} x {_weight}, MatMul"] = linear_file(_kind, _weight, opset=21, zero=128 if _weight == "uint8" else 0)
FILES["fp8 x fp8, MatMul"] = linear_file("fp8", "fp8", opset=19)
FILES["fp8e5 x fp8e5, MatMul"] = linear_file("fp8e5", "fp8e5", opset=19)
FILES["int4 x int4, MatMul"] = linear_file("int4", "int4", opset=21)
FILES["int8 x uint4, MatMul"] = linear_file("int8", "uint4", opset=21, zero=8)
FILES["int8 x fp8, MatMul"] = linear_file("int8", "fp8", opset=19)
FILES["uint8 x int8, weight zero point 3"] = linear_file("uint8", zero=3)


@file("float x int8, weight alone")
def weight_alone() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear("x", weight(g)))


@file("uint8 x int8, zero point 0")
def unsigned_zero() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x", zero=np.uint8(0)), weight(g)))


@file("uint8 x int8, narrow weight")
def narrow() -> onnx.ModelProto:
    g = Graph()
    w = g.dq(constant(g, "int8", (WIDTH, 16)), np.full(16, 0.01), np.zeros(16, np.int8), 1)
    return g.model(g.linear(g.qdq("x", zero=ZEROS["uint8"]), w))


@file("uint8 x int8, narrow weight, scales along the inputs")
def narrow_wrong_axis() -> onnx.ModelProto:
    g = Graph()
    w = g.dq(constant(g, "int8", (WIDTH, 16)), np.linspace(0.01, 0.03, WIDTH), np.zeros(WIDTH, np.int8), 0)
    return g.model(g.linear(g.qdq("x", zero=ZEROS["uint8"]), w))


@file("uint8 x int8, weight on the left")
def left_weight() -> onnx.ModelProto:
    g = Graph()
    w = g.dq(constant(g, "int8"), 0.01)
    return g.model(g.op("MatMul", w, g.qdq("x", zero=ZEROS["uint8"]), name="product"))


@file("int8 x int8, weight on the left")
def signed_left_weight() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.op("MatMul", g.dq(constant(g, "int8"), 0.01), g.qdq("x"), name="product"))


@file("uint8 x uint8, zero points 0")
def unsigned_zeros() -> onnx.ModelProto:
    g = Graph()
    codes = constant(g, "uint8")
    w = g.dq(codes, np.full(WIDTH, 0.01), np.zeros(WIDTH, np.uint8), 1)
    return g.model(g.linear(g.qdq("x", zero=np.uint8(0)), w))


@file("uint8 x int8, int8 shared on the right")
def shared_right() -> onnx.ModelProto:
    g = Graph()
    right = g.qdq(g.op("Transpose", "x", perm=[0, 2, 1]), 0.03)
    y = g.op("MatMul", g.qdq("x", zero=ZEROS["uint8"]), right, name="scores")
    return g.model(g.op("Add", y, g.op("Transpose", right, perm=[0, 2, 1])))


@file("int8 x int8, shared by two layers")
def shared() -> onnx.ModelProto:
    g = Graph()
    x = g.qdq("x")
    return g.model(g.op("Mul", g.linear(x, weight(g)), g.linear(x, weight(g))))


@file("int8 x int8, two DQ of one Q")
def shared_codes() -> onnx.ModelProto:
    g = Graph()
    codes = g.q("x")
    return g.model(g.op("Mul", g.linear(g.dq(codes), weight(g)), g.linear(g.dq(codes), weight(g))))


@file("float x int4, weight alone")
def int4_alone() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear("x", weight(g, "int4")), 21)


@file("float x int4, blocks of 16")
def int4_blocks() -> onnx.ModelProto:
    g = Graph()
    codes = constant(g, "int4")
    scale = g.constant(np.full((2, WIDTH), 0.01, np.float32))
    return g.model(g.linear("x", g.op("DequantizeLinear", codes, scale, axis=0, block_size=16)), 21)


@file("float x int4, blocks longer than the axis")
def int4_long_blocks() -> onnx.ModelProto:
    g = Graph()
    codes, scale = constant(g, "int4"), g.constant(np.full((1, WIDTH), 0.01, np.float32))
    return g.model(g.linear("x", g.op("DequantizeLinear", codes, scale, axis=0, block_size=128)), 21)


@file("uint8 x float, activation alone")
def activation_alone() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x", zero=ZEROS["uint8"]), g.float_weight()))


@file("float x float")
def all_float() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear("x", g.float_weight()))


@file("no product")
def no_product() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.op("Relu", "x"))


@file("int8 x int8, fp16")
def half() -> onnx.ModelProto:
    g = Graph()
    x = g.op("Cast", "x", to=TensorProto.FLOAT16)
    scale, zero = g.constant(np.float16(0.02)), g.constant(np.int8(0))
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", x, scale, zero), scale, zero)
    scales, zeros = g.constant(np.full(WIDTH, 0.01, np.float16)), g.constant(np.zeros(WIDTH, np.int8))
    w = g.op("DequantizeLinear", constant(g, "int8"), scales, zeros, axis=1)
    return g.model(g.op("Cast", g.op("MatMul", x, w), to=TensorProto.FLOAT))


@file("int8 x int8, casts to fp16 between")
def casts() -> onnx.ModelProto:
    g = Graph()
    w = g.op("Cast", weight(g), to=TensorProto.FLOAT16)
    y = g.op("MatMul", g.op("Cast", g.qdq("x"), to=TensorProto.FLOAT16), w)
    return g.model(g.op("Cast", y, to=TensorProto.FLOAT))


@file("int8 x int8, fp32 with an idle Cast")
def idle_cast() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.op("Cast", g.qdq("x"), to=TensorProto.FLOAT), weight(g)))
