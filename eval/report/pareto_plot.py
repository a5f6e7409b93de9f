"""Accuracy and error against latency: the plot that a choice is made by."""

from __future__ import annotations

from typing import Any

from eval.report.advice import pareto
from eval.report.figure_style import COLORS, INK, MARKERS, kind_of, new_figure, plain_ticks
from eval.report.run_data import RUNTIMES, RunData
from eval.sweep.grid import System

ROUNDING_SHARE = 0.01  # of the least INT8 error: what is below is float rounding (fp16 is above: 0.05 to 1)
WIDE = 8.0  # largest over smallest error from which an axis is logarithmic


def pareto_plot(data: RunData) -> Any:
    timed = [(s, row) for s in data.systems if (row := data.timed(s)) and row.row.metric is not None]
    if not timed:
        return None
    figure, (left, right) = new_figure(9.6, 4.8, 1, 2)
    shown = shown_errors(data)
    kinds = list(dict.fromkeys(kind_of(s) for s, _ in timed))
    backends = list(dict.fromkeys(s.backend for s, _ in timed))
    for system, row in timed:
        r, d = row.row, row.details
        style = {"color": COLORS[kinds.index(kind_of(system)) % len(COLORS)], "ls": "none", "ms": 6.5,
                 "marker": MARKERS[backends.index(system.backend) % len(MARKERS)], "alpha": 0.9,
                 "elinewidth": 0.8, "mew": 0}  # fmt: skip
        x, x_error = r.latency_ms_p50, _bars(r.latency_ms_p50, d["latency_ms_low"], d["latency_ms_high"])
        metric = r.metric or 0.0
        low, high = (metric if x is None else x for x in (r.metric_low, r.metric_high))
        for bars in left.errorbar(x, 100 * metric, xerr=x_error, yerr=_bars(100 * metric, 100 * low, 100 * high),
                                  **style)[2]:  # fmt: skip
            bars.set_alpha(0.3)  # of few samples they are long: the points must stay in front
        if system in shown:
            right.errorbar(x, r.error_abs_mean, xerr=x_error, **style)
    front = [data.timed(s) for s in pareto(data)]
    left.plot([r.row.latency_ms_p50 for r in front if r], [100 * (r.row.metric or 0) for r in front if r],
              color=INK, lw=1, ls="--", zorder=0)  # fmt: skip
    best = error_front([(row.row.latency_ms_p50 or 0.0, shown[s]) for s, row in timed if s in shown])
    right.plot([latency for latency, _ in best], [error for _, error in best], color=INK, lw=1, ls="--", zorder=0)
    metric_name = timed[0][1].row.metric_name or "metric"
    length = data.primary.sequence_length
    x_label = f"latency of a batch of {data.primary.batch_size}{f' x {length} tokens' if length else ''}, ms"
    left.set(xlabel=x_label, ylabel=f"{metric_name}, %", xscale="log")
    right.set(xlabel=x_label, ylabel="mean |output - float output|", xscale="log")
    _error_axis(right, list(shown.values()))
    for axis in (left, right):
        plain_ticks(axis.xaxis)
    _kind_legend(figure, kinds, backends)
    return figure


def shown_errors(data: RunData) -> dict[System, float]:
    """Return the mean error of every system in the error plot.

    Float systems, off by rounding alone (1e-6), are left out: on one axis with them INT8 would be a heap at its end.
    """
    errors = {s: row.row.error_abs_mean for s in data.systems if (row := data.timed(s)) and row.row.error_abs_mean}
    least = min((error for system, error in errors.items() if system.is_int8), default=0.0)
    return {system: error for system, error in errors.items() if error >= least * ROUNDING_SHARE}


def error_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (latency, error) that no other beats in both, fastest first."""
    front: list[tuple[float, float]] = []
    for latency, error in sorted(points):
        if not front or error < front[-1][1]:
            front.append((latency, error))
    return front


def _error_axis(axis: Any, errors: list[float]) -> None:
    """Give an axis room around its errors, so that no point lies on its edge; logarithmic where they differ widely."""
    if not errors:
        axis.annotate("no output differs", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return
    if max(errors) < WIDE * min(errors):
        axis.set_ylim(0, 1.1 * max(errors))
        return
    axis.set(yscale="log", ylim=(min(errors) / 1.5, max(errors) * 1.5))
    plain_ticks(axis.yaxis)


def _kind_legend(figure: Any, kinds: list[str], backends: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=COLORS[i % len(COLORS)], marker="o", ls="none", label=kind)
               for i, kind in enumerate(kinds)]  # fmt: skip
    handles += [Line2D([], [], color=INK, marker=MARKERS[i % len(MARKERS)], ls="none", mfc="none",
                       label=RUNTIMES.get(backend, backend)) for i, backend in enumerate(backends)]  # fmt: skip
    handles.append(Line2D([], [], color=INK, ls="--", lw=1, label="Pareto front"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)


def _bars(middle: float | None, low: float | None, high: float | None) -> list[list[float]]:
    """Return error bars around a value, never negative: a median of medians may lie outside by rounding."""
    middle = middle or 0.0
    return [[max(0.0, middle - (low if low is not None else middle))],
            [max(0.0, (high if high is not None else middle) - middle)]]  # fmt: skip
