"""What a bug report says of a torch program (.pt2): read from the archive itself, without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from engine.backends.inductor.program import Program, ranges_of, read_program
from engine.bug_report.reproduction import ReportedFile
from engine.made_feeds import make_feeds
from engine.shapes import ShapeRange

EXPECTED = "The outputs of the program run op by op on a CPU, where each of its ops computes its plain formula."


def describe(path: str, shapes: Mapping[str, ShapeRange]) -> ReportedFile:
    """Return what a program is, and made-up inputs at the usual size of these ranges.

    Raises: FileNotFoundError, ValueError: no program. UsageError: shapes that it does not take.
    """
    program = read_program(path)
    ranges = ranges_of(program, shapes)
    inputs = {name: (np.dtype(dtype), tuple(size if isinstance(size, int) else None for size in sizes))
              for name, (dtype, sizes) in program.inputs.items()}  # fmt: skip
    return ReportedFile(_section(path, program), ranges, make_feeds(inputs, ranges), EXPECTED)


def _section(path: str, program: Program) -> list[str]:
    """Return inputs and outputs, what it multiplies in INT8, and what its export wrote into it."""
    kinds = Counter((each["kind"], "INT8" if each["is_int8"] else program.dtype) for each in program.products)
    products = ", ".join(f"{count} {kind} in {precision}" for (kind, precision), count in sorted(kinds.items()))
    lines = [f"- {word}: {', '.join(found)}" for word, found in (
        ("inputs", [f"`{name}` {dtype} {_sizes(sizes)}" for name, (dtype, sizes) in program.inputs.items()]),
        ("outputs", [f"`{name}` {_sizes(sizes)}" for name, sizes in program.outputs.items()]))]  # fmt: skip
    lines.append(f"- products: {products}; {program.unfused} quantizers stand alone")
    lines += [f"- {name}: {value}" for name, value in sorted(program.metadata.items())]
    return [*lines, f"- too large for this text: attach `{Path(path).name}`, or name where it can be had"]


def _sizes(sizes: tuple[int | str | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes) or "scalar"
