"""The plots of a report: one SVG each, whose ink follows the page's colours, and one PNG for Markdown."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.report.figure_style import COLORS, FAINT, INK, LINES, MARKERS, kind_of, new_figure, plain_ticks
from eval.report.pareto_plot import pareto_plot
from eval.report.run_data import RUNTIMES, RunData, label
from eval.sweep.grid import INT8_METHODS, Shape, System

MAX_LINES, MAX_NAME = 8, 34
DPI = 130


@dataclass(frozen=True)
class Plot:
    """A drawn plot."""

    svg: str
    png: bytes


def draw_all(data: RunData) -> dict[str, Plot]:
    """Return every plot that there is data for, by name."""
    drawn: dict[str, Plot] = {}
    for name, draw in PLOTS.items():
        figure = draw(data)
        if figure is not None:
            drawn[name] = _rendered(figure)
    return drawn


def _rendered(figure: Any) -> Plot:
    from matplotlib import pyplot

    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    pyplot.close(figure)
    text = svg.getvalue()[svg.getvalue().index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1),
                  count=1)  # fmt: skip
    return Plot(text.strip().replace(INK, "var(--ink)").replace(FAINT, "var(--line)"), png.getvalue())


def shown_systems(data: RunData) -> list[System]:
    """Return the systems that line plots show: references, float engines, the fastest method of each recipe."""
    timed = [s for s in data.systems if data.timed(s) and s != data.baseline]
    plain = [s for s in timed if s.recipe is None]
    groups: dict[tuple[str, str], list[System]] = {}
    for system in timed:
        if system.recipe is not None:
            groups.setdefault((kind_of(system), system.backend), []).append(system)
    best = [max(group, key=lambda s: data.mean_speedup(s) or 0) for group in groups.values()]
    best.sort(key=lambda s: -(data.mean_speedup(s) or 0))
    room = max(3, MAX_LINES - len(plain))
    chosen = {s.name for s in [*plain, *best[:room]]}
    return [s for s in timed if s.name in chosen][: MAX_LINES + 2]


def _speedup_lines(data: RunData, shapes: list[Shape], xs: list[int], xlabel: str) -> Any:
    figure, axis = new_figure(8.4, 4.6)
    for number, system in enumerate(shown_systems(data)):
        measured = [(x, row.details) for x, shape in zip(xs, shapes, strict=True) if (row := data.timed(system, shape))]
        if not measured:
            continue
        y = [d["speedup"] for _, d in measured]
        bars = np.array([[max(0, d["speedup"] - d["speedup_low"]) for _, d in measured],
                         [max(0, d["speedup_high"] - d["speedup"]) for _, d in measured]])  # fmt: skip
        axis.errorbar([x for x, _ in measured], y, yerr=bars, label=label(system), capsize=2.5, elinewidth=1,
                      color=COLORS[number % len(COLORS)], marker=MARKERS[number % len(MARKERS)], ms=5,
                      ls="--" if system.recipe is None else "-")  # fmt: skip
    axis.axhline(1, color=INK, lw=1.2)
    axis.annotate(label(data.baseline), (1, 1), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                  fontsize=8.5, xytext=(0, 2), textcoords="offset points")  # fmt: skip
    axis.set(xlabel=xlabel, ylabel="speed-up", xscale="log")
    axis.set_ylim(bottom=0)
    plain_ticks(axis.xaxis, [float(x) for x in xs])
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _batch(data: RunData) -> Any:
    shapes = [s for s in data.shapes if s.sequence_length == data.primary.sequence_length]
    return _speedup_lines(data, shapes, [s.batch_size for s in shapes], "batch size") if len(shapes) > 1 else None


def _length(data: RunData) -> Any:
    shapes = [s for s in data.shapes if s.batch_size == data.primary.batch_size and s.sequence_length]
    xs = [s.sequence_length or 0 for s in shapes]
    return _speedup_lines(data, shapes, xs, "tokens of a sample") if len(shapes) > 1 else None


def _layers(data: RunData) -> Any:
    layers = data.analysis.get("layers") or {}
    if not layers:
        return None
    figure, axis = new_figure(8.4, 4.2)
    names = list(dict.fromkeys(f"{s.method} {s.recipe}" for s in data.systems if s.recipe))
    recipes = list(data.options.recipes)
    for name in [name for name in names if name in layers]:
        method, recipe = name.split(" ", 1)
        color = INT8_METHODS.index(method)
        axis.plot(range(len(layers[name])), layers[name], label=name, color=COLORS[color % len(COLORS)], ms=4,
                  marker=MARKERS[color % len(MARKERS)], ls=LINES[recipes.index(recipe) % len(LINES)])  # fmt: skip
    axis.set(xlabel="layer (0: embeddings)", ylabel="relative error of the hidden states")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=min(3, len(layers)))
    return figure


def _sites(data: RunData) -> Any:
    sites = data.analysis.get("sites") or []
    if not sites:
        return None
    num_rows = (len(sites) + 1) // 2
    figure, axes = new_figure(9.6, 2.7 * num_rows + 0.5, num_rows, 2, squeeze=False)
    for axis in np.ravel(axes)[len(sites) :]:
        axis.set_visible(False)
    for axis, site in zip(np.ravel(axes), sites, strict=False):
        counts = np.asarray(site["counts"], dtype=float)
        edges = np.linspace(0, site["top"], len(counts) + 1)
        axis.stairs(np.where(counts > 0, counts, np.nan), edges, fill=True, color="#8f98a3", alpha=0.55, baseline=0.8)
        for method in [method for method in INT8_METHODS if method in site["amax"]]:
            number = INT8_METHODS.index(method)
            axis.axvline(site["amax"][method], color=COLORS[number % len(COLORS)], ls=LINES[number % len(LINES)],
                         lw=1.6, label=method)  # fmt: skip
        axis.set(yscale="log", xlim=(0, site["max"] * 1.03), title=_shortened(site["name"]), xlabel="|x|")
        axis.set_ylim(bottom=0.8)
    np.ravel(axes)[0].set_ylabel("values")
    handles, labels = np.ravel(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _shortened(name: str) -> str:
    """Return a site's name without its quantizer's, from its end."""
    name = name.removesuffix("_quantizer")
    return name if len(name) <= MAX_NAME else "..." + name[-MAX_NAME:]


def _size(data: RunData) -> Any:
    sized: dict[str, tuple[System, int]] = {}
    for system in data.systems:
        row = data.ok(system)
        if row is not None and row.row.size_bytes:
            same = f"{kind_of(system)} {system.backend} {round(row.row.size_bytes / 1e4)}"
            sized.setdefault(same, (system, row.row.size_bytes))
    if not sized:
        return None
    figure, axis = new_figure(8.4, 0.34 * len(sized) + 1.0)
    ordered = sorted(sized.values(), key=lambda each: each[1])
    names = [f"{kind_of(s)}, {RUNTIMES.get(s.backend, s.backend)}" if s.recipe else label(s) for s, _ in ordered]
    colors = [COLORS[0] if s.is_int8 else "#8f98a3" for s, _ in ordered]
    bars = axis.barh(range(len(ordered)), [size / 1e6 for _, size in ordered], color=colors, height=0.66)
    axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8.5)
    axis.set_yticks(range(len(ordered)), names)
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.margins(x=0.1)
    axis.set_xlabel("MB (blue: INT8, grey: float)")
    return figure


def _load(data: RunData) -> Any:
    points = [p for p in data.load.get("points", []) if "error" not in p]
    if not points:
        return None
    figure, (left, right) = new_figure(9.6, 4.4, 1, 2)
    for number, name in enumerate(dict.fromkeys(p["system"] for p in points)):
        own = [p for p in points if p["system"] == name]
        style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)], "ms": 5}
        closed, opened = ([p for p in own if p["mode"] == mode] for mode in ("closed", "open"))
        shown = label(data.system_named(name))
        left.plot([p["clients"] for p in closed], [p["throughput_per_s"] for p in closed], label=shown, **style)
        right.plot([p["offered_per_s"] for p in opened], [p["latency_ms_p99"] for p in opened], **style)
    left.set(xlabel="clients (closed loop)", ylabel="requests answered a second", xscale="log")
    plain_ticks(left.xaxis, sorted({float(p["clients"]) for p in points if p["mode"] == "closed"}))
    left.set_ylim(bottom=0)
    right.set(xlabel="requests offered a second (open loop)", ylabel="99th percentile, ms", yscale="log", xscale="log")
    plain_ticks(right.yaxis)
    plain_ticks(right.xaxis)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _timeline(data: RunData) -> Any:
    if not data.timeline:
        return None
    kinds = list(dict.fromkeys(step["kind"] for step in data.timeline))
    start = data.timeline[0]["started"]
    steps, gone, end = [], 0.0, start  # time in which nothing was built (timing, breaks between runs) is cut out
    for step in data.timeline:
        gone += max(0.0, step["started"] - end)
        steps.append((kinds.index(step["kind"]), step["started"] - start - gone, step["seconds"]))
        end = max(end, step["started"] + step["seconds"])
    figure, axis = new_figure(8.4, 0.36 * len(kinds) + 1.1)
    for lane, begin, seconds in steps:
        axis.barh(lane, seconds, left=begin, color=COLORS[lane % len(COLORS)], height=0.62, edgecolor=FAINT, lw=0.3)
    totals = [sum(seconds for lane, _, seconds in steps if lane == n) for n in range(len(kinds))]
    counts = [sum(lane == n for lane, _, _ in steps) for n in range(len(kinds))]
    axis.set_yticks(range(len(kinds)), [f"{kind} ({count}, {total:.0f} s)"
                                        for kind, count, total in zip(kinds, counts, totals, strict=True)])  # fmt: skip
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.set_xlabel("seconds of building; timing and pauses are cut out")
    return figure


PLOTS: dict[str, Callable[[RunData], Any]] = {
    "pareto": pareto_plot, "batch": _batch, "length": _length, "layers": _layers, "sites": _sites, "size": _size,
    "load": _load, "timeline": _timeline,
}  # fmt: skip
