"""What only TensorRT's builder can be asked for: the options, their flags, and the equal `trtexec` command."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.cli import UsageError, near_matches
from engine.shapes import ShapeRange

BACKENDS = ("tensorrt", "tensorrt_rtx")
# Our word (TensorRT's own enumeration) -> trtexec's, the first being the default.
HARDWARE_LEVELS = {"none": "none", "ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
TYPES = {"int | None": int, "str | None": str, "bool": bool, "tuple[str, ...]": list}  # of a field, in JSON


@dataclass(frozen=True)
class TensorRTOptions:
    """Options of TensorRT's builder; None or empty leaves TensorRT's own default."""

    workspace_mib: int | None = None
    """Memory that one layer's kernel may use while it runs, in MiB."""
    builder_level: int | None = None
    """0 (fastest build) to 5 (longest search)."""
    timing_cache: str | None = None
    """File of measured kernel times; read if it is there, and written whole with what this build adds."""
    tactic_sources: tuple[str, ...] = ()
    """Libraries that kernels may come from, such as CUBLAS_LT."""
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    refit: bool = False
    """Whether weights can be replaced in the built engine."""
    compute_capabilities: tuple[str, ...] = ()
    """TensorRT-RTX: GPUs to build for, such as 8.9 or 12.0; empty leaves its default (all of them)."""

    def __post_init__(self) -> None:
        if self.hardware_compatibility == "none":  # TensorRT's own default by its name: nothing is asked for
            object.__setattr__(self, "hardware_compatibility", None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of TensorRTOptions."""
    group = parser.add_argument_group("only --backend tensorrt and tensorrt_rtx")
    group.add_argument("--workspace-mib", type=int, help="memory limit of one layer's kernel")
    group.add_argument("--builder-level", type=int, help="0 builds fastest, 5 searches longest")
    group.add_argument("--timing-cache", help="file of kernel times, reused and extended by each build")
    group.add_argument("--tactic-sources", nargs="+", default=[], help="libraries of kernels, such as CUBLAS_LT")
    group.add_argument("--version-compatible", action="store_true", help="let later versions load the engine")
    group.add_argument("--hardware-compatibility", help=f"one of {', '.join(HARDWARE_LEVELS)}")
    group.add_argument("--refit", action="store_true", help="let weights be replaced in the engine")
    group.add_argument("--compute-capabilities", nargs="+", default=[], help="tensorrt_rtx: GPUs, such as 8.9 12.0")


def options_from(arguments: argparse.Namespace, backend: str) -> TensorRTOptions:
    """Return the options given on a command line.

    Raises: UsageError: a flag that this backend has not, or a value out of range.
    """
    fields = dataclasses.fields(TensorRTOptions)
    given: dict[str, Any] = {field.name: getattr(arguments, field.name) for field in fields}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    options = TensorRTOptions(**given)
    check_options(options, backend)
    return options


def options_from_json(content: Mapping[str, Any], backend: str, where: str) -> TensorRTOptions:
    """Return the options that the manifest `where` holds.

    Raises: ValueError: an option that is not known here, or of another type; UsageError: a value out of range.
    """
    known = {field.name: TYPES[str(field.type)] for field in dataclasses.fields(TensorRTOptions)}
    wrong = []
    for name, value in content.items():
        if name not in known:
            near = near_matches(name, list(known))
            wrong.append(f"{name}, which is no option here" + (f" (did you mean {near[0]}?)" if near else ""))
        elif value is not None and type(value) is not known[name]:
            wrong.append(f"{name} {value!r}, which is no {known[name].__name__}")
    if wrong:
        raise ValueError(
            f"{where} was built with {'; '.join(wrong)}. Rebuild with the version that wrote it, or name the options "
            f"anew: --onnx, --backend {backend}, ..."
        )
    values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in content.items()}
    options = TensorRTOptions(**values)
    check_options(options, backend)
    return options


def given_flags(options: TensorRTOptions) -> list[str]:
    """Return the flags of the options that are not TensorRT's own defaults."""
    fields = dataclasses.fields(TensorRTOptions)
    return [f"--{each.name.replace('_', '-')}" for each in fields if getattr(options, each.name) != each.default]


def check_options(options: TensorRTOptions, backend: str) -> None:
    """Raise UsageError for options that the backend has not, and values that no TensorRT takes."""
    if (changed := given_flags(options)) and backend not in BACKENDS:
        raise UsageError(f"{', '.join(changed)} is only for --backend {' and '.join(BACKENDS)}, not {backend}")
    if options.workspace_mib is not None and options.workspace_mib < 1:
        raise UsageError(f"--workspace-mib {options.workspace_mib} must be at least 1")
    if options.builder_level is not None and not 0 <= options.builder_level <= 5:
        raise UsageError(f"--builder-level {options.builder_level} must be 0 to 5")
    if options.hardware_compatibility not in (None, *HARDWARE_LEVELS):
        raise UsageError(
            f"--hardware-compatibility {options.hardware_compatibility!r} must be one of {', '.join(HARDWARE_LEVELS)}"
        )
    if options.compute_capabilities and backend != "tensorrt_rtx":
        raise UsageError("--compute-capabilities is only for --backend tensorrt_rtx; tensorrt builds for the GPU here")
    if options.timing_cache and backend == "tensorrt_rtx":
        raise UsageError("--timing-cache is only for --backend tensorrt; TensorRT-RTX times no kernels and keeps none")
    wrong = [text for text in options.compute_capabilities if not re.fullmatch(r"\d+\.\d", text)]
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
