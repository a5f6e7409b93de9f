"""The steps every builder shares: read an ONNX file with errors a person can act on, and put engine and manifest in
place."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from engine.backend import Backend, BuildOptions, EngineFile, installed_version, saturation_of
from engine.cli import check_free, whole_output
from engine.graph_file import data_path, load_graph, onnx_bytes
from engine.hardware import cpu_flags, cpu_name
from engine.manifest import Manifest, Products, manifest_path, read_manifest, sha256_of, weights_digest, write_manifest
from engine.shapes import spread


def read_onnx(path: str | Path, *, limit: int | None = None) -> onnx.ModelProto:
    """Return a checked ONNX model.

    Args:
        limit: bytes of weights over which those in a file of their own are left there (`load_graph`); None reads all,
            and over 2 GB of them the model can then not be serialized any more.
    Raises: FileNotFoundError: if there is no such file; ValueError: if it is truncated, empty, or no ONNX file;
        RuntimeError: if a package that reads it is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no ONNX file {path}; export one with 'python export.py --out {path}'")
    if zipfile.is_zipfile(path):
        raise ValueError(f"{path} is a torch program (target inductor), and an ONNX file is wanted here; export one "
                         "for the backend you name")  # fmt: skip
    try:
        model = onnx.load(str(path)) if limit is None else load_graph(path, limit)
        if not model.graph.node:
            raise ValueError("it holds no nodes")
        onnx.checker.check_model(str(path))  # by its path: over 2 GB the weights stand in a file beside it
    except ImportError as error:  # of what reads it: the file may be whole
        raise RuntimeError(
            f"{error.name or error} is not installed, and reading an ONNX file takes it; run 'pip install -r "
            "engine/requirements.txt' (engines alone) or 'pip install -r requirements.txt'"
        ) from None
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
    had_data = _keeps_weights_apart(out)
    with whole_output(out, force) as partial:
        yield partial
        has_data = data_path(partial).exists()
    if had_data and not has_data:  # of the engine that `force` replaced: nothing names them any more
        data_path(out).unlink(missing_ok=True)


def _keeps_weights_apart(engine: str | Path) -> bool:
    """Whether an engine stands there whose manifest says that OUT.data is its own."""
    with suppress(ValueError, FileNotFoundError):
        return read_manifest(engine).engine_data_sha256 is not None
    return False


def place(
    backend: Backend,
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
    saturation = saturation_of(backend, options)
    is_quantized = any("Quantize" in node.op_type or "Integer" in node.op_type for node in model.graph.node)
    warning = _saturation_warning(backend, saturation) if is_quantized else None
    details = dict(details or {})
    versions = {name: installed_version(name) or "unknown" for name in (*packages, "onnx", "numpy")}
    manifest = Manifest(
        backend=backend.name,
        versions={**versions, **details.pop("versions", {})},
        device=cpu_name(),
        cpu_flags=cpu_flags(),
        shapes=spread(model, options.shapes),
        products=products,
        engine_sha256=sha256_of(partial),
        engine_data_sha256=sha256_of(data_path(partial)) if data_path(partial).exists() else None,
        onnx_sha256=sha256_of(onnx_path),
        onnx_data_sha256=weights_digest(onnx_path),
        size_bytes=onnx_bytes(partial),
        recipe_digest=metadata.get("int8kit.recipe_digest"),
        target=metadata.get("int8kit.target"),
        threads=options.threads,
        precision=options.precision or "fp32",
        saturation=saturation,
        onnx=str(onnx_path),
        warnings=(warning,) if warning else (),
        metadata=metadata,
    )
    manifest = replace(manifest, **details)
    write_manifest(manifest, manifest_path(partial))
    return EngineFile(Path(out), manifest)


def _saturation_warning(backend: Backend, saturation: str | None) -> str | None:
    """Return what was done about sums that saturate on this CPU, in one line; None where they cannot."""
    if saturation == "avoided":
        return f"this CPU has no VNNI, where fast INT8 sums saturate in 16 bits: {backend.info.saturation_mend}"
    if saturation == "allowed":
        return (
            "this CPU has no VNNI: INT8 sums of this engine saturate in 16 bits, so it does not compute what its file "
            "says; build with --saturation avoid"
        )
    return None
