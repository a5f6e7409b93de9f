"""From statistics to a calibrated model: SmoothQuant first, then every activation's amax, then every weight's."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from calib.calibrators import compute_amax
from calib.folding import Fold
from calib.smoothquant import (
    Smoothing,
    channel_importance,
    choose_smoothing,
    consumer_weights,
    smoothed_histogram,
)
from calib.statistics import SiteStatistics, Statistics
from calib.unfolding import apply_fold
from quant.formats import NumberFormat, get_format
from quant.insert import Quantization, Site, quantization_of
from quant.modules import QuantLayer, weight_range
from quant.recipe import CalibratorOptions, Recipe
from quant.tensor_quantizer import TensorQuantizer, named_quantizers
from quant.weights_digest import weights_digest


def apply_statistics(model: PreTrainedModel, statistics: Statistics, method: str | None = None) -> Recipe:
    """Give every enabled quantizer of `model` its amax (in place) and return the recipe that was followed.

    Args:
        method: max, percentile, entropy or mse in place of the recipe's.
    No pass over samples is needed: any calibrator works from the same statistics, one after the other. What SmoothQuant
    folded into the weights is undone first.
    Raises: ValueError: statistics of another model (other weights) or recipe; the model is unchanged then.
    """
    quantization = quantization_of(model)
    recipe = quantization.recipe if method is None else quantization.recipe.with_options(method=method)
    _check_match(quantization, statistics)
    _restore_weights(model, quantization, statistics)
    quantizers = dict(named_quantizers(model))
    sites = [_calibrate_site(model, site, quantizers, statistics, recipe) for site in quantization.sites]
    for site in sites:
        if site.enabled and site.is_weight:
            quantizers[site.name].set_amax(weight_range(model.get_submodule(site.consumers[0])))
    model.quantization = Quantization(recipe, tuple(sites), quantization_of(model).folds)  # type: ignore[assignment]
    return recipe


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
    if not site.enabled or site.is_weight or site.kind == "softmax":
        return site
    seen = statistics.sites[site.name]
    quantizer, site = quantizers[site.name], dataclasses.replace(site, smoothing="")
    quantizer.set_pre_quant_scale(None)
    smoothing = None
    if recipe.smoothquant.alpha is not None and seen.channel_amax is not None:
        site, smoothing = smooth_site(model, site, seen, recipe)
    try:
        amax = (
            compute_amax(seen.histogram, recipe.calibrator, quantizer.format) if smoothing is None else smoothing.amax
        )
    except ValueError as error:
        raise ValueError(f"{site.name}: {error}; were all samples padding?") from error
    if smoothing is not None and site.smoothing.startswith("explicit"):
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
    model: PreTrainedModel, site: Site, seen: SiteStatistics, recipe: Recipe
) -> tuple[Site, Smoothing | None]:
    """Smooth one site if the recipe wants it and it can be done exactly; a fold changes the float weights in place."""
    options = recipe.smoothquant
    is_input = site.name.endswith("input_quantizer")
    if site.kind not in ("linear", "norm_output") or not site.consumers or not fnmatchcase(site.name, options.match):
        return site, None
    consumers: list[Any] = [model.get_submodule(name) for name in site.consumers]
    if not all(isinstance(consumer, QuantLayer) for consumer in consumers):
        return site, None
    assert seen.channel_amax is not None
    fold = _exact_fold(model, site, consumers, len(seen.channel_amax))
    if fold is None and not is_input:
        return dataclasses.replace(site, smoothing="none: another branch reads the same INT8 tensor"), None

    x_format = get_format(site.format)
    formats = (x_format, [consumer.weight_quantizer.format for consumer in consumers])
    amax_of = partial(smoothed_amax, options=recipe.calibrator, number_format=x_format)
    constrain = (lambda s: s) if fold is None else fold.constrain
    smoothing = choose_smoothing(seen, consumer_weights(model, site), options, amax_of, formats, constrain)
    if smoothing is None:
        return dataclasses.replace(site, smoothing="none: no alpha lowers the error"), None
    how = "explicit"
    if fold is not None:
        done = (*quantization_of(model).folds, apply_fold(fold, smoothing.scale))
        model.quantization = dataclasses.replace(quantization_of(model), folds=done)  # type: ignore[assignment]
        how = f"folded into {site.producer}"
    return dataclasses.replace(site, smoothing=f"{how}, alpha {smoothing.alpha:g}"), smoothing


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
    needed = {s.name for s in quantization.sites if s.enabled and not s.is_weight and s.kind != "softmax"}
    missing = sorted(needed - set(statistics.sites))
    if missing:
        raise ValueError(
            f"the statistics lack {len(missing)} sites of this model and recipe, e.g. {missing[0]}; "
            "collect again with 'python -m calib'"
        )
