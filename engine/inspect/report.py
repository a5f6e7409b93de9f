"""The INT8 truth report: per layer precision, kernel and time, and how much of the products' work runs in INT8.

Each backend tells what its engines run; here the one that an engine belongs to is found.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.backend import BACKENDS, Backend, check_threads, get_backend
from engine.cli import UsageError
from engine.inspect.layers import Inspection, InspectRequest
from engine.manifest import manifest_path, read_manifest
from engine.run import read_feeds
from engine.shapes import parse_shapes


def inspect_engine(engine: str, arguments: argparse.Namespace) -> Inspection:
    """Return what an engine runs; of files without a manifest each backend is asked whether it knows them.

    Raises: FileNotFoundError, ValueError, RuntimeError: with what to do.
    """
    request = InspectRequest(
        read_feeds(arguments.feeds)[0] if arguments.feeds else None, arguments.iterations, arguments.threads,
        arguments.onnx, parse_shapes(arguments.shapes), arguments.layers, arguments.profile, arguments.trace,
        arguments.save,
    )  # fmt: skip
    backend = _backend_of(engine, request)
    check_threads(backend, request.threads)
    return backend.inspect(engine, request)


def _backend_of(engine: str, request: InspectRequest) -> Backend:
    for name in BACKENDS:
        if (backend := get_backend(name)).recognizes(engine, request):
            return backend
    if not Path(engine).exists():
        raise FileNotFoundError(f"no engine {engine}; build it with 'python build_engine.py --out {engine}'")
    if engine.endswith(".onnx") and not manifest_path(engine).exists():
        raise UsageError(f"{engine} is no engine; 'python -m engine.lint {engine}' says what an ONNX file plans")
    return get_backend(read_manifest(engine).backend)
