"""The number formats of a model: by name, and of a checkpoint's sites against its recipe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from quant.formats import INT8, get_format
from quant.recipe import Recipe
from quant.sites.site import Site
from quant.tensor_quantizer import named_quantizers


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
