"""Small ONNX files whose scales, zero points or axes are other than usual."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from benchmarks.lint.files import WIDTH, ZEROS, constant, file, weight
from tests.engine.graphs import Graph


@file("uint8 x int8, zero point 3")
def moved_zero() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x", zero=np.uint8(3)), weight(g)))


@file("int8 x int8, zero point 3")
def moved_signed_zero() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x", zero=np.int8(3)), weight(g)))


@file("int8 x int8, zero point is an input")
def fed_zero() -> onnx.ModelProto:
    g = Graph()
    scale = g.constant(np.float32(0.02))
    zero = g.op("Cast", g.op("ReduceMax", "x", keepdims=0), to=TensorProto.INT8)
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", "x", scale, zero), scale, zero)
    return g.model(g.linear(x, weight(g)))


@file("no zero point")
def no_zero() -> onnx.ModelProto:
    g = Graph()
    scale = g.constant(np.float32(0.02))
    return g.model(g.linear(g.op("DequantizeLinear", g.op("QuantizeLinear", "x", scale), scale), weight(g)))


@file("int8 by output_dtype")
def output_dtype() -> onnx.ModelProto:
    g = Graph()
    scale = g.constant(np.float32(0.02))
    codes = g.op("QuantizeLinear", "x", scale, output_dtype=TensorProto.INT8)
    return g.model(g.linear(g.op("DequantizeLinear", codes, scale), weight(g)), 21)


@file("int8 x int8, float weight behind Q/DQ")
def quantized_float_weight() -> onnx.ModelProto:
    g = Graph()
    w = g.qdq(g.float_weight(), np.full(WIDTH, 0.01), np.zeros(WIDTH, np.int8), 1)
    return g.model(g.linear(g.qdq("x"), w))


@file("uint8 x int8, activation per channel")
def per_channel() -> onnx.ModelProto:
    g = Graph()
    x = g.qdq("x", np.linspace(0.01, 0.03, WIDTH), np.full(WIDTH, 128, np.uint8), 2)
    return g.model(g.linear(x, weight(g)))


@file("int8 x int8, activation per channel")
def signed_per_channel() -> onnx.ModelProto:
    g = Graph()
    x = g.qdq("x", np.linspace(0.01, 0.03, WIDTH), np.zeros(WIDTH, np.int8), 2)
    return g.model(g.linear(x, weight(g)))


@file("uint8 x int8, weight scales along the inputs")
def wrong_axis() -> onnx.ModelProto:
    g = Graph()
    w = g.dq(constant(g, "int8"), np.linspace(0.01, 0.03, WIDTH), np.zeros(WIDTH, np.int8), 0)
    return g.model(g.linear(g.qdq("x", zero=ZEROS["uint8"]), w))


@file("int8 x int8, weight scales along the inputs")
def signed_wrong_axis() -> onnx.ModelProto:
    g = Graph()
    w = g.dq(constant(g, "int8"), np.linspace(0.01, 0.03, WIDTH), np.zeros(WIDTH, np.int8), 0)
    return g.model(g.linear(g.qdq("x"), w))


@file("int8 x int8, scale is computed")
def computed_scale() -> onnx.ModelProto:
    g = Graph()
    scale = g.op("Mul", g.op("ReduceMax", g.op("Abs", "x"), keepdims=0), g.constant(np.float32(1 / 127)))
    zero = g.constant(np.int8(0))
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", "x", scale, zero), scale, zero)
    return g.model(g.linear(x, weight(g)))


@file("int8 x int8, scale zero")
def zero_scale() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x", scale=0), weight(g)))


@file("int8 x int8, scale NaN")
def nan_scale() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x", scale=np.nan), weight(g)))


@file("int8 x int8, scale negative")
def negative_scale() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.linear(g.qdq("x", scale=-0.02), weight(g)))
