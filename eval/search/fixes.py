"""Other ways to calibrate a unit's activations: what a search tries before it leaves the unit float.

Bias correction is not among them: every calibration decides on it by held-out samples, once for the whole model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from eval.search.sensitivity import Unit
from quant.recipe import METHODS, OFF, Recipe
from quant.sites.settings import alpha_of, calibrator_of
from quant.sites.site import Site

FIXES: dict[str, dict[str, Any]] = {
    **{method: {"method": method, "percentile": None} for method in METHODS},
    **{f"percentile {value:g}": {"method": "percentile", "percentile": value} for value in (99.9, 99.99)},
    "no SmoothQuant": {"alpha": OFF},
    **{f"alpha {value:g}": {"alpha": value} for value in (0.5, 0.7, 0.85, 0.95)},
}  # name → what the sites get: fields of `Site`
MOST = 0.9  # of all squares of errors: the units that hold it are worth a fix


def with_fix(site: Site, fix: str, recipe: Recipe) -> Site:
    """Return a site with what a fix gives it; as it is, where the fix is not for its kind."""
    given = FIXES[fix]
    takes = site.enabled and site.reads_samples and ("alpha" not in given or alpha_of(site, recipe) is not None)
    return dataclasses.replace(site, **given) if takes else site


def fixable(units: Iterable[Unit], fix: str, sites: Iterable[Site], recipe: Recipe) -> list[Unit]:
    """Return the units that a fix changes."""
    changed = {site.name for site in sites if _given(with_fix(site, fix, recipe), recipe) != _given(site, recipe)}
    return [unit for unit in units if changed & set(unit.sites)]


def _given(site: Site, recipe: Recipe) -> tuple[Any, ...] | None:
    """Return how a site is calibrated, whether its own rule or the recipe says so; None where it reads no samples."""
    return (calibrator_of(site, recipe), alpha_of(site, recipe)) if site.enabled and site.reads_samples else None


def worth_fixing(squares: Mapping[str, float]) -> frozenset[str]:
    """Return the units that together hold `MOST` of the squares of errors; the fewest."""
    wanted, held, found = MOST * sum(squares.values()), 0.0, []
    for name in sorted(squares, key=lambda each: -squares[each]):
        if held >= wanted:
            break
        held += squares[name]
        found.append(name)
    return frozenset(found)
