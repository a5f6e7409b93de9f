"""What a rule of the linter is and what it says: hits on single nodes, gathered into findings of one reason each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from engine.lint_graph import LintGraph, ProductSite, label

LEVELS = ("error", "warning", "note")
CONSUMERS = ("tensorrt", "tensorrt8", "onnxruntime", "openvino")
TENSORRT = ("tensorrt", "tensorrt8")
# What a scale's own name carries at its end, after the name of the quantizer that it belongs to.
SCALE_SUFFIXES = (".export_scale", "_scale", "/scale")


@dataclass(frozen=True)
class Hit:
    """One place where a rule is broken; level and mend are the rule's where None."""

    site: ir.Node | ProductSite
    reason: str
    level: str | None = None
    mend: str | None = None

    @property
    def node(self) -> str:
        """The node's name in the file."""
        return label(self.site.node if isinstance(self.site, ProductSite) else self.site)

    @property
    def name(self) -> str:
        """What a reader knows it by: a product by its weight, Q/DQ by their scale, else the node's name."""
        if isinstance(self.site, ProductSite):
            return self.site.name
        if self.site.op_type in ("QuantizeLinear", "DequantizeLinear") and self.site.inputs[1] is not None:
            scale = self.site.inputs[1].name or ""
            for suffix in SCALE_SUFFIXES:
                if scale.endswith(suffix) and "." in scale:
                    return scale.removesuffix(suffix)
        return self.node


@dataclass(frozen=True)
class Rule:
    """One rule: for whom it holds, how bad a breach is, what to do, and the function that finds the breaches."""

    name: str
    level: str
    consumers: tuple[str, ...]
    mend: str
    check: Callable[[LintGraph, str], Iterator[Hit]]


@dataclass(frozen=True)
class Finding:
    """All places where one rule is broken for one reason."""

    rule: str
    level: str
    reason: str
    mend: str
    nodes: tuple[str, ...]  # as they are named in the file
    names: tuple[str, ...]  # as a reader knows them


def judge(graph: LintGraph, consumer: str, rules: Iterable[Rule]) -> list[Finding]:
    """Return the findings for a consumer, the worst first, in the order of the rules.

    Raises: ValueError: for an unknown consumer.
    """
    if consumer not in CONSUMERS:
        raise ValueError(f"unknown consumer {consumer!r}; it is one of {', '.join(CONSUMERS)}")
    gathered: dict[tuple[str, str, str, str], list[Hit]] = {}
    for rule in rules:
        for hit in rule.check(graph, consumer) if consumer in rule.consumers else ():
            key = (rule.name, hit.level or rule.level, hit.reason, hit.mend or rule.mend)
            gathered.setdefault(key, []).append(hit)
    findings = [
        Finding(*key, tuple(hit.node for hit in hits), tuple(hit.name for hit in hits))
        for key, hits in gathered.items()
    ]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
