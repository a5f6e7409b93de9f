"""Find, without a GPU, every product of a Q/DQ ONNX file that will not run in INT8 or will not fuse.

A new rule is a small function in `numbers`, `axes`, `placement`, `blocks`, `operators` or `speed` of this folder, a
line in its table that says what it claims, and a file in `benchmarks/` on which the consumers bear it out.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from engine.lint.blocks import BLOCK_RULES
from engine.lint.claims import CONSUMERS, LEVELS
from engine.lint.findings import Finding, Judgement, Rule, judge
from engine.lint.graph import LintGraph
from engine.lint.numbers import NUMBER_RULES
from engine.lint.operators import OPERATOR_RULES
from engine.lint.placement import PLACEMENT_RULES
from engine.lint.speed import SPEED_RULES

ALL_RULES = (*OPERATOR_RULES, *NUMBER_RULES, *PLACEMENT_RULES, *BLOCK_RULES, *SPEED_RULES)
RULES: dict[str, Rule] = {rule.name: rule for rule in ALL_RULES}
DEFAULT_CONSUMER = "tensorrt"


@dataclass(frozen=True)
class LintReport:
    """What the linter says of one file."""

    consumer: str
    findings: tuple[Finding, ...]
    linears: int
    linears_int8: int
    attention_products: int
    attention_products_int8: int
    is_refused: bool = False

    def count(self, level: str) -> int:
        """Return how many findings there are of a level."""
        return sum(finding.level == level for finding in self.findings)

    def summary(self) -> str:
        """Return one line such as "36 of 38 linear layers and 0 of 12 attention products run in INT8; 0 errors"."""
        counts = ", ".join(f"{self.count(level)} {level}{'' if self.count(level) == 1 else 's'}" for level in LEVELS)
        if not self.linears and not self.attention_products:
            return f"no product was seen in the file, so nothing was judged; {counts}"
        verb = "are INT8 in the file, which it refuses" if self.is_refused else "run in INT8"
        return (
            f"{self.linears_int8} of {self.linears} linear layers and {self.attention_products_int8} of "
            f"{self.attention_products} attention products {verb}; {counts}"
        )


def consumer_of(metadata: dict[str, str]) -> str:
    """Return whom a file is for: what its metadata says, else TensorRT."""
    target = metadata.get("int8kit.target", "")
    return target if target in CONSUMERS else DEFAULT_CONSUMER


def lint(model: onnx.ModelProto, consumer: str | None = None) -> LintReport:
    """Return what is wrong with a Q/DQ model for a consumer (default: the file's own target, else tensorrt).

    Raises: ValueError: for an unknown consumer, or a malformed graph.
    """
    judgement = judge_model(model, consumer)
    linear = [product for product in judgement.products if product.is_linear]
    attention = [product for product in judgement.products if not product.is_linear]
    return LintReport(
        judgement.consumer,
        judgement.findings,
        len(linear),
        sum(map(judgement.runs_in_int8, linear)),
        len(attention),
        sum(map(judgement.runs_in_int8, attention)),
        judgement.is_refused,
    )


def judge_model(model: onnx.ModelProto, consumer: str | None = None) -> Judgement:
    """Return what all rules say of a model for a consumer (default: the file's own target, else tensorrt), with the
    products that they speak of.

    Raises: ValueError: for an unknown consumer, or a malformed graph.
    """
    graph = LintGraph(model)
    return judge(graph, consumer or consumer_of(graph.metadata), RULES.values())
