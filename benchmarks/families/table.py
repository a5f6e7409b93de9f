"""The table of families, made from the rows of benchmarks/families/__main__.py and never by hand."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from eval.report import writing

Row = dict[str, Any]

BEGIN, END = "<!-- families: made by python -m benchmarks.families --table -->", "<!-- families: end -->"
FULL = "int8_full"
HEADER = (
    "family", "linear", "attention", "norm / residual", "ONNX Runtime", "OpenVINO", "TensorRT-RTX build",
    "`tensorrt8` export", "QAT",
)  # fmt: skip
STEPS = {"sites": "insertion and calibration", "checkpoint": "checkpoint", "onnxruntime": "ONNX Runtime",
         "openvino": "OpenVINO", "tensorrt": "`tensorrt` export (fp16)", "tensorrt_rtx": "TensorRT-RTX build",
         "tensorrt8": "`tensorrt8` export", "lint": "lint", "qat": "QAT"}  # fmt: skip


def table(rows: list[Row]) -> list[str]:
    """Return the lines of the table, and below it every step that failed or was left out, with its reason."""
    by_family: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_family[row["family"]].append(row)
    lines = writing.table(HEADER, [[group[0]["title"], *_cells(group)] for group in by_family.values()])
    return [*lines, *(note for group in by_family.values() for note in _notes(group))]


def write_table(path: Path, rows: list[Row]) -> None:
    """Write the table between its markers in a file. Raises: ValueError: the file has no markers."""
    write_between(path, table(rows), BEGIN, END)


def write_between(path: Path, lines: list[str], begin: str, end: str) -> None:
    """Write lines between two markers of a file. Raises: ValueError: the file has them not."""
    text = path.read_text(encoding="utf-8")
    if between(text, begin, end) is None:
        raise ValueError(f"{path} has no lines '{begin}' and '{end}'; put them where the table belongs")
    first, last = text.index(begin) + len(begin), text.index(end)
    path.write_text(f"{text[:first]}\n{chr(10).join(lines)}\n{text[last:]}", encoding="utf-8")


def between(text: str, begin: str = BEGIN, end: str = END) -> list[str] | None:
    """Return the lines between the markers, None where they are missing."""
    match = re.search(f"{re.escape(begin)}\n(.*){re.escape(end)}", text, flags=re.DOTALL)
    return None if match is None else match.group(1).splitlines()


def _cells(group: list[Row]) -> list[str]:
    full = next((row["cells"] for row in group if row["recipe"] == FULL), {})
    lint, sites = full.get("lint", {}), full.get("sites", {})
    return [
        _of(lint.get("linears")),
        _of(lint.get("attention_products")),
        _of(sites.get("norms")),
        _parity(group, "onnxruntime"),
        _parity(group, "openvino"),
        _count(group, "tensorrt_rtx"),
        _parity(group, "tensorrt8"),
        _count(group, "qat"),
    ]


def _of(pair: list[int] | None) -> str:
    return "-" if pair is None else f"{pair[0]} of {pair[1]}"


def _parity(group: list[Row], step: str) -> str:
    """Return how many samples of all recipes agree to 1e-5, and the largest error where all do."""
    cells = [row["cells"].get(step, {"error": "not reached"}) for row in group]
    good = [cell for cell in cells if "error" not in cell]
    if len(good) < len(cells):
        return f"{len(good)} of {len(cells)} recipes"
    exact, total = (sum(cell[key] for cell in good) for key in ("num_exact_rows", "num_rows"))
    worst = max(cell["engine_error_max"] for cell in good)
    return f"{exact} of {total}" + (f", {worst:.0e}" if exact == total else "")


def _count(group: list[Row], step: str) -> str:
    done = sum(_is_done(row["cells"].get(step, {"error": ""})) for row in group)
    return f"{done} of {len(group)}"


def _is_done(cell: dict[str, Any]) -> bool:
    return "error" not in cell and "skipped" not in cell


def _notes(group: list[Row]) -> list[str]:
    """Return one line for each step of a family that failed or was skipped, with the recipes and the reason."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in group:
        for step, cell in row["cells"].items():
            if not _is_done(cell):
                reasons[step, str(cell.get("error") or cell["skipped"])].append(row["recipe"])
    return [
        f"- {group[0]['title']}, {STEPS[step]}, {', '.join(recipes)}: {reason}"
        for (step, reason), recipes in reasons.items()
    ]
