"""Tiny Q/DQ graphs in the dynamo exporter's form, written by hand, and how to run them in plain ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 16


def linear_model(
    *,
    num_siblings: int = 1,
    as_gemm: bool = False,
    with_bias: bool = True,
    smooth: bool = False,
    seed: int = 0,
    transpose: bool = True,
    quantized: bool = True,
) -> onnx.ModelProto:
    """Return x (batch, WIDTH) -> `num_siblings` linears over one quantized input, one output each (y0, y1, ...)."""
    rng = np.random.default_rng(seed)
    nodes, constants = [], {"x_scale": np.float32(0.02), "x_zero": np.int8(0)}
    source = "x"
    if smooth:
        constants["inverse"] = rng.uniform(0.5, 2, WIDTH).astype(np.float32)
        nodes.append(helper.make_node("Mul", ["x", "inverse"], ["smoothed"], name="smooth"))
        source = "smoothed"
    for i in range(num_siblings):
        shape = (WIDTH + 4 * i, WIDTH) if transpose or as_gemm else (WIDTH, WIDTH + 4 * i)
        axis = 0 if transpose or as_gemm else 1
        w = rng.normal(size=shape).astype(np.float32)
        constants[f"lin{i}.weight"] = w
        constants[f"lin{i}.scale"] = (np.abs(w).max(axis=1 - axis) / 127).astype(np.float32)
        constants[f"lin{i}.zero"] = np.zeros(shape[axis], np.int8)
        constants[f"lin{i}.bias"] = rng.normal(size=WIDTH + 4 * i).astype(np.float32)
        x, weight = source, f"lin{i}.weight"
        if quantized:
            x, weight = f"x_dq{i}", f"w_dq{i}"
            nodes += quantize(source, x, "x_scale", "x_zero", f"x{i}")
            nodes += quantize(f"lin{i}.weight", weight, f"lin{i}.scale", f"lin{i}.zero", f"w{i}", axis=axis)
        last = f"y{i}"
        if as_gemm:
            bias = [f"lin{i}.bias"] if with_bias else []
            nodes.append(helper.make_node("Gemm", [x, weight, *bias], [last], name=f"product{i}", transB=1))
            continue
        if transpose:
            nodes.append(helper.make_node("Transpose", [weight], [f"w_t{i}"], name=f"transpose{i}", perm=[1, 0]))
            weight = f"w_t{i}"
        out = f"xw{i}" if with_bias else last
        nodes.append(helper.make_node("MatMul", [x, weight], [out], name=f"product{i}"))
        if with_bias:
            nodes.append(helper.make_node("Add", [out, f"lin{i}.bias"], [last], name=f"add{i}"))
    outputs = [(f"y{i}", TensorProto.FLOAT, ["batch", WIDTH + 4 * i]) for i in range(num_siblings)]
    return make_model(nodes, [("x", TensorProto.FLOAT, ["batch", WIDTH])], outputs, constants)


def table_model(per_column: bool, num_rows: int = 50) -> onnx.ModelProto:
    """Return ids (batch, sequence) -> rows of a quantized embedding table, one scale or one per column."""
    table = np.random.default_rng(1).normal(size=(num_rows, WIDTH)).astype(np.float32)
    amax = np.abs(table).max(axis=0) if per_column else np.abs(table).max()
    scale = (amax / 127).astype(np.float32)
    constants = {"table": table, "scale": scale, "zero": np.zeros(scale.shape, np.int8)}
    nodes = quantize("table", "rows", "scale", "zero", "t", axis=1 if per_column else None)
    nodes.append(helper.make_node("Gather", ["rows", "ids"], ["y"], name="lookup", axis=0))
    inputs = [("ids", TensorProto.INT64, ["batch", "sequence"])]
    return make_model(nodes, inputs, [("y", TensorProto.FLOAT, ["batch", "sequence", WIDTH])], constants)


def quantize(x: str, y: str, scale: str, zero: str, name: str, axis: int | None = None) -> list[onnx.NodeProto]:
    """Return QuantizeLinear and DequantizeLinear from x to y."""
    attributes = {} if axis is None else {"axis": axis}
    return [
        helper.make_node("QuantizeLinear", [x, scale, zero], [f"{name}_q"], name=f"{name}_Q", **attributes),
        helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [y], name=f"{name}_DQ", **attributes),
    ]


def make_model(nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a checked opset 20 model."""
    used = {name for node in nodes for name in node.input}
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in used]
    infos = [[helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
    graph = helper.make_graph(nodes, "tiny", *infos, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def run_plain(model: onnx.ModelProto | Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a model in ONNX Runtime without any optimization (nor this package)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def count(model: onnx.ModelProto, op_type: str) -> int:
    """Return how many nodes of one type a model has."""
    return sum(node.op_type == op_type for node in model.graph.node)


def samples(batch: int = 5, seed: int = 3) -> dict[str, np.ndarray]:
    """Return a feed for `linear_model`, with values beyond the quantizer's range among them."""
    return {"x": (np.random.default_rng(seed).normal(size=(batch, WIDTH)) * 2).astype(np.float32)}
