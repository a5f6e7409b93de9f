"""What an engine really runs, in one form for all backends: layers with kind, precision, kernel, time and arithmetic.

Each backend's `inspect` fills it; `python -m engine.inspect` prints it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from engine.shapes import ShapeRange

INT8, UNKNOWN = "int8", "unknown"
PRODUCT_KINDS = ("product", "attention", "myelin")
# What engines call their number types, and what this report calls them.
PRECISIONS = {
    "float": "fp32", "f32": "fp32", "fp32": "fp32", "tf32": "fp32", "float16": "fp16", "f16": "fp16", "fp16": "fp16",
    "half": "fp16", "bfloat16": "bf16", "bf16": "bf16", "int8": INT8, "i8": INT8, "uint8": INT8, "u8": INT8,
    "fp8": "fp8", "f8e4m3": "fp8", "double": "fp64", "f64": "fp64",
}  # fmt: skip


@dataclass(frozen=True)
class InspectRequest:
    """How an engine is inspected, and what lies where for those that do not tell all themselves.

    Attributes:
        feeds: inputs to run it on; None makes some up.
        iterations: calls of which each layer's median is told.
        threads: of the CPU; None takes what the engine was built with.
        onnx: the file it was built from.
        shapes: sizes for that file where its axes are free; empty takes the engine's own.
        layers, profile, trace: files with the layers, their times and the kernels of a run; None looks beside the
            engine.
        save: keep what was asked of the engine beside it.
    """

    feeds: Mapping[str, np.ndarray] | None = None
    iterations: int = 20
    threads: int | None = None
    onnx: str | None = None
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    layers: str | None = None
    profile: str | None = None
    trace: str | None = None
    save: bool = False


@dataclass(frozen=True)
class Layer:
    """One layer as the engine runs it.

    Attributes:
        name: the layer that a person knows, a weight's name where it has one.
        kind: product, attention, myelin (a whole region that TensorRT hides), reformat (between types and layouts),
            norm, softmax, elementwise, lookup, move or other.
        type: the runtime's own word for it.
        precision: int8, fp16, bf16, fp32, ... or unknown.
        kernel: what the runtime says it runs, None if it does not say.
        time_ms: median of one call, None if it was not measured.
        macs: multiply-accumulates of one call, None if unknown or none.
        sources: names of the ONNX nodes in it, as far as the runtime tells.
        products: every product in it, where one kernel may compute several (Q, K, V) or stay without a name; None: the
            one that `name` says.
    """

    name: str
    kind: str
    type: str
    precision: str
    kernel: str | None = None
    time_ms: float | None = None
    macs: int | None = None
    sources: tuple[str, ...] = ()
    products: tuple[str, ...] | None = None

    @property
    def is_product(self) -> bool:
        """Whether it multiplies matrices (or hides who does)."""
        return self.kind in PRODUCT_KINDS


@dataclass(frozen=True)
class Share:
    """Of the products' arithmetic: multiply-accumulates in INT8, in another type, and where nobody says."""

    int8: int
    other: int
    unknown: int
    uncounted: int  # product layers whose arithmetic is not known

    @property
    def percent(self) -> float | None:
        """Share of INT8 in percent, None if any product's precision or arithmetic is unknown."""
        total = self.int8 + self.other + self.unknown
        return None if not total or self.unknown or self.uncounted else 100.0 * self.int8 / total

    def sentence(self) -> str:
        """Return one line such as "95.3 % of 5.62 GMAC in products runs in INT8"."""
        total = self.int8 + self.other + self.unknown
        if self.percent is not None:
            percent = "over 99.9" if 99.9 < self.percent < 100 else f"{self.percent:.1f}"
            return f"{percent} % of {total / 1e9:.3g} GMAC in products runs in INT8"
        if not total:
            return "unknown: how much of the products' arithmetic runs in INT8"
        text = f"unknown: of {total / 1e9:.3g} GMAC {100 * self.int8 / total:.1f} % is seen in INT8, "
        text += f"{100 * self.other / total:.1f} % in float, {100 * self.unknown / total:.1f} % is hidden"
        return text + (f"; {self.uncounted} product layers tell no shape" if self.uncounted else "")


@dataclass(frozen=True)
class Inspection:
    """What one engine runs."""

    engine: str
    backend: str
    version: str | None
    conditions: str  # on what it was measured
    layers: tuple[Layer, ...]
    call_ms: float | None = None  # median of a whole call
    notes: tuple[str, ...] = ()

    @property
    def products(self) -> list[Layer]:
        """The layers that multiply matrices."""
        return [layer for layer in self.layers if layer.is_product]

    @property
    def share(self) -> Share:
        """How much of the products' arithmetic runs in INT8."""
        sums = {"int8": 0, "other": 0, "unknown": 0}
        for layer in self.products:
            key = layer.precision if layer.precision in (INT8, UNKNOWN) else "other"
            sums[key] += layer.macs or 0
        return Share(**sums, uncounted=sum(layer.macs is None for layer in self.products))

    @property
    def layers_ms(self) -> float | None:
        """Sum of the layers' times, None if none was measured."""
        times = [layer.time_ms for layer in self.layers if layer.time_ms is not None]
        return sum(times) if times else None


def precision_of(word: str) -> str:
    """Return the report's word for a runtime's number type, or the runtime's own in small letters."""
    return PRECISIONS.get(word.lower(), word.lower())


def time_of(layers: Iterable[Layer]) -> float:
    """Return the sum of the times that were measured."""
    return sum(layer.time_ms or 0.0 for layer in layers)


def by_kind(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Return layers by kind, the one with the most time first."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.kind, []).append(layer)
    return dict(sorted(groups.items(), key=lambda item: (-time_of(item[1]), -len(item[1]))))
