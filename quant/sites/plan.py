"""The plan: for every possible quantizer of a model whether it is on, and why."""

from __future__ import annotations

import dataclasses
import glob
import logging
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from quant.formats import INT8
from quant.models.encoder_decoder import encoder_prefix
from quant.own_attention import quantizer_roles
from quant.recipe import Recipe, Rule
from quant.sites.coverage import unquantizable, unreached
from quant.sites.layer_class import quant_class
from quant.sites.roles import Role
from quant.sites.settings import with_settings
from quant.sites.site import Site, Why
from quant.sites.trace import ModelTrace, TensorKey, trace_model

logger = logging.getLogger(__name__)
# The largest |value| of a norm's output over the middle channel's: beyond it that one has fewer than 3 of INT8's
# steps. MiniLM has up to 22. A ViT-B whose residual sums were all rounded fell from 85 to 5 % (ModelOpt's default).
HIGHEST_PEAK = INT8.ends[1] / 3


def plan_sites(model: PreTrainedModel, recipe: Recipe, inputs: dict[str, torch.Tensor] | None = None) -> list[Site]:
    """Return the sites that `insert_quantizers` would put in, without changing the model."""
    if hasattr(model, "quantization"):
        raise RuntimeError("the model already has quantizers; load the float model again, or a checkpoint, instead")
    trace = trace_model(model, inputs)
    if trace.bare_weights:
        logger.warning(unquantizable(model, trace.bare_weights))
    judged = _Judge(recipe, trace.peaks)
    norms = _norm_sites(trace, judged)
    norm_of = {key: site.name for site in norms for key in trace.norms[site.module]}
    encoder = encoder_prefix(model)
    leaving = {site.name for site in norms if _leaves_encoder(site, encoder)}
    norm_of = {key: name for key, name in norm_of.items() if name not in leaving}
    covering = _covering_norms(model, trace, judged, norm_of)
    inputs_sites = _input_sites(model, trace, judged, covering)
    sites = [
        *_keep_read_norms(norms, inputs_sites, set(covering.values()), encoder),
        *inputs_sites,
        *_weight_sites(model, trace, judged),
        *_attention_sites(model, trace, judged),
    ]
    judged.refuse_unmatched()
    sites = with_settings(sites, recipe)
    missed = [site.module for site in sites if site.is_weight and site.why is Why.UNREACHED]
    if missed:
        logger.warning(unreached(model, missed))
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}
    return sorted(sites, key=lambda site: (order.get(site.module, 0), site.name))


class _Judge:
    """Applies the rules in order and remembers which of them ever matched.

    A norm's output that the residual stream carries, with values far above the rest of it, stays float unless a rule
    names it exactly: rounded with one scale, the rest would have less than a handful of steps.
    """

    def __init__(self, recipe: Recipe, peaks: dict[str, float]) -> None:
        self.recipe, self.peaks = recipe, peaks
        self.matched: set[Rule] = set()

    def __call__(self, module: str, role: Role, kind: str) -> Site:
        """Return the site as the last rule that matches and speaks of on or off has it."""
        site = Site(module, role, kind, enabled=False)
        hits = [rule for rule in self.recipe.rules if rule.matches(site.name, kind)]
        self.matched.update(hits)
        last = self.recipe.last_rule("enable", site.name, kind)
        assert last is not None  # the first rule speaks of all
        site = dataclasses.replace(site, enabled=bool(last.enable), rule=str(last))
        if site.enabled and role is Role.OUTPUT and self.peaks[module] > HIGHEST_PEAK:
            is_named = last.match in (site.name, glob.escape(site.name))
            return site if is_named else dataclasses.replace(site, enabled=False, why=Why.OUTLIERS)
        return site

    def refuse_unmatched(self) -> None:
        """Raise ValueError for the rules that matched no quantizer of the model."""
        idle = [str(rule) for rule in self.recipe.rules if rule not in self.matched and not rule.optional]
        if idle:
            raise ValueError(
                f"recipe '{self.recipe.name}': {len(idle)} rules match no quantizer of this model: "
                f"{'; '.join(idle)}. Mend the pattern, or mark the rule 'optional: true'"
            )


def _norm_sites(trace: ModelTrace, judge: _Judge) -> list[Site]:
    readers = defaultdict(list)
    for layer, keys in trace.layer_inputs.items():
        for key in keys:
            readers[key].append(layer)
    sites = []
    for norm, keys in trace.norms.items():
        consumers = tuple(dict.fromkeys(layer for key in keys for layer in readers[key]))
        site = judge(norm, Role.OUTPUT, "norm_output")
        sites.append(dataclasses.replace(site, consumers=consumers, producer=norm))
    return sites


def _covering_norms(model: PreTrainedModel, trace: ModelTrace, judge: _Judge, norm_of: dict) -> dict:
    """Return output → norm site for the norms whose rounding serves all that read them.

    A layer that also reads a tensor of another making (DeBERTa's projections: words and positions) rounds its inputs
    itself, so no norm that it reads rounds too: nothing is rounded twice.
    """
    judged = (judge(norm, Role.OUTPUT, "norm_output") for norm in trace.norms)
    on = {site.name for site in judged if site.enabled}
    covering = {key: name for key, name in norm_of.items() if name in on}
    while True:
        spoiled = set()
        for layer, keys in trace.layer_inputs.items():
            kind = trace.layer_classes[layer].kind
            if judge(layer, Role.INPUT, kind).enabled and not all(key in covering for key in keys):
                spoiled |= {covering[key] for key in keys if key in covering}
        if not spoiled:
            return covering
        covering = {key: name for key, name in covering.items() if name not in spoiled}


def _keep_read_norms(
    norms: list[Site], inputs_sites: list[Site], covering: set[str], encoder: str | None
) -> list[Site]:
    """Switch off the norm outputs that serve no quantized product: rounding them would cost accuracy for nothing."""
    read = {name for site in inputs_sites for name in site.reads}
    return [
        site if not site.enabled or site.name in read
        else dataclasses.replace(site, enabled=False, why=_why_not(site, covering, encoder))
        for site in norms
    ]  # fmt: skip


def _why_not(norm: Site, covering: set[str], encoder: str | None) -> Why:
    """Return why a norm's output is left alone."""
    if _leaves_encoder(norm, encoder):
        return Why.LEAVING
    return Why.UNREAD if norm.name in covering else Why.SPOILED


def _leaves_encoder(norm: Site, encoder: str | None) -> bool:
    """Return whether a decoder reads the norm of its encoder. The two are exported apart: rounded by the encoder alone,
    cross attention's K and V would read float numbers, so the decoder rounds them."""
    in_encoder = encoder is not None and norm.name.startswith(encoder)
    return in_encoder and not all(layer.startswith(str(encoder)) for layer in norm.consumers)


def _input_sites(model: PreTrainedModel, trace: ModelTrace, judge: _Judge, covering: dict) -> list[Site]:
    """Return one site for each tensor that linear or conv layers read; the enabled readers of one tensor share it."""
    sites: list[Site] = []
    groups: dict[TensorKey, list[Site]] = defaultdict(list)
    for layer, keys in trace.layer_inputs.items():
        kind = trace.layer_classes[layer].kind
        site = dataclasses.replace(judge(layer, Role.INPUT, kind), consumers=(layer,))
        if site.enabled and all(key in covering for key in keys):
            names = tuple(dict.fromkeys(covering[key] for key in keys))
            sites.append(dataclasses.replace(site, enabled=False, why=Why.COVERED, reads=names))
        elif site.enabled:
            groups[keys[0]].append(site)
        else:
            sites.append(site)
    for readers in groups.values():
        site = dataclasses.replace(readers[0], consumers=tuple(reader.module for reader in readers))
        if (made := trace.producer_of(site.module)) is not None:
            site = dataclasses.replace(site, producer=made.name, producer_channels=made.channels)
        sites.append(site)
    return sites


def _weight_sites(model: PreTrainedModel, trace: ModelTrace, judge: _Judge) -> list[Site]:
    sites = []
    for name, module in model.named_modules():
        layer_class: Any = trace.layer_classes.get(name) or (
            quant_class(module) if isinstance(module, nn.Embedding) else None
        )
        if layer_class is None:
            continue
        site = judge(name, Role.WEIGHT, layer_class.kind)
        if site.enabled and name in trace.layer_classes and name not in trace.layer_inputs:
            site = dataclasses.replace(site, enabled=False, why=Why.UNREACHED)
        sites.append(dataclasses.replace(site, consumers=(name,), axis=layer_class.weight_axis))
    return sites


def _attention_sites(model: PreTrainedModel, trace: ModelTrace, judge: _Judge) -> list[Site]:
    """Return the q, k, v and softmax sites; modules the interface does not reach are named, off, with that reason."""
    unreached = [
        name for name, module in model.named_modules()
        if type(module).__name__.endswith("Attention")
        and not any(f"{name}.".startswith(f"{a}.") or a.startswith(f"{name}.") for a in trace.attentions)
        and not any(child is not module and type(child).__name__.endswith("Attention") for child in module.modules())
    ]  # fmt: skip
    sites = []
    for attention in [*trace.attentions, *unreached]:
        for role in quantizer_roles(model.get_submodule(attention)):
            site = judge(attention, role, "softmax" if role is Role.SOFTMAX else "bmm")
            if attention in unreached:
                site = dataclasses.replace(site, enabled=False, why=Why.NO_INTERFACE)
            sites.append(dataclasses.replace(site, consumers=(attention,)))
    return sites
