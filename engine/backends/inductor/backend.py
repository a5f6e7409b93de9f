"""INT8 programs as a backend: tuned and compiled on the GPU they run on; the engine is one file.

Loading an engine runs what torch's compiler wrote into it: code in Python and for the GPU. The manifest's digest tells
that it is the file that was built, not who built it: load engines of your own.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import sys
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

from engine.backend import Backend, BuildOptions, EngineFile, check_precision, installed_version, require
from engine.backends.inductor.program import (
    CACHE,
    PLANS,
    PROGRAM,
    bucket_name,
    buckets_of,
    open_stored,
    ranges_of,
    read_program,
)
from engine.backends.info import BackendInfo
from engine.bug_report.reproduction import FaultCase, ReportedFile, Reproduction
from engine.cli import UsageError
from engine.gpu import enough_memory, find_gpu
from engine.inspect.layers import Inspection, InspectRequest
from engine.manifest import Manifest, check_loadable, manifest_path, read_manifest, sha256_of, write_manifest
from engine.shapes import ShapeRange
from engine.source import engine_output

INFO = BackendInfo(
    name="inductor",
    title="torch.compile with int8kit's kernels",
    target="inductor",
    packages=("torch",),
    precisions=("file", "fp16", "bf16"),
    uses_gpu=True,
    wants_static_shapes=True,
)
OLDEST = (8, 0)  # compute capability
FREE_IT = "free the GPU"
NOT_KEPT = "torch's compiler gave no code to keep, so each load compiles the program again"


class InductorBackend(Backend):
    """Builds engines of programs on the GPU that is here."""

    info = INFO

    def version(self) -> str | None:
        """Return torch's and Triton's versions and the digest of our kernels: an engine is made for these alone."""
        torch, triton = (installed_version(name) for name in ("torch", "triton"))
        return None if torch is None else f"torch {torch}, triton {triton}, kernels {kernels_digest()}"

    def check_build(self) -> str | None:
        """Return None, or why programs cannot be compiled here."""
        for package in ("torch", "triton"):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed; backend inductor needs a torch for CUDA, which brings triton"
        gpu = find_gpu()
        if gpu is None:
            return ("backend inductor compiles and runs on an NVIDIA GPU, and none is seen here; do this on a box with "
                    "one, or export for a CPU with --target onnxruntime or openvino")  # fmt: skip
        if gpu.capability < OLDEST:
            return (f"backend inductor needs compute capability {OLDEST[0]}.{OLDEST[1]} or newer, here is {gpu}; take "
                    "--target tensorrt there")  # fmt: skip
        import torch

        if not torch.cuda.is_available():
            return f"this torch ({torch.__version__}) does not reach {gpu.name}; install one for CUDA"
        return None

    def build(self, onnx_path: str | Path, out: str | Path, options: BuildOptions) -> EngineFile:
        """Tune every op for each bucket of shapes, compile, and write program, plans and compiled code as one file.

        Raises: RuntimeError: no GPU, or out of memory. UsageError, ValueError, FileNotFoundError: a bad option, file
            or shape.
        """
        options = check_precision(self, options)
        program = read_program(onnx_path)
        if options.precision not in ("file", program.dtype):
            raise UsageError(f"{onnx_path} computes in {program.dtype}; export it with --dtype {options.precision}")
        ranges = ranges_of(program, options.shapes)
        buckets = buckets_of(program, ranges)
        require(self.check_build(), "build for inductor")
        import torch

        from engine.backends.inductor.binaries import Binaries, recorded, settle_keys, write_binaries
        from engine.backends.inductor.compiled import Captured, load_module, with_plans
        from engine.backends.inductor.runner import example_feeds
        from engine.backends.inductor.tuning import tune_program

        with engine_output(out, options.force) as partial:
            with enough_memory(f"loading {onnx_path}", FREE_IT):
                module = load_module(onnx_path)
            found: list[dict[str, Any]] = []
            binaries: Binaries = {}
            settle_keys()  # tiles are timed as they will run, and found again when they are recorded
            with own_artifacts():
                for bucket in buckets:
                    _say(f"tune {bucket_name(bucket)} ...")
                    with enough_memory(f"tuning {bucket_name(bucket)}", f"build with smaller --shapes, or {FREE_IT}"):
                        feeds = example_feeds(program, bucket)
                        plans = tune_program(module, feeds, lambda line: _say(f"  {line}"))
                        with recorded() as launched:  # what is compiled and launched goes into the engine
                            Captured(with_plans(module, plans), feeds)
                        binaries |= launched
                    found.append({"bucket": bucket, "plans": plans})
                compiled = torch.compiler.save_cache_artifacts()
            del module
            gc.collect()  # a graph and its weights hold each other; the next build wants their memory
            torch.cuda.empty_cache()
            with zipfile.ZipFile(partial, "w") as archive:
                archive.write(onnx_path, PROGRAM)
                archive.writestr(PLANS, json.dumps(found))
                archive.writestr(CACHE, compiled[0] if compiled else b"")
                write_binaries(archive, binaries)
            gpu = find_gpu()
            assert gpu is not None  # check_build saw it
            versions = {"inductor": self.version() or "", "torch": torch.__version__,
                        "triton": installed_version("triton") or ""}  # fmt: skip
            manifest = Manifest(
                backend=self.name, versions=versions, device=str(gpu), cpu_flags=(), shapes=ranges,
                products=program.sorted_products(), engine_sha256=sha256_of(partial),
                onnx_sha256=sha256_of(onnx_path), size_bytes=partial.stat().st_size,
                recipe_digest=program.metadata.get("int8kit.recipe_digest"), target=self.info.target,
                threads=options.threads, precision=program.dtype, metadata=program.metadata, onnx=str(onnx_path),
                compute_capability=gpu.capability, warnings=() if compiled else (NOT_KEPT,),
            )  # fmt: skip
            write_manifest(manifest, manifest_path(partial))
        return EngineFile(Path(out), manifest)

    def load(self, engine: str | Path, threads: int | None = None) -> Any:
        """Return a runner for an engine built on this kind of GPU by these versions.

        Raises: RuntimeError: built elsewhere. ValueError: the file changed. FileNotFoundError: it is missing.
        """
        require(self.check_run(), "run inductor engines")
        manifest = read_manifest(engine)
        gpu = find_gpu()
        check_loadable(engine, manifest, self.info, self.version() or "", str(gpu))
        import torch

        from engine.backends.inductor.binaries import read_binaries
        from engine.backends.inductor.compiled import load_module
        from engine.backends.inductor.runner import InductorRunner

        with zipfile.ZipFile(engine) as archive:
            cache = archive.read(CACHE)
            if not cache or torch.compiler.load_cache_artifacts(cache) is None:
                _say(f"{engine}: {NOT_KEPT}")
            plans = [(each["bucket"], each["plans"]) for each in json.loads(archive.read(PLANS))]
            binaries = read_binaries(archive)
        with open_stored(engine, PROGRAM) as content:
            program = read_program(content, str(engine))
            content.seek(0)  # torch reads from where it stands
            with enough_memory(f"loading {engine}", FREE_IT):
                module = load_module(content)
                return InductorRunner(module, program, manifest.shapes, plans, binaries)

    def inspect(self, engine: str, request: InspectRequest) -> Inspection:
        """Return the kernels of a call in order, from a trace of a real one, with the products that they compute."""
        manifest = read_manifest(engine)
        with self.load(engine) as runner:
            from engine.backends.inductor.inspect import inspect_runner

            return inspect_runner(runner, engine, manifest.device, manifest.versions.get(self.name), request)

    def reported_file(self, path: str, shapes: Mapping[str, ShapeRange]) -> ReportedFile:
        """Return what a program says of itself."""
        from engine.backends.inductor.described import describe

        return describe(path, shapes)

    def reproduction(self, case: FaultCase) -> Reproduction:
        """Return a script that compares the compiled program with the same program run op by op on the CPU."""
        text = SCRIPT.format(feeds=case.feeds_code, name=case.name)
        return Reproduction("python", text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def own_artifacts() -> AbstractContextManager[None]:
    """Let `torch.compiler.save_cache_artifacts` give what is compiled within alone.

    torch keeps one list for the process: an engine that is built after others would hold their code too.
    """
    from torch.compiler._cache import CacheArtifactManager

    return CacheArtifactManager.with_fresh_cache()


@cache
def kernels_digest() -> str:
    """Return 8 hexadecimal digits of the sha256 of the sources of `kernels/`, which stand in no engine."""
    files = sorted((Path(__file__).parents[3] / "kernels").glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


SCRIPT = """import numpy as np, torch
import kernels.attention, kernels.linear, kernels.rows  # of int8kit
from torch.export.passes import move_to_device_pass
{feeds}
program = torch.export.load("{name}")
inputs = [torch.from_numpy(x) for x in feeds.values()]
expected = program.module(check_guards=False)(*inputs)  # on the CPU each op computes its plain formula
compiled = torch.compile(move_to_device_pass(program, "cuda").module(check_guards=False), dynamic=False)
for x, ref in zip(compiled(*[each.cuda() for each in inputs]), expected):
    print((x.cpu() - ref).abs().max(), (x.cpu() - ref).abs().mean())"""


BACKEND = InductorBackend()
