"""Build an engine from an ONNX file: parse, call the backend, print what really runs in INT8."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from engine.backend import BACKENDS, SATURATIONS, BuildOptions, check_threads, get_backend
from engine.backends.own_options import add_flags, file_options, own_from_flags, own_from_json, with_files_of
from engine.cli import CommandParser, UsageError, check_positive, print_result, run_command
from engine.manifest import Manifest, manifest_path, parse_manifest, sha256_of, weights_digest
from engine.shapes import parse_shapes

# What may stand beside --rebuild: where files lie (also those of own options), and how the result is told. All else is
# the manifest's to say.
BESIDE_REBUILD = ("rebuild", "onnx", "out", "force", "json", "debug")


def build(arguments: argparse.Namespace) -> None:
    """Build the engine and print one line, or the manifest as JSON."""
    check_positive(arguments, "threads")
    name, onnx_path, options = _from_manifest(arguments) if arguments.rebuild else _from_flags(arguments)
    try:
        backend = get_backend(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    check_threads(backend, arguments.threads)
    engine = backend.build(onnx_path, arguments.out, options)
    for warning in engine.manifest.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    size_mb, products = engine.manifest.size_bytes / 1e6, engine.manifest.products.summary()
    if not engine.manifest.are_products_measured:
        products = products.replace(" in INT8", " with Q/DQ on both sides")
    summary = f"{engine.path}: {name}, {size_mb:.1f} MB, {products}"
    print_result({"engine": str(engine.path), **asdict(engine.manifest)}, summary, arguments.json)


def _from_flags(arguments: argparse.Namespace) -> tuple[str, str, BuildOptions]:
    """Return (backend, ONNX file, options) as the flags say."""
    missing = [f"--{name}" for name in ("onnx", "backend") if getattr(arguments, name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} is missing; give it, or --rebuild with the manifest of an engine")
    return arguments.backend, arguments.onnx, BuildOptions(
        parse_shapes(arguments.shapes), arguments.threads, arguments.force, arguments.precision, arguments.saturation,
        own_from_flags(arguments, arguments.backend),
    )  # fmt: skip


def _from_manifest(arguments: argparse.Namespace) -> tuple[str, str, BuildOptions]:
    """Return (backend, ONNX file, options) of an engine built before; only where files lie may be told anew.

    Raises: UsageError: another flag beside --rebuild; ValueError: an option of the manifest that is not known here, or
        an ONNX file that is not the one it was built from.
    """
    beside = (*BESIDE_REBUILD, *file_options())
    given = [f"--{name.replace('_', '-')}" for name, value in vars(arguments).items()
             if name not in beside and value is not None and value is not False and value != []]  # fmt: skip
    if given:
        raise UsageError(f"{', '.join(given)} and --rebuild: the manifest says what to build; give one of the two")
    manifest = _read(arguments.rebuild)
    onnx_path = arguments.onnx or manifest.onnx
    if onnx_path is None or not Path(onnx_path).is_file():
        raise FileNotFoundError(f"{arguments.rebuild} was built from {onnx_path}, which is not here; name --onnx")
    if sha256_of(onnx_path) != manifest.onnx_sha256:
        raise ValueError(f"{onnx_path} is not the file that {arguments.rebuild} was built from (another sha256)")
    if weights_digest(onnx_path) != manifest.onnx_data_sha256:
        raise ValueError(f"{onnx_path} has other weights beside it than when {arguments.rebuild} was built from it")
    first = own_from_json(manifest.options, manifest.backend, arguments.rebuild)
    own, notes = with_files_of(first, arguments, manifest.backend)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    options = BuildOptions(
        manifest.shapes, manifest.threads, arguments.force, manifest.precision,
        "allow" if manifest.saturation == "allowed" else None, own,
    )  # fmt: skip
    return manifest.backend, onnx_path, options


def _read(path: str) -> Manifest:
    """Return the manifest that `path` is, or that stands beside the engine `path`."""
    return parse_manifest(Path(path) if path.endswith(".json") else manifest_path(path))


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser(
        "python build_engine.py", "Build an engine from a Q/DQ (or float) ONNX file; OUT.json beside it says of what."
    )
    parser.add_argument("--onnx", help="the file that export.py wrote for this backend's target")
    parser.add_argument("--backend", help=f"one of {', '.join(BACKENDS)}")
    parser.add_argument("--rebuild", metavar="ENGINE.json",
                        help="build what this manifest describes once more; beside it "
                        "only --onnx and --timing-cache, if they lie elsewhere now")  # fmt: skip

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
        "--precision",
        help="type of everything that is not INT8: onnxruntime fp32; openvino fp32 or bf16; tensorrt as the file says "
        "(one of target tensorrt8: fp16, or fp32, bf16) (default: the first)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads to tune for (default: all cores)")
    parser.add_argument(
        "--saturation",
        help=f"on a CPU without VNNI, whose fast INT8 sums saturate: {' or '.join(SATURATIONS)} (default: avoid, which "
        "keeps the file's numbers; the manifest says what was done)",
    )
    add_flags(parser)
    parser.add_argument("--force", action="store_true", help="replace --out")
    parser.add_argument("--json", action="store_true", help="print the manifest as one JSON line")
    run_command(parser, build, argv)


if __name__ == "__main__":
    main()
