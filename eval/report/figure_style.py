"""How every plot of a report looks: colours, markers, figures and the ticks of logarithmic axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.report.run_data import short_recipe
from eval.sweep.grid import System

# Okabe and Ito's colours, told apart by everybody, on white and on near-black.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A7BC8", "#9A8F2F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, FAINT = "#1a1c1f", "#c9ccd1"  # stand for the page's own colours in the SVG
LINES = ("-", "--", "-.", ":")


def new_figure(width: float = 8.4, height: float = 4.2, rows: int = 1, columns: int = 1, **options: Any) -> Any:
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


def plain_ticks(axis: Any, values: list[float] | None = None) -> None:
    """Write numbers as numbers on a logarithmic axis, at the values given or at 1, 2 and 5."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(FixedLocator(values) if values else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_locator(NullLocator())


def kind_of(system: System) -> str:
    """Return what a colour stands for: the recipe, float, or dynamic INT8."""
    if system.recipe is None:
        return "dynamic INT8" if system.is_int8 else "float"
    recipe = short_recipe(system.recipe)
    return f"{recipe} + QAT" if system.method == "qat" else recipe
