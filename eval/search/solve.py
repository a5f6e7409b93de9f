"""The choice: which units run in INT8 so that most time is saved within a budget of error; exact, by scipy's milp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp


def fastest_within(
    gains: Mapping[str, float], squares: Mapping[str, float], budget: float,
    pairs: Sequence[tuple[str, str, float]] = (),
) -> frozenset[str]:  # fmt: skip
    """Return the units that save the most while their squares add up to at most `budget`.

    Args:
        gains: milliseconds that a unit saves in INT8; those that save none stay out, but for a pair's sake.
        squares: of errors. pairs: (unit, unit, milliseconds that both save together beyond their gains).
    Raises: RuntimeError: the solver found no proven optimum.
    """
    helped = {name for a, b, ms in pairs if ms > 0 for name in (a, b)}
    names = [name for name, gain in gains.items() if (gain > 0 or name in helped) and squares[name] <= budget]
    if not names or budget <= 0:
        return frozenset()
    place = {name: index for index, name in enumerate(names)}
    pairs = [each for each in pairs if each[0] in place and each[1] in place]
    scale = max(budget, 1e-30)  # squares of small errors are near the solver's tolerance
    spent = np.array([squares[name] / scale for name in names] + [0.0] * len(pairs))
    limits = [LinearConstraint(spent[None, :], ub=budget / scale)]
    for index, (a, b, ms) in enumerate(pairs, len(names)):  # a pair is on where both of its units are, and only there
        row = np.zeros(len(spent))
        row[index] = 1.0
        if ms < 0:
            row[[place[a], place[b]]] = -1.0
            limits.append(LinearConstraint(row[None, :], lb=-1.0))
        for name in (a, b) if ms > 0 else ():
            one = row.copy()
            one[place[name]] = -1.0
            limits.append(LinearConstraint(one[None, :], ub=0.0))
    value = np.array([gains[name] for name in names] + [ms for _, _, ms in pairs])
    found = milp(-value, integrality=np.ones(len(value)), bounds=Bounds(0, 1), constraints=limits,
                 options={"mip_rel_gap": 0.0})  # fmt: skip
    if found.x is None:
        raise RuntimeError(f"the choice of units was not solved: {found.message}")
    return frozenset(name for name, x in zip(names, found.x, strict=False) if x > 0.5)


def distinct(plans: Sequence[frozenset[str]], most: int) -> list[frozenset[str]]:
    """Return the first `most` different plans that have a unit on."""
    return [plan for plan in dict.fromkeys(plans) if plan][:most]
