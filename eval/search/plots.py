"""The plots of a search: the map of sensitivity, and plans as predicted and as measured."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from eval.report.figure_style import COLORS, FAINT, INK, NARROW, WIDE, new_figure
from eval.report.labels import Label, draw_labels
from eval.report.plots import Plot, to_svg
from eval.report.run_data import label
from eval.report.speeds import time_at
from eval.search.result import SearchResult


def draw_all(result: SearchResult) -> dict[str, Plot]:
    """Return the plots that there is data for, by name."""
    return {"map": _drawn(_map, result)} | ({} if result.proof is None else {"plans": _drawn(_plans, result)})


def _drawn(draw: Any, result: SearchResult) -> Plot:
    wide, narrow = draw(result, False), draw(result, True)
    buffer = io.BytesIO()
    wide.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return Plot(to_svg(wide), buffer.getvalue(), to_svg(narrow))


def _map(result: SearchResult, is_narrow: bool) -> Any:
    """Return the heat map: parts across, blocks along, each cell the error of that unit alone."""
    measured = result.measured
    parts = list(dict.fromkeys(unit.part for unit in measured.units))
    blocks = list(dict.fromkeys(unit.block for unit in measured.units))
    grid = np.full((len(blocks), len(parts)), np.nan)
    for unit in measured.units:
        grid[blocks.index(unit.block), parts.index(unit.part)] = measured.alone[unit.name].output
    height = 1.6 + 0.34 * len(blocks)
    figure, axis = new_figure(NARROW if is_narrow else WIDE, height + (1.1 if is_narrow else 0))
    axis.grid(False)
    image = axis.imshow(grid, cmap="YlOrRd", aspect="auto", vmin=0)
    axis.set_xticks(range(len(parts)), [_wrapped(part) for part in parts], rotation=40 if is_narrow else 0,
                    ha="right" if is_narrow else "center", fontsize=7 if is_narrow else 8)  # fmt: skip
    axis.set_yticks(range(len(blocks)), [block or "outside" for block in blocks])
    axis.set_ylabel("block")
    top = np.nanmax(grid) if np.isfinite(grid).any() else 0.0
    if grid.size <= 160:
        for (y, x), value in np.ndenumerate(grid):
            if np.isfinite(value):
                axis.text(x, y, f"{1e3 * value:.1f}", ha="center", va="center", fontsize=7 if is_narrow else 8,
                          color="white" if value > 0.6 * top else "#1a1a1a")  # fmt: skip
    figure.colorbar(
        image, ax=axis, label="mean |change of outputs|" + (", cells in 1/1000" if grid.size <= 160 else "")
    )
    return figure


def _wrapped(part: str) -> str:
    return part.replace(" + ", " +\n").replace(".", ".\n", 1) if len(part) > 14 else part


def _plans(result: SearchResult, is_narrow: bool) -> Any:
    """Return error against speed, each plan as predicted and as measured, with the recipes it is held against.

    Both axes are shares: speed over the float engine of the runtime, error over that of the whole recipe. A prediction
    is of other samples and of another moment, so its own float time and its own whole error are what it is divided by.
    """
    data, costs, measured = result.proof, result.costs, result.measured
    assert data is not None and costs is not None
    figure, axis = new_figure(NARROW if is_narrow else WIDE, 3.6)
    plans = {plan.path: plan for plan in result.plans}
    plain = next((s for s in data.systems if not s.is_int8 and s.backend == result.options.backend), None)
    base = None if plain is None else time_at(data, plain)
    whole = next((s for s in data.systems if s.recipe == result.options.sweep.recipes[0]), None)
    error = None if whole is None or (row := data.ok(whole)) is None else row.row.error_abs_mean
    if base is None or not error:
        axis.annotate("the float engine or the whole recipe was not measured", (0.5, 0.5), xycoords="axes fraction",
                      ha="center")  # fmt: skip
        return figure
    labels: list[Label] = []
    predicted: list[tuple[float, float]] = []
    measured_at: list[tuple[float, float]] = []
    lines: list[list[tuple[float, float]]] = []
    for system in data.systems:
        row, time = data.timed(system), time_at(data, system)
        if row is None or time is None or row.row.error_abs_mean is None or not system.is_int8:
            continue
        plan = plans.get(system.recipe or "")
        color, x, y = COLORS[0] if plan else COLORS[5], base.value / time.value, row.row.error_abs_mean / error
        axis.plot(x, y, marker="o" if plan else "X", ms=8, ls="none", color=color, mew=0)
        measured_at.append((x, y))
        name = plan.name if plan else label(system).split(",")[0]
        labels.append(Label(x, y, name, system == result.chosen))
        if plan:
            at = (costs.float_ms / plan.ms, plan.error / (result.scale * measured.fixed.output))
            axis.plot(*at, marker="o", ms=8, ls="none", mfc="none", mec=color)
            axis.plot([at[0], x], [at[1], y], color=color, lw=0.8, alpha=0.6)
            predicted.append(at)
            lines.append([at, (x, y)])
        if system == result.chosen:
            axis.plot(x, y, marker="o", ms=15, mfc="none", mec=INK, mew=1.6, ls="none")
    if front := _front(measured_at):
        axis.plot(*zip(*front, strict=True), color=FAINT, lw=2.0, zorder=0)
    length = f" x {data.primary.sequence_length}" if data.primary.sequence_length else ""
    axis.set(xlabel=f"times as fast as the float engine, {data.primary.batch_size}{length}",
             ylabel="error, over the whole recipe's")  # fmt: skip
    axis.set_ylim(bottom=0)
    axis.autoscale(enable=False)
    draw_labels(axis, labels, 8.0, lines, predicted)
    return figure


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (speed, error) that no other point beats in both, the fastest first."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (-point[0], point[1])):
        if not found or y < found[-1][1]:
            found.append((x, y))
    return found
