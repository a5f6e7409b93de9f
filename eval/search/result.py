"""What a search was asked, what it found, and its answer in one sentence."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from eval.metrics.types import Metric
from eval.report.advice import Advice
from eval.report.run_data import RunData, label
from eval.report.speeds import mean_speedup, verdict
from eval.search.cost import Costs
from eval.search.measure import Measured
from eval.sweep.grid import SweepOptions, System
from eval.sweep.run_folder import SweepRow


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
    scale: float = 1.0
    """Errors of the samples that are scored over errors of the search's samples; plans' errors are multiplied by it."""

    @property
    def answer(self) -> str:
        """Whether INT8 pays here, in one sentence."""
        if self.proof is None or self.advice is None:
            return "not asked: only the sensitivity was measured"
        return answer_of(self)


def chosen_of(data: RunData, advice: Advice, options: SearchOptions) -> System | None:
    """Return the system to take: as the report advises, but within the error too; None where none keeps both."""

    def keeps(system: System) -> bool:
        return options.max_error is None or error_of(data, system) <= options.max_error

    candidates = [each for each in advice.within if keeps(each) and each.recipe is not None]  # the fastest first
    pool = [each for each in candidates if pays(data, each, advice)] or candidates
    equal = [each for each in pool if verdict(data, each, pool[0]) == "equal"]
    return min(equal, key=lambda each: error_of(data, each), default=None)


def pays(data: RunData, system: System, advice: Advice) -> bool:
    """Return whether a system is surely faster than the fastest without INT8, over all shapes together."""
    return advice.rival is not None and verdict(data, system, advice.rival) == "faster"


def error_of(data: RunData, system: System) -> float:
    """Return a system's mean error, infinite where it was not measured."""
    row = data.ok(system)
    return float("inf") if row is None or row.row.error_abs_mean is None else row.row.error_abs_mean


def answer_of(result: SearchResult) -> str:
    """Return "INT8 pays here: ..." or "INT8 does not pay here, because ..."."""
    data, advice, options = result.proof, result.advice, result.options
    assert data is not None and advice is not None
    if result.num_left and not any(system.recipe for system in data.int8_systems):
        return (f"not known yet: --budget ended before a plan was measured ({result.num_left} points of the proof are "
                "left); the same command with more of it goes on")  # fmt: skip
    if result.chosen is None:
        asked = options.sweep
        words = ["python train_qat.py", f"--model {asked.model}", f"--task {asked.task}", "--out RUN"]
        train = " ".join(words[:3] + ([f"--data {asked.data}"] if asked.data else []) + words[3:])
        return f"INT8 does not pay here, because {_unkept(data, advice, options)}. Train: {train}"
    speed, rival = mean_speedup(data, result.chosen), advice.rival
    over = None if rival is None else mean_speedup(data, rival)
    row = data.ok(result.chosen)
    lost = data.loss(result.chosen)
    facts = f"{label(result.chosen)}: loss {loss_in_words(data.metric, lost or 0.0)}"
    if row is not None and row.row.error_abs_mean is not None:
        facts += f", error {row.row.error_abs_mean:.4f}"
        if row.row.num_flips is not None:  # of a task with answers to change
            facts += f", {row.row.num_flips} changed answers of {row.row.num_samples}"
    if speed is None or over is None or rival is None:
        return f"INT8 keeps the loss here ({facts}); its speed was not measured"
    ratio = speed.value / over.value
    if not advice.is_proven:
        facts += f"; by the value alone: {_unproven(row, lost, options.max_loss)}"
    if result.num_left:
        facts += f"; {result.num_left} points of the proof are not measured yet"
    is_gain = pays(data, result.chosen, advice)
    more = _gain_to_prove(data, result.chosen if is_gain else None, rival, options) if advice.is_proven else ""
    if is_gain:
        return f"INT8 pays here: {ratio:.2f} times as fast as {label(rival)}, the fastest without INT8 ({facts}){more}"
    return (f"INT8 does not pay here, because the best plan within the loss is {ratio:.2f} times as fast as "
            f"{label(rival)}, which is no sure gain ({facts}){more}")  # fmt: skip


def _gain_to_prove(data: RunData, chosen: System | None, rival: System, options: SearchOptions) -> str:
    """Return which system would be a gain over the chosen one if more samples proved its loss; "" where none would.

    Args: chosen: None where what is proven gains nothing over the fastest without INT8.
    """
    found = [each for each in data.int8_systems
             if each.recipe is not None and verdict(data, each, chosen or rival) == "faster"
             and (lost := data.loss(each)) is not None and lost <= options.max_loss
             and (options.max_error is None or error_of(data, each) <= options.max_error)]  # fmt: skip
    speeds = {each: speed.value for each in found if (speed := mean_speedup(data, each)) is not None}
    over = mean_speedup(data, rival)
    if not speeds or over is None:
        return ""
    best = max(speeds, key=lambda each: speeds[each])
    row, lost = data.ok(best), data.loss(best)
    return (f"; {label(best)} is {speeds[best] / over.value:.2f} times as fast and its loss is "
            f"{loss_in_words(data.metric, lost or 0.0)}, but {_unproven(row, lost, options.max_loss)}")  # fmt: skip


def loss_in_words(metric: Metric | None, loss: float) -> str:
    """Return a loss as a sentence says it, with its unit."""
    if metric is None:
        return f"{loss:.4f}"
    return metric.loss_text(loss) + ("" if metric.loss_key == "plain" else " %")


def _unkept(data: RunData, advice: Advice, options: SearchOptions) -> str:
    """Return which limit no plan keeps, and how near the closest comes."""
    within = [each for each in advice.within if each.recipe is not None]
    asked = loss_in_words(data.metric, options.max_loss)
    if within:  # the loss is kept, so the error is not
        closest = min(within, key=lambda each: error_of(data, each))
        return (f"no plan within a loss of {asked} keeps an error of {options.max_error:g}; the "
                f"closest, {label(closest)}, has {error_of(data, closest):.4f}")  # fmt: skip
    losses = [(lost, each) for each in data.int8_systems if each.recipe and (lost := data.loss(each)) is not None]
    near = ""
    if losses:
        lost, closest = min(losses, key=lambda each: each[0])
        near = f"; the closest, {label(closest)}, loses {loss_in_words(data.metric, lost)}"
    return f"no plan keeps a loss of {asked}{near}"


def samples_needed(num_samples: int, loss: float, loss_high: float, max_loss: float) -> int | None:
    """Return about how many samples would prove a loss, if it stays what it is; None where it leaves no room.

    A paired interval narrows with the root of the number. Args: loss_high: the upper end of the loss's interval.
    """
    if loss >= max_loss or loss_high <= loss:
        return None
    exact = num_samples * ((loss_high - loss) / (max_loss - loss)) ** 2
    digits = 10 ** max(math.floor(math.log10(exact)) - 1, 0)  # two that count: the interval is an estimate too
    return math.ceil(exact / digits) * digits


def _unproven(row: SweepRow | None, loss: float | None, max_loss: float) -> str:
    if row is None or row.row.num_samples is None or loss is None or row.row.loss_high is None:
        return "so few samples do not prove the loss"
    needed = samples_needed(row.row.num_samples, loss, row.row.loss_high, max_loss)
    takes = "" if needed is None else f", about {needed:,} would"
    return f"{row.row.num_samples} samples do not prove the loss{takes}"


def summary_of(result: SearchResult) -> dict[str, Any]:
    """Return the result as plain JSON values."""
    measured, costs = result.measured, result.costs
    rows = []
    for unit in measured.units:
        rows.append({"unit": unit.name, "block": unit.block, "part": unit.part, "layers": list(unit.layers),
                     "weights": unit.weights, "alone": measured.alone[unit.name].to_dict(),
                     "without": measured.without[unit.name].to_dict(),
                     "fix": measured.fixes.get(unit.name), "tried": measured.tried[unit.name],
                     "gain_ms": None if costs is None else costs.gains[unit.name]})  # fmt: skip
    return {
        "options": {**result.options.sweep.as_dict(), "max_loss": result.options.max_loss,
                    "max_error": result.options.max_error},
        "verdict": result.answer, "seconds": round(result.seconds, 1), "units": rows,
        "together": measured.together.to_dict(), "fixed": measured.fixed.to_dict(),
        "bend": measured.prediction.bend, "num_samples": measured.num_samples,
        "num_shared": measured.num_shared, "scale": result.scale,
        "costs": None if costs is None else {**costs.to_dict(), "error": costs.error},
        "plans": [{**asdict(plan), "units": sorted(plan.units)} for plan in result.plans],
        "chosen": None if result.chosen is None else result.chosen.name,
    }  # fmt: skip
