"""Small ONNX files for the linter: Gemm and Conv, by their bias and by what stands behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from benchmarks.lint.files import FILES, WIDTH, ZEROS, Maker, constant, flat
from tests.engine.graphs import LENGTH, Graph


def image(g: Graph, channels: int = 1) -> str:
    """Return x as (2, channels, LENGTH / channels, WIDTH)."""
    return g.op("Reshape", "x", g.constant(np.array([2, channels, LENGTH // channels, WIDTH], np.int64)))


def convolution(
    g: Graph, x: str, kind: str = "int8", bias: str | None = None, channels: int = 1, group: int = 1
) -> str:
    """Return a 4 x 4 patch convolution of a dequantized image; 16 channels come out."""
    codes = constant(g, kind, (16, channels // group, 4, 4))
    zeros = np.full(16, 128 if kind == "uint8" else 0).astype(g.constants[codes].dtype)
    inputs = [x, g.dq(codes, np.full(16, 0.01), zeros, 0), *([bias] if bias else [])]
    return g.op("Conv", *inputs, name="patch", strides=[4, 4], group=group)


def bias32(g: Graph, size: int) -> str:
    return g.dq(g.constant(np.ones(size, np.int32), "bias"), np.full(size, 0.0002), np.zeros(size, np.int32), 0)


def gemm_file(
    kind: str, out: bool = False, int32_bias: bool = False, no_bias: bool = False, **attributes: Any
) -> Maker:
    """Return the maker of one Gemm; with `out`, its output is quantized too."""

    def make() -> onnx.ModelProto:
        g = Graph()
        zero = ZEROS[kind]
        shape = [WIDTH, 2 * LENGTH] if "transA" in attributes else [2 * LENGTH, WIDTH]
        rows = g.op("Reshape", "x", g.constant(np.array(shape, np.int64)))
        bias = [bias32(g, WIDTH) if int32_bias else g.constant(np.ones(WIDTH, np.float32), "bias")][: 1 - no_bias]
        w = g.dq(
            constant(g, "int8"), np.full(WIDTH, 0.01), np.zeros(WIDTH, np.int8), 0 if "transB" in attributes else 1
        )
        y = g.op("Gemm", g.qdq(rows, zero=zero), w, *bias, name="gemm", **attributes)
        return flat(g, g.qdq(y, 0.02, zero) if out else y, 2)

    return make


for _kind in ("int8", "uint8"):
    FILES[f"{_kind} x int8, Gemm"] = gemm_file(_kind)
    FILES[f"{_kind} x int8, Gemm, output quantized"] = gemm_file(_kind, True, True, transB=1)
    FILES[f"{_kind} x int8, Gemm, int32 bias"] = gemm_file(_kind, False, True, transB=1)
    FILES[f"{_kind} x int8, Gemm, float bias, output quantized"] = gemm_file(_kind, True)
    FILES[f"{_kind} x int8, Gemm, no bias"] = gemm_file(_kind, no_bias=True)
FILES["uint8 x int8, Gemm, alpha 2"] = gemm_file("uint8", alpha=2.0)
FILES["uint8 x int8, Gemm, alpha 2, int32 bias"] = gemm_file("uint8", int32_bias=True, alpha=2.0)
FILES["uint8 x int8, Gemm, alpha 2, output quantized"] = gemm_file("uint8", True, True, alpha=2.0)
FILES["uint8 x int8, Gemm, transA, int32 bias"] = gemm_file("uint8", int32_bias=True, transA=1)
FILES["uint8 x int8, Gemm, beta 2, int32 bias"] = gemm_file("uint8", int32_bias=True, beta=2.0)
FILES["uint8 x int8, Gemm, beta 2, output quantized"] = gemm_file("uint8", True, True, beta=2.0)


def conv_file(kind: str, out: bool = False, int32_bias: bool = False, group: int = 1, weight_kind: str = "int8",
              float_bias: bool = False, behind: Callable[..., str] | None = None) -> Maker:  # fmt: skip
    """Return the maker of one Conv; with `out`, its output is quantized too."""

    def make() -> onnx.ModelProto:
        g = Graph()
        zero, channels = ZEROS[kind], 2 * group if group > 1 else 1
        x = g.qdq(image(g, channels), zero=zero)
        bias = bias32(g, 16) if int32_bias else None
        if float_bias:
            bias = g.constant(np.ones(16, np.float32), "bias")
        y = convolution(g, x, weight_kind, bias, channels, group)
        return flat(g, behind(g, y, zero) if behind else g.qdq(y, 0.02, zero) if out else y, 4)

    return make


for _kind in ("int8", "uint8"):
    FILES[f"{_kind} x int8, Conv"] = conv_file(_kind)
    FILES[f"{_kind} x int8, Conv, int32 bias"] = conv_file(_kind, False, True)
    FILES[f"{_kind} x int8, Conv, int32 bias, output quantized"] = conv_file(_kind, True, True)
    FILES[f"{_kind} x int8, Conv, float bias"] = conv_file(_kind, float_bias=True)
    FILES[f"{_kind} x int8, Conv, output quantized"] = conv_file(_kind, True)
    FILES[f"{_kind} x int8, Conv, float bias, output quantized"] = conv_file(_kind, True, float_bias=True)
    FILES[f"{_kind} x int8, Conv, grouped, output quantized"] = conv_file(_kind, True, True, 4)
FILES["uint8 x int8, Conv, Relu, output quantized"] = conv_file(
    "uint8", behind=lambda g, y, zero: g.qdq(g.op("Relu", y), 0.02, zero)
)
FILES["uint8 x int8, Conv, Transpose, output quantized"] = conv_file(
    "uint8", behind=lambda g, y, zero: g.qdq(g.op("Transpose", y, perm=[0, 2, 3, 1]), 0.02, zero)
)
FILES["uint8 x int8, Conv, Flatten, output quantized"] = conv_file(
    "uint8", behind=lambda g, y, zero: g.qdq(g.op("Flatten", y, axis=2), 0.02, zero)
)
FILES["uint8 x int8, Conv, output quantized and read as float"] = conv_file(
    "uint8", behind=lambda g, y, zero: g.op("Mul", g.qdq(y, 0.02, zero), y)
)
FILES["uint8 x uint8, Conv, output quantized"] = conv_file("uint8", True, True, weight_kind="uint8")
