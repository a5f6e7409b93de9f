"""What each unit saves in INT8, by measuring: a few engines of the runtime itself, timed in turn, and a linear fit.

time(plan) = time(float) - sum of the gains of its units. Units of one part (the same layers in other blocks) cost the
same, so an engine without each part, the float one and the whole one suffice. Engines of other plans, which the fit has
not seen, say how far it is off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval.search.sensitivity import Unit

MOST_PARTS = 8  # of which each has an engine of its own; small ones share the last
UNSURE = 0.03  # of the float time: a part that loses less in INT8 may as well gain
HOPE = 1e-4  # of the float time: what a unit of such a part counts as saving


@dataclass(frozen=True)
class Costs:
    """The fitted times.

    Attributes:
        float_ms: of the model without any unit in INT8.
        gains: unit → milliseconds that it saves. part_of: unit → the part that it was timed with.
        checks: (measured, predicted) milliseconds of plans that were not fitted.
        shape: batch x length at which it was measured.
    """

    float_ms: float
    gains: dict[str, float]
    part_of: dict[str, str]
    checks: tuple[tuple[float, float], ...]
    shape: str

    def time(self, units: frozenset[str]) -> float:
        """Return the predicted milliseconds of a plan."""
        return self.float_ms - sum(self.gains[name] for name in units)

    @property
    def worth(self) -> dict[str, float]:
        """The gains that a choice goes by: a loss within what timing can tell counts as next to nothing, not as a loss.

        So such units come in where the budget of error has room, and stay out where it has none.
        """
        total: dict[str, float] = {}
        for name, gain in self.gains.items():
            total[self.part_of[name]] = total.get(self.part_of[name], 0.0) + gain
        least = -UNSURE * self.float_ms
        return {name: HOPE * self.float_ms if least < total[self.part_of[name]] < 0 else gain
                for name, gain in self.gains.items()}  # fmt: skip

    @property
    def error(self) -> float:
        """The largest relative error over the plans that were not fitted; 0 where there were none."""
        return max((abs(predicted / measured - 1) for measured, predicted in self.checks), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `costs_from_dict` reads them back."""
        return asdict(self)


def costs_from_dict(values: dict[str, Any]) -> Costs:
    """Return the costs that `to_dict` wrote."""
    return Costs(**{**values, "checks": tuple(tuple(each) for each in values["checks"])})


def parts_of(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """Return the units by part, attention and the heaviest first; beyond `MOST_PARTS` they are one part, "others"."""
    parts: dict[str, list[Unit]] = {}
    for unit in units:
        parts.setdefault(unit.part, []).append(unit)
    weight_of = {part: sum(unit.weights for unit in members) for part, members in parts.items()}
    ordered = sorted(parts, key=lambda part: (weight_of[part] > 0, -weight_of[part]))  # attention, which has no weights
    kept = {part: parts[part] for part in ordered[:MOST_PARTS]}
    if rest := ordered[MOST_PARTS:]:
        kept["others"] = [unit for part in rest for unit in parts[part]]
    return kept


def plans_to_time(units: Sequence[Unit], seed: int, num_checks: int = 2) -> tuple[dict[str, frozenset[str]], list[str]]:
    """Return the plans whose engines are timed, by a name each, and the names of those that only check the fit."""
    everything = frozenset(unit.name for unit in units)
    plans = {"all": everything}
    for part, members in parts_of(units).items():
        plans[f"without {part}"] = everything - {unit.name for unit in members}
    rng = np.random.default_rng(seed)
    checks = []
    for number in range(num_checks):
        chosen = rng.permutation(len(units))[: max(1, len(units) // 2)]
        checks.append(f"check {number}")
        plans[checks[-1]] = frozenset(units[i].name for i in chosen)
    return {name: plan for name, plan in plans.items() if plan}, checks


def fit(units: Sequence[Unit], plans: Mapping[str, frozenset[str]], times: Mapping[str, float], checks: Sequence[str],
        shape: str) -> Costs:  # fmt: skip
    """Return the costs by least squares over all plans but the checks.

    Args: times: milliseconds of each plan's engine, and of "float".
    """
    parts = parts_of(units)
    shares = {unit.name: (part, _share(unit, members)) for part, members in parts.items() for unit in members}
    names = [name for name in plans if name not in checks]
    rows = np.zeros((len(names) + 1, len(parts) + 1))
    rows[:, 0] = 1
    for row, name in zip(rows, names, strict=False):
        for unit in plans[name]:
            part, share = shares[unit]
            row[1 + list(parts).index(part)] -= share
    measured = np.array([times[name] for name in names] + [times["float"]])
    solution = np.linalg.lstsq(rows / measured[:, None], np.ones(len(measured)), rcond=None)[0]  # relative errors
    gain_of = dict(zip(parts, solution[1:].tolist(), strict=True))
    gains = {unit: gain_of[part] * share for unit, (part, share) in shares.items()}
    part_of = {unit: part for unit, (part, _) in shares.items()}
    found = Costs(float(solution[0]), gains, part_of, (), shape)
    seen = tuple((times[name], found.time(plans[name])) for name in checks)
    return Costs(found.float_ms, gains, part_of, seen, shape)


def _share(unit: Unit, members: Sequence[Unit]) -> float:
    """Return a unit's share of its part: by weights, or alike where some have none (attention)."""
    total = sum(each.weights for each in members)
    return unit.weights / total if all(each.weights for each in members) else 1 / len(members)
