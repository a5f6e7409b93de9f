"""Accuracy and error against latency: the plot that a choice is made by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval.report.advice import pareto
from eval.report.figure_style import INK, RECOMMENDED, Canvas, log_axis
from eval.report.labels import Label, draw_labels
from eval.report.run_data import RunData, label, short_recipe
from eval.report.speeds import time_at
from eval.report.writing import milliseconds, small
from eval.sweep.grid import System
from eval.sweep.run_folder import SweepRow
from eval.timing.ratios import Estimate

ROUNDING_SHARE = 0.01  # of the least INT8 error: what is below is float rounding (fp16 is above: 0.05 to 1)
MOST_TICKS = 9
WIDE_HEIGHT, NARROW_HEIGHT = 4.6, 4.4  # inches of a panel
WIDE_FONT, NARROW_FONT = 8.0, 8.5
LONG_NAME = 15
WIDE_ERRORS = 8.0  # largest over smallest error from which an axis is logarithmic


def pareto_plot(canvas: Canvas) -> Any:
    """Return the figure; None where nothing was both timed and scored."""
    data, metric = canvas.data, canvas.data.metric
    timed = [(s, row, time) for s in data.systems
             if (row := data.timed(s)) and row.row.metric is not None and (time := time_at(data, s))]  # fmt: skip
    if not timed or metric is None:
        return None
    figure, (left, right) = canvas.figure(NARROW_HEIGHT if canvas.is_narrow else WIDE_HEIGHT, 2)
    shown = shown_errors(data)
    values = {s: metric.scaled(row.row.metric or 0.0) for s, row, _ in timed}
    for system, row, time in timed:
        _draw(canvas, left, system, time, values[system], _metric_bars(row, values[system], metric.scaled))
        if system in shown:
            _draw(canvas, right, system, time, shown[system], None)
    times = {s: time.value for s, _, time in timed}
    front = [s for s in pareto(data) if s in values]
    left.plot([times[s] for s in front], [values[s] for s in front], color=INK, lw=1, ls="--", zorder=0)
    best = error_front([(times[s], error) for s, error in shown.items() if s in times])
    right.plot([x for x, _ in best], [y for _, y in best], color=INK, lw=1, ls="--", zorder=0)
    length = data.primary.sequence_length
    x_label = f"ms of a batch of {data.primary.batch_size}{f' x {length} tokens' if length else ''}"
    left.set(xlabel=x_label, ylabel=f"{metric.name}{',' if metric.unit else ''}{metric.unit}")
    right.set(xlabel=x_label, ylabel="mean |output - float output|")
    if not metric.is_higher_better:
        left.invert_yaxis()
    _error_axis(right, list(shown.values()))
    log_axis(left.xaxis, list(times.values()), MOST_TICKS)
    log_axis(right.xaxis, [times[s] for s in shown if s in times] or list(times.values()), MOST_TICKS)
    systems = [s for s, _, _ in timed]
    unit = f"{metric.unit} {metric.name}"
    _label(canvas, figure, [
        Panel(left, times, values, lambda y: f"{y:.2f}{unit}", [(times[s], values[s]) for s in front]),
        Panel(right, {s: x for s, x in times.items() if s in shown}, shown, lambda y: f"{small(y)} off", best),
    ], systems)  # fmt: skip
    return figure


@dataclass(frozen=True)
class Panel:
    """One of the plot's panels: system -> x and y, how its y is printed, its Pareto front."""

    axis: Any
    xs: dict[System, float]
    ys: dict[System, float]
    text: Callable[[float], str]
    front: list[tuple[float, float]]

    def labels(self, canvas: Canvas, names: dict[System, str], left_out: set[System]) -> dict[Label, System]:
        """Return what is written at the points."""
        found = {}
        for system, x in self.xs.items():
            if system in self.ys and system not in left_out:
                y, is_marked = self.ys[system], system == canvas.marked
                figures = f"{RECOMMENDED}:\n{milliseconds(x)} ms, {self.text(y)}"
                text = f"{names[system]}\n{figures}" if is_marked else wrapped(names[system])
                found[Label(x, y, text, is_marked)] = system
        return found


def _label(canvas: Canvas, figure: Any, panels: list[Panel], systems: list[System]) -> None:
    """Write names at the points; what finds no place in a panel stands in the legend of both."""
    names = short_names(systems)
    size = NARROW_FONT if canvas.is_narrow else WIDE_FONT
    for panel in panels:
        if canvas.marked in panel.xs and canvas.marked in panel.ys:
            at = ([panel.xs[canvas.marked]], [panel.ys[canvas.marked]])
            panel.axis.plot(*at, ls="none", marker="o", ms=14, mfc="none", mec=INK, mew=1.4, zorder=5)
    left_out: set[System] = set()
    while True:
        missed: set[System] = set()
        for panel in panels:
            labels = panel.labels(canvas, names, left_out)
            missed |= {labels[each] for each in draw_labels(panel.axis, list(labels), size, [panel.front])}
        if not missed:
            return
        left_out |= missed  # the legend takes room from the panels: all labels are placed anew
        for thing in [*(text for panel in panels for text in panel.axis.texts), *figure.legends]:
            thing.remove()
        _legend(canvas, figure, [system for system in systems if system in left_out])


def wrapped(name: str) -> str:
    """Return a long name in two lines, broken where they are most alike."""
    places = [number for number, letter in enumerate(name) if letter == " "]
    if len(name) < LONG_NAME or not places:
        return name
    middle = min(places, key=lambda each: abs(each - len(name) / 2))
    return f"{name[:middle]}\n{name[middle + 1 :]}"


def short_names(systems: list[System]) -> dict[System, str]:
    """Return names for labels: without the runtime where all recipes run in one."""
    runtimes = {system.backend for system in systems if system.recipe}
    return {s: f"{s.method} {short_recipe(s.recipe)}" if s.recipe and len(runtimes) == 1 else label(s) for s in systems}


def _draw(canvas: Canvas, axis: Any, system: System, time: Estimate, y: float, y_error: Any) -> None:
    style = {**canvas.style(system), "ls": "none", "ms": 7, "elinewidth": 0.8, "mew": 0}
    x_error = [[time.value - time.low], [time.high - time.value]]
    for bars in axis.errorbar(time.value, y, xerr=x_error, yerr=y_error, **style)[2]:
        bars.set_alpha(0.3)  # of few samples they are long: the points must stay in front


def _metric_bars(row: SweepRow, value: float, scaled: Any) -> list[list[float]] | None:
    """Return the error bars of a metric, never negative: an interval may leave its value by rounding."""
    if row.row.metric_low is None or row.row.metric_high is None:
        return None
    return [[max(0.0, value - scaled(row.row.metric_low))], [max(0.0, scaled(row.row.metric_high) - value)]]


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
    elif max(errors) < WIDE_ERRORS * min(errors):
        axis.set_ylim(0, 1.1 * max(errors))
    else:
        log_axis(axis.yaxis, errors, 7, margin=1.5)


def _legend(canvas: Canvas, figure: Any, systems: list[System]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], ls="none", ms=7, mew=0, label=label(s), **canvas.style(s)) for s in systems]
    canvas.legend(figure, handles)
