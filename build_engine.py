"""Build an engine from an ONNX file: parse, call the backend, print what really runs in INT8."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from engine.backend import BACKENDS, BuildOptions, get_backend
from engine.cli import CommandParser, UsageError, print_result, run_command
from engine.shapes import parse_shapes


def build(arguments: argparse.Namespace) -> None:
    """Build the engine and print one line, or the manifest as JSON."""
    if arguments.threads is not None and arguments.threads < 1:
        raise UsageError(f"--threads {arguments.threads} must be at least 1")
    options = BuildOptions(parse_shapes(arguments.shapes), arguments.threads, arguments.force, arguments.precision)
    try:
        backend = get_backend(arguments.backend)
    except ValueError as error:
        raise UsageError(str(error)) from None
    engine = backend.build(arguments.onnx, arguments.out, options)
    for warning in engine.manifest.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    size_mb, products = engine.manifest.size_bytes / 1e6, engine.manifest.products.summary()
    summary = f"{engine.path}: {arguments.backend}, {size_mb:.1f} MB, {products}"
    print_result({"engine": str(engine.path), **asdict(engine.manifest)}, summary, arguments.json)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser(
        "python build_engine.py", "Build an engine from a Q/DQ (or float) ONNX file; OUT.json beside it says of what."
    )
    parser.add_argument("--onnx", required=True, help="the file that export.py wrote for this backend's target")
    parser.add_argument("--backend", required=True, help=f"one of {', '.join(BACKENDS)}")
    parser.add_argument("--out", required=True, help="the engine to write; its manifest is OUT.json")
    parser.add_argument(
        "--shapes",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME:MIN:OPT:MAX",
        help="such as input_ids:1x1:8x64:32x128; static where min equals max; inputs with the same axes follow",
    )
    parser.add_argument(
        "--precision", default="fp32", help="type of everything that is not INT8; openvino also takes bf16"
    )
    parser.add_argument("--threads", type=int, help="CPU threads to tune for (default: all cores)")
    parser.add_argument("--force", action="store_true", help="replace --out")
    parser.add_argument("--json", action="store_true", help="print the manifest as one JSON line")
    run_command(parser, build, argv)


if __name__ == "__main__":
    main()
