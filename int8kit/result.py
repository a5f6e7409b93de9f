"""What a run of `int8kit quantize` found, its table, and the steps that it says."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FLOAT, INT8 = "float", "INT8"


@dataclass(frozen=True)
class Line:
    """One row of the final table; None where it was not measured."""

    name: str
    size_mb: float | None
    ms: dict[str, float]
    metric: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Quantized:
    """What a run left and measured.

    Attributes:
        out: the folder. backend: the runtime of its engine. lines: float, then INT8. speedup: shape → INT8 over float,
            with its interval. products: what runs in INT8, in words. notes: what was taken and found, in words.
    """

    out: Path
    model: str
    recipe: str
    backend: str
    lines: tuple[Line, ...]
    speedup: dict[str, tuple[float, float, float]]
    products: str
    num_samples: int
    hardware: str
    metric_name: str | None = None
    task: str | None = None
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "out": str(self.out)}

    def cells(self, error: Callable[[float | None], str]) -> list[list[str]]:
        """Return each line as text: name, metric where there is one, error, size, milliseconds."""
        return [
            [line.name, *([] if self.metric_name is None else [_four(line.metric)]), error(line.error),
             "-" if line.size_mb is None else f"{line.size_mb:.1f}", *(f"{ms:.2f}" for ms in line.ms.values())]
            for line in self.lines
        ]  # fmt: skip

    def table(self) -> str:
        """Return the table that a terminal of 60 columns shows."""
        shapes = self.lines[0].ms
        heads = ["", *([self.metric_name] if self.metric_name else []), "error", "MB", *(f"ms {s}" for s in shapes)]
        rows = [heads, *self.cells(_four)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        text = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        for shape, (value, low, high) in self.speedup.items():
            word = "faster" if low > 1 else "slower" if high < 1 else "as fast: no sure difference"
            text.append(f"{shape}: INT8 is {value:.2f} times as fast [{low:.2f}, {high:.2f}], {word}")
        return "\n".join([*text, f"{self.products} ({self.backend})", *self.notes])


def _four(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


class Steps:
    """Says which step runs, and how long each took, on stderr."""

    def __init__(self, total: int) -> None:
        self.total, self.number = total, 0

    @contextlib.contextmanager
    def step(self, words: str) -> Iterator[None]:
        """Announce a step, and say how long it took."""
        self.number += 1
        start = time.monotonic()
        print(f"[{self.number}/{self.total}] {words} ...", file=sys.stderr, flush=True)
        yield
        print(f"      {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
