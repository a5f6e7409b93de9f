"""The page of a search: the verdict, the map of sensitivity, plans predicted and measured, and what was tried."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from eval.report.figure_style import COLORS, INK, NARROW, WIDE, new_figure
from eval.report.page import render_page, write_whole
from eval.report.plots import Plot, to_svg
from eval.report.run_data import label
from eval.report.speeds import mean_speedup, time_at
from eval.report.writing import milliseconds, percent, ratio, small, table
from eval.search.result import SearchResult

MARKDOWN, PAGE, PLOTS_FOLDER = "search.md", "search.html", "plots"
MOST_ROWS = 12


def write_page(result: SearchResult, out: str | Path) -> Path:
    """Write search.md, search.html and plots/ into a search's folder; return the page's path."""
    out = Path(out)
    plots = {"map": _drawn(_map, result)}
    if result.proof is not None:
        plots["plans"] = _drawn(_plans, result)
    text = "\n".join(_lines(result)).rstrip() + "\n"
    (out / PLOTS_FOLDER).mkdir(exist_ok=True)
    for name, plot in plots.items():
        write_whole(out / PLOTS_FOLDER / f"{name}.png", plot.png)
    write_whole(out / MARKDOWN, text.encode())
    write_whole(out / PAGE, render_page(text, plots, "en").encode())
    return out / PAGE


def _lines(result: SearchResult) -> list[str]:
    measured, options = result.measured, result.options.sweep
    lines = [f"# Will INT8 pay: {Path(options.model).name}, {result.options.backend}", ""]
    if result.proof is not None:
        lines += [f"**{result.answer}.**", ""]
        lines += _plan_table(result)
        lines += ["¹ on the samples below, which are not those that are scored: compare plans with each other. "
                  "² from engines timed before; the machine may have been faster or slower then.", ""]  # fmt: skip
        lines += ["![Plans: what was predicted (hollow) and measured (filled); crosses are the recipes they are held "
                  "against](plots/plans.png)", ""]  # fmt: skip
    lines += ["## Where the error comes from", "",
              f"Each unit (an activation and the weights of the layers that read it) alone in INT8, on "
              f"{measured.num_samples} samples that are neither scored nor calibrated on. All together move the "
              f"outputs by {small(measured.together.output)} on average"
              + (f", with the calibrators below by {small(measured.fixed.output)}." if measured.methods else "."), "",
              "![Mean change of the outputs by each unit alone; darker is more](plots/map.png)", ""]  # fmt: skip
    lines += _unit_table(result)
    if result.costs is not None:
        lines += _cost_lines(result)
    return lines


def _plan_table(result: SearchResult) -> list[str]:
    data, plans = result.proof, {plan.path: plan for plan in result.plans}
    assert data is not None
    rows = []
    for system in data.systems:
        row = data.ok(system)
        if row is None:
            continue
        plan, speed, time = plans.get(system.recipe or ""), mean_speedup(data, system), time_at(data, system)
        loss = data.loss(system)
        rows.append([
            ("**" + label(system) + "**") if system == result.chosen else label(system),
            f"{len(plan.units)} of {len(result.measured.units)}" if plan else "",
            percent(row.row.metric), percent(loss), small(row.row.error_abs_mean),
            small(plan.error) if plan else "", milliseconds(time.value if time else None),
            milliseconds(plan.ms) if plan else "", ratio(speed.value if speed else None),
        ])  # fmt: skip
    length = f" x {data.primary.sequence_length}" if data.primary.sequence_length else ""
    metric = data.metric.name if data.metric else "metric"
    return table(["system", "units in INT8", metric, "loss", "mean error", "predicted¹",
                  f"ms at {data.primary.batch_size}{length}", "predicted²", "speed-up, all shapes"], rows)  # fmt: skip


def _unit_table(result: SearchResult) -> list[str]:
    measured, costs = result.measured, result.costs
    worst = sorted(measured.units, key=lambda unit: -measured.alone[unit.name].output)
    total = sum(errors.output**2 for errors in measured.alone.values())
    rows = [[unit.name, small(measured.alone[unit.name].output),
             f"{100 * measured.alone[unit.name].output ** 2 / total:.0f} %" if total else "",
             small(measured.without[unit.name].output), measured.methods.get(unit.name, ""),
             milliseconds(costs.gains[unit.name]) if costs else ""] for unit in worst[:MOST_ROWS]]  # fmt: skip
    more = [f"{len(worst) - MOST_ROWS} more units bring less each; all are in search.json.", ""]
    return [*table(["unit", "error alone", "share of squares", "error of all others", "calibrator", "saves, ms"], rows),
            *(more if len(worst) > MOST_ROWS else [])]  # fmt: skip


def _cost_lines(result: SearchResult) -> list[str]:
    costs = result.costs
    assert costs is not None
    parts: dict[str, list[float]] = {}
    for unit in result.measured.units:
        parts.setdefault(unit.part, []).append(costs.gains[unit.name])
    rows = [[part, str(len(gains)), f"{sum(gains):.3f}", "" if sum(gains) > 0 else "slower in INT8: stays float"]
            for part, gains in sorted(parts.items(), key=lambda each: -sum(each[1]))]  # fmt: skip
    checks = "; ".join(f"{milliseconds(m)} measured, {milliseconds(p)} predicted" for m, p in costs.checks)
    return ["## What each part saves", "",
            f"Engines of {result.options.backend} at {costs.shape}, timed in turn: the float one takes "
            f"{milliseconds(costs.float_ms)} ms. Two engines that the fit has not seen: {checks}.", "",
            *table(["part", "blocks", "saves, ms", ""], rows)]  # fmt: skip


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
    for system in data.systems:
        row, time = data.timed(system), time_at(data, system)
        if row is None or time is None or row.row.error_abs_mean is None or not system.is_int8:
            continue
        plan = plans.get(system.recipe or "")
        color, x, y = COLORS[0] if plan else COLORS[5], base.value / time.value, row.row.error_abs_mean / error
        axis.plot(x, y, marker="o" if plan else "X", ms=8, ls="none", color=color, mew=0)
        axis.annotate(plan.name if plan else label(system).split(",")[0], (x, y), xytext=(7, -11 if plan else 5),
                      textcoords="offset points", fontsize=8)  # fmt: skip
        if plan:
            at = (costs.float_ms / plan.ms, plan.error / measured.fixed.output)
            axis.plot(*at, marker="o", ms=8, ls="none", mfc="none", mec=color)
            axis.plot([at[0], x], [at[1], y], color=color, lw=0.8, alpha=0.6)
        if system == result.chosen:
            axis.plot(x, y, marker="o", ms=15, mfc="none", mec=INK, mew=1.6, ls="none")
    length = f" x {data.primary.sequence_length}" if data.primary.sequence_length else ""
    axis.set(xlabel=f"times as fast as the float engine, {data.primary.batch_size}{length}",
             ylabel="error, over the whole recipe's")  # fmt: skip
    axis.set_ylim(bottom=0)
    return figure
