"""What every section of a report gets: the run, the language, the plots, and the metric's way to print."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from eval.report.advice import Advice, advise
from eval.report.plots import Plot
from eval.report.run_data import RunData
from eval.report.writing import NOTHING, Texts
from eval.sweep.grid import Shape


@dataclass(frozen=True)
class Context:
    """What every section gets.

    Attributes:
        plots: name -> drawn plot; a plot there is no data for is absent.
        notes: what a person wrote in notes.yaml.
    """

    data: RunData
    t: Texts
    max_loss: float
    plots: dict[str, Plot]
    notes: dict[str, object] = field(default_factory=dict)

    def shape(self, shape: Shape | None = None) -> str:
        """Return a shape (the primary one) in words."""
        shape = shape or self.data.primary
        if shape.sequence_length is None:
            return self.t("shape_image", batch=shape.batch_size)
        return self.t("shape_text", batch=shape.batch_size, length=shape.sequence_length)

    @cached_property
    def advice(self) -> Advice:
        """The recommendation."""
        return advise(self.data, self.max_loss)

    @property
    def metric_name(self) -> str:
        """The primary metric's name."""
        return self.data.metric.name if self.data.metric else "metric"

    def value(self, value: float | None) -> str:
        """Return a value of the metric with its unit, e.g. "89.45 %"."""
        return NOTHING if value is None or self.data.metric is None else (
            f"{self.data.metric.text(value)}{self.data.metric.unit}")  # fmt: skip

    def loss_figure(self, loss: float | None) -> str:
        """Return a loss of the metric without its unit."""
        return NOTHING if loss is None or self.data.metric is None else self.data.metric.loss_text(loss)

    def loss(self, loss: float | None) -> str:
        """Return a loss in words, e.g. "0.34 points of accuracy"."""
        key = self.data.metric.loss_key if self.data.metric else "plain"
        return self.t(f"loss_{key}", loss=self.loss_figure(loss), metric=self.metric_name)
