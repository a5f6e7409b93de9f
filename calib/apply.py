"""From statistics to a calibrated model: SmoothQuant first, then every activation's amax, then every weight's."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from calib.calibrators import compute_amax
from calib.folding import Fold, apply_fold
from calib.smoothquant import (
    Smoothing,
    channel_importance,
    choose_smoothing,
    consumer_weights,
    smoothed_histogram,
)
from calib.statistics import SiteStatistics, Statistics
from quant.formats import NumberFormat, get_format
from quant.modules import QuantLayer, weight_range
from quant.recipe import CalibratorOptions, Recipe, SmoothQuantOptions
from quant.sites.roles import Role
from quant.sites.settings import alpha_of, calibrator_of
from quant.sites.site import How, Quantization, Site, SiteSmoothing, Why, quantization_of
from quant.tensor_quantizer import TensorQuantizer, named_quantizers
from quant.weights_digest import weights_digest

logger = logging.getLogger(__name__)


def apply_statistics(model: PreTrainedModel, statistics: Statistics, method: str | None = None) -> Recipe:
    """Give every enabled quantizer of `model` its amax (in place) and return the recipe that was followed.

    Args:
        method: max, percentile, entropy or mse in place of the recipe's own; a rule's goes before both.
    No pass over samples is needed: any calibrator works from the same statistics, one after the other. What SmoothQuant
    folded into the weights is undone first.
    Raises: ValueError: statistics of another model (other weights) or recipe; the model is unchanged then.
    """
    quantization = _with_unseen(quantization_of(model))
    recipe = quantization.recipe if method is None else quantization.recipe.with_options(method=method)
    for site in quantization.sites:
        if site.reads_samples:
            calibrator_of(site, recipe)  # refused before anything is changed
    _check_match(quantization, statistics)
    _check_seen(quantization.sites, statistics)
    _restore_weights(model, quantization, statistics)
    quantizers = dict(named_quantizers(model))
    for site in quantization.sites:
        quantizers[site.name].enabled = site.enabled
    planned = _leave_unseen(quantization.sites, quantizers, statistics)
    sites = [_calibrate_site(model, site, quantizers, statistics, recipe) for site in planned]
    for site in sites:
        if site.enabled and site.is_weight:
            quantizers[site.name].set_amax(weight_range(model.get_submodule(site.consumers[0])))
    model.quantization = Quantization(recipe, tuple(sites), quantization_of(model).folds)  # type: ignore[assignment]
    return recipe


def _leave_unseen(
    sites: tuple[Site, ...], quantizers: dict[str, TensorQuantizer], statistics: Statistics
) -> tuple[Site, ...]:
    """Return the sites with those off that no sample reached (a router's experts), each with its layers' weights."""
    unseen = _unseen(sites, statistics)
    layers = {layer for site in unseen for layer in site.consumers}
    weights = {s.name for s in sites if s.is_weight and s.enabled and s.consumers[0] in layers}
    off = {site.name for site in unseen} | weights
    for name in off:
        quantizers[name].enabled = False
    if unseen:
        shown = ", ".join(site.name for site in unseen[:3]) + (", ..." if len(unseen) > 3 else "")
        logger.warning("no sample reached %d sites: %s They stay float; give more samples", len(unseen), shown)
    return tuple(dataclasses.replace(s, enabled=False, why=Why.UNSEEN) if s.name in off else s for s in sites)


def _with_unseen(quantization: Quantization) -> Quantization:
    """Return the plan with those sites on again that an earlier call left float because no sample had reached them."""
    return dataclasses.replace(
        quantization,
        sites=tuple(
            dataclasses.replace(site, enabled=True, why=Why.RULE) if site.why is Why.UNSEEN else site
            for site in quantization.sites
        ),
    )


def _unseen(sites: tuple[Site, ...], statistics: Statistics) -> list[Site]:
    seen = {name for name, site in statistics.sites.items() if site.histogram.num_values}
    return [site for site in sites if site.reads_samples and site.name not in seen]


def _check_seen(sites: tuple[Site, ...], statistics: Statistics) -> None:
    """Raise ValueError if no site saw a value."""
    unseen = _unseen(sites, statistics)
    if unseen and len(unseen) == sum(site.reads_samples for site in sites):
        raise ValueError(f"{unseen[0].name} and all other sites saw no value; were all samples padding?")


def _restore_weights(model: PreTrainedModel, quantization: Quantization, statistics: Statistics) -> None:
    """Undo the folds of an earlier call where the statistics are of the weights before them; refuse other weights."""
    if statistics.weights != weights_digest(model):
        for fold in reversed(quantization.folds):
            fold.undo()
        if statistics.weights != weights_digest(model):
            for fold in quantization.folds:
                fold.redo()
            raise ValueError(
                f"the statistics were taken from other weights ({statistics.weights[:12] or 'unknown'}) than this "
                "model's: another model, or these before they were trained or SmoothQuant was folded into them. Give "
                "the --model that they were collected from, or collect again: python -m calib --samples ..."
            )
    model.quantization = dataclasses.replace(quantization, folds=())  # type: ignore[assignment]


def _calibrate_site(
    model: PreTrainedModel, site: Site, quantizers: dict[str, TensorQuantizer], statistics: Statistics, recipe: Recipe
) -> Site:
    """Set the amax of one activation site; return the site, with what SmoothQuant did."""
    if not site.reads_samples:
        return site
    seen = statistics.sites[site.name]
    quantizer, site = quantizers[site.name], dataclasses.replace(site, smoothing=None)
    quantizer.set_pre_quant_scale(None)
    smoothing = None
    calibrator, alpha = calibrator_of(site, recipe), alpha_of(site, recipe)
    if alpha is not None and seen.channel_amax is not None:
        site, smoothing = smooth_site(model, site, seen, alpha, calibrator)
    amax = smoothing.amax if smoothing else compute_amax(seen.histogram, calibrator, quantizer.format)
    if smoothing is not None and site.smoothing is not None and site.smoothing.how is How.EXPLICIT:
        quantizer.set_pre_quant_scale((1 / smoothing.scale).to(model.device))
    quantizer.set_amax(torch.tensor([amax], device=model.device))
    return site


def smoothed_amax(
    seen: SiteStatistics, weights: list[Tensor], s: Tensor, options: CalibratorOptions, number_format: NumberFormat
) -> float:
    """Return the calibrator's amax of x / s; `mse` weighs each channel by what its errors do to the layer's output."""
    importance = channel_importance(weights, s) if options.method == "mse" else None
    return compute_amax(smoothed_histogram(seen, s, importance), options, number_format)


def smooth_site(
    model: PreTrainedModel, site: Site, seen: SiteStatistics, alpha: float | str, calibrator: CalibratorOptions
) -> tuple[Site, Smoothing | None]:
    """Smooth one site by its own alpha if it can be done exactly; a fold changes the float weights in place."""
    if not site.consumers:
        return site, None
    consumers: list[Any] = [model.get_submodule(name) for name in site.consumers]
    if not all(isinstance(consumer, QuantLayer) for consumer in consumers):
        return site, None
    assert seen.channel_amax is not None
    fold = _exact_fold(model, site, consumers, len(seen.channel_amax))
    if fold is None and site.role is not Role.INPUT:
        return dataclasses.replace(site, smoothing=SiteSmoothing(How.BRANCHED)), None

    x_format = get_format(site.format)
    formats = (x_format, [consumer.weight_quantizer.format for consumer in consumers])
    amax_of = partial(smoothed_amax, options=calibrator, number_format=x_format)
    constrain = (lambda s: s) if fold is None else fold.constrain
    options, weights = SmoothQuantOptions(alpha), consumer_weights(model, site)
    smoothing = choose_smoothing(seen, weights, options, amax_of, formats, constrain)
    if smoothing is None:
        return dataclasses.replace(site, smoothing=SiteSmoothing(How.USELESS)), None
    done = SiteSmoothing(How.EXPLICIT, smoothing.alpha)
    if fold is not None:
        folds = (*quantization_of(model).folds, apply_fold(fold, smoothing.scale))
        model.quantization = dataclasses.replace(quantization_of(model), folds=folds)  # type: ignore[assignment]
        done = SiteSmoothing(How.FOLDED, smoothing.alpha, site.producer)
    return dataclasses.replace(site, smoothing=done), smoothing


def _exact_fold(model: PreTrainedModel, site: Site, consumers: list[Any], num_channels: int) -> Fold | None:
    """Return the fold that carries 1/s exactly; None where there is none."""
    if site.producer is None:
        return None
    producer = model.get_submodule(site.producer)
    fold = Fold(producer, tuple(consumers), num_channels, _head_dim(model), site.producer_channels)
    return fold if fold.is_exact(model) else None


def _head_dim(model: PreTrainedModel) -> int:
    """Return the width of one head, needed where grouped heads share a producer.

    1 where the stages of a model differ in it (Swin): a fold over groups would then fail its own check.
    """
    config = model.config.get_text_config()
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if getattr(config, "head_dim", None):
        return config.head_dim
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) else 1


def _check_match(quantization: Quantization, statistics: Statistics) -> None:
    needed = {site.name for site in quantization.sites if site.reads_samples}
    missing = sorted(needed - set(statistics.sites))
    if missing:
        raise ValueError(
            f"the statistics lack {len(missing)} sites of this model and recipe, e.g. {missing[0]}; "
            "collect again with 'python -m calib'"
        )
