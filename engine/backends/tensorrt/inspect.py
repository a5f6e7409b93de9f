"""What a TensorRT engine runs, as far as it tells: the inspector's JSON of 8.5 to 11, times, a kernel trace.

The JSON lies beside the engine (ENGINE.layers.json), is given itself, or is asked of the engine where it can be loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.backend import get_backend
from engine.inspect.arithmetic import ProductWork
from engine.inspect.kernel_trace import Kernel, product_summary
from engine.inspect.layers import INT8, UNKNOWN, Inspection, Layer
from engine.made_feeds import fit_feeds, make_feeds

LAYERS_SUFFIX, PROFILE_SUFFIX, TRACE_SUFFIX = ".layers.json", ".profile.json", ".kernels.json"
# Order decides: the first pattern found in a tensor's format or in a tactic's name.
TENSOR_TYPES = ((INT8, r"\bu?int8\b"), ("fp8", r"fp8"), ("bf16", r"bf16|bfloat16"), ("fp16", r"fp16|half"),
                ("fp32", r"fp32|float"), ("int32", r"int32"), ("int64", r"int64"), ("bool", r"bool"))  # fmt: skip
PRODUCT_TYPES = re.compile(r"conv|gemm|matrixmultiply|fullyconnected|matmul", re.I)
# Not "attention": that stands in the names of its linear layers too.
ATTENTION = re.compile(r"(?<![a-z])f?mha(?![a-z])|flash", re.I)
KINDS = (
    ("reformat", re.compile(r"reformat|quantize|scale$|cast|copynode", re.I)),
    ("norm", re.compile(r"norm", re.I)),
    ("softmax", re.compile(r"softmax", re.I)),
    ("lookup", re.compile(r"gather|embedding", re.I)),
    ("move", re.compile(r"shuffle|noop|constant|slice|concat|shape|move|transpose|reshape|identity", re.I)),
    ("elementwise", re.compile(r"elementwise|pointwise|pwgen|activation|unary|select|kgen|reduce", re.I)),
)
ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def inspect_layers(
    engine: str | Path,
    content: Any,
    profile: Sequence[dict[str, Any]] | None = None,
    works: Iterable[ProductWork] = (),
    kernels: Sequence[Kernel] = (),
    version: str | None = None,
) -> Inspection:
    """Return the layers of the inspector's JSON.

    Args:
        content: the parsed JSON: an object with Layers, or the list of layers itself; plain names where the engine was
            built without detailed verbosity.
        profile: entries of `trtexec --exportProfile`, with name and medianMs or averageMs.
        works: the arithmetic of the ONNX file's products, for layers that do not tell theirs.
        kernels: a trace of the engine's run.
    Raises: ValueError: if the JSON is not the inspector's.
    """
    entries = content.get("Layers") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(each, (dict, str)) for each in entries) or not entries:
        raise ValueError(f"{engine}: this JSON holds no list of Layers; export it by the engine inspector (trtexec "
                         "--exportLayerInfo=FILE --profilingVerbosity=detailed)")  # fmt: skip
    times = {str(each["name"]): float(each.get("medianMs", each.get("averageMs", 0.0)))
             for each in profile or () if isinstance(each, dict) and "name" in each}  # fmt: skip
    by_source = {key: work for work in works for key in (work.node, work.output, work.name)}
    layers = [_layer(each, times, by_source) for each in entries]
    layers = _fill_hidden(layers, list(by_source.values()))
    notes = []
    if any(isinstance(each, str) for each in entries):
        notes.append(
            "the engine was built without detailed profiling verbosity: only names are known, precisions are not"
        )
    if any(layer.kind == "myelin" for layer in layers):
        notes.append(
            "TensorRT hides whole regions in Myelin nodes: their kernels and precisions are unknown to the inspector"
        )
    notes += _what_the_trace_says(kernels, any(layer.kind == "myelin" for layer in layers))
    conditions = "times of the profiler" if times else "no times: give --profile FILE (trtexec --exportProfile=FILE)"
    return Inspection(str(engine), "tensorrt", version, conditions, tuple(layers), notes=tuple(notes))


def layers_from_engine(
    engine: str | Path, backend: str, feeds: Mapping[str, np.ndarray] | None, iterations: int
) -> tuple[Any, list[dict[str, Any]], str]:
    """Return (the inspector's JSON, its layers' times on these or made-up feeds, the version) of an engine that runs
    here.

    Raises: RuntimeError: if it does not, with the reason and what else would help.
    """
    beside = f"{Path(engine).name}{LAYERS_SUFFIX}"
    other = f"give the inspector's JSON with --layers FILE, or put it beside the engine as {beside}"
    if backend == "tensorrt_rtx":
        where = "a TensorRT-RTX engine can be deserialized only on an RTX GPU (compute capability 7.5, 8.x, 12.x)"
    else:
        where = "a TensorRT engine can be deserialized only by the version and GPU that it was built for"
    try:
        trt_backend = get_backend(backend)
        with trt_backend.load(engine) as runner:
            content = json.loads(runner.layer_information())  # type: ignore[attr-defined]
            size = runner.batch_size or 1
            own = fit_feeds(feeds, runner.inputs, size) if feeds else make_feeds(runner.inputs, runner.shapes)
            return content, runner.profile(own, iterations), str(trt_backend.version())  # type: ignore[attr-defined]
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise RuntimeError(f"what {engine} runs is unknown here: {where} ({reason}); {other}") from None


def _layer(entry: dict[str, Any] | str, times: dict[str, float], works: dict[str, ProductWork]) -> Layer:
    if isinstance(entry, str):
        entry = {"Name": entry}
    name, type_ = str(entry.get("Name", "")), str(entry.get("LayerType", ""))
    tactic = str(entry.get("TacticName") or "") or None
    sources = tuple(ONNX_LAYER.findall(str(entry.get("Metadata", "")))) or tuple(name.split(" + "))
    kind = _kind(name, type_, tactic)
    inputs, outputs = entry.get("Inputs") or [], entry.get("Outputs") or []
    found = {work.node: work for source in sources if (work := works.get(source)) is not None}
    if found and kind not in ("product", "attention", "myelin"):
        kind = "product"  # Myelin's own names tell nothing, the ONNX layers inside do
    macs = _macs(entry, inputs, outputs) if kind == "product" else None
    if found:
        counted = [work.macs for work in found.values()]
        macs = sum(x for x in counted if x is not None) if None not in counted else macs
    names = tuple(work.name for work in found.values())
    return Layer(
        names[0] if len(names) == 1 else name, kind, type_ or "?", _precision(kind, tactic, entry, inputs), tactic,
        times.get(name), macs, sources, names if len(names) > 1 else None,
    )  # fmt: skip


def _kind(name: str, type_: str, tactic: str | None) -> str:
    if "ForeignNode" in name or type_.lower() == "myelin":
        return "myelin"
    if name.startswith("Reformatting CopyNode") or type_ == "Reformat":
        return "reformat"
    if ATTENTION.search(name) or (tactic and ATTENTION.search(tactic)):
        return "attention"
    if PRODUCT_TYPES.search(type_) or (tactic and PRODUCT_TYPES.search(tactic)):
        return "product"
    words = (type_, name)  # its type first: a name holds those of all the layers that were fused into it
    return next((kind for word in words for kind, pattern in KINDS if pattern.search(word)), "other")


def _precision(kind: str, tactic: str | None, entry: dict[str, Any], inputs: list[Any]) -> str:
    """Return a layer's precision: what its kernel's name says, else its own word, its weights' or its first input's."""
    if kind == "myelin":
        return UNKNOWN
    if tactic and kind in ("product", "attention") and (named := Kernel(tactic, 1, None).precision) != UNKNOWN:
        return named
    words = [str(entry.get("Precision", "")), str((entry.get("Weights") or {}).get("Type", ""))]
    words += [_format_of(each) for each in inputs if isinstance(each, dict)]
    for word in words:
        for precision, pattern in TENSOR_TYPES:
            if word and re.search(pattern, word, re.I):
                return precision
    return UNKNOWN


def _format_of(tensor: dict[str, Any]) -> str:
    """Return the words that hold a tensor's type: one field up to 10, two fields in 11."""
    keys = ("Datatype", "DataType", "Data Type", "Format/Datatype", "Format/DataType", "Format")
    return " ".join(str(tensor[key]) for key in keys if key in tensor)


def _macs(entry: dict[str, Any], inputs: list[Any], outputs: list[Any]) -> int | None:
    """Return multiply-accumulates from a layer's own fields, None where they are dynamic or not told."""
    made = next((each.get("Dimensions") for each in outputs if isinstance(each, dict)), None)
    if not made or min(made) < 1:
        return None
    weights, maps = (entry.get("Weights") or {}).get("Count"), entry.get("OutMaps")
    if weights and maps:
        return math.prod(made) * int(weights) // int(maps)
    given = next((each.get("Dimensions") for each in inputs if isinstance(each, dict)), None)
    return math.prod(made) * given[-1] if given and min(given) > 0 else None


def _fill_hidden(layers: list[Layer], works: list[ProductWork]) -> list[Layer]:
    """Give the one Myelin node the arithmetic of the products that no visible layer has."""
    hidden = [layer for layer in layers if layer.kind == "myelin"]
    if len(hidden) != 1 or not works:
        return layers
    seen = {source for layer in layers if layer is not hidden[0] for source in layer.sources}
    left = {work.node: work for work in works if not {work.node, work.output, work.name} & seen}
    counted = [work.macs for work in left.values()]
    if not counted or None in counted:
        return layers
    macs = sum(x for x in counted if x is not None)
    full = replace(hidden[0], macs=macs, sources=tuple(left), products=tuple(work.name for work in left.values()))
    return [full if layer is hidden[0] else layer for layer in layers]


def _what_the_trace_says(kernels: Sequence[Kernel], is_hidden: bool) -> list[str]:
    if not kernels:
        return ["what they run is unknown without a kernel trace: give --trace FILE"] if is_hidden else []
    sums = product_summary(kernels)
    if not sums:
        return ["the trace names no product kernel"]
    total_ms = sum(time_ms for _, time_ms in sums.values())
    parts = [
        f"{count} in {precision}" + (f" ({100 * time_ms / total_ms:.0f} % of their time)" if total_ms else "")
        for precision, (count, time_ms) in sums.items()
    ]
    return [f"the kernel trace shows product kernels by their names: {', '.join(parts)}"]
