"""`python -m engine.inspect`: say what an engine really runs in INT8, or why one is slower than another."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from engine.cli import CommandParser, UsageError, check_positive, columns_here, print_result, run_command
from engine.inspect.diff import compare_engines
from engine.inspect.expect import compare_plan, layers_of_manifest, read_plan, source_of
from engine.inspect.layers import Inspection
from engine.inspect.report import inspect_engine
from engine.inspect.text import as_text, diff_text


def run(arguments: argparse.Namespace) -> None:
    """Print the report of one engine, or the comparison of two."""
    if (arguments.engine is None) == (arguments.diff is None):
        raise UsageError("name one engine, or two with --diff A B")
    if arguments.expect is not None and arguments.diff is not None:
        raise UsageError("--expect is for one engine; leave out --diff")
    check_positive(arguments, "iterations", "threads")
    columns = columns_here()
    if arguments.diff is not None:
        compared = compare_engines(*(inspect_engine(each, arguments) for each in arguments.diff))
        row = {"a": _row(compared.first), "b": _row(compared.second), "reasons": compared.reasons,
               "kinds": [asdict(each) for each in compared.kinds],
               "products": [asdict(each) for each in compared.layers]}  # fmt: skip
        print_result(row, diff_text(compared, columns), arguments.json)
        return
    if arguments.expect is not None and arguments.onnx is None:
        arguments.onnx = source_of(arguments.engine)  # names what a runtime only numbers
    found = inspect_engine(arguments.engine, arguments)
    if arguments.expect is not None:
        difference = compare_plan(found, read_plan(arguments.expect), layers_of_manifest(arguments.engine))
        print_result({**_row(found), "expect": arguments.expect, **asdict(difference)}, str(difference), arguments.json)
        if not difference.is_met:
            raise SystemExit(1)
        return
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
    parser.add_argument("--expect", metavar="RECIPE", help="exit 1 and list the layers unless exactly those run in "
                        "INT8 that a recipe or a checkpoint plans")  # fmt: skip
    parser.add_argument("--feeds", help="npz to run it on (default: made-up numbers of the usual shape)")
    parser.add_argument("--iterations", type=int, default=20, help="measured calls; the median of each layer is told")
    parser.add_argument("--threads", type=int, help="CPU threads (default: what the engine was built with)")
    parser.add_argument("--all", action="store_true", help="show every layer")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--layers", help="TensorRT: the inspector's JSON (default: ENGINE.layers.json)")
    parser.add_argument("--profile", help="TensorRT: trtexec --exportProfile's JSON (default: ENGINE.profile.json)")
    parser.add_argument("--save", action="store_true", help="TensorRT, where its GPU is: keep the inspector's JSON and "
                        "the times beside the engine, for a machine without it")  # fmt: skip
    parser.add_argument("--trace", help="TensorRT: a kernel trace of engine.inspect.cupti, nsys, ncu or torch "
                        "(default: ENGINE.kernels.json)")  # fmt: skip
    parser.add_argument(
        "--onnx", help="the file it was built from: names products, and for TensorRT counts and lints them"
    )
    parser.add_argument("--shapes", nargs="+", action="extend", default=[], metavar="NAME:MIN:OPT:MAX",
                        help="TensorRT: sizes for --onnx where its axes are free (default: manifest)")  # fmt: skip
    run_command(parser, run, argv)


if __name__ == "__main__":
    main()
