"""What each consumer really does with a small ONNX file, asked without a GPU: refuses it, or which products it runs in
INT8, and whether its numbers are those of the file as written.

ONNX Runtime tells it by its optimized graph, OpenVINO by its runtime model, TensorRT-RTX by the plan that it builds.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.gpu.myelin import instructions
from engine.backends.onnxruntime.backend import INT8_OPS, plain_session
from engine.products import FLOAT_PRODUCTS, HIDING_OPS, INTEGER_PRODUCTS, Product
from engine.shapes import ShapeRange

CONSUMERS = ("onnxruntime", "openvino", "tensorrt")  # as the linter calls them; the third is asked as TensorRT-RTX
OPENVINO_PRODUCTS = (
    "FullyConnected",
    "MatMul",
    "Convolution",
    "GroupConvolution",
    "Deconvolution",
    "RNNSeq",
    "RNNCell",
)
OPENVINO_FUSED = ("Subgraph", "ScaledDotProductAttention")
OPENVINO_BODIES = ("If", "Loop", "TensorIterator")  # the runtime model shows no layer inside
# Share of the largest output by which a consumer may differ from the file as written: one step of an INT8 output
# (1/127) and another order of sums. Wrong scales are off by tenths.
NUMBERS = 0.03


@dataclass(frozen=True)
class Layer:
    """One multiplication of a consumer: the names it bears, and whether both its factors are INT8."""

    names: frozenset[str]
    is_int8: bool
    is_fused: bool = False  # one operator that may hold other things, or several products


@dataclass(frozen=True)
class Seen:
    """What a consumer did with a file."""

    refused: str | None = None  # in its own words
    layers: tuple[Layer, ...] = ()
    has_bodies: bool = False  # parts of it are not shown
    are_numbers_right: bool | None = None  # None: it cannot be run here

    def runs_in_int8(self, products: list[Product]) -> list[bool | None]:
        """Return for each product whether it runs in INT8, None where the consumer does not tell.

        One operator that reads INT8 and holds a whole attention (OpenVINO's on a CPU with AVX512) multiplies in INT8
        what the file has in INT8: behind a float softmax its second product is float.
        """
        own = [[] if p.name.endswith("/scores") else self._named(p, products) for p in products]
        left = [layer for layer in self.layers if not layer.is_fused and not any(layer in layers for layers in own)]
        if not left:  # one operator that holds both products of attention
            own = [found or self._named(p, products) for found, p in zip(own, products, strict=True)]
        rest = {layer.is_int8 for layer in left}
        only = rest.pop() if len(rest) == 1 and not self.has_bodies else None
        return [all(layer.is_int8 and (p.is_int8 or not layer.is_fused) for layer in layers) if layers else only
                for p, layers in zip(products, own, strict=True)]  # fmt: skip

    def _named(self, product: Product, products: list[Product]) -> list[Layer]:
        others = frozenset().union(*(each.aliases for each in products if each is not product))
        for names in (product.aliases, product.readers - others):  # an Add behind it gives a fused layer its name
            for is_fused in (False, True):
                found = [layer for layer in self.layers if layer.is_fused == is_fused and names & layer.names]
                if found:
                    return found
        return []


def feeds_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return made-up numbers for a file's inputs, 4 where a size is free; so small that no sum in 16 bits saturates."""
    random, feeds = np.random.default_rng(0), {}
    for each in model.graph.input:
        size = [dim.dim_value or 4 for dim in each.type.tensor_type.shape.dim]
        is_float = each.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        feeds[each.name] = random.normal(0, 0.35, size).astype(np.float32) if is_float else random.integers(0, 4, size)
    return feeds


def ask_onnxruntime(model: onnx.ModelProto) -> Seen:
    """Return what ONNX Runtime's CPU provider does with all its own optimizations, and nothing of ours."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            outputs = session.run(None, feeds_of(model))
        except Exception as error:  # its errors derive from Exception alone
            return Seen(_line(error))
        graph = onnx.load(options.optimized_model_filepath).graph
    products = {*FLOAT_PRODUCTS, *INTEGER_PRODUCTS, *INT8_OPS, *HIDING_OPS}
    layers = [
        Layer(frozenset({n.name, n.name.split("/")[0], *n.output}), n.op_type in INT8_OPS)
        for n in _nodes(graph)
        if n.op_type in products
    ]
    return Seen(None, tuple(layers), False, _are_right(model, outputs[0]))


def ask_openvino(model: onnx.ModelProto) -> Seen:
    """Return what OpenVINO's CPU plugin does, everything that is not INT8 in fp32."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        core = openvino.Core()
        try:
            config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
            compiled = core.compile_model(core.read_model(path), "CPU", config)
            outputs = compiled(feeds_of(model))
        except RuntimeError as error:
            return Seen(_line(error))
    layers, has_bodies = [], False
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind = info["layerType"].astype(str)
        has_bodies |= kind in OPENVINO_BODIES
        if kind in (*OPENVINO_PRODUCTS, *OPENVINO_FUSED):
            names = {name.split("/")[0] for name in info["originalLayersNames"].astype(str).split(",")}
            read = [each.get_source_output().get_element_type().get_type_name() for each in node.inputs()[:2]]
            is_int8 = all(each in ("i8", "u8") for each in read)
            layers.append(Layer(frozenset(names), is_int8, kind in OPENVINO_FUSED))
    return Seen(None, tuple(layers), has_bodies, _are_right(model, outputs[0]))


def ask_tensorrt(model: onnx.ModelProto) -> Seen:
    """Return what TensorRT-RTX's parser and builder do; its engines run on a GPU alone."""
    from engine.backends.tensorrt.builder import build_engine, load_module, make_logger
    from engine.backends.tensorrt.options import TensorRTOptions

    trt = load_module("tensorrt_rtx")
    content = model.SerializeToString()
    try:
        options, shapes = TensorRTOptions(), profile_of(model)
        engine = build_engine(trt, content, "model.onnx", shapes, ["stronglyTyped"], options, make_logger(trt))
    except RuntimeError as error:
        return Seen(_line(error))
    layers = [
        Layer(frozenset(name.split(" | ")[0] for name in each.layers), all(t == "int8" for t in each.factors))
        for each in instructions(bytes(engine))
        if each.is_product
    ]
    return Seen(None, tuple(layers), False, None)


def profile_of(model: onnx.ModelProto) -> dict[str, ShapeRange]:
    """Return the optimization profile of the inputs with free sizes: the shapes of `feeds_of`."""
    free = [i.name for i in model.graph.input if any(not d.HasField("dim_value") for d in i.type.tensor_type.shape.dim)]
    feeds = feeds_of(model)
    return {name: ShapeRange(*[feeds[name].shape] * 3) for name in free}


ASK: dict[str, Callable[[onnx.ModelProto], Seen]] = {
    "onnxruntime": ask_onnxruntime, "openvino": ask_openvino, "tensorrt": ask_tensorrt,
}  # fmt: skip


class Consumers:
    """The consumers in a process of their own: a file on which one of them crashes counts as refused."""

    def __init__(self) -> None:
        self._pipe: Any = None
        self._process: Any = None

    def __enter__(self) -> Consumers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def ask(self, consumer: str, model: onnx.ModelProto) -> Seen:
        """Return what a consumer does with a file."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")  # TensorRT-RTX and OpenVINO do not outlive a fork
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        try:
            self._pipe.send((consumer, model.SerializeToString()))
            return self._pipe.recv()
        except (EOFError, OSError):
            self._stop()
            return Seen("it crashed")

    def _stop(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.join(5)
            self._process.kill()
            self._process = None


def _serve(pipe: Any) -> None:
    while True:
        try:
            consumer, content = pipe.recv()
        except EOFError:
            return
        pipe.send(ASK[consumer](onnx.ModelProto.FromString(content)))


def _are_right(model: onnx.ModelProto, output: np.ndarray) -> bool:
    """Return whether an output is that of the file as written, and that one is finite and depends on the input."""
    feeds = feeds_of(model)
    try:
        session = plain_session(model.SerializeToString())
        wanted, other = (session.run(None, {k: (f * x).astype(x.dtype) for k, x in feeds.items()})[0] for f in (1, 0.5))
    except Exception:  # ONNX Runtime has no kernel for the file: it cannot be said
        return True
    largest = float(np.abs(wanted).max())
    if not np.isfinite(wanted).all() or np.array_equal(wanted, other):
        return False
    return bool(np.abs(np.asarray(output) - wanted).max() <= NUMBERS * max(largest, 1e-6))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
