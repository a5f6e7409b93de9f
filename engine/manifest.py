"""OUT.json: what an engine was built from, by what, for which hardware, and what it really runs in INT8.

It is written first and the engine renamed last, so an engine without a fitting manifest is never taken for a good one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.backends.info import BackendInfo
from engine.graph_file import data_path, weight_files
from engine.hardware import cpu_flags
from engine.shapes import ShapeRange

SCHEMA = 1


@dataclass(frozen=True)
class Products:
    """Names of the products a consumer runs in INT8 and those it left float, linears and attention apart."""

    int8: tuple[str, ...] = ()
    float: tuple[str, ...] = ()
    attention_int8: tuple[str, ...] = ()
    attention_float: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return one line such as "36 of 38 linears and 0 of 12 attention products in INT8; float: classifier"."""
        linears, attention = len(self.int8) + len(self.float), len(self.attention_int8) + len(self.attention_float)
        line = f"{len(self.int8)} of {linears} linears and {len(self.attention_int8)} of {attention} attention products"
        line += " in INT8"
        if self.int8 and self.float:
            shown = ", ".join(self.float[:5])
            line += f"; float: {shown}" + (f" and {len(self.float) - 5} more" if len(self.float) > 5 else "")
        return line


@dataclass(frozen=True)
class Manifest:
    """The content of OUT.json; digests are sha256 in hexadecimal."""

    backend: str
    versions: dict[str, str]  # of every package that took part in the build; the backend's own is compared at load
    device: str
    cpu_flags: tuple[str, ...]
    shapes: dict[str, ShapeRange]
    products: Products
    engine_sha256: str
    onnx_sha256: str
    size_bytes: int
    recipe_digest: str | None = None  # from the ONNX file's metadata; null for a float file
    target: str | None = None
    threads: int | None = None  # null: as many as cores
    precision: str = "fp32"  # of everything that is not INT8
    saturation: str | None = None  # of INT8 sums: "impossible" on the CPU it was built on, "avoided" or "allowed"
    warnings: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    onnx: str | None = None  # the file as it was named to the builder
    are_products_measured: bool = True  # false: `products` is what the file plans, nobody saw the kernels yet
    options: dict[str, Any] = field(default_factory=dict)  # of the backend's own builder
    trtexec: str | None = None  # the command of TensorRT's own tool that builds the same
    engine_data_sha256: str | None = None  # of OUT.data, where the engine's weights stand beside it
    compute_capability: tuple[int, int] | None = None  # of the GPU it was built on, which `device` names
    onnx_data_sha256: str | None = None  # of the files of the ONNX file's weights, see `weights_digest`
    schema: int = SCHEMA


def manifest_path(engine: str | Path) -> Path:
    """Return where the manifest of an engine stands."""
    return Path(f"{engine}.json")


def with_companions(path: Path) -> tuple[Path, ...]:
    """Return an engine, or a file it is built from, with what stands beside it: manifest, weights, a runtime's own."""
    return path, *sorted(path.parent.glob(f"{path.name}.*"))


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def weights_digest(onnx_path: str | Path) -> str | None:
    """Return one sha256 over the names and contents of the files of an ONNX file's weights; None if it has none."""
    lines = "".join(f"{sha256_of(each)}  {each.name}\n" for each in weight_files(onnx_path))
    return hashlib.sha256(lines.encode()).hexdigest() if lines else None


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_manifest(engine: str | Path) -> Manifest:
    """Return the manifest beside an engine.

    Raises: FileNotFoundError: if the engine or OUT.json is missing; ValueError: if OUT.json is not such a manifest.
    """
    path = manifest_path(engine)
    if not Path(engine).exists():
        raise FileNotFoundError(f"no engine {engine}; build it with 'python build_engine.py --out {engine}'")
    if not path.exists():
        raise FileNotFoundError(f"{engine} has no {path.name} beside it; copy both files, or build the engine again")
    return parse_manifest(path)


def parse_manifest(path: Path) -> Manifest:
    """Return the manifest in a file, whether its engine is there or not.

    Raises: FileNotFoundError: if there is no file; ValueError: if it is not such a manifest.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no manifest {path}; it stands beside each engine as OUT.json")
    try:
        content = json.loads(path.read_text())
        return _from_json(content)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an engine manifest ({error}); build the engine again") from None


def _from_json(content: Mapping[str, Any]) -> Manifest:
    if content["schema"] != SCHEMA:
        raise KeyError(f"schema {content['schema']}, this version reads {SCHEMA}")
    values = dict(content)
    values["shapes"] = {
        name: ShapeRange(*(tuple(sizes[key]) for key in ("min", "opt", "max")))
        for name, sizes in values["shapes"].items()
    }
    values["products"] = Products(**{key: tuple(names) for key, names in values["products"].items()})
    values["cpu_flags"], values["warnings"] = tuple(values["cpu_flags"]), tuple(values["warnings"])
    if values.get("compute_capability"):
        values["compute_capability"] = tuple(values["compute_capability"])
    return Manifest(**values)


def check_loadable(
    engine: str | Path, manifest: Manifest, backend: BackendInfo, version: str, gpu: str | None = None
) -> None:
    """Raise RuntimeError, with all reasons and what to do, if an engine was built by another version or for other
    hardware (`gpu`: the one here, where the engine is bound to it).

    Raises also: ValueError: if the engine's bytes are not those that the manifest describes; FileNotFoundError: if the
    file of its weights is missing.
    """
    reasons = []
    name = backend.name
    if manifest.backend != name:
        reasons.append(f"it was built for backend {manifest.backend}, not {name}")
    elif manifest.versions.get(name) != version:
        reasons.append(f"it was built by {name} {manifest.versions.get(name)}, here is {version}")
    if gpu is not None and manifest.device != gpu:
        reasons.append(f"it was built for {manifest.device}, here is {gpu}")
    here = () if backend.uses_gpu else cpu_flags()  # engines for GPUs do not care for the processor
    if set(manifest.cpu_flags) != set(here):
        missing, extra = sorted(set(manifest.cpu_flags) - set(here)), sorted(set(here) - set(manifest.cpu_flags))
        parts = [f"{word} {', '.join(flags)}" for word, flags in (("lacks", missing), ("also has", extra)) if flags]
        reasons.append(f"it was built on {manifest.device}, and this CPU {' and '.join(parts)}")
    if reasons:
        raise RuntimeError(
            f"engine {engine} cannot run here: {'; '.join(reasons)}. Build it here from its ONNX file "
            f"(sha256 {manifest.onnx_sha256[:12]}): python build_engine.py --backend {manifest.backend} ..."
        )
    wanted = {Path(engine): manifest.engine_sha256}
    if manifest.engine_data_sha256 is not None:
        wanted[data_path(engine)] = manifest.engine_data_sha256
    for path, digest in wanted.items():
        if not path.is_file():
            raise FileNotFoundError(f"engine {engine} keeps its weights in {path.name}, which is missing; copy it too")
        if sha256_of(path) != digest:
            raise ValueError(
                f"engine {path} is not the file that {manifest_path(engine).name} describes (truncated or "
                "replaced); build it again"
            )
