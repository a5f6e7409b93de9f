"""What an OpenVINO engine runs: its runtime graph, and the performance counters of a run."""

from __future__ import annotations

import io
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.backends.openvino.backend import BACKEND, INT8_PRECISIONS, PRODUCT_LAYERS, compile_config, reads_floats
from engine.inspect.layers import INT8, Inspection, InspectRequest, Layer, precision_of
from engine.inspect.product_names import with_product_names
from engine.made_feeds import batch_of, fit_feeds, in_words, make_feeds
from engine.manifest import check_loadable, read_manifest

WARMUP = 3
KINDS = {
    "FullyConnected": "product", "MatMul": "product", "Convolution": "product", "GroupConvolution": "product",
    "ScaledDotProductAttention": "attention", "Convert": "reformat", "Reorder": "reformat", "FakeQuantize": "reformat",
    "MVN": "norm", "RMS": "norm", "Softmax": "softmax", "Gather": "lookup", "Reshape": "move", "Transpose": "move",
    "Concatenation": "move", "StridedSlice": "move", "Split": "move", "Broadcast": "move", "ShapeOf": "move",
    "Eltwise": "elementwise", "Subgraph": "elementwise", "Math": "elementwise",
}  # fmt: skip


def inspect_openvino(engine: str | Path, request: InspectRequest) -> Inspection:
    """Return the layers of an engine with the median times of `request.iterations` calls with counters on.

    Raises: what loading an engine raises; ValueError: if the feeds do not fit.
    """
    import openvino

    manifest = read_manifest(engine)
    feeds, iterations, threads = request.feeds, request.iterations, request.threads or manifest.threads
    version = BACKEND.version() or ""
    check_loadable(engine, manifest, BACKEND.info, version)
    config = {**compile_config(manifest.precision, threads, manifest.saturation), "PERF_COUNT": True}
    compiled = openvino.Core().import_model(io.BytesIO(Path(engine).read_bytes()), "CPU", config)
    inputs = {
        each.any_name: (
            np.dtype(each.element_type.to_dtype()),
            tuple(dim.get_length() if dim.is_static else None for dim in each.partial_shape),
        )
        for each in compiled.inputs
    }
    fed = fit_feeds(feeds, inputs, batch_of(manifest.shapes)) if feeds else make_feeds(inputs, manifest.shapes)
    infer = compiled.create_infer_request()
    times: dict[str, list[float]] = defaultdict(list)
    call_ms = []
    for call in range(WARMUP + iterations):
        start = time.perf_counter()
        infer.infer(fed)
        if call >= WARMUP:
            call_ms.append((time.perf_counter() - start) * 1e3)
            for info in infer.get_profiling_info():
                times[info.node_name].append(info.real_time.total_seconds() * 1e3)
    free = _free_sizes(fed)
    layers = [
        layer for op in compiled.get_runtime_model().get_ordered_ops() if (layer := _layer(op, times, free)) is not None
    ]
    is_dynamic = any(size is None for _, sizes in inputs.values() for size in sizes)
    notes = (
        ("sizes that the engine leaves free are taken from the feeds: batch first, then length",) if is_dynamic else ()
    )
    made = "" if feeds else ", made-up numbers"
    conditions = f"{in_words(fed)}{made}; median of {iterations} calls, {threads or 'all'} threads"
    found = Inspection(
        str(engine), BACKEND.name, version, conditions, tuple(layers), float(np.median(call_ms)), notes=notes
    )
    return with_product_names(found, request.onnx)


def _free_sizes(feeds: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Return (batch, length) of the feeds, for axes that a dynamic engine leaves free."""
    shapes = [x.shape for x in feeds.values() if x.ndim]
    batch = shapes[0][0] if shapes else 1
    return batch, next((shape[1] for shape in shapes if len(shape) == 2), 1)


def _layer(op: Any, times: Mapping[str, list[float]], free: tuple[int, int]) -> Layer | None:
    info = op.get_rt_info()
    texts = {key: info[key].astype(str) for key in info}
    type_, name = texts.get("layerType", op.get_type_name()), op.get_friendly_name()
    if type_ in ("Const", "Input", "Parameter", "Output", "Result"):
        return None
    given = [_sizes(each.get_partial_shape(), free) for each in op.inputs()]
    made = _sizes(op.output(0).get_partial_shape(), free)
    kind = KINDS.get(type_, "other")
    if kind == "elementwise" and type_ == "Subgraph" and len(made) == 4 and sum(len(x) == 4 for x in given) >= 3:
        kind = "attention"  # Q, K and V of four axes into one operator
    precision = texts.get("runtimePrecision", "unknown")
    if type_ in PRODUCT_LAYERS and precision in INT8_PRECISIONS and reads_floats(op):
        precision = "f32"  # its weights alone are INT8
    sources = tuple(filter(None, texts.get("originalLayersNames", "").split(",")))
    return Layer(
        name=name,
        kind=kind,
        type=type_,
        precision=INT8 if precision in INT8_PRECISIONS else precision_of(precision),
        kernel=texts.get("primitiveType"),
        time_ms=float(np.median(times[name])) if name in times else None,
        macs=_macs(type_, kind, given, made),
        sources=sources or (name,),
    )


def _sizes(shape: Any, free: tuple[int, int]) -> list[int]:
    if shape.rank.is_dynamic:
        return []
    return [dim.get_length() if dim.is_static else free[0 if axis == 0 else 1] for axis, dim in enumerate(shape)]


def _macs(type_: str, kind: str, given: list[list[int]], made: list[int]) -> int | None:
    """Return multiply-accumulates: elements of the output times the length of each sum, twice for attention."""
    if kind not in ("product", "attention") or not given or not given[0]:
        return None
    outputs = math.prod(made)
    if kind == "attention":
        mask = next((x for x in given if len(x) == 4 and 1 in x[1:3]), None)
        return 2 * outputs * (mask or given[1])[-1]  # the keys' length: of a mask's last axis, else of K transposed
    if "Convolution" in type_:
        return outputs * math.prod(given[1][1:])
    return outputs * given[0][-1]
