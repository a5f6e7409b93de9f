"""From a histogram of |x| to the amax of a range: max, percentile, entropy and mse, all from the same counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calib.histogram import Histogram
from quant.formats import NumberFormat
from quant.recipe import CalibratorOptions

ENTROPY_STRIDE = 8  # bins between two candidate ranges; a finer search moved no amax by more than 0.4 %


def compute_amax(histogram: Histogram, options: CalibratorOptions, number_format: NumberFormat) -> float:
    """Return the amax of `histogram` by `options.method`; never above the largest value seen.

    `mse` and `entropy` search for the levels of `number_format`: fewer levels make it worth while to clip more.

    Raises: ValueError: the histogram is empty.
    """
    if histogram.num_values == 0:
        raise ValueError("no values were counted")
    if histogram.amax == 0:
        return 0.0
    return min(CALIBRATORS[options.method](histogram, options, number_format), histogram.amax)


def max_amax(histogram: Histogram, options: CalibratorOptions, number_format: NumberFormat) -> float:
    """Return the exact maximum of |x|: nothing is clipped."""
    return histogram.amax


def percentile_amax(histogram: Histogram, options: CalibratorOptions, number_format: NumberFormat) -> float:
    """Return the value below which `options.percentile` % of |x| lie, interpolated within its bin."""
    counts = histogram.to_numpy()
    cumulative = np.cumsum(counts)
    wanted = cumulative[-1] * (options.percentile / 100)
    index = int(np.searchsorted(cumulative, wanted))
    below = cumulative[index - 1] if index else 0
    inside = (wanted - below) / counts[index]
    return (index + inside) * histogram.top / histogram.num_bins


def mse_amax(histogram: Histogram, options: CalibratorOptions, number_format: NumberFormat) -> float:
    """Return the amax with the least mean squared rounding and clipping error, searched over 1 to 100 % of the maximum.

    Each bin stands for its centre. Two passes: 100 candidates, then 100 between the neighbours of the best.
    """
    counts = histogram.to_numpy()
    used = np.flatnonzero(counts)
    centers = np.minimum((used + 0.5) * histogram.top / histogram.num_bins, histogram.amax)
    weights = counts[used].astype(np.float64)

    def errors(candidates: np.ndarray) -> np.ndarray:
        scales = candidates[:, None] / number_format.qmax
        return ((_rounded(centers, scales, number_format) - centers) ** 2) @ weights

    coarse = np.linspace(0.01, 1, 100) * histogram.amax
    best = int(errors(coarse).argmin())
    fine = np.linspace(coarse[max(best - 1, 0)], coarse[min(best + 1, 99)], 100)
    return float(fine[errors(fine).argmin()])


def _rounded(magnitudes: np.ndarray, scales: float | np.ndarray, number_format: NumberFormat) -> np.ndarray:
    """Return |x| on the format's grid, in float64: histograms only, tensors go by quant.fake_quantize."""
    return np.minimum(np.rint(magnitudes / scales), number_format.qmax) * scales


def rounding_error(histogram: Histogram, amax: float, number_format: NumberFormat) -> float:
    """Return sqrt(sum (q(x) - x)² / sum x²) of rounding and clipping at `amax`, each bin standing for its centre."""
    counts = histogram.to_numpy().astype(np.float64)
    centers = (np.arange(len(counts)) + 0.5) * histogram.top / len(counts)
    power = float(counts @ centers**2)
    if amax == 0 or power == 0:
        return 0.0
    rounded = _rounded(centers, amax / number_format.qmax, number_format)
    return float(np.sqrt(counts @ (rounded - centers) ** 2 / power))


def entropy_amax(histogram: Histogram, options: CalibratorOptions, number_format: NumberFormat) -> float:
    """Return the amax whose distribution over the format's levels has the least KL divergence from the clipped one.

    Source: Migacz 2017, "8-bit Inference with TensorRT" (GTC), with pytorch-quantization's two care points: the bin of
    the zeros is given its neighbour's count, and the clipped tail is added to the last bin of the reference alone.
    """
    counts = histogram.to_numpy().astype(np.float64)
    counts[0] = counts[1]
    num_used = min(int(np.ceil(histogram.amax / histogram.top * histogram.num_bins)), histogram.num_bins)
    num_levels = number_format.num_levels
    if num_used <= num_levels or not counts.any():
        return histogram.amax
    ends = np.unique(np.append(np.arange(num_levels, num_used, ENTROPY_STRIDE), num_used))
    total = counts.sum()
    divergences = [_divergence(counts, int(end), total, num_levels) for end in ends]
    best = len(ends) - 1 - int(np.argmin(divergences[::-1]))  # the widest of equals clips least
    return float(ends[best]) * histogram.top / histogram.num_bins


def _divergence(counts: np.ndarray, end: int, total: float, num_levels: int) -> float:
    """Return KL(reference || quantized) for the range of the first `end` bins; `counts` is not changed."""
    inside = counts[:end]
    level = (np.arange(end) * num_levels) // end  # the code that each bin rounds to
    starts = np.searchsorted(level, np.arange(num_levels))
    filled = inside > 0
    mass = np.add.reduceat(inside, starts)
    num_filled = np.add.reduceat(filled.astype(np.float64), starts)
    quantized = np.where(filled, (mass / np.maximum(num_filled, 1))[level], 0)
    reference = inside.copy()
    reference[-1] += total - inside.sum()
    quantized_total = quantized.sum()
    if quantized_total == 0:
        return np.inf
    p = reference / total
    q = np.maximum(quantized / quantized_total, 1e-12)  # the tail may fall on a bin that was empty
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


CALIBRATORS: dict[str, Callable[[Histogram, CalibratorOptions, NumberFormat], float]] = {
    "max": max_amax, "percentile": percentile_amax, "entropy": entropy_amax, "mse": mse_amax,
}  # fmt: skip
