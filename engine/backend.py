"""The one small interface behind which ONNX Runtime, OpenVINO and TensorRT build and run engines, and its registry."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from engine.backends.tensorrt.options import TensorRTOptions
from engine.cli import UsageError, near_matches
from engine.hardware import cpu_flags, int8_outlook, saturates
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
    tensorrt: TensorRTOptions = field(default_factory=TensorRTOptions)  # read by the TensorRT backends alone


@dataclass(frozen=True)
class EngineFile:
    """An engine on disk with its manifest."""

    path: Path
    manifest: Manifest


class Runner(ABC):
    """A loaded engine: a context manager that maps arrays to arrays by name.

    `has_device_clock`: whether `time` is told by the device itself, inputs and outputs lying there.
    """

    has_device_clock = False

    def __init__(
        self,
        shapes: Mapping[str, ShapeRange],
        inputs: Mapping[str, tuple[np.dtype, tuple[int | None, ...]]],
        output_names: list[str],
    ) -> None:
        self.input_names, self.output_names = list(inputs), output_names
        self.inputs, self.shapes = inputs, shapes

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def batch_size(self) -> int | None:
        """The static batch size, else the usual one it was built for, else None."""
        for name in self.input_names:
            sizes = self.inputs[name][1]
            if sizes and sizes[0] is not None:
                return sizes[0]
            if name in self.shapes:
                return self.shapes[name].opt[0]
        return None

    @property
    def static_batch(self) -> int | None:
        """The batch size every call is padded to, or None if the batch is dynamic."""
        return next((sizes[0] for _, sizes in self.inputs.values() if sizes and sizes[0] is not None), None)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name; a batch smaller than a static one is padded, and the result cut to the samples
        fed.

        Raises: ValueError: if an input is missing, unknown, of another kind, or of a shape the engine was not built
        for.
        """
        arrays, num_samples = self._check(feeds)
        static = self.static_batch
        if static is None or num_samples == static:
            return self._infer(arrays)
        padded = {
            name: np.concatenate([x, np.repeat(x[-1:], static - num_samples, axis=0)]) for name, x in arrays.items()
        }
        return {
            name: y[:num_samples] if y.ndim and y.shape[0] == static else y for name, y in self._infer(padded).items()
        }

    def time(self, feeds: Mapping[str, np.ndarray], iterations: int = 50, warmup: int = 10) -> list[float]:
        """Return the latency of each of `iterations` calls in milliseconds, after `warmup` calls that are dropped."""
        arrays, _ = self._check(feeds)
        for _ in range(warmup):
            self._infer(arrays)
        latency_ms = []
        for _ in range(iterations):
            start = time.perf_counter()
            self._infer(arrays)
            latency_ms.append((time.perf_counter() - start) * 1e3)
        return latency_ms

    @abstractmethod
    def _infer(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs for checked, contiguous arrays."""

    def close(self) -> None:  # noqa: B027  (a backend without memory of its own has nothing to free)
        """Free what the engine holds."""

    def _check(self, feeds: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
        problems = [f"input {name} is missing" for name in self.input_names if name not in feeds]
        for name in feeds:
            if name not in self.inputs:
                near = near_matches(name, self.input_names)
                problems.append(f"{name} is no input" + (f" (did you mean {near[0]}?)" if near else ""))
        if problems:
            raise ValueError(f"{'; '.join(problems)}. The engine's inputs are {', '.join(self.input_names)}")
        arrays, lengths = {}, set()
        for name, (dtype, sizes) in self.inputs.items():
            x = np.asarray(feeds[name])
            if np.dtype(dtype).kind != x.dtype.kind and not (dtype.kind in "iu" and x.dtype.kind in "iub"):
                raise ValueError(f"input {name} has type {x.dtype}, the engine takes {dtype}; convert it first")
            self._check_shape(name, x.shape, sizes)
            arrays[name] = _converted(name, x, dtype)
            lengths.add(x.shape[0] if x.ndim else 1)
        if len(lengths) > 1:
            raise ValueError(
                f"the inputs hold different numbers of samples: {sorted(lengths)}; feed the same number in each"
            )
        return arrays, lengths.pop() if lengths else 0

    def _check_shape(self, name: str, shape: tuple[int, ...], sizes: tuple[int | None, ...]) -> None:
        given = self.shapes.get(name)
        low: list[float] = list(given.min) if given else [size or 1 for size in sizes]
        high: list[float] = list(given.max) if given else [size or float("inf") for size in sizes]
        if sizes and sizes[0] is not None:
            low[0] = 1  # fewer samples than a static batch are padded
        is_admitted = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if not is_admitted:
            wanted = "x".join(str(size) if size else "?" for size in sizes)
            ranged = f" (min:opt:max {self.shapes[name]})" if name in self.shapes else ""
            raise ValueError(
                f"input {name} has shape {'x'.join(map(str, shape))}, the engine takes {wanted}{ranged}; "
                f"feed that, or build an engine with other --shapes"
            )


def _converted(name: str, x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return a contiguous array of the engine's type.

    Raises: ValueError: a number that this type cannot hold (an id beyond int32, a float beyond fp16).
    """
    with np.errstate(over="ignore"):  # looked for below
        made = np.ascontiguousarray(x, dtype=dtype)
    if not np.can_cast(x.dtype, dtype):
        is_lost = (made != x) if np.dtype(dtype).kind in "iu" else np.isinf(made) & ~np.isinf(x)
        if is_lost.any():
            lost = x[is_lost].flat[0]
            raise ValueError(f"input {name} holds {lost}, which {np.dtype(dtype)} does not; convert it first")
    return made


class Backend(Protocol):
    """Builds engines from ONNX files and loads them."""

    name: str
    precisions: tuple[str, ...]  # what everything that is not INT8 may be computed in, the default first
    saturation_mend: str | None  # what "avoid" does on a CPU without VNNI; None: this backend does not run on one

    def version(self) -> str | None:
        """Return the runtime's version, None where it is not to be had."""

    def check_build(self) -> str | None:
        """Return None if engines can be built here, else the reason and the mend."""

    def check_run(self) -> str | None:
        """Return None if engines can run here, else the reason and the mend."""

    def build(self, onnx_path: str | Path, out: str | Path, options: BuildOptions) -> EngineFile:
        """Write an engine and its manifest, whole or not at all."""

    def load(self, engine: str | Path, threads: int | None = None) -> Runner:
        """Return a runner for an engine built here."""


# Backend name -> the module that holds it as BACKEND: its runtime is imported only when it is asked for.
BACKENDS: dict[str, str] = {
    "onnxruntime": "engine.backends.onnxruntime.backend",
    "openvino": "engine.backends.openvino.backend",
    "tensorrt": "engine.backends.tensorrt.backend",
    "tensorrt_rtx": "engine.backends.tensorrt_rtx.backend",
}


def get_backend(name: str) -> Backend:
    """Return a backend by name.

    Raises: ValueError: if there is no such backend, with its near matches.
    """
    if name not in BACKENDS:
        near = near_matches(name, list(BACKENDS))
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"unknown backend {name!r}; the backends are {', '.join(sorted(BACKENDS))}{hint}")
    backend: Backend = importlib.import_module(BACKENDS[name]).BACKEND
    return backend


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

    Raises: UsageError: if the backend cannot compute what is not INT8 in that precision, or takes no such saturation.
    """
    saturation_of(backend, options)
    precision = options.precision or backend.precisions[0]
    if precision not in backend.precisions:
        raise UsageError(
            f"--precision {precision!r} is not known to {backend.name}; it takes {', '.join(backend.precisions)} "
            "(what runs in INT8 stands in the ONNX file)"
        )
    return replace(options, precision=precision)


def saturation_of(backend: Backend, options: BuildOptions) -> str | None:
    """Return what becomes of saturating sums in an engine built here: "impossible" (this CPU's INT8 kernels are exact),
    "avoided" or "allowed"; None for a backend that runs on GPUs.

    Raises: UsageError: for an option that is none of SATURATIONS, or one given to a backend that runs on GPUs.
    """
    asked = options.saturation or SATURATIONS[0]
    if asked not in SATURATIONS:
        near = near_matches(asked, list(SATURATIONS))
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--saturation {asked!r} is unknown; it takes {' or '.join(SATURATIONS)}{hint}")
    if backend.saturation_mend is None:
        if options.saturation:
            raise UsageError(f"--saturation is of CPUs; backend {backend.name} runs on GPUs: leave it out")
        return None
    if not saturates(cpu_flags()):
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
    mends = {name: get_backend(name).saturation_mend for name in backends if name in BACKENDS}
    return {name: mend for name, mend in mends.items() if mend}


def require(reason: str | None, task: str) -> None:
    """Raise RuntimeError if a check of a backend gave a reason."""
    if reason is not None:
        raise RuntimeError(f"cannot {task}: {reason}")
