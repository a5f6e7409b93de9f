"""Small ONNX files for the linter: products that stand elsewhere or are written otherwise than as Q/DQ and MatMul."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.lint.files import FILES, MICROSOFT, WIDTH, ZEROS, constant, file, flat, weight
from benchmarks.lint.layers import image
from tests.engine.graphs import LENGTH, Graph


def attention_file(kind: str, **options: bool) -> Callable[[], onnx.ModelProto]:
    """Return the maker of softmax(Q K^T) V of two heads with its Q/DQ; scaled before Q."""

    def make() -> onnx.ModelProto:
        g = Graph()
        return g.model(g.op("Relu", g.attention(zero=ZEROS[kind], **options)))

    return make


for _kind in ("int8", "uint8"):
    FILES[f"{_kind} attention"] = attention_file(_kind)
    FILES[f"{_kind} attention, float softmax"] = attention_file(_kind, softmax=False)
FILES["int8 attention, scores scaled"] = attention_file("int8", scale_scores=True)
FILES["int8 attention, output float"] = attention_file("int8", output=False)


def operator_attention(kind: str) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        g = Graph()
        q, k, v = (g.qdq(g.heads("x"), scale, ZEROS[kind]) for scale in (0.02, 0.03, 0.04))
        y = g.op("Attention", q, k, v, name="attention")
        return g.model(g.op("Reshape", y, g.constant(np.array([2, LENGTH, WIDTH], np.int64))), 23)

    return make


@file("softmax of uint8 without zero point x uint8, zero point 141")
def unsigned_moved_context() -> onnx.ModelProto:
    g = Graph()
    weights = g.qdq(g.op("Softmax", "x", axis=-1), 1 / 255, np.uint8(0))
    return g.model(g.op("MatMul", weights, g.qdq("x", zero=np.uint8(141)), name="context"))


@file("int8 x int8, two activations, fp16")
def half_activations() -> onnx.ModelProto:
    g = Graph()
    x = g.op("Cast", "x", to=TensorProto.FLOAT16)
    grid = [g.constant(np.float16(0.02)), g.constant(np.int8(0))]
    sides = [x, g.op("Transpose", x, perm=[0, 2, 1])]
    sides = [g.op("DequantizeLinear", g.op("QuantizeLinear", side, *grid), *grid) for side in sides]
    return g.model(g.op("Cast", g.op("MatMul", *sides, name="scores"), to=TensorProto.FLOAT))


@file("softmax of uint8 without zero point x uint8")
def unsigned_context() -> onnx.ModelProto:
    g = Graph()
    weights = g.qdq(g.op("Softmax", "x", axis=-1), 1 / 255, np.uint8(0))
    return g.model(g.op("MatMul", weights, g.qdq("x", zero=ZEROS["uint8"]), name="context"))


def plain_attention(dtype: int, is_quantized: bool) -> Callable[[], onnx.ModelProto]:
    """Return the maker of an Attention operator in fp16 or fp32; Q, K and V differ, else TensorRT-RTX 1.7 crashes."""

    def make() -> onnx.ModelProto:
        g = Graph()
        number = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
        x = g.heads(g.op("Cast", "x", to=dtype))
        sides = [g.op("Mul", x, g.constant(number(factor))) for factor in (1.5, 2.5, 3.5)]
        if is_quantized:
            grid = [g.constant(number(0.02)), g.constant(np.int8(0))]
            sides = [g.op("DequantizeLinear", g.op("QuantizeLinear", side, *grid), *grid) for side in sides]
        y = g.op("Cast", g.op("Attention", *sides, name="attention"), to=TensorProto.FLOAT)
        return g.model(g.op("Reshape", y, g.constant(np.array([2, LENGTH, WIDTH], np.int64))), 23)

    return make


FILES["fp32 Attention of opset 23"] = plain_attention(TensorProto.FLOAT, False)
FILES["fp16 Attention of opset 23"] = plain_attention(TensorProto.FLOAT16, False)
FILES["int8 Attention of opset 23, fp16"] = plain_attention(TensorProto.FLOAT16, True)
FILES["int8 Attention of opset 23"] = operator_attention("int8")
FILES["uint8 Attention of opset 23"] = operator_attention("uint8")


def einsum_file(kind: str, equation: str = "bij,jk->bik") -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        g = Graph()
        return g.model(g.op("Einsum", g.qdq("x", zero=ZEROS[kind]), weight(g), name="einsum", equation=equation))

    return make


FILES["int8 x int8, Einsum"] = einsum_file("int8")
FILES["uint8 x int8, Einsum"] = einsum_file("uint8")


@file("Einsum of three")
def einsum_of_three() -> onnx.ModelProto:
    g = Graph()
    x = g.qdq("x", zero=ZEROS["uint8"])
    return g.model(g.op("Einsum", x, weight(g), weight(g), name="einsum", equation="bij,jk,kl->bil"))


def branch_file(kind: str) -> Callable[[], onnx.ModelProto]:
    """Return the maker of an If with a quantized layer in one branch."""

    def make() -> onnx.ModelProto:
        g, left, right = Graph(), Graph(), Graph()
        then = left.graph(left.linear(left.qdq("x", zero=ZEROS[kind]), weight(left)), [])
        other = right.graph(right.op("Neg", "x"), [])
        for index, body in enumerate((then, other)):
            for node in body.node:
                _rename(node, f"branch{index}_")
            for each in (*body.initializer, *body.output):
                each.name = f"branch{index}_{each.name}"
        mean = g.op("ReduceMean", "x", keepdims=0)
        flag = g.op("Greater", mean, g.constant(np.float32(0)))
        return g.model(g.op("If", flag, name="if", then_branch=then, else_branch=other))

    return make


def _rename(node: onnx.NodeProto, prefix: str) -> None:
    node.name = prefix + node.name
    for names in (node.input, node.output):
        names[:] = [name if name == "x" or not name else prefix + name for name in names]


FILES["int8 x int8, If branch"] = branch_file("int8")
FILES["uint8 x int8, If branch"] = branch_file("uint8")


@file("uint8 x int8, Loop body")
def loop() -> onnx.ModelProto:
    g, body = Graph(), Graph()
    y = body.linear(body.qdq("state", zero=ZEROS["uint8"]), weight(body))
    body.op("Identity", "go", name="still")
    inputs = [
        ("i", TensorProto.INT64, []),
        ("go", TensorProto.BOOL, []),
        ("state", TensorProto.FLOAT, [2, LENGTH, WIDTH]),
    ]
    graph = body.graph(y, inputs)
    graph.output.insert(0, helper.make_tensor_value_info(body.nodes[-1].output[0], TensorProto.BOOL, []))
    _prefix_body(graph, "body_", {"i", "go", "state"})
    count, go = g.constant(np.int64(3)), g.constant(np.asarray(True))
    return g.model(g.op("Loop", count, go, "x", name="loop", body=graph))


@file("uint8 x int8, Scan body")
def scan() -> onnx.ModelProto:
    g, body = Graph(), Graph()
    y = body.linear(body.qdq("row", zero=ZEROS["uint8"]), weight(body))
    graph = body.graph(y, [("row", TensorProto.FLOAT, [LENGTH, WIDTH])], 2)
    _prefix_body(graph, "body_", {"row"})
    return g.model(g.op("Scan", "x", name="scan", body=graph, num_scan_inputs=1))


def _prefix_body(graph: onnx.GraphProto, prefix: str, kept: set[str]) -> None:
    for node in graph.node:
        node.name = prefix + node.name
        for names in (node.input, node.output):
            names[:] = [name if name in kept or not name else prefix + name for name in names]
    for each in (*graph.initializer, *graph.output):
        each.name = prefix + each.name


def function_file(kind: str, nested: bool = False) -> Callable[[], onnx.ModelProto]:
    """Return the maker of a linear layer inside a local function (or one in another)."""

    def make() -> onnx.ModelProto:
        g = Graph()
        zero = ZEROS[kind]
        scale, point = g.constant(np.float32(0.02)), g.constant(zero)
        inner = [
            helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], name="fq"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="fdq"),
            helper.make_node("MatMul", ["d", "w"], ["y"], name="fproduct"),
        ]
        opsets = [helper.make_opsetid("", 20)]
        names = ["a", "s", "z", "w"]
        g.functions.append(helper.make_function("local", "Layer", names, ["y"], inner, opsets))
        called = "Layer"
        if nested:
            outer = [helper.make_node("Layer", names, ["y"], name="call", domain="local")]
            opsets = [*opsets, helper.make_opsetid("local", 1)]
            g.functions.append(helper.make_function("local", "Outer", names, ["y"], outer, opsets))
            called = "Outer"
        return g.model(g.op(called, "x", scale, point, weight(g), domain="local"))

    return make


FILES["int8 x int8, local function"] = function_file("int8")
FILES["uint8 x int8, local function"] = function_file("uint8")
FILES["uint8 x int8, function in a function"] = function_file("uint8", nested=True)


@file("com.microsoft Attention")
def microsoft_attention() -> onnx.ModelProto:
    g = Graph()
    w = g.constant(g.random.normal(size=(WIDTH, 3 * WIDTH)).astype(np.float32), "qkv.weight")
    bias = g.constant(np.zeros(3 * WIDTH, np.float32))
    return g.model(
        g.op("Attention", g.qdq("x", zero=ZEROS["uint8"]), w, bias, name="attention", domain=MICROSOFT, num_heads=2)
    )


@file("LSTM with quantized weights")
def lstm() -> onnx.ModelProto:
    g = Graph()
    parts = [g.dq(constant(g, "int8", (1, 4 * WIDTH, WIDTH))) for _ in range(2)]
    g.nodes.append(helper.make_node("LSTM", ["x", *parts], ["all"], name="lstm", hidden_size=WIDTH))
    return g.model(g.op("Reshape", "all", g.constant(np.array([2, LENGTH, WIDTH], np.int64))))


def transpose_file(kind: str) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        g = Graph()
        w = g.dq(constant(g, "int8", (1, 4, 2, 2)), 0.01)
        return flat(g, g.op("ConvTranspose", g.qdq(image(g), zero=ZEROS[kind]), w, name="up", strides=[2, 2]), 4)

    return make


FILES["int8 x int8, ConvTranspose"] = transpose_file("int8")
FILES["uint8 x int8, ConvTranspose"] = transpose_file("uint8")


def product_of_activations(left: str, right: str) -> Callable[[], onnx.ModelProto]:
    """Return the maker of one product of two activations, each of its own type; zero points are in the middle."""

    def make() -> onnx.ModelProto:
        g = Graph()
        other = g.qdq(g.op("Transpose", "x", perm=[0, 2, 1]), 0.03, ZEROS[right])
        return g.model(g.op("MatMul", g.qdq("x", zero=ZEROS[left]), other, name="scores"))

    return make


for _left, _right in (("int8", "int8"), ("uint8", "int8"), ("int8", "uint8"), ("uint8", "uint8")):
    FILES[f"{_left} x {_right}, two activations"] = product_of_activations(_left, _right)


@file("softmax of uint8 without zero point x int8")
def unsigned_softmax() -> onnx.ModelProto:
    g = Graph()
    weights = g.qdq(g.op("Softmax", "x", axis=-1), 1 / 255, np.uint8(0))
    return g.model(g.op("MatMul", weights, g.qdq("x"), name="context"))


@file("an unknown operator")
def unknown() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.op("SecretProduct", g.qdq("x"), weight(g), name="secret", domain="acme"))
