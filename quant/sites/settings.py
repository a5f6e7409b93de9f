"""What the recipe gives each site: number format, calibrator, SmoothQuant. One answer for all readers of a tensor.

A site keeps what rules say of it; where they say nothing the recipe's own options hold, which `--method` may replace.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from quant.formats import INT8
from quant.recipe import OFF, SETTINGS, CalibratorOptions, Recipe, Rule
from quant.sites.roles import Role
from quant.sites.site import Site

SMOOTHED_KINDS = ("linear", "norm_output")


def with_settings(sites: list[Site], recipe: Recipe) -> list[Site]:
    """Return the sites, those that are on with what the recipe's rules give them.

    A tensor that several layers read is rounded once, so its readers must agree.
    Raises: ValueError: readers of one tensor to which the rules give different settings; a rule whose setting fits none
        of the sites that it matches.
    """
    _refuse_idle(sites, recipe)
    found = [
        dataclasses.replace(site, **_taken(site, _given(recipe, site.name, site.kind))) if site.enabled else site
        for site in sites
    ]
    kinds = {site.name: site.kind for site in sites}
    problems = [text for site in found if site.enabled for text in _disagreements(site, kinds, recipe)]
    if problems:
        raise ValueError(
            f"recipe '{recipe.name}' gives readers of one tensor different settings: {'; '.join(problems[:3])}"
            f"{f'; and {len(problems) - 3} more' if len(problems) > 3 else ''}. They share one quantizer: give all of "
            "them the same"
        )
    for site in found:
        if site.reads_samples:
            calibrator_of(site, recipe)
    return found


def calibrator_of(site: Site, recipe: Recipe) -> CalibratorOptions:
    """Return the calibrator of an activation: what rules give the site, else the recipe's.

    Raises: ValueError: a rule's percentile where another calibrator would not use it.
    """
    method = site.method or recipe.calibrator.method
    if site.percentile is not None and method != "percentile":
        raise ValueError(
            f"recipe '{recipe.name}': rule {recipe.last_rule('percentile', site.name, site.kind)} gives {site.name} a "
            f"percentile, but its calibrator is {method}; add 'method: percentile' to the rule"
        )
    return CalibratorOptions(method, site.percentile or recipe.calibrator.percentile)


def alpha_of(site: Site, recipe: Recipe) -> float | str | None:
    """Return SmoothQuant's alpha of a site: what rules give it, else the recipe's; None where it is not smoothed."""
    if not _takes(site, "alpha"):
        return None
    if site.alpha is not None:
        return None if site.alpha == OFF else site.alpha
    options = recipe.smoothquant
    return options.alpha if fnmatchcase(site.name, options.match) else None


def method_names(sites: Iterable[Site], recipe: Recipe) -> str:
    """Return the calibrators of the sites that are on, e.g. `max and mse`; the recipe's own where none is on."""
    names = {calibrator_of(site, recipe).method for site in sites if site.reads_samples}
    return " and ".join(sorted(names)) or recipe.calibrator.method


def check_method(method: str, sites: Iterable[Site], recipe: Recipe) -> None:
    """Raise ValueError if `method` in place of the recipe's own would change no site, as rules give each its own."""
    read = [site for site in sites if site.reads_samples]
    if read and all(site.method is not None for site in read):
        raise ValueError(
            f"--method {method} changes no site: the rules of recipe '{recipe.name}' give each of the {len(read)} "
            "activations a method of its own; leave it out, or change the rules"
        )


def refuse_calibration(recipe: Recipe) -> None:
    """Raise ValueError for rules that say how ranges are made, where a foreign checkpoint brings them made."""
    rules = [rule for rule in recipe.rules if rule.method or rule.percentile or rule.alpha not in (None, OFF)]
    if rules:
        raise ValueError(
            f"recipe '{recipe.name}': an import brings ranges and SmoothQuant factors of its own and cannot follow "
            f"{'; '.join(str(rule) for rule in rules[:3])}; take those settings out, or calibrate on samples"
        )


def _takes(site: Site, option: str) -> bool:
    """Return whether a setting means something to a site: a weight and a probability have no calibrator."""
    if option == "format":
        return True
    if site.is_weight or site.role is Role.SOFTMAX:
        return False
    return option != "alpha" or site.kind in SMOOTHED_KINDS


def _refuse_idle(sites: list[Site], recipe: Recipe) -> None:
    """Raise ValueError for rules with a setting that none of the sites they match can take."""
    problems = []
    for rule in recipe.rules:
        hits = [site for site in sites if rule.matches(site.name, site.kind)]
        idle = [o for o in SETTINGS if getattr(rule, o) is not None and not any(_takes(site, o) for site in hits)]
        if hits and idle:
            problems.append(f"{rule} gives {' and '.join(idle)} to {hits[0].name}{' ...' if len(hits) > 1 else ''}")
    if problems:
        raise ValueError(
            f"recipe '{recipe.name}': {'; '.join(problems[:3])}. Weights and softmax outputs have no calibrator (their "
            "range is the exact maximum, and 1), and SmoothQuant acts on inputs of linear layers and norm outputs; "
            "match those, or leave it out"
        )


def _given(recipe: Recipe, name: str, kind: str) -> dict[str, tuple[Any, Rule | None]]:
    """Return for each setting what the rules give a quantizer, with the rule."""
    given: dict[str, tuple[Any, Rule | None]] = {}
    for option in SETTINGS:
        rule = recipe.last_rule(option, name, kind)
        given[option] = (None if rule is None else getattr(rule, option), rule)
    method, percentile = given["method"][1], given["percentile"][1]
    if method is not None and percentile is not None and method.method != "percentile":
        last = [rule for rule in recipe.rules if rule is method or rule is percentile][-1]
        if last is method:  # the later rule takes another calibrator
            given["percentile"] = (None, None)
    given["format"] = (given["format"][0] or INT8.name, given["format"][1])
    return given


def _taken(site: Site, given: dict[str, tuple[Any, Rule | None]]) -> dict[str, Any]:
    return {option: value for option, (value, _) in given.items() if _takes(site, option)}


def _disagreements(site: Site, kinds: dict[str, str], recipe: Recipe) -> Iterator[str]:
    """Yield what the readers of an activation have otherwise than its site, with both rules."""
    own = _given(recipe, site.name, site.kind)
    for reader, kind in _readers(site, kinds, recipe):
        for option, (wanted, rule) in _given(recipe, reader, kind).items():
            value, own_rule = own[option]
            if _takes(site, option) and wanted != value:
                word = "is" if option == "format" else f"has {option}"
                yield (f"{reader} {word} {_shown(wanted)}, {site.name} {_shown(value)} (by {rule or 'no rule'} and "
                       f"{own_rule or 'no rule'})")  # fmt: skip


def _shown(value: Any) -> str:
    return "of the recipe" if value is None else str(value)


def _readers(site: Site, kinds: dict[str, str], recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield (name, kind) of the input quantizers of the layers that read an activation, where the rules have it on."""
    if site.is_weight:
        return
    for layer in site.consumers:
        name, kind = f"{layer}.{Role.INPUT}", kinds.get(f"{layer}.{Role.WEIGHT}")
        rule = None if kind is None else recipe.last_rule("enable", name, kind)  # None: attention reads it
        if kind is not None and rule is not None and rule.enable:
            yield name, kind
