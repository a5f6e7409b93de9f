"""Where the layers of a TensorRT engine are read: in files beside it or named, or of the engine itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.backends.tensorrt.inspect import (
    LAYERS_SUFFIX,
    PROFILE_SUFFIX,
    TRACE_SUFFIX,
    inspect_layers,
    layers_from_engine,
)
from engine.inspect.arithmetic import ProductWork, product_work
from engine.inspect.kernel_trace import read_trace
from engine.inspect.layers import UNKNOWN, Inspection, InspectRequest, Layer
from engine.lint.report import lint
from engine.manifest import Manifest, manifest_path
from engine.shapes import ShapeRange
from engine.source import read_onnx


def is_foreign_engine(engine: str, request: InspectRequest) -> bool:
    """Whether a file is the inspector's JSON, or an engine without a manifest of ours whose JSON is at hand."""
    if engine.endswith(".json"):
        return Path(engine).is_file()
    has_layers = request.layers is not None or Path(f"{engine}{LAYERS_SUFFIX}").exists()
    return Path(engine).exists() and not manifest_path(engine).exists() and has_layers


def inspect_trt(engine: str, backend: str, manifest: Manifest | None, request: InspectRequest) -> Inspection:
    """Return a TensorRT engine's layers, from files beside it unless others are named.

    Args: manifest: None for an engine that this project has not built.
    Raises: FileNotFoundError, ValueError, RuntimeError: with what to do.
    """
    version = manifest.versions.get(backend) if manifest else None
    shapes = request.shapes or (manifest.shapes if manifest else {})
    layers = engine if engine.endswith(".json") else _beside(engine, request.layers, LAYERS_SUFFIX)
    profile, trace = (
        _beside(engine, *each) for each in ((request.profile, PROFILE_SUFFIX), (request.trace, TRACE_SUFFIX))
    )
    times = _read_json(profile) if profile else None
    if layers is not None:
        content = _read_json(layers)
    else:
        try:
            content, measured, version = layers_from_engine(engine, backend, request.feeds, request.iterations)
        except RuntimeError as error:
            if not request.onnx:
                raise
            return _inspect_unloaded(engine, backend, version, str(error), request.onnx, shapes)
        times = times if times is not None else measured
        if request.save:
            for suffix, found_here in ((LAYERS_SUFFIX, content), (PROFILE_SUFFIX, measured)):
                Path(f"{engine}{suffix}").write_text(json.dumps(found_here, indent=1) + "\n", encoding="utf-8")
    if times is not None and not isinstance(times, list):
        raise ValueError(f"{profile} is no layer profile: it must be the list that trtexec --exportProfile writes")
    works, notes = _what_the_file_says(request.onnx, shapes) if request.onnx else ([], [])
    unasked = {layers: request.layers, profile: request.profile, trace: request.trace}
    notes += [_stale(engine, each) for each, named in unasked.items() if named is None and _is_stale(engine, each)]
    kernels = read_trace(trace) if trace else []
    found = inspect_layers(engine, content, times, works, kernels, version)
    return replace(found, backend=backend, notes=(*found.notes, *notes))


def _inspect_unloaded(
    engine: str, backend: str, version: str | None, why: str, onnx_path: str, shapes: Mapping[str, ShapeRange]
) -> Inspection:
    """Return what can be said of an engine that does not load here: its file's products, all of unknown precision."""
    works, notes = _what_the_file_says(onnx_path, shapes)
    layers = tuple(
        Layer(work.name, "product", "not loaded", UNKNOWN, macs=work.macs, sources=(work.node,)) for work in works
    )
    return Inspection(engine, backend, version, "not loaded", layers, notes=(why, *notes))


def _what_the_file_says(onnx_path: str, shapes: Mapping[str, ShapeRange]) -> tuple[list[ProductWork], list[str]]:
    """Return the arithmetic of the ONNX file's products, and the linter's word on it."""
    model = read_onnx(onnx_path)
    report = lint(model, "tensorrt")
    notes = [f"engine.lint says of {onnx_path}: {report.summary()}"]
    notes += [
        f"{each.level} {each.rule} in {len(each.nodes)} places" for each in report.findings if each.level != "note"
    ]
    return product_work(model, shapes), notes


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
