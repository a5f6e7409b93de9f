"""What a search was asked, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.inspect.expect import Difference
from eval.report.advice import Advice
from eval.report.run_data import RunData
from eval.search.cost import Costs
from eval.search.measure import Measured
from eval.sweep.grid import SweepOptions, System


@dataclass(frozen=True)
class SearchOptions:
    """What is asked.

    Attributes:
        sweep: model, data, shapes and backend; its recipes are those that plans are held against, the first of them
            the one whose sites the search chooses from.
        max_loss: of the metric. max_error: mean |output - float output|; None: any.
        with_fixes: whether other ways to calibrate are tried for each unit (`eval.search.fixes`).
    """

    sweep: SweepOptions
    max_loss: float
    max_error: float | None
    with_fixes: bool = True

    @property
    def backend(self) -> str:
        """The runtime that is searched for."""
        return self.sweep.backends[0]


@dataclass(frozen=True)
class Plan:
    """A set of units in INT8, with the error and the milliseconds predicted for it on what is scored."""

    name: str
    units: frozenset[str]
    error: float
    ms: float
    path: str


@dataclass(frozen=True)
class SearchResult:
    """All that a search found; the page is written from it."""

    options: SearchOptions
    measured: Measured
    costs: Costs | None
    plans: tuple[Plan, ...]
    proof: RunData | None
    chosen: System | None
    advice: Advice | None
    seconds: float
    num_left: int = 0
    """Points of the proof that --budget left out."""
    gate: Difference | None = None
    """How the chosen engine runs otherwise than planned; None where its runtime does not tell."""
    bias_correction: dict[str, Any] | None = None
    """What bias correction did to the chosen plan: `calib.bias_correction.BiasCorrection.to_dict`."""
    scale: float = 1.0
    """Errors of the samples that are scored over errors of the search's samples; plans' errors are multiplied by it."""
