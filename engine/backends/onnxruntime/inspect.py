"""What an ONNX Runtime engine runs: its optimized graph, and the times of a profiled run."""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engine.backends.onnxruntime.backend import BACKEND, DTYPES, INT8_OPS, make_session_options
from engine.inspect.layers import INT8, Inspection, InspectRequest, Layer, precision_of
from engine.inspect.product_names import with_product_names
from engine.made_feeds import batch_of, fit_feeds, in_words, make_feeds
from engine.manifest import check_loadable, read_manifest
from engine.products import readable

WARMUP = 3
FUSION_SUFFIXES = ("/MatMulScaleFusion/", "/MatMulAddFusion")
KINDS = {
    "product": ("MatMul", "Gemm", "Conv", "FusedMatMul", "FusedGemm", "FusedConv", "NhwcFusedConv", *INT8_OPS),
    "attention": ("Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention"),
    "reformat": ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "ReorderInput",
                 "ReorderOutput"),
    "norm": ("LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization",
             "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization", "BatchNormalization"),
    "softmax": ("Softmax",),
    "lookup": ("Gather", "GatherElements", "GatherND"),
    "move": ("Reshape", "Transpose", "Concat", "Slice", "Split", "Unsqueeze", "Squeeze", "Expand", "Shape", "Identity",
             "Flatten"),
    "elementwise": ("Add", "Sub", "Mul", "Div", "Where", "Gelu", "FastGelu", "BiasGelu", "Relu", "Tanh", "Erf",
                    "Sigmoid", "Pow", "Sqrt", "Neg", "QuickGelu", "BiasSoftmax", "Cos", "Sin", "Equal", "Min", "Max"),
}  # fmt: skip
KIND_OF = {op: kind for kind, ops in KINDS.items() for op in ops} | {"QAttention": "attention"}


def inspect_ort(engine: str | Path, request: InspectRequest) -> Inspection:
    """Return the layers of an engine with the median times of `request.iterations` profiled calls.

    Raises: what loading an engine raises; ValueError: if the feeds do not fit.
    """
    import onnxruntime

    manifest = read_manifest(engine)
    feeds, iterations, threads = request.feeds, request.iterations, request.threads or manifest.threads
    version = BACKEND.version() or onnxruntime.__version__
    check_loadable(engine, manifest, BACKEND.info, version)
    options = make_session_options(threads)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimized
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(engine), options, providers=["CPUExecutionProvider"])
        inputs = {
            each.name: (np.dtype(DTYPES[each.type]), tuple(n if isinstance(n, int) else None for n in each.shape))
            for each in session.get_inputs()
        }
        fed = fit_feeds(feeds, inputs, batch_of(manifest.shapes)) if feeds else make_feeds(inputs, manifest.shapes)
        for _ in range(WARMUP + iterations):
            session.run(None, fed)
        events = json.loads(Path(session.end_profiling()).read_text())
    graph = onnx.load(str(engine), load_external_data=False).graph
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    runs, call_ms = _runs(events)
    layers = [_layer(name, times, event, nodes.get(name), constants) for name, (times, event) in _by_node(runs).items()]
    made = "" if feeds else ", made-up numbers"
    conditions = f"{in_words(fed)}{made}; median of {iterations} calls, {threads or 'all'} threads"
    found = Inspection(str(engine), BACKEND.name, version, conditions, tuple(layers), float(np.median(call_ms)))
    return with_product_names(found, request.onnx)


def _runs(events: list[dict[str, Any]]) -> tuple[list[list[dict[str, Any]]], list[float]]:
    """Return the kernel events of each call after the warm-up, and the calls' milliseconds."""
    calls = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: e["ts"])[WARMUP:]
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    runs = [[k for k in kernels if call["ts"] <= k["ts"] <= call["ts"] + call["dur"]] for call in calls]
    return runs, [call["dur"] / 1e3 for call in calls]


def _by_node(runs: list[list[dict[str, Any]]]) -> dict[str, tuple[list[float], dict[str, Any]]]:
    times: dict[str, list[float]] = defaultdict(list)
    last: dict[str, dict[str, Any]] = {}
    for run in runs:
        for event in run:
            name = event["name"].removesuffix("_kernel_time")
            times[name].append(event["dur"] / 1e3)
            last[name] = event
    return {name: (times[name], last[name]) for name in times}


def _layer(
    name: str, times: list[float], event: dict[str, Any], node: onnx.NodeProto | None, constants: dict[str, tuple]
) -> Layer:
    args = event["args"]
    op = args["op_name"]
    kind = KIND_OF.get(op, "other")
    weight = next((x for x in (node.input if node is not None else ()) if len(constants.get(x, ())) > 1), None)
    given, made = _shapes(args.get("input_type_shape")), _shapes(args.get("output_type_shape"))
    words = [word for word, _ in given] or ["unknown"]
    is_int8 = op in INT8_OPS or (kind == "attention" and op.startswith("Q"))
    return Layer(
        name=readable(weight) if weight and kind == "product" and not weight.startswith("val_") else _plain(name),
        kind=kind,
        type=op,
        precision=INT8 if is_int8 else precision_of(words[0]),
        kernel=f"{op} ({args.get('provider', '').removesuffix('ExecutionProvider')})",
        time_ms=float(np.median(times)),
        macs=_macs(op, given, made, constants.get(weight or "")) if kind == "product" else None,
        sources=(_plain(name),),
    )


def _plain(name: str) -> str:
    """Return a node's name without what ONNX Runtime's own fusions put behind it."""
    for suffix in FUSION_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _shapes(entries: list[dict[str, list[int]]] | None) -> list[tuple[str, list[int]]]:
    return [(word, shape) for entry in entries or [] for word, shape in entry.items()]


def _macs(op: str, given: list, made: list, weight: tuple[int, ...] | None) -> int | None:
    """Return multiply-accumulates: elements of the output times the length of each sum."""
    if not given or not made:
        return None
    outputs = math.prod(made[0][1])
    if "Conv" in op:
        if weight is None and len(given) > 1:  # computed, as by a DequantizeLinear before it
            weight = tuple(given[1][1])
        return None if weight is None else outputs * math.prod(weight[1:])
    return outputs * given[0][1][-1]
