"""What only a sweep knows of a point, beside the result row that every evaluation has: the key "sweep" of its line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from engine.manifest import Products


@dataclass(frozen=True)
class Digests:
    """What a point was made from: weights, ranges and sites; the ONNX file; the engine. None: there is none."""

    source: str | None = None
    onnx: str | None = None
    engine: str | None = None


NO_DIGESTS = Digests()


@dataclass(frozen=True)
class Details:
    """The typed fields of a line's "sweep"; None for what a point has not, or an older version did not say.

    Attributes:
        latency_ms: the geometric mean of its blocks, as `eval.timing.ratios` says, with its interval.
        speedup: over `baseline`, with its interval.
        block_ms: medians of its blocks, in order.
        timed_as: whose blocks these are: a system that runs the same graph.
        graph: digest of the graph it runs, its numbers left out.
        timing: number of the session it was timed in; older rows have the first.
        baseline_ms: blocks of that session's baseline, where it is not the first.
        session: the fastest float session's name.
        products: what runs in INT8.
        onnx_path: its file in the run's artifacts.
        cpu_flags, machine: instruction sets and architecture of what measured.
        other: what other versions said beside, kept as it was.
    """

    latency_ms: float | None = None
    latency_ms_low: float | None = None
    latency_ms_high: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    baseline: str | None = None
    block_ms: tuple[float, ...] = ()
    timed_as: str | None = None
    graph: str | None = None
    timing: int = 0
    baseline_ms: tuple[float, ...] | None = None
    digests: Digests = NO_DIGESTS
    products: Products | None = None
    session: str | None = None
    onnx_path: str | None = None
    cpu_flags: tuple[str, ...] | None = None
    machine: str | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, those alone that say something; `details_from_dict` reads them back."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "other"}
        values |= {"digests": _said(dataclasses.asdict(self.digests)),
                   "products": dataclasses.asdict(self.products) if self.products else None}  # fmt: skip
        defaults = {each.name: each.default for each in fields(self)} | {"digests": {}}
        said = {name: list(x) if isinstance(x, tuple) else x for name, x in values.items() if x != defaults[name]}
        return {**self.other, **said}


NO_DETAILS = Details()


def details_from_dict(values: Mapping[str, Any]) -> Details:
    """Return the details of a line of any version; what is not known is kept in `other`.

    Raises: ValueError: a field that is there but of another kind.
    """
    known = {each.name for each in fields(Details)} - {"other"}
    found = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items() if name in known}
    found = _said(found)  # an explicit null is what a missing field is
    other = {name: x for name, x in values.items() if name not in known}
    for name, kind in (("digests", Digests), ("products", Products)):
        if name in found:
            if not isinstance(found[name], dict):
                raise ValueError(f"{name} is a {type(found[name]).__name__}, not an object")
            found[name] = kind(**_fields_of(kind, found[name]))
    return Details(**found, other=other)


def _fields_of(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    known = {each.name for each in fields(kind)}
    return {name: tuple(x) if isinstance(x, list) else x for name, x in values.items() if name in known}


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in values.items() if x is not None}
