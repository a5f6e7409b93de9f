"""Errors of outputs against what was expected, for an upstream issue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RELATIVE_FLOOR = 1e-3  # |x - ref| / max(|ref|, floor), as in eval.tensor_error


@dataclass(frozen=True)
class ErrorRow:
    """Errors of one output against what was expected."""

    output: str
    shape: tuple[int, ...]
    abs_max: float
    abs_mean: float
    abs_median: float
    rel_max: float
    rel_mean: float
    rel_median: float
    num_not_finite: int


def error_rows(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[ErrorRow]:
    """Return the errors of every output; values that are not finite are counted and left out.

    Raises: ValueError: if an output is missing or has another shape.
    """
    rows = []
    for name, ref in expected.items():
        x = actual.get(name)
        if x is None or x.shape != ref.shape:
            got = "is missing" if x is None else f"has shape {x.shape}"
            raise ValueError(f"output {name} {got}, expected is {ref.shape}; both sides must be computed from one feed")
        x, ref = x.astype(np.float64), ref.astype(np.float64)
        is_good = np.isfinite(x) & np.isfinite(ref)
        error = np.abs(x - ref)[is_good]
        relative = error / np.maximum(np.abs(ref[is_good]), RELATIVE_FLOOR)
        statistics = [(float(each.max(initial=0)), *_middle(each)) for each in (error, relative)]
        rows.append(ErrorRow(name, x.shape, *statistics[0], *statistics[1], int((~is_good).sum())))
    return rows


def _middle(x: np.ndarray) -> tuple[float, float]:
    return (float(x.mean()), float(np.median(x))) if x.size else (0.0, 0.0)
