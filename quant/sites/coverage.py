"""What of a model no quantizer reaches, said in a warning or refused: a model is never silently quantized less."""

from __future__ import annotations

from collections import Counter

from transformers import PreTrainedModel

from quant.recipe import Recipe
from quant.sites.site import Site


def unquantizable(model: PreTrainedModel, names: tuple[str, ...]) -> str:
    """Return what is said of weights that no site stands for: a model is never silently quantized less."""
    owners = dict.fromkeys(type(model.get_submodule(name.rpartition(".")[0])).__name__ for name in names)
    share = sum(model.get_parameter(name).numel() for name in names) / sum(p.numel() for p in model.parameters())
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (f"{len(names)} weights ({100 * share:.0f} % of the parameters) stay float: {shown}. No layer that "
            f"takes quantizers multiplies them, but {' and '.join(owners)} (quant/modules.py)")  # fmt: skip


def unreached(model: PreTrainedModel, layers: list[str]) -> str:
    """Return what is said of layers that the recipe wants and the example inputs do not reach (experts of a router)."""
    share = sum(model.get_parameter(f"{layer}.weight").numel() for layer in layers) / model.num_parameters()
    shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
    return (f"{len(layers)} layers ({100 * share:.0f} % of the parameters) stay float, as the example inputs do not "
            f"reach them: {shown}. Give insert_quantizers inputs that do")  # fmt: skip


def refuse_float(model: PreTrainedModel, recipe: Recipe, sites: list[Site]) -> None:
    """Raise ValueError where no quantizer is on: the model would pass for a quantized one and be the float model."""
    if any(site.enabled for site in sites):
        return
    why = "; ".join(f"{reason} ({count} sites)" for reason, count in Counter(s.reason for s in sites).most_common(2))
    raise ValueError(
        f"recipe '{recipe.name}' switches on none of the {len(sites)} quantizers of {type(model).__name__}"
        f"{f': {why}' if why else ', as it has no layer that takes them'}. Switch layers on with a rule such as "
        "- {kind: linear}, or keep the float model"
    )
