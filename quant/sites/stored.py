"""Sites in quantization.json: every field, and name, reason and smoothing as a reader wants them.

Versions before sites had roles wrote the name and both sentences alone; those are compared with the sentences that
fields make, never taken apart.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from quant.recipe import Recipe
from quant.sites.roles import Role
from quant.sites.site import SENTENCES, How, Site, SiteSmoothing, Why

# What the first versions told of a site: what a run of theirs is identified by.
FIRST_KEYS = (
    "name", "kind", "enabled", "reason", "consumers", "axis", "producer", "producer_channels", "smoothing"
)  # fmt: skip


def site_to_dict(site: Site) -> dict[str, Any]:
    """Return a site as plain JSON types; `sites_from_dicts` reads it back."""
    smoothing, fields = site.smoothing, dataclasses.asdict(site)
    for option in ("method", "percentile", "alpha"):  # only where a rule gave it: other sites stay as they were told
        if fields[option] is None:
            del fields[option]
    return {
        "name": site.name,
        **fields,
        "reason": site.reason,
        "smoothing": "" if smoothing is None else str(smoothing),
        "smoothed": None if smoothing is None else dataclasses.asdict(smoothing),
    }


def sites_from_dicts(stored: list[dict[str, Any]], recipe: Recipe) -> tuple[Site, ...]:
    """Return the sites that a file of any version tells of. Raises: KeyError, TypeError, ValueError: a damaged one."""
    norms: dict[str, tuple[str, ...]] = {}
    for each in stored:
        if each["kind"] == "norm_output" and each["enabled"]:
            norms |= {layer: (*norms.get(layer, ()), each["name"]) for layer in each["consumers"]}
    return tuple(_site(dict(each), recipe, norms) for each in stored)


def _site(fields: dict[str, Any], recipe: Recipe, norms: dict[str, tuple[str, ...]]) -> Site:
    name, reason, told = fields.pop("name"), fields.pop("reason"), fields.pop("smoothing", "")
    fields["consumers"] = tuple(fields["consumers"])
    channels = fields.get("producer_channels")
    fields["producer_channels"] = None if channels is None else tuple(channels)
    if "role" not in fields:
        site = _older(name, told, fields, recipe)
        reads = norms.get(site.module, ()) if site.role is Role.INPUT else ()
        return _with_reason(dataclasses.replace(site, reads=() if site.enabled else reads), reason)
    smoothed = fields.pop("smoothed")
    fields["smoothing"] = None if smoothed is None else SiteSmoothing(**{**smoothed, "how": How(smoothed["how"])})
    fields |= {"role": Role(fields["role"]), "why": Why(fields["why"]), "reads": tuple(fields["reads"])}
    site = Site(**fields)
    if site.name != name:
        raise ValueError(f"site {name} is told to be {site.name}")
    return site


def identity(stored: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies a site of a quantization.json, the same for the versions that wrote fewer keys.

    Its calibrator and its alpha are in the ranges and weights, which have digests of their own.
    """
    known = {key: stored[key] for key in FIRST_KEYS if key in stored}
    number_format = stored.get("format", "int8")  # what sites meant before they told their format
    return known if number_format == "int8" else {**known, "format": number_format}


def _older(name: str, told: str, fields: dict[str, Any], recipe: Recipe) -> Site:
    """Return the site of a file that has no roles, its reason aside."""
    module, _, attribute = name.rpartition(".")  # a path, as torch has it
    last = recipe.last_rule("enable", name, fields["kind"])
    smoothing = _as_told(told) if told else None
    return Site(module=module, role=Role(attribute), rule=str(last), smoothing=smoothing, **fields)


def _with_reason(site: Site, reason: str) -> Site:
    """Return the site with the fields that make this sentence, or with the sentence as it is."""
    likely = (dataclasses.replace(site, why=why) for why in (Why.RULE, Why.COVERED, *SENTENCES))
    found = next((each for each in likely if each.reason == reason), None)
    found = dataclasses.replace(site, why=Why.OLDER, told=reason) if found is None else found
    return found if found.why is Why.COVERED else dataclasses.replace(found, reads=())


def _as_told(told: str) -> SiteSmoothing:
    known = (SiteSmoothing(how) for how in (How.BRANCHED, How.USELESS))
    return next((each for each in known if str(each) == told), SiteSmoothing(How.OLDER, told=told))
