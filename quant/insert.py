"""Insertion: puts the quantizers of a plan into a model."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from quant.attention import ATTENTION_NAME
from quant.formats import get_format
from quant.modules import QuantLayer, is_norm, quant_norm_class
from quant.own_attention import set_attention, swap_attention
from quant.recipe import Recipe
from quant.sites.coverage import refuse_float
from quant.sites.layer_class import quant_class
from quant.sites.plan import plan_sites
from quant.sites.roles import Role
from quant.sites.site import Quantization, Site
from quant.tensor_quantizer import TensorQuantizer


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


def attach_sites(model: PreTrainedModel, quantization: Quantization) -> None:
    """Create the quantizers of `quantization` in `model`; layers change class in place and keep their parameters."""
    idle = [site for site in quantization.sites if site.role is Role.INPUT and not site.enabled]
    for site in quantization.sites:
        if site.role is Role.INPUT and not site.enabled:
            continue  # attached last, so that a shared quantizer is never hidden by an idle one
        quantizer = TensorQuantizer(site.axis, site.enabled, site.name, get_format(site.format))
        quantizer.num_readers = len(site.consumers) if site.role is Role.INPUT else 1
        for layer in dict.fromkeys((site.module, *site.consumers)) if site.role is Role.INPUT else (site.module,):
            _attach(model.get_submodule(layer), site.role, quantizer)
        if site.enabled and site.kind in ("bmm", "softmax"):
            swap_attention(model.get_submodule(site.module))
        if site.role is Role.SOFTMAX:
            quantizer.set_amax(torch.ones(1))  # a probability: never calibrated
    for site in idle:
        _attach(model.get_submodule(site.module), site.role, TensorQuantizer(site.axis, False, site.name))
    for name, module in model.named_modules():  # the trace missed it, so it has no such site; other inputs may reach it
        if isinstance(module, QuantLayer) and not hasattr(module, Role.INPUT):
            module.input_quantizer = TensorQuantizer(None, False, f"{name}.{Role.INPUT}")
    nn.Module.to(model, next(model.parameters()).device)
    set_attention(model, ATTENTION_NAME)
    model.quantization = quantization  # type: ignore[assignment]  # a plain attribute of the module


def _attach(module: nn.Module, role: Role, quantizer: TensorQuantizer) -> None:
    """Give `module` the quantizer; its class becomes the quantized subclass, so identity, parameters and hooks stay."""
    if (layer_class := quant_class(module)) is not None:
        module.__class__ = layer_class
    elif is_norm(module) and not hasattr(module, Role.OUTPUT):
        module.__class__ = quant_norm_class(cast(Any, type(module)))
    setattr(module, role, quantizer)
