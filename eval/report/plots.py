"""The plots of a report: for each two SVGs, for wide and for narrow screens, and one PNG for Markdown."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.report.advice import advise, speed_of
from eval.report.figure_style import (
    COLORS,
    FAINT,
    INK,
    LINES,
    RECOMMENDED,
    Canvas,
    fixed_ticks,
    kind_of,
    log_axis,
    new_figure,
)
from eval.report.pareto_plot import pareto_plot
from eval.report.run_data import RunData, label, runtime_title
from eval.report.speeds import speedup_at
from eval.sweep.grid import INT8_METHODS, Shape, System

MAX_LINES, MAX_NAME = 8, 34
DPI = 130


@dataclass(frozen=True)
class Plot:
    """A drawn plot; `narrow_svg` is the same for a phone."""

    svg: str
    png: bytes
    narrow_svg: str = ""


def draw_all(data: RunData, max_loss: float) -> dict[str, Plot]:
    """Return every plot that there is data for, by name; what the report recommends is marked in each."""
    advice = advise(data, max_loss)
    marked = advice.chosen or advice.rival
    drawn: dict[str, Plot] = {}
    for name, draw in PLOTS.items():
        wide, narrow = (draw(Canvas(data, marked, is_narrow)) for is_narrow in (False, True))
        if wide is not None:
            png = _png(wide)
            drawn[name] = Plot(to_svg(wide), png, to_svg(narrow))
    return drawn


def _png(figure: Any) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return png.getvalue()


def to_svg(figure: Any) -> str:
    """Return a figure as SVG, and close it."""
    from matplotlib import pyplot

    svg = io.StringIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return svg.getvalue()


def shown_systems(data: RunData) -> list[System]:
    """Return the systems that line plots show: references, float engines, the fastest method of each recipe."""
    timed = [s for s in data.systems if data.timed(s) and s != data.baseline]
    plain = [s for s in timed if s.recipe is None]
    groups: dict[tuple[str, str], list[System]] = {}
    for system in timed:
        if system.recipe is not None:
            groups.setdefault((kind_of(system), system.backend), []).append(system)
    best = [max(group, key=lambda s: speed_of(data, s)) for group in groups.values()]
    best.sort(key=lambda s: -speed_of(data, s))
    room = max(3, MAX_LINES - len(plain))
    chosen = {s.name for s in [*plain, *best[:room]]}
    return [s for s in timed if s.name in chosen][: MAX_LINES + 2]


def _with_marked(canvas: Canvas) -> list[System]:
    """Return the systems of a line plot, the recommended one among them in place of its recipe's fastest."""
    shown, marked = shown_systems(canvas.data), canvas.marked
    if marked is None or marked in shown or marked == canvas.data.baseline:
        return shown
    same = [s for s in shown if s.recipe and (kind_of(s), s.backend) == (kind_of(marked), marked.backend)]
    return [*(s for s in shown if s not in same), marked]


def _speedup_lines(canvas: Canvas, shapes: list[Shape], xs: list[int], xlabel: str) -> Any:
    data, shown = canvas.data, _with_marked(canvas)
    figure, (axis,) = canvas.figure(3.8 if not canvas.is_narrow else 3.4, 1, len(shown))
    handles = []
    for system in shown:
        found = [(x, speedup_at(data, system, shape)) for x, shape in zip(xs, shapes, strict=True)]
        measured = [(x, each) for x, each in found if each is not None]
        if not measured:
            continue
        y = [each.value for _, each in measured]
        bars = np.array([(each.value - each.low, each.high - each.value) for _, each in measured]).T
        is_marked = system == canvas.marked
        name = f"{label(system)} ({RECOMMENDED})" if is_marked else label(system)
        handles.append(axis.errorbar(
            [x for x, _ in measured], y, yerr=bars, label=name, capsize=2.5, elinewidth=1, ms=8 if is_marked else 5,
            lw=3.2 if is_marked else 1.6, ls="--" if system.recipe is None else "-", **canvas.style(system),
        ))  # fmt: skip
        if is_marked:
            axis.annotate(RECOMMENDED, (measured[-1][0], y[-1]), xytext=(-6, 9), textcoords="offset points", ha="right",
                          fontsize=9, zorder=6)  # fmt: skip
    axis.axhline(1, color=INK, lw=1.2)
    axis.annotate(label(data.baseline), (1, 1), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                  fontsize=8.5, xytext=(0, 2), textcoords="offset points")  # fmt: skip
    axis.set(xlabel=xlabel, ylabel="speed-up", xscale="log")
    axis.set_ylim(bottom=0)
    fixed_ticks(axis.xaxis, [float(x) for x in xs])
    canvas.legend(figure, handles)
    return figure


def _batch(canvas: Canvas) -> Any:
    data = canvas.data
    shapes = [s for s in data.shapes if s.sequence_length == data.primary.sequence_length]
    return _speedup_lines(canvas, shapes, [s.batch_size for s in shapes], "batch size") if len(shapes) > 1 else None


def _length(canvas: Canvas) -> Any:
    data = canvas.data
    shapes = [s for s in data.shapes if s.batch_size == data.primary.batch_size and s.sequence_length]
    xs = [s.sequence_length or 0 for s in shapes]
    return _speedup_lines(canvas, shapes, xs, "tokens of a sample") if len(shapes) > 1 else None


def _layers(canvas: Canvas) -> Any:
    data = canvas.data
    layers = data.analysis.get("layers") or {}
    if not layers:
        return None
    figure, (axis,) = canvas.figure(3.4, 1, len(layers))
    of_model: dict[str, System] = {}
    for system in data.systems:
        if system.recipe:
            of_model.setdefault(f"{system.method} {system.recipe}", system)
    for name in [name for name in of_model if name in layers]:
        is_marked = canvas.marked is not None and name == f"{canvas.marked.method} {canvas.marked.recipe}"
        axis.plot(range(len(layers[name])), layers[name], label=f"{name} ({RECOMMENDED})" if is_marked else name, ms=5,
                  lw=3.2 if is_marked else 1.6, **canvas.style(of_model[name]))  # fmt: skip
    axis.set(xlabel="layer (0: embeddings)", ylabel="relative error of the hidden states")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylim(bottom=0)
    canvas.legend(figure, axis.get_legend_handles_labels()[0])
    return figure


def _sites(canvas: Canvas) -> Any:
    sites = canvas.data.analysis.get("sites") or []
    if not sites:
        return None
    columns = 1 if canvas.is_narrow else 2
    num_rows = (len(sites) + columns - 1) // columns
    figure, axes = new_figure(canvas.width, 2.7 * num_rows + 0.5, num_rows, columns, squeeze=False)
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


def _size(canvas: Canvas) -> Any:
    data = canvas.data
    sized: dict[str, tuple[System, int]] = {}
    for system in data.systems:
        row = data.ok(system)
        if row is not None and row.row.size_bytes:
            same = f"{kind_of(system)} {system.backend} {round(row.row.size_bytes / 1e4)}"
            if same not in sized or system == canvas.marked:
                sized[same] = (system, row.row.size_bytes)
    if not sized:
        return None
    ordered = sorted(sized.values(), key=lambda each: each[1])
    names = [f"{kind_of(s)}, {runtime_title(s.backend)}" if s.recipe else label(s) for s, _ in ordered]
    names = [f"{name} ({RECOMMENDED})" if s == canvas.marked else name
             for name, (s, _) in zip(names, ordered, strict=True)]  # fmt: skip
    figure, (axis,) = canvas.figure((0.52 if canvas.is_narrow else 0.34) * len(sized) + 1.0)
    colors = [canvas.style(s)["color"] for s, _ in ordered]
    bars = axis.barh(range(len(ordered)), [size / 1e6 for _, size in ordered], color=colors, height=0.4 if
                     canvas.is_narrow else 0.66)  # fmt: skip
    axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8.5)
    _lane_names(canvas, axis, names)
    axis.margins(x=0.1)
    axis.set_xlabel("MB")
    return figure


def _lane_names(canvas: Canvas, axis: Any, names: list[str]) -> None:
    """Name horizontal lanes: at their left, or above each where the figure is narrow."""
    axis.set_yticks(range(len(names)), [""] * len(names) if canvas.is_narrow else names)
    for number, name in enumerate(names if canvas.is_narrow else []):
        axis.annotate(name, (0, number), xycoords=("axes fraction", "data"), xytext=(2, 8), textcoords="offset points",
                      va="bottom", fontsize=8.5, zorder=6)  # fmt: skip
    axis.set_ylim(len(names) - 0.4, -0.9 if canvas.is_narrow else -0.6)
    axis.grid(False, axis="y")


def _load(canvas: Canvas) -> Any:
    points = [p for p in canvas.data.load.get("points", []) if "error" not in p]
    if not points:
        return None
    names = list(dict.fromkeys(p["system"] for p in points))
    figure, (left, right) = canvas.figure(3.6 if not canvas.is_narrow else 3.2, 2, len(names))
    for name in names:
        own = [p for p in points if p["system"] == name]
        system = canvas.data.system_named(name)
        style = {**canvas.style(system), "ms": 5, "lw": 3.2 if system == canvas.marked else 1.6}
        closed, opened = ([p for p in own if p["mode"] == mode] for mode in ("closed", "open"))
        shown = label(system) + (f" ({RECOMMENDED})" if system == canvas.marked else "")
        left.plot([p["clients"] for p in closed], [p["throughput_per_s"] for p in closed], label=shown, **style)
        right.plot([p["offered_per_s"] for p in opened], [p["latency_ms_p99"] for p in opened], **style)
    left.set(xlabel="clients (closed loop)", ylabel="requests answered a second", xscale="log")
    fixed_ticks(left.xaxis, sorted({float(p["clients"]) for p in points if p["mode"] == "closed"}))
    left.set_ylim(bottom=0)
    right.set(xlabel="requests offered a second (open loop)", ylabel="99th percentile, ms")
    opened = [p for p in points if p["mode"] == "open"]
    if opened:
        log_axis(right.xaxis, [p["offered_per_s"] for p in opened], 6)
        log_axis(right.yaxis, [p["latency_ms_p99"] for p in opened], 7)
    canvas.legend(figure, left.get_legend_handles_labels()[0])
    return figure


def _timeline(canvas: Canvas) -> Any:
    data = canvas.data
    if not data.timeline:
        return None
    kinds = list(dict.fromkeys(step["kind"] for step in data.timeline))
    start = data.timeline[0]["started"]
    steps, gone, end = [], 0.0, start  # time in which nothing was built (timing, breaks between runs) is cut out
    for step in data.timeline:
        gone += max(0.0, step["started"] - end)
        steps.append((kinds.index(step["kind"]), step["started"] - start - gone, step["seconds"]))
        end = max(end, step["started"] + step["seconds"])
    figure, (axis,) = canvas.figure((0.55 if canvas.is_narrow else 0.36) * len(kinds) + 1.1)
    for lane, begin, seconds in steps:
        axis.barh(lane, seconds, left=begin, color=COLORS[lane % len(COLORS)], edgecolor=FAINT, lw=0.3,
                  height=0.4 if canvas.is_narrow else 0.62)  # fmt: skip
    totals = [sum(seconds for lane, _, seconds in steps if lane == n) for n in range(len(kinds))]
    counts = [sum(lane == n for lane, _, _ in steps) for n in range(len(kinds))]
    _lane_names(canvas, axis, [f"{kind} ({count}, {total:.0f} s)"
                               for kind, count, total in zip(kinds, counts, totals, strict=True)])  # fmt: skip
    axis.set_xlabel("seconds of building; timing and pauses are cut out")
    return figure


PLOTS: dict[str, Callable[[Canvas], Any]] = {
    "pareto": pareto_plot, "batch": _batch, "length": _length, "layers": _layers, "sites": _sites, "size": _size,
    "load": _load, "timeline": _timeline,
}  # fmt: skip
