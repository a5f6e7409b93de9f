"""What only TensorRT's builder can be asked for: the options, their flags, and the equal `trtexec` command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from engine.backends.info import OwnOptions, option
from engine.cli import UsageError
from engine.shapes import ShapeRange

# Our word (TensorRT's own enumeration) -> trtexec's, the first being the default.
HARDWARE_LEVELS = {"none": "none", "ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
CACHE = "the timing cache"


@dataclass(frozen=True)
class TensorRTOptions(OwnOptions):
    """Options of TensorRT's builder; None or empty leaves TensorRT's own default."""

    workspace_mib: int | None = option(None, "memory limit of one layer's kernel")
    """Memory that one layer's kernel may use while it runs, in MiB."""
    builder_level: int | None = option(None, "0 builds fastest, 5 searches longest")
    """0 (fastest build) to 5 (longest search)."""
    timing_cache: str | None = option(None, "file of kernel times, reused and extended by each build", CACHE)
    """File of measured kernel times; read if it is there, and written whole with what this build adds."""
    tactic_sources: tuple[str, ...] = option((), "libraries of kernels, such as CUBLAS_LT")
    """Libraries that kernels may come from, such as CUBLAS_LT."""
    version_compatible: bool = option(False, "let later versions load the engine")
    hardware_compatibility: str | None = option(None, f"one of {', '.join(HARDWARE_LEVELS)}")
    refit: bool = option(False, "let weights be replaced in the engine")
    """Whether weights can be replaced in the built engine."""
    compute_capabilities: tuple[str, ...] = option((), "tensorrt_rtx: GPUs, such as 8.9 12.0")
    """TensorRT-RTX: GPUs to build for, such as 8.9 or 12.0; empty leaves its default (all of them)."""

    def __post_init__(self) -> None:
        if self.hardware_compatibility == "none":  # TensorRT's own default by its name: nothing is asked for
            object.__setattr__(self, "hardware_compatibility", None)

    def check(self, backend: str) -> None:
        """Raise UsageError for options that this TensorRT has not, and values that none takes."""
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"--workspace-mib {self.workspace_mib} must be at least 1")
        if self.builder_level is not None and not 0 <= self.builder_level <= 5:
            raise UsageError(f"--builder-level {self.builder_level} must be 0 to 5")
        if self.hardware_compatibility not in (None, *HARDWARE_LEVELS):
            raise UsageError(
                f"--hardware-compatibility {self.hardware_compatibility!r} must be one of {', '.join(HARDWARE_LEVELS)}"
            )
        is_rtx = backend == "tensorrt_rtx"
        if self.compute_capabilities and not is_rtx:
            raise UsageError(
                "--compute-capabilities is only for --backend tensorrt_rtx; tensorrt builds for the GPU here"
            )
        if self.timing_cache and is_rtx:
            raise UsageError(
                "--timing-cache is only for --backend tensorrt; TensorRT-RTX times no kernels and keeps none"
            )
        wrong = [text for text in self.compute_capabilities if not re.fullmatch(r"\d+\.\d", text)]
        if wrong:
            raise UsageError(f"--compute-capabilities {', '.join(wrong)} must be like 8.9 or 12.0")


def trtexec_command(
    backend: str, onnx_path: str, out: str, shapes: Mapping[str, ShapeRange], flags: list[str],
    options: TensorRTOptions, sources: Iterable[str] = (),
) -> str:  # fmt: skip
    """Return the command of TensorRT's own tool that builds the same engine.

    Args:
        flags: names of the builder's precision flags (fp16, int8), or stronglyTyped.
        sources: every tactic source of this TensorRT: trtexec adds to its defaults and takes away from them, while the
            options name those that are used.
    Source: trtexec's own parser, samples/common/sampleOptions.cpp of TensorRT's repository, 8.5 to 11.
    """
    is_rtx = backend == "tensorrt_rtx"
    words = ["tensorrt_rtx" if is_rtx else "trtexec", f"--onnx={onnx_path}", f"--saveEngine={out}"]
    if not is_rtx:  # its networks are always strongly typed, and it times no kernels
        words += [f"--{flag}" for flag in flags]
        words.append("--avgTiming=1")  # the builder's default; trtexec's is 8
    for name in ("min", "opt", "max") if shapes else ():
        sizes = [f"{_quoted(key)}:{'x'.join(map(str, getattr(each, name)))}" for key, each in shapes.items()]
        words.append(f"--{name}Shapes={','.join(sizes)}")
    if options.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_mib}")
    if options.builder_level is not None:
        words.append(f"--builderOptimizationLevel={options.builder_level}")
    if options.timing_cache:
        words.append(f"--timingCacheFile={options.timing_cache}")
    if wanted := [each.upper() for each in options.tactic_sources]:
        unwanted = [each for each in sources if each not in wanted]
        words.append("--tacticSources=" + ",".join([*(f"+{x}" for x in wanted), *(f"-{x}" for x in unwanted)]))
    if options.version_compatible:
        words.append("--versionCompatible")
    if options.hardware_compatibility:
        words.append(f"--hardwareCompatibilityLevel={HARDWARE_LEVELS[options.hardware_compatibility]}")
    if options.refit:
        words.append("--refit")
    if options.compute_capabilities:
        words.append("--computeCapabilities=" + ",".join(options.compute_capabilities).replace(".", ""))
    return shlex.join([*words, "--profilingVerbosity=detailed"])


def _quoted(name: str) -> str:
    """Return an input's name as trtexec reads it: in single quotes where it holds a character of its own grammar."""
    return f"'{name}'" if set(name) & {":", ","} else name
