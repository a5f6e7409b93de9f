"""Metrics with their 95 % bootstrap interval, and the tests that compare two systems on the same examples.

The value comes from scikit-learn, SciPy or (SQuAD) torchmetrics; the interval needs thousands of resamples, so the same
formulas stand here once more over a matrix of example weights. A test holds the two against each other. Ranges and
directions are those of `metrics.types`.

scipy.stats and scikit-learn are imported where they are called: they take a second, and `--help` needs neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from eval.metrics.types import Metric, get_metric

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
# Elements of one block of resamples: 4 million float64 weights are 32 MB, whatever the number of examples.
BLOCK_ELEMENTS = 4_000_000
ROUNDING = 1e-6  # by how much sums in float64 may leave a metric's range

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class MetricValue:
    """One metric with its 95 % percentile bootstrap interval over examples.

    Attributes:
        hits: for a share of right examples, 1 and 0 by example, shape (num_examples,); None for other metrics.
        statistic: the metric over weights of the examples, for resamples that two systems share.
    """

    metric: Metric
    value: float
    low: float
    high: float
    num_examples: int = 0
    statistic: Statistic | None = field(default=None, compare=False, repr=False)
    hits: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The metric's name, as rows hold it."""
        return self.metric.name

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def accuracy(predictions: np.ndarray, references: np.ndarray, seed: int = 0) -> MetricValue:
    """Return the share of equal elements of two label vectors, shape (num_examples,)."""
    from sklearn.metrics import accuracy_score
    _check_lengths("accuracy", predictions, references)
    hits = (predictions == references).astype(np.float64)
    return measured(
        "accuracy", float(accuracy_score(references, predictions)), lambda w: (w @ hits) / w.sum(1), len(hits), seed,
        hits,
    )  # fmt: skip


def mean_score(metric: str | Metric, scores: np.ndarray, seed: int = 0) -> MetricValue:
    """Return the mean of per-example scores, shape (num_examples,), in the metric's range."""
    metric = get_metric(metric) if isinstance(metric, str) else metric
    _check_lengths(metric.name, scores, scores)
    scores = scores.astype(np.float64)
    hits = scores if metric.is_share_right else None
    return measured(metric, float(scores.mean()), lambda w: (w @ scores) / w.sum(1), len(scores), seed, hits)


def ratio_score(metric: str | Metric, parts: np.ndarray, wholes: np.ndarray, seed: int = 0) -> MetricValue:
    """Return sum(parts) / sum(wholes) over the examples, 0 of nothing: F1 of counts, error rates.

    Args: parts, wholes: of each example, shape (num_examples,).
    """
    metric = get_metric(metric) if isinstance(metric, str) else metric
    _check_lengths(metric.name, parts, wholes)
    parts, wholes = parts.astype(np.float64), wholes.astype(np.float64)

    def ratios(w: np.ndarray) -> np.ndarray:
        total = w @ wholes
        return np.divide(w @ parts, total, out=np.zeros_like(total), where=total > 0)

    return measured(metric, float(ratios(np.ones((1, len(parts))))[0]), ratios, len(parts), seed)


def f1(predictions: np.ndarray, references: np.ndarray, num_labels: int, seed: int = 0) -> MetricValue:
    """Return F1 of label 1 where there are two labels, else the mean F1 of the labels present (macro).

    Present is what occurs among references or predictions, as in scikit-learn; of label 1 that is neither there nor
    predicted F1 is 1: no error was made. Perfect predictions have 1.
    """
    from sklearn.metrics import f1_score
    _check_lengths("f1", predictions, references)
    labels = [1] if num_labels <= 2 else sorted({*predictions.tolist(), *references.tolist()})
    value = f1_score(references, predictions, labels=labels, average="macro", zero_division=1)
    is_predicted = (predictions[:, None] == np.array(labels)).astype(np.float64)  # (N, labels)
    is_label = (references[:, None] == np.array(labels)).astype(np.float64)

    def resampled(w: np.ndarray) -> np.ndarray:
        total = w @ is_predicted + w @ is_label  # (R, labels): 2 tp + fp + fn; 0 where a resample lacks the label
        num_present = (total > 0).sum(1)
        sums = np.divide(2 * (w @ (is_predicted * is_label)), total, out=np.zeros_like(total), where=total > 0).sum(1)
        return np.divide(sums, num_present, out=np.ones_like(sums), where=num_present > 0)

    return measured("f1", float(value), resampled, len(predictions), seed)


def pearson(predictions: np.ndarray, references: np.ndarray, seed: int = 0) -> MetricValue:
    """Return Pearson's correlation, -1 to 1; 0 where it is undefined because one side is constant."""
    from scipy.stats import pearsonr
    _check_lengths("pearson", predictions, references)
    x, y = predictions.astype(np.float64), references.astype(np.float64)
    value = float(pearsonr(x, y).statistic) if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0
    x, y = x - x.mean(), y - y.mean()  # centred first: the sums of squares below would cancel otherwise
    return measured("pearson", value, lambda w: _weighted_correlation(w, x, y), len(x), seed)


def spearman(predictions: np.ndarray, references: np.ndarray, seed: int = 0) -> MetricValue:
    """Return Spearman's rank correlation (average ranks for ties), -1 to 1; 0 where it is undefined."""
    from scipy.stats import pearsonr, rankdata
    _check_lengths("spearman", predictions, references)
    x_ranks, y_ranks = rankdata(predictions), rankdata(references)
    is_defined = len(x_ranks) > 1 and np.ptp(x_ranks) > 0 and np.ptp(y_ranks) > 0
    value = float(pearsonr(x_ranks, y_ranks).statistic) if is_defined else 0.0  # Spearman is Pearson of the ranks
    x_rank, y_rank = _weighted_ranks(predictions), _weighted_ranks(references)

    def resampled(w: np.ndarray) -> np.ndarray:
        return _weighted_correlation(w, x_rank(w), y_rank(w))

    return measured("spearman", value, resampled, len(predictions), seed)


def perplexity(loss_sums: np.ndarray, token_counts: np.ndarray, seed: int = 0) -> MetricValue:
    """Return exp(mean token loss), from 1: among how many equally probable tokens the model hesitates.

    Args:
        loss_sums: summed cross entropy of each block in nats, shape (num_blocks,).
        token_counts: predicted tokens of each block, shape (num_blocks,).
    """
    _check_lengths("perplexity", loss_sums, token_counts)
    losses, counts = loss_sums.astype(np.float64), token_counts.astype(np.float64)
    value = float(np.exp(losses.sum() / counts.sum()))
    return measured("perplexity", value, lambda w: np.exp((w @ losses) / (w @ counts)), len(losses), seed)


def bootstrap_interval(
    statistic: Statistic, num_examples: int, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic over examples.

    Args:
        statistic: maps weights (resamples, num_examples), the number of times each example was drawn, to values
            (resamples,).
        num_examples: how many examples there are.
        seed: of the draws; the same seed gives the same interval.
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, 13.3 (percentile interval).
    """
    rng = np.random.default_rng(seed)
    rows_per_block = max(1, BLOCK_ELEMENTS // num_examples)
    values: list[np.ndarray] = []
    for start in range(0, num_resamples, rows_per_block):
        rows = min(rows_per_block, num_resamples - start)
        drawn = rng.integers(0, num_examples, size=(rows, num_examples)) + np.arange(rows)[:, None] * num_examples
        weights = np.bincount(drawn.ravel(), minlength=rows * num_examples).reshape(rows, num_examples)
        values.append(statistic(weights.astype(np.float64)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(values), [tail, 1 - tail])
    return float(low), float(high)


def loss_interval(system: MetricValue, reference: MetricValue, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the loss of a system against a reference on the same examples (`Metric.loss`).

    A share of right examples has the score interval of two paired proportions, other metrics a bootstrap whose
    resamples the two share. Raises: ValueError: different metrics or numbers of examples.
    """
    pair = [f"{each.name} of {each.num_examples} examples" for each in (system, reference)]
    if pair[0] != pair[1]:
        raise ValueError(f"a loss needs one metric on the same examples, got {pair[0]} against {pair[1]}")
    if system.hits is not None and reference.hits is not None:
        lost = int(np.count_nonzero(reference.hits > system.hits))
        won = int(np.count_nonzero(system.hits > reference.hits))
        return paired_difference_interval(lost, won, system.num_examples)
    own, other, metric = system.statistic, reference.statistic, system.metric
    if own is None or other is None:
        raise ValueError(
            f"{system.name}: no statistic to resample; make the value with a function of eval.metrics.scores"
        )

    def resampled(w: np.ndarray) -> np.ndarray:
        return np.array([metric.loss(a, b) for a, b in zip(own(w).tolist(), other(w).tolist(), strict=True)])

    return bootstrap_interval(resampled, system.num_examples, seed)


def paired_difference_interval(only_first: int, only_second: int, num_examples: int) -> tuple[float, float]:
    """Return the 95 % score interval of p_first - p_second, two shares of the same examples.

    It holds its level for few and for no differing examples, where a bootstrap of equal predictions has no width.

    Args: only_first, only_second: examples where only the first, only the second of the two is right.
    Source: Tango 1998, Equivalence test and confidence interval for the difference in proportions for the paired-sample
        design, Statistics in Medicine 17, 891-908.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm
    b, c, n, z = only_first, only_second, num_examples, float(norm.ppf(0.5 + CONFIDENCE / 2))

    def score(delta: float) -> float:
        """Return z of the hypothesis that the difference is delta, falling in delta."""
        linear = -b - c + (2 * n - b + c) * delta
        share = (np.sqrt(max(0.0, linear**2 + 8 * n * c * delta * (1 - delta))) - linear) / (4 * n)
        variance = n * (2 * share + delta * (1 - delta))
        return float((b - c - n * delta) / np.sqrt(variance)) if variance > 0 else float(np.sign(b - c - n * delta))

    middle, edge = (b - c) / n, 1 - 1e-12
    ends = []
    for end, wanted in ((-edge, z), (edge, -z)):
        is_inside = (score(end) - wanted) * (score(middle) - wanted) >= 0  # e.g. a single example: the whole range
        ends.append(end if is_inside else float(brentq(lambda d, wanted=wanted: score(d) - wanted, end, middle)))
    return ends[0], ends[1]


def num_flips(predictions: np.ndarray, reference_predictions: np.ndarray) -> int:
    """Return how many predictions differ from the reference's, example by example."""
    _check_lengths("num_flips", predictions, reference_predictions)
    return int(np.count_nonzero(predictions != reference_predictions))


def mcnemar_p_value(is_correct: np.ndarray, is_reference_correct: np.ndarray) -> float:
    """Return the two-sided p value of the exact McNemar test: are the two systems right equally often?

    Args:
        is_correct, is_reference_correct: booleans of the same examples, shape (num_examples,).
    Source: McNemar 1947; the exact form is a binomial test on the examples where only one of the two is right.
    """
    from scipy.stats import binomtest
    _check_lengths("mcnemar", is_correct, is_reference_correct)
    only_first = int(np.count_nonzero(is_correct & ~is_reference_correct))
    only_second = int(np.count_nonzero(~is_correct & is_reference_correct))
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def measured(
    metric: str | Metric, value: float, statistic: Statistic, num_examples: int, seed: int = 0,
    hits: np.ndarray | None = None,
) -> MetricValue:  # fmt: skip
    """Return a value with its bootstrap interval: what a metric that none of the functions above makes is made of.

    Args:
        metric: a Metric, or the name of one of METRICS.
        value: over all examples, once each.
        statistic, hits: as in MetricValue.
    """
    metric = get_metric(metric) if isinstance(metric, str) else metric
    if not metric.low - ROUNDING <= value <= metric.high + ROUNDING:
        raise ValueError(f"metric {metric.name} is {value:g}, outside its range [{metric.low:g}, {metric.high:g}]")
    ends = bootstrap_interval(statistic, num_examples, seed)
    numbers = [float(np.clip(each, metric.low, metric.high)) for each in (value, *ends)]  # rounding may leave the range
    return MetricValue(metric, numbers[0], numbers[1], numbers[2], num_examples, statistic, hits)


def _weighted_correlation(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each row of weights (R, N); x and y are (N,) or (R, N); 0 where undefined."""
    total = w.sum(1, keepdims=True)
    x = x - (w * x).sum(1, keepdims=True) / total  # (R, N)
    y = y - (w * y).sum(1, keepdims=True) / total
    covariance, x_square, y_square = (w * x * y).sum(1), (w * x * x).sum(1), (w * y * y).sum(1)
    scale = np.sqrt(x_square * y_square)
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)


def _weighted_ranks(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from weights (R, N) to the average rank (R, N) of each value in each resample."""
    _, group = np.unique(values, return_inverse=True)
    starts = np.searchsorted(np.sort(group), np.arange(group.max() + 1))
    order = np.argsort(group, kind="stable")

    def ranks(w: np.ndarray) -> np.ndarray:
        group_weight = np.add.reduceat(w[:, order], starts, axis=1)  # (R, groups)
        average = np.cumsum(group_weight, axis=1) - group_weight + (group_weight + 1) / 2
        return average[:, group]

    return ranks


def _check_lengths(name: str, first: np.ndarray, second: np.ndarray) -> None:
    if len(first) == 0:
        raise ValueError(f"{name}: there are no examples to score; check --data, --split and --num-samples")
    if len(first) != len(second):
        raise ValueError(
            f"{name}: {len(first)} predictions for {len(second)} references; both must come from the same examples"
        )
