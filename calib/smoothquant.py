"""SmoothQuant: the divisor s that moves range from activations to weights; `folding.py` says where 1/s goes.

Source: Xiao et al. 2023 (arXiv:2211.10438). The strength is searched on the statistics: the rows that collection kept
show what each alpha costs in the layer's own output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calib.histogram import Histogram, amax_range
from calib.statistics import SiteStatistics
from quant.fake_quantize import amax_to_scale, fake_quantize
from quant.formats import NumberFormat
from quant.recipe import SmoothQuantOptions
from quant.sites.site import Site

ALPHAS = (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
WEIGHT_STEPS = 16  # counts are integers: one value of weight 1 counts as this many
AmaxOf = Callable[[SiteStatistics, list[Tensor], Tensor], float]


@dataclass(frozen=True)
class Smoothing:
    """The choice for one site."""

    alpha: float
    scale: Tensor
    """s > 0, shape (channels,): x is divided by it, the consumers' weights multiplied."""
    amax: float
    """The calibrator's amax of x / s."""


def smoothing_scale(act_amax: Tensor, weight_amax: Tensor, alpha: float) -> Tensor:
    """Return the per-channel divisor that moves range from activations to weights.

    Args:
        act_amax: max |x| of each input channel over the calibration set, shape (in_features,).
        weight_amax: max |w| of each input channel over all consumers, shape (in_features,).
        alpha: share of the range moved, 0 (none) to 1 (all).
    Returns: s > 0, shape (in_features,); x is divided by s, w multiplied by it. A channel that is always zero gets 1.
    Raises: ValueError: if the shapes differ or alpha is outside [0, 1].
    Source: Xiao et al. 2023, SmoothQuant, eq. 4 (arXiv:2211.10438).
    """
    if act_amax.shape != weight_amax.shape or not 0 <= alpha <= 1:
        raise ValueError(
            f"shapes {tuple(act_amax.shape)} and {tuple(weight_amax.shape)} must agree and alpha {alpha} lie in [0, 1]"
        )
    s = act_amax.float().pow(alpha) / weight_amax.float().clamp_min(1e-5).pow(1 - alpha)
    return torch.where(act_amax > 0, s, torch.ones_like(s)).clamp(1e-4, 1e4)


def smoothed_histogram(statistics: SiteStatistics, s: Tensor, importance: Tensor | None = None) -> Histogram:
    """Return an estimate of the histogram of |x / s|: the kept rows, weighted to the number of values seen, and every
    channel's maximum once, so that a clipping calibrator is not blind to the tail. The maximum itself is exact.

    Args:
        importance: weight of each channel's values, shape (channels,), mean 1; None counts all alike.
    """
    assert statistics.channel_amax is not None  # kept for every site that can be smoothed
    rows, peaks = statistics.sample.rows / s, statistics.channel_amax / s
    amax = float(peaks.max())
    histogram = Histogram()
    if amax == 0 or not rows.numel():
        return histogram
    importance = torch.ones_like(peaks) if importance is None else importance
    index_of = histogram.num_bins / amax_range(amax)
    for values, weight in ((rows.abs(), statistics.histogram.num_values / rows.numel()), (peaks, 1.0)):
        bins = (values.clamp_max(amax) * index_of).long().clamp_max(histogram.num_bins - 1).flatten()
        share = (importance * weight * WEIGHT_STEPS).expand_as(values).flatten().double()
        histogram.counts += torch.bincount(bins, share, histogram.num_bins).round().long()
    histogram.top, histogram.amax = amax_range(amax), amax
    return histogram


def channel_importance(weights: list[Tensor], s: Tensor) -> Tensor:
    """Return how much an error in each channel of x / s weighs in the consumers' outputs, shape (channels,), mean 1.

    It is the squared norm of the channel's smoothed weights: an outlier channel is divided by a large s, and whatever
    is clipped from it comes back multiplied by that s (MiniLM: plain `mse` on x / s gave an error of 0.12).
    """
    importance = sum((w.square().sum(0) for w in weights), start=torch.zeros_like(s)) * s.square()
    return importance / importance.mean().clamp_min(1e-30)


def choose_smoothing(
    statistics: SiteStatistics, weights: list[Tensor], options: SmoothQuantOptions, amax_of: AmaxOf,
    formats: tuple[NumberFormat, list[NumberFormat]], constrain: Callable[[Tensor], Tensor] = lambda s: s,
) -> Smoothing | None:  # fmt: skip
    """Return the smoothing of one site, or None where leaving it alone is best (or nothing was active).

    Args:
        weights: of the consumers, each (out_features, in_features). amax_of: the calibrator's amax of x / s.
        formats: of x, and of each weight. constrain: maps s to an s that the fold can carry.
    """
    if statistics.channel_amax is None or not bool((statistics.channel_amax > 0).any()):
        return None
    act_amax = statistics.channel_amax.cpu()
    weight_amax = torch.stack([w.abs().amax(0) for w in weights]).amax(0)
    candidates = ALPHAS if options.alpha == "search" else (float(options.alpha or 0),)

    def smoothing(alpha: float, s: Tensor) -> Smoothing:
        return Smoothing(alpha, s, amax_of(statistics, weights, s))

    choices = [smoothing(alpha, constrain(smoothing_scale(act_amax, weight_amax, alpha))) for alpha in candidates]
    if options.alpha != "search":
        return choices[0]
    targets = [statistics.sample.rows @ w.T for w in weights]
    errors = [_output_error(statistics, weights, targets, choice, formats) for choice in choices]
    best = min(range(len(choices)), key=errors.__getitem__)
    plain = _output_error(statistics, weights, targets, smoothing(0, torch.ones_like(act_amax)), formats)
    return choices[best] if errors[best] < plain else None


def _output_error(
    stats: SiteStatistics, weights: list[Tensor], targets: list[Tensor], choice: Smoothing,
    formats: tuple[NumberFormat, list[NumberFormat]],
) -> float:  # fmt: skip
    """Return the summed squared error of the consumers' outputs over the kept rows, both operands in their formats."""
    s, (x_format, weight_formats) = choice.scale, formats
    x = fake_quantize(stats.sample.rows / s, amax_to_scale(torch.tensor([choice.amax]), x_format), x_format)
    error = 0.0
    for weight, target, weight_format in zip(weights, targets, weight_formats, strict=True):
        smoothed = weight * s
        scale = amax_to_scale(smoothed.abs().amax(1, keepdim=True), weight_format)
        quantized = fake_quantize(smoothed, scale, weight_format)
        error += float(((x @ quantized.T - target) ** 2).sum())
    return error


def consumer_weights(model: nn.Module, site: Site) -> list[Tensor]:
    """Return the float weights of the layers that read the site, each (out_features, in_features) on the CPU."""
    layers: list[Any] = [model.get_submodule(name) for name in site.consumers]
    return [layer.weight.detach().float().cpu().movedim(layer.input_axis, 1) for layer in layers]
