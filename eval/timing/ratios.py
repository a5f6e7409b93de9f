"""How much faster one system is than another, from blocks timed in turns: the one estimator of tables and verdicts.

A block counts by the median of its calls. A system's time is the geometric mean of its blocks without the fastest and
the slowest fifth (on a shared machine some are hit by others); the ratio of two systems is the ratio of their times, so
that a page's figures agree to the last digit. Its interval is of blocks paired by rounds, on logarithms: a drift that
all share cancels. A bootstrap of 8 rounds' medians called 8 % of equal pairs different where 5 % were meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.metrics.scores import CONFIDENCE

TRIM = 0.2  # the usual share; of 8 rounds 1 at each end, of 4 none
MAX_WIDTH = 0.10  # of a ratio's 95 % interval, as a share of the ratio: until then rounds are added


@dataclass(frozen=True)
class Estimate:
    """A time in milliseconds or a ratio, with an interval around it."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """The interval's width as a share of the value."""
        return (self.high - self.low) / self.value

    @property
    def is_above_one(self) -> bool:
        """Whether a ratio is surely above 1."""
        return self.low > 1

    @property
    def is_below_one(self) -> bool:
        """Whether a ratio is surely below 1."""
        return self.high < 1


@dataclass(frozen=True)
class Term:
    """One part of a sum: a trimmed mean of samples of shape (..., rounds), minus that of `other` of the same rounds."""

    samples: np.ndarray
    other: np.ndarray | None = None
    weight: float = 1.0


def interval_of_means(terms: Sequence[Term], confidence: float = CONFIDENCE) -> tuple[Any, Any, Any]:
    """Return the weighted sum of independent terms and its interval, each of shape (...).

    Raises: ValueError: a sample of fewer than 2 rounds.
    Source: Wilcox 2012, Introduction to Robust Estimation and Hypothesis Testing, 4.3 (Tukey and McLaughlin) and 5.9.5
        (Yuen's method for dependent samples); Welch 1947 and Satterthwaite 1946 for the degrees of freedom of a sum.
    """
    from scipy.stats import t as student  # imported here: scipy.stats takes a second, and --help needs none

    middle, variance, shrink = (np.asarray(0.0) for _ in range(3))
    for term in terms:
        rounds = term.samples.shape[-1]
        if rounds < 2:
            raise ValueError(f"an interval needs at least 2 rounds, got {rounds}")
        mean, spread = _trimmed(term.samples)  # (...), (..., rounds)
        if term.other is not None:
            other_mean, other_spread = _trimmed(term.other)
            mean, spread = mean - other_mean, spread - other_spread
        kept = rounds - 2 * int(TRIM * rounds)
        own = term.weight**2 * (spread**2).sum(-1) / (kept * (kept - 1))
        middle = middle + term.weight * mean
        variance, shrink = variance + own, shrink + own**2 / (kept - 1)
    freedom = np.divide(variance**2, shrink, out=np.ones_like(variance), where=np.asarray(shrink) > 0)
    half = student.ppf(0.5 + confidence / 2, freedom) * np.sqrt(variance)
    return middle, middle - half, middle + half


def _trimmed(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the trimmed mean (...), and the deviations (..., rounds) of the winsorized samples from their mean."""
    ordered, cut = np.sort(samples, axis=-1), int(TRIM * samples.shape[-1])
    inner = ordered[..., cut : samples.shape[-1] - cut]
    winsorized = np.clip(samples, inner[..., :1], inner[..., -1:])
    return inner.mean(-1), winsorized - winsorized.mean(-1, keepdims=True)


def estimate(terms: Sequence[Term], confidence: float = CONFIDENCE) -> Estimate:
    """Return the exponential of a sum of means of logarithms: a time, a ratio, or a ratio pooled over shapes."""
    middle, low, high = interval_of_means(terms, confidence)
    return Estimate(float(np.exp(middle)), float(np.exp(low)), float(np.exp(high)))


def time_of(block_ms: Sequence[float]) -> Estimate:
    """Return a system's time in milliseconds: the trimmed geometric mean of its blocks."""
    return estimate([Term(np.log(np.asarray(block_ms, dtype=np.float64)))])


def ratio_term(slow_ms: Sequence[float], fast_ms: Sequence[float], weight: float = 1.0) -> Term:
    """Return the term of log(slow / fast), of blocks of the same rounds. Raises: ValueError: different numbers."""
    if len(slow_ms) != len(fast_ms):
        raise ValueError(f"{len(slow_ms)} rounds against {len(fast_ms)}: only blocks of the same rounds have ratios")
    slow, fast = (np.log(np.asarray(blocks, dtype=np.float64)) for blocks in (slow_ms, fast_ms))
    return Term(slow, fast, weight)


def ratio_of(slow_ms: Sequence[float], fast_ms: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Return how many times as fast the second system is, by blocks of the same rounds."""
    return estimate([ratio_term(slow_ms, fast_ms)], confidence)


def shared_confidence(num_comparisons: int) -> float:
    """Return the confidence of each of so many intervals at which 95 % of pages hold no false one (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / max(1, num_comparisons)
