"""The steps every builder shares: read an ONNX file with errors a person can act on, and put engine and manifest in
place."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from engine.backend import BuildOptions, EngineFile
from engine.cli import check_free, whole_output
from engine.hardware import cpu_flags, cpu_name, int8_warning
from engine.manifest import Manifest, manifest_path, sha256_of, write_manifest
from engine.products import Products
from engine.shapes import spread


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """Return a checked ONNX model.

    Raises: FileNotFoundError: if there is no such file; ValueError: if it is truncated, empty, or no ONNX file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no ONNX file {path}; export one with 'python export.py --out {path}'")
    try:
        model = onnx.load(str(path))
        if not model.graph.node:
            raise ValueError("it holds no nodes")
        onnx.checker.check_model(str(path))  # by its path: over 2 GB the weights stand in a file beside it
    except Exception as error:  # protobuf's DecodeError and the checker's ValidationError share no base below it
        line = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a whole ONNX file: {line}. Export it again"
        ) from None
    return model


@contextmanager
def engine_output(out: str | Path, force: bool) -> Iterator[Path]:
    """Yield a temporary path for an engine beside `out`; its manifest, written by `place` beside that, is renamed first
    and the engine last.

    Raises: FileExistsError: if `out` exists and `force` is false.
    """
    check_free(out, force)
    with whole_output(out, force) as partial:
        yield partial


def place(
    backend: str,
    packages: tuple[str, ...],
    onnx_path: str | Path,
    model: onnx.ModelProto,
    partial: Path,
    out: str | Path,
    options: BuildOptions,
    products: Products,
    details: Mapping[str, Any] | None = None,
) -> EngineFile:
    """Write the manifest beside an engine that stands at `partial`; the caller's `engine_output` renames both next.
    `details` replace fields of the manifest, and add to its versions."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    flags = cpu_flags()
    warning = int8_warning(flags) if products.int8 or products.attention_int8 else None
    details = dict(details or {})
    versions = {name: importlib.metadata.version(name) for name in (*packages, "onnx", "numpy")}
    manifest = Manifest(
        backend=backend,
        versions={**versions, **details.pop("versions", {})},
        device=cpu_name(),
        cpu_flags=flags,
        shapes=spread(model, options.shapes),
        products=products,
        engine_sha256=sha256_of(partial),
        onnx_sha256=sha256_of(onnx_path),
        size_bytes=os.path.getsize(partial),
        recipe_digest=metadata.get("int8kit.recipe_digest"),
        target=metadata.get("int8kit.target"),
        threads=options.threads,
        precision=options.precision or "fp32",
        onnx=str(onnx_path),
        warnings=(warning,) if warning else (),
        metadata=metadata,
    )
    manifest = replace(manifest, **details)
    write_manifest(manifest, manifest_path(partial))
    return EngineFile(Path(out), manifest)
