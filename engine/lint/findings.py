"""What a rule of the linter is and what it says: hits on single nodes, gathered into findings of one reason each, and
from these which products a consumer runs in INT8."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from engine.graph import label
from engine.lint.claims import CONSUMERS, FLOAT, LEVELS, REFUSED, TENSORRT
from engine.lint.graph import LintGraph
from engine.operands import Q_DQ
from engine.products import Product

# What a scale's own name carries at its end, after the name of the quantizer that it belongs to.
SCALE_SUFFIXES = (".export_scale", "_scale", "/scale")


@dataclass(frozen=True)
class Hit:
    """One place where a rule is broken; level, mend and claim are the rule's where None."""

    site: ir.Node | Product
    reason: str
    level: str | None = None
    mend: str | None = None
    claim: str | None = None

    @property
    def node(self) -> str:
        """The node's name in the file."""
        return label(self.site.node if isinstance(self.site, Product) else self.site)

    @property
    def name(self) -> str:
        """What a reader knows it by: a product by its weight, Q/DQ by their scale, else the node's name."""
        if isinstance(self.site, Product):
            return self.site.name
        if self.site.op_type in Q_DQ and self.site.inputs[1] is not None:
            scale = self.site.inputs[1].name or ""
            for suffix in SCALE_SUFFIXES:
                if scale.endswith(suffix) and "." in scale:
                    return scale.removesuffix(suffix)
        return self.node


@dataclass(frozen=True)
class Rule:
    """One rule: how bad a breach is, what it claims, for whom, what to do, and the function that finds the breaches."""

    name: str
    level: str
    claim: str
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


@dataclass(frozen=True)
class Judgement:
    """What all rules say of a file for one consumer."""

    findings: tuple[Finding, ...]  # the worst first, in the order of the rules
    hits: tuple[tuple[Rule, Hit], ...]
    products: tuple[Product, ...]
    consumer: str

    def claims(self, claim: str) -> list[tuple[Rule, Hit]]:
        """Return the hits that claim this."""
        return [(rule, hit) for rule, hit in self.hits if (hit.claim or rule.claim) == claim]

    @property
    def is_refused(self) -> bool:
        """Whether the consumer is said to refuse the file."""
        return bool(self.claims(REFUSED))

    def runs_in_int8(self, product: Product) -> bool:
        """Return whether the consumer is said to run this product in INT8, where it takes the file at all."""
        return is_int8_for(product, self.consumer) and all(hit.site is not product for _, hit in self.claims(FLOAT))


def is_int8_for(product: Product, consumer: str) -> bool:
    """Return whether both factors are of types that a consumer multiplies in INT8: TensorRT widens INT4 weights."""
    if product.is_int8:
        return True
    x, weight = (side.dtype for side in product.sides)
    return consumer in TENSORRT and (x, weight) == (ir.DataType.INT8, ir.DataType.INT4)


def judge(graph: LintGraph, consumer: str, rules: Iterable[Rule]) -> Judgement:
    """Return what the rules say for a consumer.

    Raises: ValueError: for an unknown consumer.
    """
    if consumer not in CONSUMERS:
        raise ValueError(f"unknown consumer {consumer!r}; it is one of {', '.join(CONSUMERS)}")
    hits = [(rule, hit) for rule in rules if consumer in rule.consumers for hit in rule.check(graph, consumer)]
    gathered: dict[tuple[str, str, str, str], list[Hit]] = {}
    for rule, hit in hits:
        key = (rule.name, hit.level or rule.level, hit.reason, hit.mend or rule.mend)
        gathered.setdefault(key, []).append(hit)
    findings = [
        Finding(*key, tuple(hit.node for hit in group), tuple(hit.name for hit in group))
        for key, group in gathered.items()
    ]
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return Judgement(tuple(findings), tuple(hits), tuple(graph.products), consumer)
