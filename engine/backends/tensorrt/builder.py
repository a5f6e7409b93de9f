"""One build with TensorRT 8.5 to 11 or TensorRT-RTX, through Polygraphy: parse, configure, build, keep the timings.

What a version can do is asked of its objects (`hasattr`), never of its number.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.backends.tensorrt.options import TensorRTOptions
from engine.shapes import ShapeRange

INSTALL = {
    "tensorrt": "'pip install tensorrt polygraphy==0.53.6' (8.5.3.1 is the newest that needs no index of the vendor's)",
    "tensorrt_rtx": "'pip install tensorrt-rtx==1.7.1.116 polygraphy==0.53.6'",
}


def load_module(name: str) -> Any:
    """Return the module `tensorrt` or `tensorrt_rtx`, with Polygraphy turned to it.

    Raises: RuntimeError: what is missing and how to get it, or that the process already uses the other one.
    """
    try:
        module = importlib.import_module(name)
        from polygraphy import config
    except ModuleNotFoundError as error:
        raise RuntimeError(f"{error.name} is not installed; run {INSTALL[name]}") from None
    except (ImportError, OSError, RuntimeError) as error:  # a library beside it (CUDA, cuDNN) is missing
        line = " ".join(str(error).split())
        raise RuntimeError(
            f"{name} is installed but cannot be loaded: {line}. Install that library, or name its folder in "
            f"LD_LIBRARY_PATH; a fresh {name}: {INSTALL[name]}"
        ) from None
    if importlib.util.find_spec("onnx_ir") is None:  # it reads the file; an interpreter for TensorRT alone may lack it
        raise RuntimeError("onnx_ir is not installed; run 'pip install -r engine/requirements.txt'")
    wants_rtx = name == "tensorrt_rtx"
    is_used = any(each in sys.modules for each in ("polygraphy.backend.trt.loader", "polygraphy.backend.trt.config"))
    if is_used and wants_rtx != config.USE_TENSORRT_RTX:
        raise RuntimeError(f"this process already uses the other TensorRT; run {name} in a process of its own")
    config.USE_TENSORRT_RTX = wants_rtx
    return module


def make_logger(trt: Any) -> Any:
    """Return a logger that keeps TensorRT's errors (the newest last) and prints nothing by itself."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(" ".join(message.split()))

    return Logger()


def is_weakly_typed(trt: Any) -> bool:
    """Whether precisions are chosen by builder flags (8.5 to 10) and not only by the file (11, TensorRT-RTX)."""
    return hasattr(trt.BuilderFlag, "FP16") and hasattr(trt.BuilderFlag, "INT8")


def build_engine(
    trt: Any, content: bytes, onnx_path: str | Path, shapes: Mapping[str, ShapeRange], flags: list[str],
    options: TensorRTOptions, logger: Any,
) -> Any:  # fmt: skip
    """Return the serialized engine as TensorRT holds it, a buffer.

    Args:
        content: a serialized ONNX model.
        onnx_path: where it stands; weights in a file of their own are read from beside it.
        shapes: the optimization profile, one range for each input with free axes.
        flags: builder flags of the precision (fp16, bf16, int8), or ["stronglyTyped"].
        logger: of `make_logger`.
    Raises: RuntimeError: what TensorRT refused, in its own words.
    """
    builder = trt.Builder(logger)
    creation = trt.NetworkDefinitionCreationFlag
    bits = [bit for bit, wanted in (("EXPLICIT_BATCH", True), ("STRONGLY_TYPED", flags == ["stronglyTyped"]))
            if wanted and hasattr(creation, bit)]  # fmt: skip
    network = builder.create_network(sum(1 << int(getattr(creation, bit)) for bit in bits))
    parser = trt.OnnxParser(network, logger)
    if (options.version_compatible or options.hardware_compatibility) and hasattr(trt, "OnnxParserFlag"):
        # A compatible engine holds no plugins; 8.6 and 9 parse an InstanceNormalization to one unless told so.
        parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
    if not parser.parse(content, str(onnx_path)):
        problems = [" ".join(str(parser.get_error(i)).split()) for i in range(parser.num_errors)]
        raise RuntimeError(f"its parser refused the file: {'; '.join(problems)[:400] or 'no reason given'}")
    cache = _TimingCache(builder, options.timing_cache) if options.timing_cache else None
    config = _config(trt, builder, network, shapes, flags, options, cache)
    with _progress(trt, config) as monitor:
        serialized = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.is_interrupted:
        raise KeyboardInterrupt
    if serialized is None:
        raise RuntimeError(f"the build failed: {'; '.join(logger.errors[-3:])[:500] or 'no reason given'}")
    if cache is not None:
        cache.save(config)
    return serialized


def _config(
    trt: Any, builder: Any, network: Any, shapes: Mapping[str, ShapeRange], flags: list[str], options: TensorRTOptions,
    cache: _TimingCache | None,
) -> Any:  # fmt: skip
    """Return Polygraphy's builder configuration for the options.

    Raises: RuntimeError: an option that this version has not.
    """
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    profile = _profile(shapes)
    settings: dict[str, Any] = {
        "profiles": [profile],
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,  # layer names and precisions, also as NVTX ranges
        "builder_optimization_level": options.builder_level,
        "version_compatible": options.version_compatible or None,
        "refittable": options.refit or None,
    }
    if cache is not None and cache.content():
        # Polygraphy gives every configuration a cache, an empty one without this, and a second one is refused.
        settings["load_timing_cache"] = str(cache.path)
    if options.workspace_mib is not None:
        settings["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.workspace_mib << 20}
    if options.tactic_sources:
        settings["tactic_sources"] = [_member(trt, "TacticSource", each) for each in options.tactic_sources]
    if options.hardware_compatibility:
        settings["hardware_compatibility_level"] = _member(
            trt, "HardwareCompatibilityLevel", options.hardware_compatibility
        )
    if hasattr(trt, "ComputeCapability"):
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX as create

        for each in options.compute_capabilities:
            _member(trt, "ComputeCapability", f"SM{each.replace('.', '')}")
        settings["compute_capabilities"] = [
            tuple(int(part) for part in each.split(".")) for each in options.compute_capabilities
        ] or None
    else:
        from polygraphy.backend.trt import CreateConfig as create

        settings.update({flag: True for flag in flags if flag != "stronglyTyped"})
        settings["tf32"] = True  # TensorRT's own default
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            return create(**{key: value for key, value in settings.items() if value is not None})(builder, network)
    except PolygraphyException as error:
        raise RuntimeError(f"an option is not to be had in this version: {' '.join(str(error).split())}") from None


def _profile(shapes: Mapping[str, ShapeRange]) -> Any:
    from polygraphy.backend.trt import Profile

    profile = Profile()
    for name, each in shapes.items():
        profile.add(name, min=each.min, opt=each.opt, max=each.max)
    return profile


def _member(trt: Any, enum: str, name: str) -> Any:
    """Return a member of one of TensorRT's enumerations.

    Raises: RuntimeError: naming the members that this version has.
    """
    members = getattr(getattr(trt, enum, None), "__members__", {})
    if name.upper() not in members:
        raise RuntimeError(f"this version has no {enum} {name}; it has {', '.join(members) or 'none at all'}")
    return members[name.upper()]


class _TimingCache:
    """A file of kernel times, read before a build and replaced whole after it, merged with what others wrote."""

    def __init__(self, builder: Any, path: str) -> None:
        self.path, trial = Path(path), builder.create_builder_config()
        if not hasattr(trial, "create_timing_cache"):
            raise RuntimeError("this version has no timing cache; leave out --timing-cache")
        content = self.content()
        cache = trial.create_timing_cache(content) if content else None
        if content and (cache is None or not trial.set_timing_cache(cache, ignore_mismatch=False)):
            raise RuntimeError(
                f"timing cache {path} is broken, or of another version or GPU; remove it or name another file"
            )

    def content(self) -> bytes:
        """Return what the file holds, nothing if there is none."""
        return self.path.read_bytes() if self.path.is_file() else b""

    def save(self, config: Any) -> None:
        """Replace the file; a lock beside it keeps two builds from losing each other's entries."""
        cache = config.get_timing_cache()
        if cache is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{self.path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others = config.create_timing_cache(self.content())
            if others is not None:
                cache.combine(others, ignore_mismatch=True)
            descriptor, partial = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(bytes(cache.serialize()))
                os.replace(partial, self.path)
            finally:
                Path(partial).unlink(missing_ok=True)


@contextlib.contextmanager
def _progress(trt: Any, config: Any) -> Iterator[Any]:
    """Show the build's phases on a terminal and let Ctrl-C end it, where this version has a progress monitor."""
    if not hasattr(trt, "IProgressMonitor") or not hasattr(config, "progress_monitor"):
        yield None
        return

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.is_interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Return whether the build goes on; an exception may not pass through TensorRT."""
            try:
                if sys.stderr.isatty():
                    text = f"{phase_name}: {step + 1} of {self.steps.get(phase_name, 0)}"
                    columns = shutil.get_terminal_size().columns  # a wrapped line could not be taken back
                    print(f"\r\033[K{text[: columns - 1]}", end="", file=sys.stderr)
            except KeyboardInterrupt:
                self.is_interrupted = True
            return not self.is_interrupted

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    monitor = Monitor()
    config.progress_monitor = monitor
    try:
        yield monitor
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
