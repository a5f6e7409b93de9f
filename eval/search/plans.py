"""Plans as recipes: the sites of some units on, each by its exact name with what it gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from eval.search.fixes import with_fix
from eval.search.sensitivity import Unit
from quant.recipe import Recipe
from quant.sites.exact import exact_recipe
from quant.sites.site import Site


def plan_recipe(
    sites: Iterable[Site], recipe: Recipe, units: Iterable[Unit], on: frozenset[str], fixes: Mapping[str, str],
    name: str,
) -> Recipe:  # fmt: skip
    """Return the recipe of a plan.

    Args:
        sites: of the base recipe's plan. on: names of the units that stay in INT8, of `units`. fixes: unit → how its
            activations are calibrated, where it is another way than the recipe's: a name of `FIXES`.
    """
    units = list(units)
    off = {site for unit in units if unit.name not in on for site in unit.sites}
    fix_of = {site: fixes[unit.name] for unit in units if unit.name in fixes for site in unit.sites}

    def planned(site: Site) -> Site:
        if site.name in off:
            return dataclasses.replace(site, enabled=False)
        return with_fix(site, fix_of[site.name], recipe) if site.name in fix_of else site

    found = exact_recipe([planned(site) for site in sites], recipe)
    return dataclasses.replace(found, name=name)


def write_recipe(recipe: Recipe, path: str | Path, comment: str) -> None:
    """Write a recipe as YAML with a comment on top; `load_recipe` gives the same recipe back."""
    content: dict[str, Any] = recipe.to_dict()
    content["rules"] = [{key: x for key, x in rule.items() if (x is not None and x is not False) or key == "enable"}
                        for rule in content["rules"]]  # fmt: skip
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    text = yaml.safe_dump(content, sort_keys=False, width=200, default_flow_style=None)
    Path(path).write_text(lines + text, encoding="utf-8")
