"""How fast the systems of a run are: times, ratios and verdicts, all from the rows' blocks by `eval.timing.ratios`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eval.report.run_data import RunData
from eval.sweep.grid import Shape, System
from eval.sweep.run_folder import SweepRow
from eval.timing.ratios import Estimate, Term, estimate, ratio_term, shared_confidence, time_of


def time_at(data: RunData, system: System, shape: Shape | None = None) -> Estimate | None:
    """Return a system's time in ms at a shape (the primary one), None where it was not timed."""
    row = data.timed(system, shape)
    return None if row is None else time_of(row.details.block_ms)


def speedup_at(data: RunData, system: System, shape: Shape | None = None) -> Estimate | None:
    """Return how many times as fast as the baseline a system is at a shape, None where one was not timed."""
    row = data.timed(system, shape)
    base = None if row is None else _baseline_blocks(data, row)
    return None if row is None or base is None else estimate([ratio_term(base, row.details.block_ms)])


def mean_speedup(data: RunData, system: System) -> Estimate | None:
    """Return the geometric mean of the speed-ups over all shapes that a system was timed at."""
    terms = []
    for shape in data.shapes:
        row = data.timed(system, shape)
        base = None if row is None else _baseline_blocks(data, row)
        if row is not None and base is not None:
            terms.append(ratio_term(base, row.details.block_ms))
    return estimate([replace(term, weight=1 / len(terms)) for term in terms]) if terms else None


def ratio_over(data: RunData, system: System, other: System, shapes: Sequence[Shape] | None = None) -> Estimate | None:
    """Return how many times as fast as another a system is, pooled over shapes (all that both were timed at).

    The interval is wide enough that 95 % of pages hold no false one: over all shapes every pair of graphs is compared,
    at a shape each graph with one other (the fastest, or the fastest float). None: no shape has both.
    """
    pooled = _pooled(data, system, other, shapes or data.shapes)
    if not pooled:
        return None
    num = _num_graphs(data)
    num_comparisons = num * (num - 1) // 2 if shapes is None else (num - 1) * len(data.shapes)
    return estimate(pooled, shared_confidence(num_comparisons))


def ratio_of(data: RunData, system: System, other: System) -> Estimate | None:
    """Return how many times as fast as another a system is over all shapes, with the 95 % interval of this one ratio.

    For a single answer; what many are compared by is `ratio_over`. None: no shape has both.
    """
    pooled = _pooled(data, system, other, data.shapes)
    return estimate(pooled) if pooled else None


def _pooled(data: RunData, system: System, other: System, shapes: Sequence[Shape]) -> list[Term]:
    """Return the terms of the mean log ratio over the shapes that both were timed at."""
    pairs = [(data.timed(system, shape), data.timed(other, shape)) for shape in shapes]
    found = [terms for mine, theirs in pairs if mine and theirs and (terms := _log_ratio(data, mine, theirs))]
    return [replace(term, weight=term.weight / len(found)) for terms in found for term in terms]


def verdict(data: RunData, system: System, other: System, shape: Shape | None = None) -> str:
    """Return "faster", "slower" or "equal" (they cannot be told apart): at a shape, or over all shapes together."""
    ratio = ratio_over(data, system, other, None if shape is None else [shape])
    if ratio is None or not (ratio.is_above_one or ratio.is_below_one):
        return "equal"
    return "faster" if ratio.is_above_one else "slower"


def _log_ratio(data: RunData, row: SweepRow, other: SweepRow) -> list[Term] | None:
    """Return the terms of log(other / row) at one shape; None where they have no rounds in common and no baseline."""
    if _session(row) == _session(other):
        return [ratio_term(other.details.block_ms, row.details.block_ms)]
    own, theirs = _baseline_blocks(data, row), _baseline_blocks(data, other)
    if own is None or theirs is None:
        return None
    return [ratio_term(own, row.details.block_ms), ratio_term(theirs, other.details.block_ms, -1.0)]


def _baseline_blocks(data: RunData, row: SweepRow) -> Sequence[float] | None:
    """Return the blocks of the baseline in the session that timed a row."""
    if row.details.baseline_ms is not None:
        return row.details.baseline_ms
    base = None if row.details.baseline is None else data.named_row(row.details.baseline, row.shape)
    if base is None or _session(base) != _session(row):
        return None
    return base.details.block_ms


def _session(row: SweepRow) -> tuple[int, int]:
    """Return what rows share whose blocks took turns: the session's number (older rows have none) and its rounds."""
    return row.details.timing, len(row.details.block_ms)


def _num_graphs(data: RunData) -> int:
    """Return how many different graphs were timed at the primary shape."""
    timed = [row for system in data.systems if (row := data.timed(system)) is not None]
    return len({row.details.timed_as or row.system for row in timed})


def middle(found: Estimate | None) -> float | None:
    """Return the value of an estimate, None where there is none."""
    return None if found is None else found.value


def widths(data: RunData) -> list[tuple[float, System, Shape]]:
    """Return the width of the interval of every speed-up as a share of it, widest first; the baseline has none."""
    found = []
    for system in data.systems:
        for shape in data.shapes:
            ratio = speedup_at(data, system, shape)
            if ratio is not None and np.isfinite(ratio.width) and ratio.width > 0:
                found.append((ratio.width, system, shape))
    return sorted(found, key=lambda each: -each[0])
