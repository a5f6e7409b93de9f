"""The choice: which units run in INT8 so that most time is saved within a budget of error; exact, by scipy's milp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp


def fastest_within(gains: Mapping[str, float], squares: Mapping[str, float], budget: float) -> frozenset[str]:
    """Return the units whose gains add up to the most while their squares add up to at most `budget`.

    Args:
        gains: milliseconds that a unit saves in INT8; those that save none stay out. squares: of errors.
    Raises: RuntimeError: the solver found no proven optimum.
    """
    names = [name for name, gain in gains.items() if gain > 0 and squares[name] <= budget]
    if not names or budget <= 0:
        return frozenset()
    weights = np.array([squares[name] for name in names])
    scale = max(budget, 1e-30)  # squares of small errors are near the solver's tolerance
    found = milp(
        -np.array([gains[name] for name in names]), integrality=np.ones(len(names)), bounds=Bounds(0, 1),
        constraints=LinearConstraint(weights[None, :] / scale, ub=budget / scale), options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    if found.x is None:
        raise RuntimeError(f"the choice of units was not solved: {found.message}")
    return frozenset(name for name, x in zip(names, found.x, strict=True) if x > 0.5)


def distinct(plans: Sequence[frozenset[str]], most: int) -> list[frozenset[str]]:
    """Return the first `most` different plans that have a unit on."""
    return [plan for plan in dict.fromkeys(plans) if plan][:most]
