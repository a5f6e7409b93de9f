"""The choice among what was proven, and the answer in one sentence: whether INT8 pays here, and why."""

from __future__ import annotations

import math
import shlex

from eval.metrics.types import Metric
from eval.report.advice import Advice, error_of, keeps_by_value, keeps_surely, speed_of
from eval.report.run_data import RunData, label
from eval.report.speeds import mean_speedup, verdict
from eval.search.result import SearchOptions, SearchResult
from eval.sweep.grid import System
from eval.sweep.run_folder import SweepRow

# Of the fastest plan's speed: a smaller error may cost so much, where the times cannot be told apart.
NEAR = 0.97


def chosen_of(data: RunData, advice: Advice, options: SearchOptions) -> System | None:
    """Return the system to take, within loss and error; None where none keeps both.

    As the report advises: those that keep the loss surely, else those whose value does; those surely faster than the
    fastest without INT8, if any; of the fastest, and those within `NEAR` of its speed that cannot be told from it, the
    one with the least error.
    """
    kept = [each for each in data.int8_systems if each.recipe is not None and _keeps(data, each, options)]
    sure = [each for each in kept if keeps_surely(data, each, options.max_loss)]
    candidates = sorted(sure or kept, key=lambda each: -speed_of(data, each))
    pool = [each for each in candidates if pays(data, each, advice)] or candidates
    near = [each for each in pool if speed_of(data, each) >= NEAR * speed_of(data, pool[0])]
    equal = [each for each in near if verdict(data, each, pool[0]) == "equal"]
    return min(equal, key=lambda each: error_of(data, each), default=None)


def _keeps(data: RunData, system: System, options: SearchOptions) -> bool:
    """Return whether a system keeps the loss, by its value, and the error."""
    is_near = options.max_error is None or error_of(data, system) <= options.max_error
    return is_near and keeps_by_value(data, system, options.max_loss)


def pays(data: RunData, system: System, advice: Advice) -> bool:
    """Return whether a system is surely faster than the fastest without INT8, over all shapes together."""
    return advice.rival is not None and verdict(data, system, advice.rival) == "faster"


def answer_of(result: SearchResult) -> str:
    """Return "INT8 pays here: ..." or "INT8 does not pay here, because ..."."""
    data, advice, options = result.proof, result.advice, result.options
    if data is None or advice is None:
        return "not asked: only the sensitivity was measured"
    if not any(system.recipe for system in data.int8_systems):
        if result.num_left:
            return (f"not known yet: --budget ended before a plan was measured ({result.num_left} points of the proof "
                    "are left); the same command with more of it goes on")  # fmt: skip
        if reasons := failures(data):
            system, reason = next(iter(reasons.items()))
            return f"not known: no plan could be measured ({len(reasons)} failed; {label(system)}: {reason})"
    if result.chosen is None:
        return f"INT8 does not pay here, because {_unkept(data, advice, options)}. Train: {_training(options)}"
    speed, rival = mean_speedup(data, result.chosen), advice.rival
    over = None if rival is None else mean_speedup(data, rival)
    facts = _facts(result, result.chosen)
    if speed is None or over is None or rival is None:
        return f"INT8 keeps the loss here ({facts}); its speed was not measured"
    ratio, is_gain = speed.value / over.value, pays(data, result.chosen, advice)
    more = _gain_to_prove(data, result.chosen, is_gain, rival, options)
    if is_gain:
        return f"INT8 pays here: {ratio:.2f} times as fast as {label(rival)}, the fastest without INT8 ({facts}){more}"
    return (f"INT8 does not pay here, because the best plan within the loss is {ratio:.2f} times as fast as "
            f"{label(rival)}, which is no sure gain ({facts}){more}")  # fmt: skip


def _facts(result: SearchResult, chosen: System) -> str:
    """Return what a sentence says of the chosen system, between brackets."""
    data, options = result.proof, result.options
    assert data is not None
    row, lost = data.ok(chosen), data.loss(chosen)
    facts = f"{label(chosen)}: loss {loss_in_words(data.metric, lost or 0.0)}"
    if row is not None and row.row.error_abs_mean is not None:
        facts += f", error {row.row.error_abs_mean:.4f}"
        if row.row.num_flips is not None:  # of a task with answers to change
            facts += f", {row.row.num_flips} changed answers of {row.row.num_samples}"
    if not keeps_surely(data, chosen, options.max_loss):
        facts += f"; by the value alone: {_unproven(row, lost, options.max_loss)}"
    if result.gate is not None and result.gate.missing:
        facts += f"; {len(result.gate.missing)} layers planned in INT8 do not run so there"
    if result.num_left:
        facts += f"; {result.num_left} points of the proof are not measured yet"
    return facts


def _training(options: SearchOptions) -> str:
    """Return the command that trains what the search could not place."""
    asked = options.sweep
    words = ["python", "train_qat.py", "--model", asked.model, "--task", asked.task, "--recipe", asked.recipes[0]]
    return shlex.join([*words, *(["--data", asked.data] if asked.data else []), "--out", "RUN"])


def failures(data: RunData) -> dict[System, str]:
    """Return the systems that were not measured at the primary shape, with the reason."""
    rows = {system: data.row(system, data.primary) for system in data.systems}
    return {system: f"{row.row.status}: {row.row.error}" for system, row in rows.items()
            if row is not None and row.row.status != "ok"}  # fmt: skip


def _gain_to_prove(data: RunData, chosen: System, is_gain: bool, rival: System, options: SearchOptions) -> str:
    """Return which system would be a gain if more samples proved its loss; "" where none would.

    Args: is_gain: whether the chosen one is one over the fastest without INT8: then it is over that.
    """
    over, base = mean_speedup(data, rival), chosen if is_gain else rival
    found = [each for each in data.int8_systems
             if each.recipe is not None and _keeps(data, each, options) and verdict(data, each, base) == "faster"
             and not keeps_surely(data, each, options.max_loss)]  # fmt: skip
    if not found or over is None or not keeps_surely(data, chosen, options.max_loss):
        return ""
    best = max(found, key=lambda each: speed_of(data, each))
    row, lost = data.ok(best), data.loss(best)
    return (f"; {label(best)} is {speed_of(data, best) / over.value:.2f} times as fast and its loss is "
            f"{loss_in_words(data.metric, lost or 0.0)}, but {_unproven(row, lost, options.max_loss)}")  # fmt: skip


def loss_in_words(metric: Metric | None, loss: float) -> str:
    """Return a loss as a sentence says it, with its unit."""
    if metric is None:
        return f"{loss:.4f}"
    return metric.loss_text(loss) + ("" if metric.loss_key == "plain" else " %")


def _unkept(data: RunData, advice: Advice, options: SearchOptions) -> str:
    """Return which limit no plan keeps, how near the closest comes, and whether so few samples can tell."""
    within = [each for each in advice.within if each.recipe is not None]
    asked = loss_in_words(data.metric, options.max_loss)
    if within:  # the loss is kept, so the error is not
        closest = min(within, key=lambda each: error_of(data, each))
        return (f"no plan within a loss of {asked} keeps an error of {options.max_error:g}; the "
                f"closest, {label(closest)}, has {error_of(data, closest):.4f}")  # fmt: skip
    losses = [(lost, each) for each in data.int8_systems if each.recipe and (lost := data.loss(each)) is not None]
    if not losses:
        return f"no plan keeps a loss of {asked}"
    lost, closest = min(losses, key=lambda each: each[0])
    near = f"no plan keeps a loss of {asked}; the closest, {label(closest)}, loses {loss_in_words(data.metric, lost)}"
    row = data.ok(closest)
    if row is None or row.row.loss_low is None or row.row.num_samples is None or row.row.loss_low > options.max_loss:
        return near
    needed = samples_needed(row.row.num_samples, -lost, -row.row.loss_low, -options.max_loss)
    return near + (f", which {row.row.num_samples} samples cannot tell from what is asked"
                   + ("" if needed is None else f" (about {needed:,} could)"))  # fmt: skip


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
