"""Insertion: decides for every possible quantizer of a model whether it is on, and why, then puts the quantizers in."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from quant.attention import ATTENTION_NAME
from quant.formats import INT8, get_format
from quant.models.encoder_decoder import encoder_prefix
from quant.modules import QuantLayer, is_norm, quant_norm_class
from quant.own_attention import quantizer_names, set_attention, swap_attention
from quant.recipe import Recipe, Rule
from quant.sites.coverage import refuse_float, unquantizable, unreached
from quant.sites.formats import with_formats
from quant.sites.layer_class import quant_class
from quant.sites.trace import ModelTrace, trace_model
from quant.tensor_quantizer import TensorQuantizer

logger = logging.getLogger(__name__)
UNREACHED = "the traced forward did not reach this layer"
UNREAD_NORM = "no quantized product reads it"
LEAVING_NORM = "the decoder reads it and rounds it for itself"
SPOILED_NORM = "a layer that reads it also reads a tensor of another making and rounds both itself"


@dataclass(frozen=True)
class Site:
    """One quantizer of one model."""

    name: str
    """Where it lives, e.g. `bert.encoder.layer.0.attention.self.query.input_quantizer`; shared: the first reader."""
    kind: str
    """linear, conv, norm_output, bmm, softmax or embedding."""
    enabled: bool
    reason: str
    """Why it is on or off."""
    consumers: tuple[str, ...] = ()
    """The layers that read the quantized tensor."""
    axis: int | None = None
    """The channel axis of its scales; None is one scale for the whole tensor."""
    producer: str | None = None
    """The norm or layer whose output channels may be this tensor's channels: what SmoothQuant tries to fold into."""
    producer_channels: tuple[int, int] | None = None
    """Which of its output channels (start, end) they are; None is all."""
    smoothing: str = ""
    """What SmoothQuant did here: empty, `explicit, alpha 0.85`, or `folded into <producer>, alpha 0.85`."""
    format: str = INT8.name
    """The number format it rounds to, by the recipe's rules; a checkpoint that does not say means int8."""

    @property
    def is_weight(self) -> bool:
        """Whether it quantizes a parameter, so that its amax needs no samples."""
        return self.name.endswith("weight_quantizer")


@dataclass(frozen=True)
class Quantization:
    """What `insert_quantizers` leaves on a model as `model.quantization`."""

    recipe: Recipe
    sites: tuple[Site, ...]
    folds: tuple[Any, ...] = dataclasses.field(default=(), compare=False, repr=False)
    """SmoothQuant's folds that the weights bear, in order, while they can be undone (calib.unfolding.AppliedFold)."""


def insert_quantizers(
    model: PreTrainedModel, recipe: Recipe, inputs: dict[str, torch.Tensor] | None = None
) -> list[Site]:
    """Put the recipe's quantizers into `model` (in place) and return every site, on or off, with its reason.

    Args:
        inputs: example inputs for the traced forward; made from the model's configuration where none are given.
    The quantizers hold no amax yet: collect statistics and apply them, or load a checkpoint.
    Raises: ValueError: a rule that matches nothing, or none is on. RuntimeError: the model already has quantizers.
    """
    sites = plan_sites(model, recipe, inputs)
    refuse_float(model, recipe, sites)
    attach_sites(model, Quantization(recipe, tuple(sites)))
    return sites


def plan_sites(model: PreTrainedModel, recipe: Recipe, inputs: dict[str, torch.Tensor] | None = None) -> list[Site]:
    """Return the sites that `insert_quantizers` would put in, without changing the model."""
    if hasattr(model, "quantization"):
        raise RuntimeError("the model already has quantizers; load the float model again, or a checkpoint, instead")
    trace = trace_model(model, inputs)
    if trace.bare_weights:
        logger.warning(unquantizable(model, trace.bare_weights))
    judged = _Judge(recipe)
    norms = _norm_sites(trace, judged)
    norm_of = {key: site.name for site in norms for key in trace.norms[site.name.removesuffix(".output_quantizer")]}
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
    sites = with_formats(sites, recipe)
    missed = [site.consumers[0] for site in sites if site.is_weight and site.reason == UNREACHED]
    if missed:
        logger.warning(unreached(model, missed))
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}
    return sorted(sites, key=lambda site: (order.get(site.name.rpartition(".")[0], 0), site.name))


class _Judge:
    """Applies the rules in order and remembers which of them ever matched."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.matched: set[Rule] = set()

    def __call__(self, name: str, kind: str) -> tuple[bool, str]:
        """Return (enabled, reason) of the last rule that matches and says one of the two."""
        hits = [rule for rule in self.recipe.rules if rule.matches(name, kind)]
        self.matched.update(hits)
        last = self.recipe.last_rule("enable", name, kind)
        assert last is not None  # the first rule speaks of all
        return bool(last.enable), f"rule {last}"

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
        name = f"{norm}.output_quantizer"
        enabled, reason = judge(name, "norm_output")
        consumers = tuple(dict.fromkeys(layer for key in keys for layer in readers[key]))
        sites.append(Site(name, "norm_output", enabled, reason, consumers, producer=norm))
    return sites


def _covering_norms(model: PreTrainedModel, trace: ModelTrace, judge: _Judge, norm_of: dict) -> dict:
    """Return output → norm site for the norms whose rounding serves all that read them.

    A layer that also reads a tensor of another making (DeBERTa's projections: words and positions) rounds its inputs
    itself, so no norm that it reads rounds too: nothing is rounded twice.
    """
    covering = {key: name for key, name in norm_of.items() if judge(name, "norm_output")[0]}
    while True:
        spoiled = set()
        for layer, keys in trace.layer_inputs.items():
            kind = trace.layer_classes[layer].kind
            if judge(f"{layer}.input_quantizer", kind)[0] and not all(key in covering for key in keys):
                spoiled |= {covering[key] for key in keys if key in covering}
        if not spoiled:
            return covering
        covering = {key: name for key, name in covering.items() if name not in spoiled}


def _keep_read_norms(
    norms: list[Site], inputs_sites: list[Site], covering: set[str], encoder: str | None
) -> list[Site]:
    """Switch off the norm outputs that serve no quantized product: rounding them would cost accuracy for nothing."""
    read = {name for site in inputs_sites for name in site.reason.removeprefix("reads ").split(" and ")}
    return [
        site if not site.enabled or site.name in read
        else dataclasses.replace(site, enabled=False, reason=_why_not(site, covering, encoder))
        for site in norms
    ]  # fmt: skip


def _why_not(norm: Site, covering: set[str], encoder: str | None) -> str:
    """Return why a norm's output is left alone."""
    if _leaves_encoder(norm, encoder):
        return LEAVING_NORM
    return UNREAD_NORM if norm.name in covering else SPOILED_NORM


def _leaves_encoder(norm: Site, encoder: str | None) -> bool:
    """Return whether a decoder reads the norm of its encoder. The two are exported apart: rounded by the encoder alone,
    cross attention's K and V would read float numbers, so the decoder rounds them."""
    in_encoder = encoder is not None and norm.name.startswith(encoder)
    return in_encoder and not all(layer.startswith(str(encoder)) for layer in norm.consumers)


def _input_sites(model: PreTrainedModel, trace: ModelTrace, judge: _Judge, covering: dict) -> list[Site]:
    """Return one site for each tensor that linear or conv layers read; the enabled readers of one tensor share it."""
    sites, groups = [], defaultdict(list)
    for layer, keys in trace.layer_inputs.items():
        kind = trace.layer_classes[layer].kind
        enabled, reason = judge(f"{layer}.input_quantizer", kind)
        if enabled and all(key in covering for key in keys):
            names = " and ".join(dict.fromkeys(covering[key] for key in keys))
            sites.append(Site(f"{layer}.input_quantizer", kind, False, f"reads {names}", (layer,)))
        elif enabled:
            groups[keys[0]].append((layer, kind, reason))
        else:
            sites.append(Site(f"{layer}.input_quantizer", kind, False, reason, (layer,)))
    for readers in groups.values():
        layers = tuple(layer for layer, _, _ in readers)
        first, kind, reason = readers[0]
        shared = f"; shared by {len(layers)} layers that read the same tensor" if len(layers) > 1 else ""
        site = Site(f"{first}.input_quantizer", kind, True, reason + shared, layers)
        if (made := trace.producer_of(first)) is not None:
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
        enabled, reason = judge(f"{name}.weight_quantizer", layer_class.kind)
        if enabled and name in trace.layer_classes and name not in trace.layer_inputs:
            enabled, reason = False, UNREACHED
        sites.append(
            Site(f"{name}.weight_quantizer", layer_class.kind, enabled, reason, (name,), layer_class.weight_axis)
        )
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
        for quantizer in quantizer_names(model.get_submodule(attention)):
            name, kind = f"{attention}.{quantizer}", "softmax" if quantizer.startswith("softmax") else "bmm"
            enabled, reason = judge(name, kind)
            if attention in unreached:
                enabled, reason = False, "transformers' attention interface does not reach this module"
            sites.append(Site(name, kind, enabled, reason, (attention,)))
    return sites


def attach_sites(model: PreTrainedModel, quantization: Quantization) -> None:
    """Create the quantizers of `quantization` in `model`; layers change class in place and keep their parameters."""
    for site in quantization.sites:
        if site.name.endswith("input_quantizer") and not site.enabled:
            continue  # attached last, so that a shared quantizer is never hidden by an idle one
        quantizer = TensorQuantizer(site.axis, site.enabled, site.name, get_format(site.format))
        owner, _, attribute = site.name.rpartition(".")
        quantizer.num_readers = len(site.consumers) if attribute == "input_quantizer" else 1
        for layer in dict.fromkeys((owner, *site.consumers)) if attribute == "input_quantizer" else (owner,):
            _attach(model.get_submodule(layer), attribute, quantizer)
        if site.enabled and site.kind in ("bmm", "softmax"):
            swap_attention(model.get_submodule(owner))
        if site.kind == "softmax":
            quantizer.set_amax(torch.ones(1))  # a probability: never calibrated
    for site in quantization.sites:
        owner, _, attribute = site.name.rpartition(".")
        if attribute == "input_quantizer" and not site.enabled:
            _attach(model.get_submodule(owner), attribute, TensorQuantizer(site.axis, False, site.name))
    for name, module in model.named_modules():  # the trace missed it, so it has no such site; other inputs may reach it
        if isinstance(module, QuantLayer) and not hasattr(module, "input_quantizer"):
            module.input_quantizer = TensorQuantizer(None, False, f"{name}.input_quantizer")
    nn.Module.to(model, next(model.parameters()).device)
    set_attention(model, ATTENTION_NAME)
    model.quantization = quantization  # type: ignore[assignment]  # a plain attribute of the module


def _attach(module: nn.Module, attribute: str, quantizer: TensorQuantizer) -> None:
    """Give `module` the quantizer; its class becomes the quantized subclass, so identity, parameters and hooks stay."""
    if (layer_class := quant_class(module)) is not None:
        module.__class__ = layer_class
    elif is_norm(module) and not hasattr(module, "output_quantizer"):
        module.__class__ = quant_norm_class(cast(Any, type(module)))
    setattr(module, attribute, quantizer)


def quantization_of(model: nn.Module) -> Quantization:
    """Return what was inserted. Raises: RuntimeError: the model is a float model."""
    quantization = getattr(model, "quantization", None)
    if quantization is None:
        raise RuntimeError(
            f"{type(model).__name__} has no quantizers; call insert_quantizers(model, recipe) or load a checkpoint"
        )
    return quantization


def summarize_sites(sites: list[Site] | tuple[Site, ...]) -> str:
    """Return a table of the sites by kind: how many are on, how many off, and the reasons of those off."""
    lines = [f"{'kind':<12} {'on':>4} {'off':>4}  why off"]
    for kind in dict.fromkeys(site.kind for site in sites):
        members = [site for site in sites if site.kind == kind]
        off = [site for site in members if not site.enabled]
        reasons = ", ".join(
            dict.fromkeys("another quantizer covers it" if s.reason.startswith("reads ") else s.reason for s in off)
        )
        lines.append(f"{kind:<12} {len(members) - len(off):>4} {len(off):>4}  {reasons}")
    others = Counter(site.format for site in sites if site.enabled and site.format != INT8.name)
    return "\n".join(lines + [f"in {name}: {number} of those on" for name, number in others.items()])
