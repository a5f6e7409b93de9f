"""The INT8 truth report: per layer precision, kernel and time, and how much of the products' work runs in INT8.

ONNX Runtime and OpenVINO engines run here with their profilers on; of TensorRT engines the inspector's JSON is read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from engine.arithmetic import ProductWork, product_work
from engine.cli import CommandParser, UsageError, check_positive, print_result, run_command
from engine.inspect_diff import SHOWN_LAYERS, Difference, compare_engines
from engine.inspect_openvino import inspect_openvino
from engine.inspect_ort import inspect_ort
from engine.inspect_trt import LAYERS_SUFFIX, PROFILE_SUFFIX, TRACE_SUFFIX, inspect_layers, layers_from_engine
from engine.kernel_trace import read_trace
from engine.layers import INT8, UNKNOWN, Inspection, Layer, by_kind
from engine.lint import cut_left, lint
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


def as_text(found: Inspection, columns: int, show_all: bool) -> str:
    """Return the report for a terminal of so many columns."""
    version = f" {found.version}" if found.version else ""
    call = f"; a whole call {found.call_ms:.3f} ms" if found.call_ms is not None else ""
    lines = _wrapped(f"{found.engine}: {found.backend}{version}, {found.conditions}{call}", columns)
    lines += _wrapped(found.share.sentence(), columns)
    lines += ["", f"{'kind':<12}{'layers':>7}{'INT8':>6}{'ms':>10}{'share':>7}"]
    total = found.layers_ms
    for kind, layers in by_kind(found.layers).items():
        time_ms = sum(each.time_ms or 0.0 for each in layers)
        timed = f"{time_ms:10.3f}{100 * time_ms / total:5.0f} %" if total else f"{'-':>10}{'-':>7}"
        int8 = f"{sum(each.precision == INT8 for each in layers):6}" if kind in ("product", "attention") else " " * 6
        lines.append(f"{kind:<12}{len(layers):7}{int8}{timed}")
    shown = (
        list(found.layers)
        if show_all
        else sorted(found.products, key=lambda each: -(each.time_ms or 0.0))[:SHOWN_LAYERS]
    )
    if shown:
        lines += [
            "",
            "every layer, in order:"
            if show_all
            else f"slowest of {len(found.products)} products (--all: every layer):",
        ]
        lines += [_layer_line(each, columns) for each in shown]
    left = [] if show_all else [each for each in found.products if each.precision != INT8 and each not in shown]
    left.sort(key=lambda each: -(each.time_ms or 0.0))
    if left and any(each.precision == INT8 for each in found.products):
        lines += ["", "products not in INT8:", *(_layer_line(each, columns) for each in left[:SHOWN_LAYERS])]
        lines += [f"and {len(left) - SHOWN_LAYERS} more"] if len(left) > SHOWN_LAYERS else []
    for note in found.notes:
        lines += ["", *_wrapped(f"note: {note}", columns)]
    return "\n".join(lines)


def _layer_line(layer: Layer, columns: int) -> str:
    timed = f"{layer.time_ms:9.3f}" if layer.time_ms is not None else f"{'-':>9}"
    kernel = (layer.kernel or layer.type).replace(" (CPU)", "")
    room = max(columns - 19, 30)
    half = room * 2 // 5
    return f"{timed} {layer.precision:<8}{kernel[: half - 1]:<{half}} {cut_left(layer.name, room - half - 1)}"


def diff_text(found: Difference, columns: int) -> str:
    """Return a comparison for a terminal of so many columns."""
    lines = []
    for mark, each in (("a", found.first), ("b", found.second)):
        timed = f", {each.layers_ms:.3f} ms in its layers" if each.layers_ms is not None else ", no times"
        lines += _wrapped(f"{mark}: {each.engine} ({each.backend}){timed}; {each.share.sentence()}", columns)
    lines += ["", f"{'kind':<12}{'layers a':>9}{'b':>5}{'ms a':>10}{'b':>9}{'b - a':>9}"]
    for kind in found.kinds:
        lines.append(
            f"{kind.kind:<12}{kind.count[0]:9}{kind.count[1]:5}{kind.time_ms[0]:10.3f}{kind.time_ms[1]:9.3f}{kind.delta_ms:+9.3f}"
        )
    slower = [each for each in found.layers if each.delta_ms > 0][:SHOWN_LAYERS]
    if slower:
        lines += ["", "products that lose most in b:"]
        for layer in slower:
            change = f"{layer.delta_ms:+9.3f} {layer.precision[0]} to {layer.precision[1]}"
            lines.append(f"{change:<24} {cut_left(layer.name, max(columns - 25, 20))}")
    lines.append("")
    for reason in found.reasons or ("nothing in b takes more time than in a",):
        lines += _wrapped(f"b: {reason}", columns)
    return "\n".join(lines)


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, max(columns, 30), subsequent_indent="  ")


def run(arguments: argparse.Namespace) -> None:
    """Print the report of one engine, or the comparison of two."""
    if (arguments.engine is None) == (arguments.diff is None):
        raise UsageError("name one engine, or two with --diff A B")
    check_positive(arguments, "iterations", "threads")
    columns = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
    if arguments.diff is not None:
        difference = compare_engines(*(inspect_engine(each, arguments) for each in arguments.diff))
        row = {"a": _row(difference.first), "b": _row(difference.second), "reasons": difference.reasons,
               "kinds": [asdict(each) for each in difference.kinds],
               "products": [asdict(each) for each in difference.layers]}  # fmt: skip
        print_result(row, diff_text(difference, columns), arguments.json)
        return
    found = inspect_engine(arguments.engine, arguments)
    row = {**_row(found), "layers": [asdict(each) for each in found.layers]}
    print_result(row, as_text(found, columns, arguments.all), arguments.json)


def _row(found: Inspection) -> dict[str, Any]:
    return {
        "engine": found.engine,
        "backend": found.backend,
        "version": found.version,
        "conditions": found.conditions,
        "call_ms": found.call_ms,
        "layers_ms": found.layers_ms,
        "int8_percent": found.share.percent,
        "macs": asdict(found.share),
        "notes": found.notes,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser(
        "python -m engine.inspect",
        "Say what an engine really runs in INT8: precision, kernel and time of each layer. Engines of ONNX Runtime and "
        "OpenVINO are run here, those of TensorRT where their GPU is; elsewhere the inspector's JSON is read "
        "(ENGINE.layers.json, --layers, or the JSON itself in place of the engine).",
    )
    parser.add_argument("engine", nargs="?", help="the engine, or TensorRT's layer information as JSON")
    parser.add_argument("--diff", nargs=2, metavar=("A", "B"), help="explain why engine B is slower than A")
    parser.add_argument("--feeds", help="npz to run it on (default: made-up numbers of the usual shape)")
    parser.add_argument("--iterations", type=int, default=20, help="measured calls; the median of each layer is told")
    parser.add_argument("--threads", type=int, help="CPU threads (default: what the engine was built with)")
    parser.add_argument("--all", action="store_true", help="show every layer")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--layers", help="TensorRT: the inspector's JSON (default: ENGINE.layers.json)")
    parser.add_argument("--profile", help="TensorRT: trtexec --exportProfile's JSON (default: ENGINE.profile.json)")
    parser.add_argument("--save", action="store_true", help="TensorRT, where its GPU is: keep the inspector's JSON and "
                        "the times beside the engine, for a machine without it")  # fmt: skip
    parser.add_argument("--trace", help="TensorRT: a kernel trace of engine.cupti, nsys, ncu or torch (default: "
                        "ENGINE.kernels.json)")  # fmt: skip
    parser.add_argument(
        "--onnx", help="the file it was built from: names products, and for TensorRT counts and lints them"
    )
    parser.add_argument("--shapes", nargs="+", action="extend", default=[], metavar="NAME:MIN:OPT:MAX",
                        help="TensorRT: sizes for --onnx where its axes are free (default: manifest)")  # fmt: skip
    run_command(parser, run, argv)


if __name__ == "__main__":
    main()
