"""The table of the tools, from the rows and never by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.families.table import write_between
from benchmarks.tables import newest
from eval.report.writing import NOTHING, percent
from eval.report.writing import table as markdown

Row = dict[str, Any]
BEGIN, END = "<!-- side by side: made by python -m benchmarks.side_by_side --table -->", "<!-- side by side: end -->"
SHAPES = ("1x64", "8x64")
HEADERS = ("tool", "lines", "s", "CPU s", "peak MB", "accuracy %", "mean abs. logit change", "flips of 872", "file MB",
           "products in INT8", *(f"speed over float, {shape}" for shape in SHAPES))  # fmt: skip
FLOAT_TITLE = "float, ONNX Runtime"
# What is compared: how a sentence calls it, its number as the table shows it, and whether less is better.
CONTESTS: dict[str, tuple[Callable[[Row], float], bool]] = {
    "fewest lines": (lambda row: row["num_lines"], True),
    "fewest seconds": (lambda row: round(cost(row, "wall_s")), True),
    "fewest CPU seconds": (lambda row: round(cost(row, "cpu_s")), True),
    "least memory": (lambda row: round(cost(row, "peak_bytes") / 1e6), True),
    "highest accuracy": (lambda row: round(100 * row["accuracy"], 2), False),
    "smallest logit change": (lambda row: round(row["mean_abs_logit_change"], 4), True),
    "fewest flips": (lambda row: row["num_flips"], True),
    "smallest file": (lambda row: round(row["size_bytes"] / 1e6, 1), True),
}  # fmt: skip


def cost(row: Row, name: str) -> float:
    """Return the median over a recipe's runs of one of its costs."""
    return median(run[name] for run in row["runs"])


def table(rows: list[Row]) -> list[str]:
    """Return the lines of the table: every tool's newest row, what failed and why, who is first, and the conditions."""
    last = newest(rows, "tool")
    good = [row for row in last if row["status"] == "ok"]
    tools = [row for row in good if row["runs"]]
    lines = markdown(list(HEADERS), [_cells(row) for row in good])
    failed = [f"- {row['title']}: {row['reason']}" for row in last if row["status"] != "ok"]
    if failed:
        lines += ["Not run here:", "", *failed, ""]
    lines += ["First in each column, of those whose file multiplies in INT8 here (numbers as they are printed):", ""]
    rivals = [row for row in tools if row["num_int8_products"]]
    for name, (number, is_less_better) in CONTESTS.items():
        best = (min if is_less_better else max)(number(row) for row in rivals)
        lines.append(f"- {name}: {' and '.join(row['title'] for row in rivals if number(row) == best)}")
    for shape in SHAPES:
        lines.append(f"- fastest at {shape}: {_fastest(rivals, shape)}")
    return [*lines, "", *_conditions(last)]


def write_tables(rows: list[Row], results: Path, page: Path | None) -> None:
    """Write the table as the file `results` and, where a page is named, between its markers there."""
    lines = table(rows)
    head = ["# Side by side", "", "Made by `python -m benchmarks.side_by_side --table` from the rows beside this file."]
    results.write_text("\n".join([*head, "", *lines]) + "\n", encoding="utf-8")
    if page is not None:
        write_between(page, lines, BEGIN, END)


def _cells(row: Row) -> list[str]:
    costs = [NOTHING] * 4
    if row["runs"]:
        costs = [str(row["num_lines"]), f"{cost(row, 'wall_s'):.0f}", f"{cost(row, 'cpu_s'):.0f}",
                 f"{cost(row, 'peak_bytes') / 1e6:.0f}"]  # fmt: skip
    speeds = [row["speed"][shape] for shape in SHAPES]
    return [
        row["title"], *costs, percent(row["accuracy"]), f"{row['mean_abs_logit_change']:.4f}", str(row["num_flips"]),
        f"{row['size_bytes'] / 1e6:.1f}", f"{row['num_int8_products']} of {row['num_products']}",
        *(f"{each['ratio']:.2f} ({each['ratio_low']:.2f}-{each['ratio_high']:.2f})" for each in speeds),
    ]  # fmt: skip


def _fastest(rows: list[Row], shape: str) -> str:
    """Return the tool of the highest ratio, and those whose intervals reach into its own."""
    first, *others = sorted(rows, key=lambda row: row["speed"][shape]["ratio"], reverse=True)
    low = first["speed"][shape]["ratio_low"]
    near = [row["title"] for row in others if row["speed"][shape]["ratio_high"] >= low]
    return first["title"] + (f"; not told apart from it: {', '.join(near)}" if near else "")


def _conditions(rows: list[Row]) -> list[str]:
    devices = "; ".join(sorted({row["device"] for row in rows}))
    vnni = any("vnni" in flag or flag == "amx_int8" for row in rows for flag in row["cpu_flags"])
    found = sorted({f"{name} {version}" for row in rows for name, version in row["tool_versions"].items()})
    loads = sorted(load for row in rows for load in (*row.get("loads", ()), row["load"]))
    dates = sorted(row["date"][:10] for row in rows)
    files = {row["runtime"] for row in rows if row["status"] == "ok"}
    words = (
        "The CPU has no VNNI: INT8 products gain little over float there, and OpenVINO's INT8 kernels and ONNX "
        "Runtime's uint8 x int8 ones add pairs of products in 16 bits, which can saturate."
    )
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    runs = {row["run"] for row in rows}
    later = [row["title"] for row in rows if row["run"] == max(runs)]
    return [
        *([f"Timed in a later run than the rest: {', '.join(later)}."] if len(runs) > 1 else []),
        f"{devices}; load average while measured {loads[0]:g} to {loads[-1]:g}; {days}.",
        *([] if vnni else [words]),
        f"Run in {' and '.join(sorted(files))}; {', '.join(found)}.",
    ]
