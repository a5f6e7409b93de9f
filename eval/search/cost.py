"""What each unit saves in INT8, by measuring: a few engines of the runtime itself, timed in turn, and a linear fit.

time(plan) = time(float) - the gains of its units - what neighbours save by being in INT8 both, where a runtime fuses
them. Units of one part (the same layers in other blocks) cost the same, so an engine without each part and one without
each two that follow one another suffice, beside the float one and the whole one. Engines of other plans, which the fit
has not seen, say how far it is off.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from eval.search.sensitivity import Unit

MOST_PARTS = 8  # of which each has an engine of its own; small ones share the last
MOST_PAIRS = 6  # of neighbouring parts
SURE = 0.01  # the p value of a pair that counts
OTHERS = "others"
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
        pairs: (unit, the next one, milliseconds that both save together beyond their gains); only those that timing
            can tell from none.
    """

    float_ms: float
    gains: dict[str, float]
    part_of: dict[str, str]
    checks: tuple[tuple[float, float], ...]
    shape: str
    pairs: tuple[tuple[str, str, float], ...] = ()

    def time(self, units: Collection[str]) -> float:
        """Return the predicted milliseconds of a plan."""
        together = sum(ms for a, b, ms in self.pairs if a in units and b in units)
        return self.float_ms - sum(self.gains[name] for name in units) - together

    def saved_by(self, units: Collection[str]) -> float:
        """Return the milliseconds that these units save where all others are in INT8."""
        everything = set(self.gains)
        return self.time(everything - set(units)) - self.time(everything)

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
    lists = {name: tuple(tuple(each) for each in values.get(name, ())) for name in ("checks", "pairs")}
    return Costs(**{**values, **lists})


def parts_of(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """Return the units by part, attention and the heaviest first; beyond `MOST_PARTS` they are one part, "others"."""
    parts: dict[str, list[Unit]] = {}
    for unit in units:
        parts.setdefault(unit.part, []).append(unit)
    weight_of = {part: sum(unit.weights for unit in members) for part, members in parts.items()}
    ordered = sorted(parts, key=lambda part: (weight_of[part] > 0, -weight_of[part]))  # attention, which has no weights
    kept = {part: parts[part] for part in ordered[:MOST_PARTS]}
    if rest := ordered[MOST_PARTS:]:
        kept[OTHERS] = [unit for part in rest for unit in parts[part]]
    return kept


def neighbours(units: Sequence[Unit]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Return the parts that follow one another in a block, those of most blocks first, with the units that do."""
    kept = {unit.name: part for part, members in parts_of(units).items() if part != OTHERS for unit in members}
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for a, b in itertools.pairwise(units):
        if a.block == b.block and a.block and {a.name, b.name} <= kept.keys():
            found.setdefault((a.part, b.part), []).append((a.name, b.name))
    return dict(sorted(found.items(), key=lambda each: -len(each[1]))[:MOST_PAIRS])


def plans_to_time(units: Sequence[Unit], seed: int, num_checks: int = 2) -> tuple[dict[str, frozenset[str]], list[str]]:
    """Return the plans whose engines are timed, by a name each, and the names of those that only check the fit."""
    everything = frozenset(unit.name for unit in units)
    plans = {"all": everything}
    for part, members in parts_of(units).items():
        plans[_without(part)] = everything - {unit.name for unit in members}
    parts = parts_of(units)
    for a, b in neighbours(units):
        plans[_without(a, b)] = everything - {unit.name for part in (a, b) for unit in parts[part]}
    rng = np.random.default_rng(seed)
    checks = []
    for number in range(num_checks):
        chosen = rng.permutation(len(units))[: max(1, len(units) // 2)]
        checks.append(f"check {number}")
        plans[checks[-1]] = frozenset(units[i].name for i in chosen)
    return {name: plan for name, plan in plans.items() if plan}, checks


def fit(units: Sequence[Unit], plans: Mapping[str, frozenset[str]], times: Mapping[str, float], checks: Sequence[str],
        shape: str, sure: Collection[tuple[str, str]] = ()) -> Costs:  # fmt: skip
    """Return the costs by least squares over all plans but the checks.

    Args:
        times: milliseconds of each plan's engine, and of "float".
        sure: the pairs of parts that count; see `sure_pairs`.
    """
    names = [name for name in plans if name not in checks]
    parts = parts_of(units)
    of_parts = {part: [unit.name for unit in members] for part, members in parts.items()}
    pairs = {pair: both for pair, both in neighbours(units).items() if pair in sure}
    share = {unit.name: _share(unit, members) for members in parts.values() for unit in members}
    rows = [[1.0, *(-sum(share[unit] for unit in members if unit in plan) for members in of_parts.values()),
             *(-sum(a in plan and b in plan for a, b in both) / len(both) for both in pairs.values())]
            for plan in (*(plans[name] for name in names), frozenset[str]())]  # fmt: skip
    measured = np.array([*(times[name] for name in names), times["float"]])
    solution = np.linalg.lstsq(np.array(rows) / measured[:, None], np.ones(len(measured)), rcond=None)[0].tolist()
    gain_of, together = solution[1 : 1 + len(of_parts)], solution[1 + len(of_parts) :]  # by relative errors
    gains = {unit: gain * share[unit] for gain, members in zip(gain_of, of_parts.values(), strict=True)
             for unit in members}  # fmt: skip
    found = Costs(solution[0], gains, {unit: part for part, members in of_parts.items() for unit in members}, (), shape,
                  tuple((a, b, ms / len(both)) for both, ms in zip(pairs.values(), together, strict=True)
                        for a, b in both))  # fmt: skip
    return replace(found, checks=tuple((times[name], found.time(plans[name])) for name in checks))


def sure_pairs(units: Sequence[Unit], blocks: Mapping[str, Sequence[float]]) -> list[tuple[str, str]]:
    """Return the neighbouring parts that surely save more, or less, together than each beside the other in float.

    Args: blocks: milliseconds of each plan's engine by round; a round that was slow was slow for all four engines of a
        pair.
    """
    found = []
    for pair in neighbours(units):
        names = ("all", _without(*pair), *(_without(each) for each in pair))
        if not blocks.keys() >= set(names):
            continue
        whole, neither, *single = (np.asarray(blocks[name]) for name in names)
        beyond = neither + whole - sum(single)
        if beyond.any() and wilcoxon(beyond).pvalue < SURE:
            found.append(pair)
    return found


def _without(*parts: str) -> str:
    return f"without {' and '.join(parts)}"


def _share(unit: Unit, members: Sequence[Unit]) -> float:
    """Return a unit's share of its part: by weights, or alike where some have none (attention)."""
    total = sum(each.weights for each in members)
    return unit.weights / total if all(each.weights for each in members) else 1 / len(members)
