"""Which number format each site has: the recipe's answer for every tensor, one for all layers that read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import nn

from quant.formats import INT8, get_format
from quant.recipe import Recipe
from quant.sites.site import Site
from quant.tensor_quantizer import named_quantizers


def with_formats(sites: list[Site], recipe: Recipe) -> list[Site]:
    """Return the sites, those that are on with the format that the recipe's rules give them.

    A tensor that several layers read is rounded once, so its readers must agree.
    Raises: ValueError: readers of one tensor to which the rules give different formats.
    """
    found = [
        dataclasses.replace(site, format=recipe.format_of(site.name, site.kind)) if site.enabled else site
        for site in sites
    ]
    kinds = {site.name: site.kind for site in sites}
    problems = [
        f"{reader} is {wanted}, {site.name} {site.format}"
        for site in found if site.enabled
        for reader, wanted in _readers(site, kinds, recipe) if wanted != site.format
    ]  # fmt: skip
    if problems:
        raise ValueError(
            f"recipe '{recipe.name}' gives readers of one tensor different formats: {'; '.join(problems[:3])}"
            f"{f'; and {len(problems) - 3} more' if len(problems) > 3 else ''}. They share one quantizer: give all of "
            "them one format"
        )
    return found


def _readers(site: Site, kinds: dict[str, str], recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield (name, format) of the input quantizers of the layers that read an activation, as the rules have it."""
    if site.is_weight:
        return
    for layer in site.consumers:
        name, kind = f"{layer}.input_quantizer", kinds.get(f"{layer}.weight_quantizer")
        rule = None if kind is None else recipe.last_rule("enable", name, kind)  # None: attention reads it
        if kind is not None and rule is not None and rule.enable:
            yield name, recipe.format_of(name, kind)


def format_names(model: nn.Module) -> str:
    """Return the formats of the quantizers that are on, e.g. `int8` or `int7 and int8`; int8 where none is on."""
    names = {quantizer.format.name for _, quantizer in named_quantizers(model) if quantizer.enabled}
    return " and ".join(sorted(names)) or INT8.name


def check_formats(sites: Iterable[Site], recipe: Recipe, path: Path) -> None:
    """Raise ValueError if enabled sites of the checkpoint described in `path` have formats other than its recipe's."""
    other = []
    for site in sites:
        get_format(site.format)
        wanted = recipe.format_of(site.name, site.kind)
        if site.enabled and site.format != wanted:
            other.append(f"{site.name} is {site.format}, the recipe says {wanted}")
    if other:
        raise ValueError(
            f"{path}: {len(other)} sites have another format than recipe '{recipe.name}', e.g. {other[0]}; "
            "calibrate again with the recipe that is meant ('python -m calib --recipe')"
        )
