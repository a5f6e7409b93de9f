"""Takes over the ranges (and weights) of a model that pytorch-quantization or NVIDIA ModelOpt quantized.

Every quantizer of the checkpoint either lands in a site of our model or is reported with its reason; half a match is
refused unless asked for, and the model is changed only once all is known to fit.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.formats import FORMATS, INT8
from quant.interop.files import ForeignCheckpoint, read_foreign
from quant.interop.names import KeyResolver
from quant.interop.weights import WeightMatch, match_weights
from quant.recipe import OFF
from quant.sites.roles import Role
from quant.sites.settings import refuse_calibration
from quant.sites.site import How, Quantization, Site, SiteSmoothing, quantization_of
from quant.sites.trace import trace_model
from quant.tensor_quantizer import named_quantizers, quantizers_disabled


@dataclass(frozen=True)
class ImportReport:
    """What a foreign checkpoint gave, what of it found no place, and which sites it left empty."""

    source: str
    package: str
    """pytorch-quantization or ModelOpt."""
    matched: tuple[tuple[str, tuple[str, ...]], ...]
    """(site, the checkpoint's quantizers that it took its amax from)."""
    unmatched: tuple[tuple[str, str], ...]
    """(quantizer or weight of the checkpoint, why it found no place)."""
    missing: tuple[str, ...]
    """Enabled sites, and weights where the checkpoint has any, that the checkpoint says nothing of."""
    num_weights: int
    """Parameters taken from the checkpoint."""
    notes: tuple[str, ...]
    """What was converted in a way that one should know of."""

    @property
    def is_complete(self) -> bool:
        """Whether both sides matched to the last quantizer."""
        return not self.unmatched and not self.missing

    def summary(self) -> str:
        """Return the report as lines to read: counts, then every loose end once for each reason."""
        lines = [
            f"{self.source} ({self.package}): {len(self.matched)} sites matched, {self.num_weights} weights taken; "
            f"{len(self.unmatched)} of its entries have no place, {len(self.missing)} of the model are not in it"
        ]
        by_reason = defaultdict(list)
        for name, reason in self.unmatched:
            by_reason[reason].append(name)
        lines += [f"  no place: {_named(names)}: {reason}" for reason, names in by_reason.items()]
        lines += [f"  not in it: {_named(list(self.missing))}"] if self.missing else []
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


@dataclass
class _Plan:
    """The ranges that will be set, gathered before anything is."""

    amax: dict[str, Tensor] = field(default_factory=dict)
    pre_quant_scale: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unmatched: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def import_amax(
    model: PreTrainedModel, checkpoint: str | Path | Mapping[str, Any], *,
    allow_partial: bool = False, load_weights: bool = True,
) -> ImportReport:  # fmt: skip
    """Give the sites of `model` the amax (and SmoothQuant factors) of a foreign checkpoint, in place.

    Args:
        model: with quantizers (`insert_quantizers`), on exactly where the checkpoint has them.
        checkpoint: state dict, or a file or folder of one: `torch.save(model.state_dict())`, `mto.save`, safetensors.
        allow_partial: take what matches and report the rest, instead of refusing.
        load_weights: also take the checkpoint's weights where it has them (a range belongs to its weights); False
            keeps the model's own.
    Returns: the report; sites in `missing` still have no amax.
    Raises: ValueError: a partial match, an unreadable or foreign file, ranges that are NaN, infinite or negative. The
        model is unchanged then.
    """
    quantization = quantization_of(model)
    refuse_calibration(quantization.recipe)
    foreign = read_foreign(checkpoint)
    resolver = KeyResolver(model)
    plan = _Plan()
    _plan_ranges(model, quantization, foreign, resolver, plan)
    if not plan.amax:
        first = next((f"e.g. {name}: {reason}" for name, reason in plan.unmatched), "all of them are off there")
        raise ValueError(
            f"{foreign.source} has no quantizer that fits this model and recipe ({first}); is it of another model?"
        )
    missing = [site.name for site in quantization.sites if site.enabled and site.name not in plan.amax]
    weights = match_weights(model, foreign, resolver) if load_weights else WeightMatch()
    missing += weights.missing
    plan.unmatched += weights.unmatched
    plan.notes += weights.notes
    report = ImportReport(foreign.source, foreign.package, tuple(plan.sources.items()), tuple(plan.unmatched),
                          tuple(missing), len(weights.tensors), tuple(plan.notes))  # fmt: skip
    if not report.is_complete and not allow_partial:
        raise ValueError(_refusal(report))
    _apply(model, quantization, plan, weights.tensors)
    return report


def _refusal(report: ImportReport) -> str:
    by_reason = Counter(reason for _, reason in report.unmatched)
    shown = [
        f"{count} of its entries have no place (e.g. {next(n for n, r in report.unmatched if r == reason)}: {reason})"
        for reason, count in by_reason.most_common(3)
    ]
    if report.missing:
        shown.append(f"it says nothing of {_named(list(report.missing))}")
    return (
        f"{report.source} fits this model and recipe only in part, {len(report.matched)} sites: {'; '.join(shown)}. "
        "Change the recipe, or take what fits with allow_partial=True (--allow-partial)"
    )


def _named(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _plan_ranges(
    model: PreTrainedModel, quantization: Quantization, foreign: ForeignCheckpoint, resolver: KeyResolver, plan: _Plan
) -> None:
    """Find the site of every quantizer in the checkpoint; several that read one tensor become one amax."""
    places = _places(quantization)
    off = {site.name: site.reason for site in quantization.sites if not site.enabled}
    scalings = _scalings(model) if any(site.kind == "bmm" and site.enabled for site in quantization.sites) else {}
    groups: dict[str, list[tuple[str, dict[str, Tensor]]]] = defaultdict(list)
    untold: list[str] = []
    for name, tensors in foreign.quantizer_tensors().items():
        settings = foreign.quantizers.get(name, {})
        if settings.get("_disabled"):
            continue  # it stands in the file and does nothing
        place = resolver.place_of(name)
        site, reason = places.get(place), _unfit(settings, tensors)
        if site is not None and not reason and settings.get("_num_bits") is not None:
            theirs = _format_of(settings)
            reason = "" if theirs == site.format else f"{theirs} there, {site.format} by this recipe"
        if reason or site is None:
            named = f"off here: {off[place]}" if place in off else "int8kit has no quantizer there"
            plan.unmatched.append((name, reason or named))
        else:
            groups[site.name].append((name, tensors))
            if site.format != INT8.name and "_num_bits" not in settings:
                untold.append(site.name)
    if untold:
        plan.notes.append(f"{_named(untold)} are not INT8 by this recipe; the file does not say what they were")
    sites = {site.name: site for site in quantization.sites}
    for site_name, members in groups.items():
        _plan_site(model, sites[site_name], members, scalings, plan)


def _places(quantization: Quantization) -> dict[str, Site]:
    """Return every name under which a foreign quantizer reads the tensor of an enabled site."""
    places = {}
    for site in quantization.sites:
        if not site.enabled:
            continue
        places[site.name] = site
        if site.role in (Role.INPUT, Role.OUTPUT):
            places.update({f"{layer}.{Role.INPUT}": site for layer in site.consumers})
    return places


def _scalings(model: PreTrainedModel) -> dict[str, float]:
    """Return the factor on Q of each attention module, as the model passes it."""
    with quantizers_disabled(model):
        return trace_model(model).scalings


def _unfit(settings: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return why a quantizer computes something else than a format of ours by one amax; empty where it does not."""
    if ("_num_bits" in settings and _format_of(settings) is None) or settings.get("_block_sizes") is not None:
        return f"not INT8 by channel or tensor: {settings.get('_num_bits')} bits, blocks {settings.get('_block_sizes')}"
    if settings.get("_unsigned"):
        return "unsigned; int8kit's INT8 is signed"
    if settings.get("_dynamic"):
        return "its range is taken from each batch"
    others = set(tensors) - {"_amax", "_pre_quant_scale", "clip.clip_value_min", "clip.clip_value_max"}
    if others:
        return f"it holds {', '.join(sorted(others))}, which is not plain INT8"
    return "" if _amax_of(tensors) is not None else "it holds no amax"


def _format_of(settings: dict[str, Any]) -> str | None:
    """Return the name of our format whose codes a quantizer of ModelOpt rounds to, None if there is none.

    Theirs are -(2^(bits - 1) - 1) to 2^(bits - 1) - 1, and one code more below without `narrow_range`. That one code is
    passed over at 8 bits, where it lies half a step outside the range; 7 bits with it are not int7.
    """
    bits = settings.get("_num_bits")
    if bits == 8:
        return INT8.name
    if not isinstance(bits, int):
        return None
    bound = 2 ** (bits - 1) - 1
    codes = (-bound if settings.get("_narrow_range") else -bound - 1, bound)
    return next((name for name, each in FORMATS.items() if (each.qmin, each.qmax) == codes), None)


def _amax_of(tensors: dict[str, Tensor]) -> Tensor | None:
    """Return the amax in force: pytorch-quantization's learned clip range goes before the buffer it started from."""
    if "clip.clip_value_max" in tensors and "clip.clip_value_min" in tensors:
        return torch.maximum(-tensors["clip.clip_value_min"], tensors["clip.clip_value_max"]).detach().float()
    amax = tensors.get("_amax")
    return None if amax is None else amax.detach().float()


def _plan_site(
    model: PreTrainedModel, site: Site, members: list[tuple[str, dict[str, Tensor]]], scalings: dict[str, float],
    plan: _Plan,
) -> None:  # fmt: skip
    """Convert the amax of one site from all quantizers that read its tensor: shape, scaling of Q, their maximum."""
    names = tuple(name for name, _ in members)
    found = []
    for name, tensors in members:
        amax = _amax_of(tensors)
        assert amax is not None  # _unfit has seen it
        if not torch.isfinite(amax).all() or (amax < 0).any():
            raise ValueError(f"{name} has an amax of {amax.min():g} to {amax.max():g}: was it calibrated? Do so again")
        shaped = _shaped(model, site, amax)
        if shaped is None:
            plan.unmatched.append((name, f"its amax has shape {tuple(amax.shape)}, which our scales have not"))
            return
        found.append(shaped)
    factors = [tensors.get("_pre_quant_scale") for _, tensors in members]
    if any(factor is not None for factor in factors):
        reason = _unfit_smoothing(site, factors)
        if reason:
            plan.unmatched.extend((name, reason) for name in names)
            return
        plan.pre_quant_scale[site.name] = factors[0].detach().float().reshape(-1)  # type: ignore[union-attr]
    if any(not torch.equal(found[0], other) for other in found[1:]):
        low, high = min(float(f.max()) for f in found), max(float(f.max()) for f in found)
        plan.notes.append(f"{site.name} takes the largest of {_named(list(names))}: {low:g} to {high:g}")
    amax = torch.stack(found).amax(0)
    if site.role in (Role.Q, Role.POSITION_Q):
        amax = amax * scalings[site.module]  # theirs rounds Q before the scaling, ours after it
    if site.role is Role.SOFTMAX and float(amax) != 1:
        plan.notes.append(f"{site.name} is taken as {float(amax):g}; int8kit's own is 1")
    plan.amax[site.name], plan.sources[site.name] = amax, names


def _shaped(model: PreTrainedModel, site: Site, amax: Tensor) -> Tensor | None:
    """Return amax as (1,) or (channels,); None where its channels are not ours."""
    layer: Any = model.get_submodule(site.consumers[0]) if site.axis is not None else None
    channels = 1 if layer is None else layer.weight.shape[site.axis]
    if amax.numel() == 1:
        return amax.reshape(1).expand(channels).clone()
    is_by_row = site.kind == "embedding" and amax.dim() > 1 and amax.shape[-1] == 1
    return amax.reshape(-1) if amax.numel() == channels and not is_by_row else None


def _unfit_smoothing(site: Site, factors: list[Tensor | None]) -> str:
    """Return why SmoothQuant's factors cannot stand at this site; empty where they can."""
    if site.alpha == OFF:
        return "SmoothQuant there, alpha off by this recipe"
    if site.kind != "linear":
        return f"SmoothQuant on a {site.kind} site, whose tensor others read too; use a recipe without norm outputs"
    if any(factor is None or not torch.equal(factor, factors[0]) for factor in factors):  # type: ignore[arg-type]
        return "its SmoothQuant factors differ from those of the layers that read the same tensor"
    return ""


def _apply(model: PreTrainedModel, quantization: Quantization, plan: _Plan, weights: dict[str, Tensor]) -> None:
    quantizers = dict(named_quantizers(model))
    for name, amax in plan.amax.items():
        quantizers[name].set_amax(amax.to(model.device))
        factor = plan.pre_quant_scale.get(name)
        quantizers[name].set_pre_quant_scale(None if factor is None else factor.to(model.device))
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)
    sites = tuple(
        dataclasses.replace(site, smoothing=SiteSmoothing(How.EXPLICIT)) if site.name in plan.pre_quant_scale else site
        for site in quantization.sites
    )
    model.quantization = Quantization(quantization.recipe, sites)  # type: ignore[assignment]
