"""What a sweep measures: systems (method, recipe, backend) at shapes (batch size, length), most telling first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from engine.backend import BACKENDS, get_backend
from engine.cli import UsageError, did_you_mean
from engine.gpu import find_gpu
from eval.results import FLOAT_TYPES, QAT
from quant.recipe import METHODS

FLOAT_METHODS = FLOAT_TYPES
SMOOTHQUANT = "smoothquant"
INT8_METHODS = (*METHODS, SMOOTHQUANT, QAT)
PYTORCH = "pytorch"
BUILD_ARGUMENTS = "--build-arguments"  # the flag whose words each backend reads as its own
FASTEST, DYNAMIC, COMPILED = "fp32-fastest", "dynamic", "fp32-compiled"
# What every report holds the candidates against: name on the command line -> (method, backend) of its rows.
REFERENCES = {
    "pytorch": ("fp32", PYTORCH),
    "pytorch-compiled": (COMPILED, PYTORCH),
    "onnxruntime-fastest": (FASTEST, "onnxruntime"),
    "onnxruntime-dynamic": (DYNAMIC, "onnxruntime"),
}


@dataclass(frozen=True)
class System:
    """One way to run the model; `recipe` is None for float methods and references."""

    method: str
    recipe: str | None
    backend: str
    is_reference: bool = False

    @property
    def name(self) -> str:
        """Return the name that rows, plots and tables use, e.g. "max int8_linear onnxruntime"."""
        return " ".join(part for part in (self.method, self.recipe, self.backend) if part)

    @property
    def is_int8(self) -> bool:
        """Whether some of its products are meant to run in INT8."""
        return self.recipe is not None or self.method == DYNAMIC


@dataclass(frozen=True)
class Shape:
    """Samples of a call and tokens of a sample; the length is None for images."""

    batch_size: int
    sequence_length: int | None

    @property
    def name(self) -> str:
        """Return e.g. "8x64", or "8" for images."""
        return str(self.batch_size) if self.sequence_length is None else f"{self.batch_size}x{self.sequence_length}"


@dataclass(frozen=True)
class SweepOptions:
    """Everything that decides what the rows hold; kept in the run folder's manifest and compared on resume."""

    model: str
    task: str
    data: str | None
    split: str
    columns: tuple[str, ...] | None
    label_column: str | None
    samples: str
    num_calibration: int
    num_samples: int | None
    seed: int
    methods: tuple[str, ...]
    recipes: tuple[str, ...]
    backends: tuple[str, ...]
    references: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    seq_lengths: tuple[int | None, ...]
    shapes: str
    threads: int
    rounds: int
    device: str
    qat_arguments: str
    load_clients: tuple[int, ...]
    load_seconds: float
    build_arguments: str = ""
    tensorrt_python: str | None = None
    max_rounds: int | None = None  # rounds are added up to so many while ratios are uncertain; None adds none

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `options_from_dict` reads them back."""
        return {key: list(x) if isinstance(x, tuple) else x for key, x in dataclasses.asdict(self).items()}


def options_from_dict(values: dict[str, Any]) -> SweepOptions:
    """Return the options that `as_dict` wrote; what an older version did not have takes its default.

    Raises: ValueError: unknown keys, or one missing that every version had.
    """
    known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(SweepOptions)}
    wrong = (set(values) - set(known)) | {name for name, is_needed in known.items() if is_needed and name not in values}
    if wrong:
        raise ValueError(f"these sweep options are of another version: {', '.join(sorted(wrong))}")
    plain: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in values.items()}
    return SweepOptions(**plain)


def check_names(what: str, given: Iterable[str], allowed: Iterable[str]) -> tuple[str, ...]:
    """Return the names without repeats. Raises: UsageError: none at all, or unknown ones, with their near matches."""
    names, allowed = tuple(dict.fromkeys(given)), tuple(allowed)
    if not names:
        raise UsageError(f"the grid is empty: {what} names nothing; allowed: {', '.join(allowed)}")
    if wrong := [f"'{name}'{did_you_mean(name, allowed, ' ({})')}" for name in names if name not in allowed]:
        raise UsageError(f"{what} does not know {', '.join(wrong)}; allowed: {', '.join(allowed)}")
    return names


def backend_names() -> tuple[str, ...]:
    """Return what --backends takes: PyTorch (INT8 simulated there) and every registered backend."""
    return (PYTORCH, *BACKENDS)


@dataclass(frozen=True)
class Usual:
    """What these backends are measured beside where nobody says.

    Attributes:
        floats: methods without INT8: fp32 on a CPU, fp16 on a GPU. references: PyTorch's alone where all is on a GPU.
        device: of PyTorch: a GPU where all backends run on one and it is here.
    """

    floats: tuple[str, ...]
    references: tuple[str, ...]
    device: str


def usual_of(backends: Iterable[str]) -> Usual:
    """Return what registered backends, and PyTorch, are measured beside."""
    runs_on_gpu = {get_backend(each).info.uses_gpu for each in backends if each != PYTORCH}
    if runs_on_gpu == {True}:
        own = tuple(name for name, (_, backend) in REFERENCES.items() if backend == PYTORCH)
        return Usual(("fp16",), own, "cuda" if find_gpu() else "cpu")
    return Usual(("fp32", "fp16") if True in runs_on_gpu else ("fp32",), tuple(REFERENCES), "cpu")


def systems_of(options: SweepOptions) -> list[System]:
    """Return every system of the grid, the most telling first.

    References and float, then the first method with every recipe, then the other methods by recipe.
    """
    references = [System(*REFERENCES[name][:1], None, REFERENCES[name][1], True) for name in options.references]
    order = {FASTEST: 0, "fp32": 1, DYNAMIC: 2, COMPILED: 3}
    references.sort(key=lambda system: order[system.method])
    floats = [(m, b) for m in options.methods if m in FLOAT_METHODS for b in options.backends]
    # Each backend takes the float types it has: fp32 is a CPU's, fp16 a GPU's. One that has none says so in a row.
    had = [(m, b) for m, b in floats if b == PYTORCH or (b in BACKENDS and m in get_backend(b).info.precisions)]
    having = {b for _, b in had}
    floats = [(m, b) for m, b in floats if (m, b) in had or b not in having]
    int8 = [m for m in options.methods if m in INT8_METHODS]
    pairs = [(m, r) for m in int8[:1] for r in options.recipes]
    pairs += [(m, r) for r in options.recipes for m in int8[1:]]
    systems = [
        *(s for s in references if s.method in (FASTEST, "fp32")),
        *(System(m, None, b) for m, b in floats),
        *(System(m, r, b) for m, r in pairs for b in options.backends),
        *(s for s in references if s.method in (DYNAMIC, COMPILED)),
    ]
    unique: dict[str, System] = {}
    for system in systems:
        unique.setdefault(system.name, system)  # fp32 in PyTorch may be asked for twice
    return list(unique.values())


def shapes_of(options: SweepOptions) -> list[Shape]:
    """Return every shape, the most telling first: the middle one, the two corners, then the rest."""
    batches, lengths = sorted(options.batch_sizes), sorted(options.seq_lengths, key=lambda n: n or 0)
    every = [Shape(b, length) for b in batches for length in lengths]
    first = [primary_shape(options), Shape(batches[0], lengths[0]), Shape(batches[-1], lengths[-1])]
    return list(dict.fromkeys([*first, *every]))


def primary_shape(options: SweepOptions) -> Shape:
    """Return the shape that summaries quote: the middle batch size and length."""
    batches, lengths = sorted(options.batch_sizes), sorted(options.seq_lengths, key=lambda n: n or 0)
    return Shape(batches[len(batches) // 2], lengths[len(lengths) // 2])


def baseline_of(systems: list[System]) -> System:
    """Return what speed-ups are over: the fastest float ONNX Runtime session, else the first float system of a runtime
    (on a GPU the float twin), else of PyTorch, else the first.
    """
    return min(systems, key=lambda s: (s.method != FASTEST, s.is_int8, s.backend == PYTORCH, systems.index(s)))
