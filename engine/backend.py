"""The one small interface behind which ONNX Runtime, OpenVINO and TensorRT build and run engines, and its registry."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.backends.info import BackendInfo, OwnOptions
from engine.backends.runner import Runner
from engine.bug_report.reproduction import FaultCase, ReportedFile, Reproduction
from engine.cli import UsageError, did_you_mean
from engine.hardware import cpu_flags, int8_outlook, saturates
from engine.inspect.layers import Inspection, InspectRequest
from engine.manifest import Manifest
from engine.shapes import ShapeRange

# Where a CPU's fast INT8 kernels saturate: compute what the file says all the same, or take the kernels as they are.
SATURATIONS = ("avoid", "allow")


@dataclass(frozen=True)
class BuildOptions:
    """What the builder may choose; an input without a range keeps the file's own axes."""

    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    threads: int | None = None  # None: as many as cores
    force: bool = False  # replace an existing engine
    precision: str | None = None  # of everything that is not INT8; None: the first of the backend's precisions
    saturation: str | None = None  # of INT8 sums on a CPU without VNNI: one of SATURATIONS; None: the first
    own: OwnOptions | None = None  # of the backend's own builder; None: its defaults


@dataclass(frozen=True)
class EngineFile:
    """An engine on disk with its manifest."""

    path: Path
    manifest: Manifest


class Backend(ABC):
    """Builds engines from ONNX files, loads them and says what they do; `info` declares what others decide by."""

    info: BackendInfo

    @property
    def name(self) -> str:
        """Its name in commands, manifests and rows."""
        return self.info.name

    def version(self) -> str | None:
        """Return the runtime's version, None where it is not to be had."""
        return installed_version(self.info.packages[0])

    def target(self) -> str:
        """Return the export target whose files it takes here: another version may need another than the usual one."""
        return self.info.target

    def check_build(self) -> str | None:
        """Return None if engines can be built here, else the reason and the mend."""
        package = self.info.packages[0]
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            return f"{package} is not installed; run 'pip install -r engine/requirements.txt'"
        return None

    def check_run(self) -> str | None:
        """Return None if engines can run here, else the reason and the mend."""
        return self.check_build()

    @abstractmethod
    def build(self, onnx_path: str | Path, out: str | Path, options: BuildOptions) -> EngineFile:
        """Write an engine and its manifest, whole or not at all."""

    @abstractmethod
    def load(self, engine: str | Path, threads: int | None = None) -> Runner:
        """Return a runner for an engine built here."""

    @abstractmethod
    def inspect(self, engine: str, request: InspectRequest) -> Inspection:
        """Return the layers that an engine runs, as far as the runtime tells."""

    @abstractmethod
    def reproduction(self, case: FaultCase) -> Reproduction:
        """Return the shortest program that shows a fault with the runtime alone, as an engine is built here."""

    def reported_file(self, path: str, shapes: Mapping[str, ShapeRange]) -> ReportedFile | None:
        """Return what a bug report says of a file of this backend's target; None for an ONNX graph, which all read."""
        return None

    def recognizes(self, engine: str, request: InspectRequest) -> bool:
        """Whether a file that has no manifest of ours is an engine, or the word of one, that `inspect` reads."""
        return False

    def in_interpreter(self, python: str) -> Backend | None:
        """Return this backend as it is in another Python, None where it lives in this one alone."""
        return None


# Backend name -> the module that holds it as BACKEND: its runtime is imported only when it is asked for.
BACKENDS: dict[str, str] = {
    "onnxruntime": "engine.backends.onnxruntime.backend",
    "openvino": "engine.backends.openvino.backend",
    "tensorrt": "engine.backends.tensorrt.backend",
    "tensorrt_rtx": "engine.backends.tensorrt_rtx.backend",
    "inductor": "engine.backends.inductor.backend",
}


def backend_infos() -> dict[str, BackendInfo]:
    """Return what every registered backend declares, by its name; imports no runtime."""
    return {name: get_backend(name).info for name in BACKENDS}


def backend_for(target: str) -> Backend | None:
    """Return the first registered backend whose usual files are of this export target, None where there is none."""
    return next((get_backend(name) for name, info in backend_infos().items() if info.target == target), None)


def get_backend(name: str) -> Backend:
    """Return a backend by name.

    Raises: ValueError: if there is no such backend, with its near matches.
    """
    if name not in BACKENDS:
        hint = did_you_mean(name, BACKENDS, most=3)
        raise ValueError(f"unknown backend {name!r}; the backends are {', '.join(sorted(BACKENDS))}{hint}")
    backend: Backend = importlib.import_module(BACKENDS[name]).BACKEND
    return backend


def check_threads(backend: Backend, threads: int | None) -> None:
    """Raise UsageError for a --threads that a backend whose engines run on a GPU would drop."""
    if threads is not None and backend.info.uses_gpu:
        raise UsageError(f"--threads {threads}: engines of {backend.name} run on the GPU; leave --threads out")


def installed_version(package: str) -> str | None:
    """Return the version of a package, None where its module is not installed.

    A module may come from a package of another name (onnxruntime from onnxruntime-gpu), or from none.
    """
    module = package.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        return None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    # Only then: it reads the lists of files of all that is installed, half a second.
    for name in importlib.metadata.packages_distributions().get(module, ()):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return str(getattr(importlib.import_module(module), "__version__", "unknown"))


def check_precision(backend: Backend, options: BuildOptions) -> BuildOptions:
    """Return the options with the backend's default precision where none is given.

    Raises: UsageError: if the backend cannot compute what is not INT8 in that precision, takes no such saturation, or
        has not the own options.
    """
    saturation_of(backend, options)
    own, precisions = options.own, backend.info.precisions
    if own is not None and not isinstance(own, backend.info.options or ()):
        raise UsageError(f"backend {backend.name} takes no {type(own).__name__}; leave them out")
    precision = options.precision or precisions[0]
    if precision not in precisions:
        raise UsageError(
            f"--precision {precision!r} is not known to {backend.name}; it takes {', '.join(precisions)} "
            "(what runs in INT8 stands in the ONNX file)"
        )
    return replace(options, precision=precision)


def saturation_of(backend: Backend, options: BuildOptions) -> str | None:
    """Return what becomes of saturating sums in an engine built here: "impossible" (the INT8 kernels are exact here),
    "avoided" or "allowed"; None for a backend that runs on GPUs.

    Raises: UsageError: for an option that is none of SATURATIONS, or one given to a backend that runs on GPUs.
    """
    asked = options.saturation or SATURATIONS[0]
    if asked not in SATURATIONS:
        hint = did_you_mean(asked, SATURATIONS)
        raise UsageError(f"--saturation {asked!r} is unknown; it takes {' or '.join(SATURATIONS)}{hint}")
    if backend.info.uses_gpu:
        if options.saturation:
            raise UsageError(f"--saturation is of CPUs; backend {backend.name} runs on GPUs: leave it out")
        return None
    if backend.info.saturation_mend is None or not saturates(cpu_flags()):
        return "impossible"
    return {"avoid": "avoided", "allow": "allowed"}[asked]


def outlook(backends: Iterable[str]) -> list[str]:
    """Return what INT8 can gain on this CPU, and what the named backends do here about sums that saturate: a line
    each."""
    flags = cpu_flags()
    mends = saturation_mends(backends) if saturates(flags) else {}
    return [int8_outlook(flags), *(f"{name}: {mend}" for name, mend in mends.items())]


def saturation_mends(backends: Iterable[str]) -> dict[str, str]:
    """Return what each of the named backends that runs on CPUs does about sums that saturate; unknown ones are left
    out."""
    mends = {name: get_backend(name).info.saturation_mend for name in backends if name in BACKENDS}
    return {name: mend for name, mend in mends.items() if mend}


def require(reason: str | None, task: str) -> None:
    """Raise RuntimeError if a check of a backend gave a reason."""
    if reason is not None:
        raise RuntimeError(f"cannot {task}: {reason}")
