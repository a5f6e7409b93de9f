"""Tiny Q/DQ graphs in the dynamo exporter's form, written by hand, and how to run them in plain ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 16
HEADS, HEAD_SIZE, LENGTH = 2, 16, 32  # of `Graph`
LAYER_WIDTH = HEADS * HEAD_SIZE
ZERO = np.int8(0)


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


class Graph:
    """Collects nodes and constants of a small graph over x (2, LENGTH, WIDTH); every method returns a value's name."""

    def __init__(self, width: int = LAYER_WIDTH, length: int = LENGTH) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.functions: list[onnx.FunctionProto] = []
        self.width, self.length = width, length
        self.random = np.random.default_rng(0)

    def op(self, op_type: str, *inputs: str, name: str = "", **attributes) -> str:
        output = f"{name or op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, array, name: str = "c") -> str:
        name = f"{name}_{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def qdq(self, x: str, scale=0.02, zero=ZERO, axis: int | None = None) -> str:
        return self.dq(self.q(x, scale, zero, axis), scale, zero, axis)

    def q(self, x: str, scale=0.02, zero=ZERO, axis: int | None = None) -> str:
        grid = [self.constant(np.asarray(scale, np.float32)), self.constant(np.asarray(zero))]
        return self.op("QuantizeLinear", x, *grid, **({} if axis is None else {"axis": axis}))

    def dq(self, x: str, scale=0.02, zero=ZERO, axis: int | None = None) -> str:
        grid = [self.constant(np.asarray(scale, np.float32)), self.constant(np.asarray(zero))]
        return self.op("DequantizeLinear", x, *grid, **({} if axis is None else {"axis": axis}))

    def weight(self, inputs: int = LAYER_WIDTH, outputs: int = LAYER_WIDTH, axis: int = 1) -> str:
        integers = self.constant(self.random.integers(-63, 64, (inputs, outputs)).astype(np.int8), "layer.weight")
        length = (inputs, outputs)[axis]
        return self.dq(integers, np.full(length, 0.01), np.zeros(length, np.int8), axis)

    def linear(self, x: str, weight: str | None = None) -> str:
        bias = self.constant(np.zeros(1, np.float32), "bias")
        return self.op("Add", self.op("MatMul", x, weight or self.weight(), name="product"), bias)

    def float_weight(self, inputs: int = LAYER_WIDTH, outputs: int = LAYER_WIDTH) -> str:
        return self.constant(self.random.normal(0, 0.2, (inputs, outputs)).astype(np.float32), "float.weight")

    def heads(self, x: str, order=(0, 2, 1, 3)) -> str:
        size = self.width // HEADS
        shape = self.constant(np.array([2, self.length, HEADS, size], np.int64))
        return self.op("Transpose", self.op("Reshape", x, shape), perm=list(order))

    def attention(self, softmax: bool = True, output: bool = True, scale_scores: bool = False, zero=ZERO) -> str:
        x = self.qdq("x", zero=zero)
        w = [self.weight(self.width, self.width) for _ in range(3)]
        q, k, v = (self.linear(x, each) for each in w)
        q = self.heads(q)
        if not scale_scores:
            q = self.op("Mul", q, self.constant(np.float32(0.25)))
        scores = self.op(
            "MatMul", self.qdq(q, 0.03, zero), self.qdq(self.heads(k, (0, 2, 3, 1)), 0.04, zero), name="scores"
        )
        if scale_scores:
            scores = self.op("Div", scores, self.constant(np.float32(4)))
        weights = self.op("Softmax", scores, axis=-1)
        if softmax:
            weights = self.qdq(weights, 1 / 127, zero)
        values = self.qdq(self.heads(v), 0.05, zero)
        context = self.op("Transpose", self.op("MatMul", weights, values), perm=[0, 2, 1, 3])
        flat = self.op("Reshape", context, self.constant(np.array([2, self.length, self.width], np.int64)))
        return self.linear(self.qdq(flat, 0.06, zero), self.weight(self.width, self.width)) if output else flat

    def model(self, output: str, opset: int = 20, rank: int = 3) -> onnx.ModelProto:
        """Return the model from x to `output`; constants and operator domains that no node reads are left out."""
        graph = self.graph(output, [("x", TensorProto.FLOAT, [2, self.length, self.width])], rank)
        domains = {node.domain for node in self.nodes} - {""}
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(each, 1) for each in sorted(domains))]
        return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=self.functions)

    def graph(self, output: str, inputs: list[tuple], rank: int = 3) -> onnx.GraphProto:
        """Return the graph from `inputs` to `output`, for a model or for the body of an If, a Loop or a Scan."""
        bodies = [a.g for node in self.nodes for a in node.attribute if a.HasField("g")]
        used = {
            name for nodes in (self.nodes, *(body.node for body in bodies)) for node in nodes for name in node.input
        }
        initializers = [numpy_helper.from_array(a, n) for n, a in self.constants.items() if n in used]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", "row", "column"][:rank])]
        infos = [helper.make_tensor_value_info(*each) for each in inputs]
        return helper.make_graph(self.nodes, "tiny", infos, outputs, initializers)
