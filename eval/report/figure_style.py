"""How every plot of a report looks: one colour and marker a system, wide and narrow figures, ticks where points are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.report.run_data import RunData, short_recipe
from eval.sweep.grid import System

# Okabe and Ito's colours, told apart by everybody, then others of middle brightness: all show on white and near-black.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A7BC8", "#9A8F2F", "#00A6A6", "#B5495B",
          "#7D8791", "#A0622D", "#6BA539", "#C060C0", "#4F6FD8", "#E07B91", "#F0845C", "#FF4D8D", "#5F8EA0", "#B8860B",
          "#9B59B6", "#3F8F3F", "#C9772B")  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # 8 markers and 23 colours: 184 systems before a pair comes again
INK, FAINT = "#1a1c1f", "#c9ccd1"  # stand for the page's own colours in the SVG
LINES = ("-", "--", "-.", ":")
WIDE, NARROW = 9.6, 4.3  # inches; a narrow figure fills a phone at the size of its text
LEGEND_COLUMNS, LEGEND_LINE = 3, 0.2  # inches
NICE = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
STEEP = 3.0  # end over start from which an axis needs ticks that grow with it
RECOMMENDED = "recommended"


@dataclass(frozen=True)
class Canvas:
    """What a plot is drawn for: the run, the system it marks, and how wide the screen is."""

    data: RunData
    marked: System | None = None
    is_narrow: bool = False

    @property
    def width(self) -> float:
        """Inches across."""
        return NARROW if self.is_narrow else WIDE

    def figure(self, height: float, panels: int = 1, entries: int = 0) -> tuple[Any, list[Any]]:
        """Return a figure and its panels: side by side, or one below the other where it is narrow.

        Args:
            height: inches of a panel.
            entries: of the legend, which gets room of its own below.
        """
        rows, columns = (panels, 1) if self.is_narrow else (1, panels)
        legend_lines = math.ceil(entries / (1 if self.is_narrow else LEGEND_COLUMNS))
        figure, axes = new_figure(self.width, height * rows + LEGEND_LINE * legend_lines, rows, columns)
        return figure, list(np.ravel(axes))

    def style(self, system: System) -> dict[str, Any]:
        """Return a system's colour and marker, the same in every plot of the run."""
        number = self.data.systems.index(system)
        return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}

    def legend(self, figure: Any, handles: Sequence[Any]) -> None:
        """Write the legend below the figure."""
        figure.legend(handles=handles, loc="outside lower center", ncols=1 if self.is_narrow else LEGEND_COLUMNS)


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """Return (figure, axes) in the report's style."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({
        "svg.fonttype": "none", "svg.hashsalt": "int8kit", "font.size": 10, "axes.titlesize": 10.5,
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "text.color": INK, "axes.labelcolor": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": FAINT, "grid.color": FAINT, "grid.linewidth": 0.6,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
        "legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9, "lines.linewidth": 1.8,
    })  # fmt: skip
    figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)
    for axis in np.ravel(axes):
        axis.grid(True)
    return figure, axes


def fixed_ticks(axis: Any, values: Sequence[float]) -> None:
    """Write these numbers as numbers on a logarithmic axis, and no others."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_locator(NullLocator())


def ticks_where(points: Sequence[float], low: float, high: float, most: int) -> list[float]:
    """Return round numbers for a logarithmic axis from low to high: first those next to points, then in the gaps.

    Args:
        points: what is drawn, above 0.
        most: how many ticks have room side by side.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    candidates = [nice * 10.0**power for power in powers for nice in NICE]
    if high < STEEP * low:  # a short axis: multiples of a round step
        step = next(nice * 10.0**power for power in range(-9, 12) for nice in (1.0, 2.0, 5.0)
                    if nice * 10.0**power * most >= high - low)  # fmt: skip
        candidates = [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    candidates = [tick for tick in candidates if low <= tick <= high]
    room = 0.999 * math.log(high / low) / most if high >= STEEP * low else 0.0

    def distance(tick: float) -> float:
        return min((abs(math.log(tick / point)) for point in points), default=0.0)

    chosen: list[float] = []
    for tick in sorted(candidates, key=lambda each: (round(4 * distance(each)), -_roundness(each), each)):
        if all(abs(math.log(tick / other)) >= room for other in chosen):
            chosen.append(tick)
    return sorted(chosen)


def _roundness(tick: float) -> int:
    """Return how round a number is: 1, 2 and 5 before the others."""
    first = tick / 10.0 ** math.floor(math.log10(tick) + 1e-9)
    return 2 if any(abs(first - each) < 1e-6 for each in (1, 2, 5)) else 1


def log_axis(axis: Any, points: Sequence[float], most: int, margin: float = 1.15) -> None:
    """Make one axis (axis.xaxis or axis.yaxis) logarithmic around its points, with ticks where they are."""
    low, high = min(points) / margin, max(points) * margin
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    getattr(axis.axes, f"set_{axis.axis_name}lim")(low, high)
    fixed_ticks(axis, ticks_where(points, low, high, most))


def kind_of(system: System) -> str:
    """Return what a system's file is of: the recipe, float, or dynamic INT8."""
    if system.recipe is None:
        return "dynamic INT8" if system.is_int8 else "float"
    recipe = short_recipe(system.recipe)
    return f"{recipe} + QAT" if system.method == "qat" else recipe
