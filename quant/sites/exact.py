"""A plan as a recipe: every site by its exact name, with all that it gets. What a search decides is written so."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterable

from quant.recipe import OFF, Recipe, Rule
from quant.sites.roles import Role
from quant.sites.settings import SMOOTHED_KINDS, alpha_of, calibrator_of
from quant.sites.site import Site, Why


def exact_recipe(sites: Iterable[Site], recipe: Recipe) -> Recipe:
    """Return a recipe that gives the sites what they have, by name: the plan of the same model is the same again.

    Every reader of a shared tensor is named: a rule that left one out would part them, or leave a norm unread. A norm
    output that was switched off takes the inputs that read it along: switch their weights off too.

    Args:
        sites: of `plan_sites`, their settings changed at will. recipe: theirs; its own calibrator and SmoothQuant hold
            where a site has none, and its qat is kept.
    """
    sites = list(sites)
    rules = [Rule(match="*", enable=False)]
    for site in sites:
        if site.enabled:
            settings = _settings(site, recipe)
            names = dict.fromkeys((site.name, *_readers(site, sites)))
            rules += [Rule(match=glob.escape(name), enable=True, **settings) for name in names]  # type: ignore[arg-type]
    return dataclasses.replace(recipe, name=f"{recipe.name}_exact", rules=tuple(rules))


def _readers(site: Site, sites: list[Site]) -> list[str]:
    """Return the names of the input quantizers that a site stands for."""
    if site.role is Role.INPUT:
        return [f"{layer}.{Role.INPUT}" for layer in site.consumers]
    return [each.name for each in sites if each.why is Why.COVERED and site.name in each.reads]


def _settings(site: Site, recipe: Recipe) -> dict[str, str | float]:
    settings: dict[str, str | float] = {"format": site.format}
    if site.reads_samples:
        calibrator = calibrator_of(site, recipe)
        settings["method"] = calibrator.method
        if calibrator.method == "percentile":
            settings["percentile"] = calibrator.percentile
        if site.kind in SMOOTHED_KINDS:
            alpha = alpha_of(site, recipe)
            settings["alpha"] = OFF if alpha is None else alpha
    return settings
