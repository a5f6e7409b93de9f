"""The sites of a model as a table to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from quant.formats import INT8
from quant.sites.site import Site, Why


def summarize_sites(sites: Iterable[Site]) -> str:
    """Return a table of the sites by kind: how many are on, how many off, and the reasons of those off."""
    sites = list(sites)
    lines = [f"{'kind':<12} {'on':>4} {'off':>4}  why off"]
    for kind in dict.fromkeys(site.kind for site in sites):
        members = [site for site in sites if site.kind == kind]
        off = [site for site in members if not site.enabled]
        reasons = ", ".join(
            dict.fromkeys("another quantizer covers it" if s.why is Why.COVERED else s.reason for s in off)
        )
        lines.append(f"{kind:<12} {len(members) - len(off):>4} {len(off):>4}  {reasons}")
    others = Counter(site.format for site in sites if site.enabled and site.format != INT8.name)
    lines += [f"in {name}: {number} of those on" for name, number in others.items()]
    for option in ("method", "percentile", "alpha"):
        own = Counter(str(getattr(s, option)) for s in sites if s.enabled and getattr(s, option) is not None)
        lines += [f"by rules {option} {value}: {number} of those on" for value, number in own.items()]
    return "\n".join(lines)
