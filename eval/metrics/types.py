"""What a metric is: its name, range, direction, and how its values and losses are printed.

Rows carry it beside their value; report and plots ask it, none of them knows a metric by name. METRICS holds those that
several tasks have; a task's own stands in the task's file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from engine.cli import did_you_mean


@dataclass(frozen=True)
class Metric:
    """One kind of score.

    Attributes:
        name: as rows hold it.
        low, high: what values are possible, both included.
        is_higher_better: False for perplexity and error rates.
        is_percent: whether it is a share, printed times 100.
        is_loss_relative: whether a loss is a share of the reference's value: a perplexity has no scale of its own.
        is_share_right: whether it is the share of examples with `is_correct`, so that McNemar's test judges its loss.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    is_higher_better: bool = True
    is_percent: bool = True
    is_loss_relative: bool = False
    is_share_right: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(
                f"metric {self.name}: the low end {self.low:g} of its range is not below the high {self.high:g}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an end that is infinite is null."""
        values = asdict(self)
        return values | {end: values[end] if math.isfinite(values[end]) else None for end in ("low", "high")}

    @property
    def unit(self) -> str:
        """What stands behind a value: " %", or nothing."""
        return " %" if self.is_percent else ""

    def loss(self, value: float, reference: float) -> float:
        """Return by how much a value is worse than the reference's (below 0: better), relative where that is its way.

        Source of the relative form: a perplexity of 30 against 20 and one of 15 against 10 are the same loss of nats.
        """
        difference = reference - value if self.is_higher_better else value - reference
        if not self.is_loss_relative:
            return difference
        return difference / reference if reference else math.copysign(math.inf, difference) if difference else 0.0

    def scaled(self, value: float) -> float:
        """Return a value as it is printed and drawn: percent for shares."""
        return 100 * value if self.is_percent else value

    def text(self, value: float) -> str:
        """Return a value in print, without its unit: two decimals of percent, else four digits that count."""
        if self.is_percent:
            return f"{100 * value:.2f}"
        return f"{value:.4f}" if self.high <= 1 else f"{value:.4g}"

    def loss_text(self, loss: float) -> str:
        """Return a loss in print: points of percent, percent where it is relative, else four decimals."""
        is_percent = self.is_percent or self.is_loss_relative
        found = f"{100 * loss:.2f}" if is_percent else f"{loss:.4f}"
        return found.removeprefix("-") if float(found) == 0 else found

    @property
    def loss_key(self) -> str:
        """What a loss is counted in: "points", "relative" (percent of the reference's) or "plain"."""
        return "relative" if self.is_loss_relative else "points" if self.is_percent else "plain"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", is_share_right=True),
        Metric("exact_match", is_share_right=True),
        Metric("f1"),
        Metric("pearson", -1.0, 1.0, is_percent=False),
        Metric("spearman", -1.0, 1.0, is_percent=False),
        Metric("perplexity", 1.0, math.inf, is_higher_better=False, is_percent=False, is_loss_relative=True),
        Metric("word_error_rate", 0.0, math.inf, is_higher_better=False),  # more words inserted than there are: above 1
    )
}


def metric_from_dict(values: Mapping[str, Any]) -> Metric:
    """Return the metric that `as_dict` wrote; what a newer version says of it beside is left out."""
    known: dict[str, Any] = {field.name: values[field.name] for field in fields(Metric) if field.name in values}
    for end, infinite in (("low", -math.inf), ("high", math.inf)):
        known[end] = infinite if known.get(end) is None else known[end]
    return Metric(**known)


def get_metric(name: str) -> Metric:
    """Return a metric by the name that rows hold. Raises: ValueError: an unknown one, with near matches."""
    if name not in METRICS:
        raise ValueError(
            f"no metric '{name}'{did_you_mean(name, METRICS, ' ({})')}; known: {', '.join(METRICS)}; a "
            "task's own is a Metric in the task's file, and stands in the rows' metric_type"
        )
    return METRICS[name]
