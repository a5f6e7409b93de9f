"""The INT8 truth report: per layer precision, kernel and time, and how much of the products' work runs in INT8.

ONNX Runtime and OpenVINO engines run here with their profilers on; of TensorRT engines the inspector's JSON is read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.backends.onnxruntime.inspect import inspect_ort
from engine.backends.openvino.inspect import inspect_openvino
from engine.backends.tensorrt.inspect import (
    LAYERS_SUFFIX,
    PROFILE_SUFFIX,
    TRACE_SUFFIX,
    inspect_layers,
    layers_from_engine,
)
from engine.cli import UsageError
from engine.inspect.arithmetic import ProductWork, product_work
from engine.inspect.kernel_trace import read_trace
from engine.inspect.layers import UNKNOWN, Inspection, Layer
from engine.lint.report import lint
from engine.manifest import manifest_path, read_manifest
from engine.products import find_products
from engine.run import read_feeds
from engine.shapes import ShapeRange, parse_shapes
from engine.source import read_onnx

RUNS_HERE = {"onnxruntime": inspect_ort, "openvino": inspect_openvino}
WIDEST = 110


def inspect_engine(engine: str, arguments: argparse.Namespace) -> Inspection:
    """Return what an engine runs; a JSON file is taken as TensorRT's inspector wrote it.

    Raises: FileNotFoundError, ValueError, RuntimeError: with what to do.
    """
    if engine.endswith(".json") and Path(engine).is_file():
        return _inspect_trt(engine, None, "tensorrt", {}, arguments)
    if not Path(engine).exists():
        raise FileNotFoundError(f"no engine {engine}; build it with 'python build_engine.py --out {engine}'")
    if not manifest_path(engine).exists() and (arguments.layers or Path(f"{engine}{LAYERS_SUFFIX}").exists()):
        return _inspect_trt(engine, None, "tensorrt", {}, arguments)
    if engine.endswith(".onnx") and not manifest_path(engine).exists():
        raise UsageError(f"{engine} is no engine; 'python -m engine.lint {engine}' says what an ONNX file plans")
    manifest = read_manifest(engine)
    if manifest.backend not in RUNS_HERE:
        return _inspect_trt(
            engine, manifest.versions.get(manifest.backend), manifest.backend, manifest.shapes, arguments
        )
    feeds = read_feeds(arguments.feeds)[0] if arguments.feeds else None
    found = RUNS_HERE[manifest.backend](engine, feeds, arguments.iterations, arguments.threads)
    return _with_product_names(found, arguments.onnx) if arguments.onnx else found


def _with_product_names(found: Inspection, onnx_path: str) -> Inspection:
    """Return the inspection with each product named by its weight in the ONNX file, where the engine names the node."""
    names = {alias: each.name for each in find_products(read_onnx(onnx_path)) for alias in each.aliases}
    layers = []
    for layer in found.layers:
        known = [names[source.split("/")[0]] for source in layer.sources if source.split("/")[0] in names]
        layers.append(replace(layer, name=known[0]) if known and layer.is_product else layer)
    return replace(found, layers=tuple(layers))


def _inspect_trt(
    engine: str,
    version: str | None,
    backend: str,
    shapes: Mapping[str, ShapeRange],
    arguments: argparse.Namespace,
) -> Inspection:
    """Return a TensorRT engine's layers, from files beside it unless others are named."""
    layers = engine if engine.endswith(".json") else _beside(engine, arguments.layers, LAYERS_SUFFIX)
    profile, trace = (
        _beside(engine, *each) for each in ((arguments.profile, PROFILE_SUFFIX), (arguments.trace, TRACE_SUFFIX))
    )
    times = _read_json(profile) if profile else None
    if layers is not None:
        content = _read_json(layers)
    else:
        feeds = read_feeds(arguments.feeds)[0] if arguments.feeds else None
        try:
            content, measured, version = layers_from_engine(engine, backend, feeds, arguments.iterations)
        except RuntimeError as error:
            if not arguments.onnx:
                raise
            return _inspect_unloaded(engine, backend, version, str(error), shapes, arguments)
        times = times if times is not None else measured
        if arguments.save:
            for suffix, found_here in ((LAYERS_SUFFIX, content), (PROFILE_SUFFIX, measured)):
                Path(f"{engine}{suffix}").write_text(json.dumps(found_here, indent=1) + "\n", encoding="utf-8")
    if times is not None and not isinstance(times, list):
        raise ValueError(f"{profile} is no layer profile: it must be the list that trtexec --exportProfile writes")
    works, notes = _what_the_file_says(shapes, arguments) if arguments.onnx else ([], [])
    unasked = {layers: arguments.layers, profile: arguments.profile, trace: arguments.trace}
    notes += [_stale(engine, each) for each, named in unasked.items() if named is None and _is_stale(engine, each)]
    kernels = read_trace(trace) if trace else []
    found = inspect_layers(engine, content, times, works, kernels, version)
    return replace(found, backend=backend, notes=(*found.notes, *notes))


def _inspect_unloaded(
    engine: str, backend: str, version: str | None, why: str, shapes: Mapping[str, ShapeRange],
    arguments: argparse.Namespace,
) -> Inspection:  # fmt: skip
    """Return what can be said of an engine that does not load here: its file's products, all of unknown precision."""
    works, notes = _what_the_file_says(shapes, arguments)
    layers = tuple(
        Layer(work.name, "product", "not loaded", UNKNOWN, macs=work.macs, sources=(work.node,)) for work in works
    )
    return Inspection(engine, backend, version, "not loaded", layers, notes=(why, *notes))


def _what_the_file_says(
    shapes: Mapping[str, ShapeRange], arguments: argparse.Namespace
) -> tuple[list[ProductWork], list[str]]:
    """Return the arithmetic of the ONNX file's products, and the linter's word on it."""
    model = read_onnx(arguments.onnx)
    report = lint(model, "tensorrt")
    notes = [f"engine.lint says of {arguments.onnx}: {report.summary()}"]
    notes += [
        f"{each.level} {each.rule} in {len(each.nodes)} places" for each in report.findings if each.level != "note"
    ]
    return product_work(model, parse_shapes(arguments.shapes) or shapes), notes


def _is_stale(engine: str, beside: str | None) -> bool:
    """Whether a file that was found beside an engine by its name was there before the engine."""
    paths = [Path(engine), Path(beside or engine)]
    return all(each.is_file() for each in paths) and paths[1].stat().st_mtime_ns < paths[0].stat().st_mtime_ns


def _stale(engine: str, beside: str | None) -> str:
    return (
        f"{beside} is older than {engine}, and so perhaps of an earlier build: remove it, or name it if it belongs here"
    )


def _beside(engine: str, given: str | None, suffix: str) -> str | None:
    if given is not None:
        return given
    return f"{engine}{suffix}" if Path(f"{engine}{suffix}").is_file() else None


def _read_json(path: str) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8", errors="strict"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); export it again") from None
