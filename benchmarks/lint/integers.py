"""Small ONNX files for the linter: operators that compute with integers by themselves, quantized at run time or not."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.lint.files import MICROSOFT, WIDTH, constant, file, flat, weight
from benchmarks.lint.layers import image
from tests.engine.graphs import LENGTH, Graph


def dynamic(g: Graph, x: str = "x") -> tuple[str, str, str]:
    """Return codes, scale and zero point of an activation that is quantized at run time."""
    names = [f"{x}_{word}" for word in ("codes", "scale", "zero")]
    g.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], names, name=f"{x}_dynamic"))
    return names[0], names[1], names[2]


@file("dynamic, MatMulInteger")
def matmul_integer() -> onnx.ModelProto:
    g = Graph()
    codes, scale, zero = dynamic(g)
    y = g.op("MatMulInteger", codes, constant(g, "int8"), zero, g.constant(np.int8(0)), name="product")
    scales = g.op("Mul", scale, g.constant(np.float32(0.01)))
    return g.model(g.op("Mul", g.op("Cast", y, to=TensorProto.FLOAT), scales))


@file("dynamic, ConvInteger")
def conv_integer() -> onnx.ModelProto:
    g = Graph()
    codes, scale, zero = dynamic(g, image(g))
    y = g.op("ConvInteger", codes, constant(g, "uint8", (16, 1, 4, 4)), zero, name="patch", strides=[4, 4])
    return flat(g, g.op("Mul", g.op("Cast", y, to=TensorProto.FLOAT), scale), 4)


@file("dynamic, DQ before MatMul")
def dynamic_qdq() -> onnx.ModelProto:
    g = Graph()
    x = g.op("DequantizeLinear", *dynamic(g))
    return g.model(g.linear(x, weight(g)))


@file("QLinearMatMul")
def qlinear_matmul() -> onnx.ModelProto:
    g = Graph()
    scale, zero = g.constant(np.float32(0.02)), g.constant(np.uint8(128))
    codes = g.op("QuantizeLinear", "x", scale, zero)
    rest = [g.constant(np.float32(0.01)), g.constant(np.int8(0)), g.constant(np.float32(0.1)), zero]
    y = g.op("QLinearMatMul", codes, scale, zero, constant(g, "int8"), *rest, name="product")
    return g.model(g.op("DequantizeLinear", y, rest[2], zero))


@file("QLinearConv")
def qlinear_conv() -> onnx.ModelProto:
    g = Graph()
    scale, zero = g.constant(np.float32(0.02)), g.constant(np.uint8(128))
    codes = g.op("QuantizeLinear", image(g), scale, zero)
    rest = [g.constant(np.float32(0.01)), g.constant(np.int8(0)), g.constant(np.float32(0.1)), zero]
    y = g.op("QLinearConv", codes, scale, zero, constant(g, "int8", (16, 1, 4, 4)), *rest, name="patch", strides=[4, 4])
    return flat(g, g.op("DequantizeLinear", y, rest[2], zero), 4)


@file("com.microsoft QGemm")
def qgemm() -> onnx.ModelProto:
    g = Graph()
    scale, zero = g.constant(np.float32(0.02)), g.constant(np.uint8(128))
    rows = g.op("Reshape", "x", g.constant(np.array([2 * LENGTH, WIDTH], np.int64)))
    codes = g.op("QuantizeLinear", rows, scale, zero)
    rest = [g.constant(np.float32(0.01)), g.constant(np.int8(0)), g.constant(np.ones(WIDTH, np.int32))]
    return flat(g, g.op("QGemm", codes, scale, zero, constant(g, "int8"), *rest, name="gemm", domain=MICROSOFT), 2)


@file("com.microsoft MatMulIntegerToFloat")
def integer_to_float() -> onnx.ModelProto:
    g = Graph()
    codes, scale, zero = dynamic(g)
    rest = [scale, g.constant(np.float32(0.01)), zero, g.constant(np.int8(0))]
    return g.model(g.op("MatMulIntegerToFloat", codes, constant(g, "int8"), *rest, name="product", domain=MICROSOFT))


@file("com.microsoft DynamicQuantizeMatMul")
def dynamic_matmul() -> onnx.ModelProto:
    g = Graph()
    scale = g.constant(np.float32(0.01))
    return g.model(g.op("DynamicQuantizeMatMul", "x", constant(g, "int8"), scale, name="product", domain=MICROSOFT))


@file("com.microsoft MatMulNBits")
def nbits() -> onnx.ModelProto:
    g = Graph()
    blocks = g.constant(g.random.integers(0, 256, (WIDTH, 1, 16)).astype(np.uint8), "layer.weight")
    scales = g.constant(np.full(WIDTH, 0.01, np.float32))
    return g.model(
        g.op(
            "MatMulNBits",
            "x",
            blocks,
            scales,
            name="product",
            domain=MICROSOFT,
            K=WIDTH,
            N=WIDTH,
            bits=4,
            block_size=32,
        )
    )
