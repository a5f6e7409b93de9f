"""Whether the sites that a checkpoint tells of are those of its recipe and model: some cut out, it is partly float.

A file bears a digest of its recipe and sites. Of the first version's, which have none, and of edited ones the plan is
made again and compared.
"""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from quant.modules import QUANT_LAYERS
from quant.sites.plan import plan_sites
from quant.sites.site import Quantization, Site

logger = logging.getLogger(__name__)


def check_sites(model: PreTrainedModel, quantization: Quantization, path: Path, is_as_saved: bool | None) -> None:
    """Raise ValueError unless the sites are those that insertion plans for this float model and recipe.

    Args:
        path: of the quantization.json, for the message. is_as_saved: whether it holds what was saved; None: an older
            version's, which does not say.
    """
    modules = {name for name, _ in model.named_modules()}
    strange = [s.name for s in quantization.sites if not {s.module, *s.consumers} <= modules]
    if strange:
        raise ValueError(f"{path}: {_named(strange)} of no layer of this {type(model).__name__}; calibrate again")
    if is_as_saved:
        return
    different = _differences(model, quantization)
    if different or is_as_saved is False:
        raise ValueError(
            f"{path} was changed: {_named(different) if different else 'its recipe or sites are'} not what recipe "
            f"'{quantization.recipe.name}' gives this {type(model).__name__}. Copy the folder again, or calibrate again"
        )


def _differences(model: PreTrainedModel, quantization: Quantization) -> list[str]:
    """Return the names of the sites that a new plan has otherwise, or that one side lacks."""
    try:
        planned = {site.name: site for site in plan_sites(model, quantization.recipe)}
    except ValueError as error:  # it was inserted on other inputs than those that are made here
        logger.warning("the sites of the checkpoint are taken as they are: %s", error)
        return []
    found = {site.name: site for site in quantization.sites}
    return [
        name for name in dict.fromkeys((*planned, *found))
        if not _is_new(model, planned.get(name)) and _what(planned.get(name)) != _what(found.get(name))
    ]  # fmt: skip


def _what(site: Site | None) -> tuple | None:
    """Return what must be equal; a site that is off may be missing."""
    return (site.kind, site.axis, site.consumers) if site is not None and site.enabled else None


def _is_new(model: nn.Module, site: Site | None) -> bool:
    """Return whether versions that wrote no digest had no such site: they knew exact classes alone."""
    if site is None or site.kind not in ("linear", "conv", "embedding"):
        return False
    return type(model.get_submodule(site.consumers[0])) not in (*QUANT_LAYERS, nn.Embedding)


def _named(names: list[str]) -> str:
    shown = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    return f"{len(names)} sites ({shown}) are" if len(names) > 1 else f"the site {shown} is"
