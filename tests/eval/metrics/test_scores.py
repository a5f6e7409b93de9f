import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from eval.metrics import scores as metrics


def test_accuracy_and_its_interval_follow_the_binomial():
    references = np.zeros(872, int)
    predictions = np.zeros(872, int)
    predictions[:89] = 1
    value = metrics.accuracy(predictions, references)
    assert value.value == pytest.approx(783 / 872)
    half = 1.96 * np.sqrt(value.value * (1 - value.value) / 872)
    assert value.low == pytest.approx(value.value - half, abs=0.003)
    assert value.high == pytest.approx(value.value + half, abs=0.003)
    assert value == metrics.accuracy(predictions, references)  # seeded


@pytest.mark.parametrize("num_labels", [2, 4])
def test_f1_equals_scikit_learn_in_value_and_in_every_resample(num_labels):
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, num_labels, 60), rng.integers(0, num_labels, 60)
    labels = [1] if num_labels == 2 else list(range(num_labels))
    value = metrics.f1(x, y, num_labels)
    assert value.value == pytest.approx(f1_score(y, x, labels=labels, average="macro", zero_division=0))
    assert value.low < value.value < value.high


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=30), st.integers(0, 9))
def test_weighted_spearman_is_spearman_of_the_repeated_rows(pairs, seed):
    x, y = (np.array(values, float) for values in zip(*pairs, strict=True))
    weights = np.random.default_rng(seed).integers(0, 3, len(x))
    rows = np.repeat(np.arange(len(x)), weights)
    if len(rows) < 2 or np.ptp(x[rows]) == 0 or np.ptp(y[rows]) == 0:
        return
    ranks_x, ranks_y = metrics._weighted_ranks(x), metrics._weighted_ranks(y)
    w = weights[None].astype(float)
    got = metrics._weighted_correlation(w, ranks_x(w), ranks_y(w))
    assert got[0] == pytest.approx(spearmanr(x[rows], y[rows]).statistic, abs=1e-9)


def test_correlations_of_constant_monotone_and_linear_predictions():
    y = np.arange(10.0)
    assert metrics.pearson(np.ones(10), y).value == 0
    assert metrics.spearman(y**3, y).value == pytest.approx(1)
    assert metrics.pearson(2 * y + 1, y).low == pytest.approx(1)


def test_mcnemar_is_the_exact_binomial():
    a = np.array([True] * 9 + [False] * 1 + [True] * 20)
    b = np.array([False] * 9 + [True] * 1 + [True] * 20)
    assert metrics.mcnemar_p_value(a, b) == pytest.approx(2 * (1 + 10) / 2**10)
    assert metrics.mcnemar_p_value(a, a) == 1.0
    assert metrics.num_flips(np.array([1, 2, 3]), np.array([1, 0, 0])) == 2


def test_bad_lengths_are_named():
    with pytest.raises(ValueError, match="no examples to score"):
        metrics.accuracy(np.array([]), np.array([]))
    with pytest.raises(ValueError, match="2 predictions for 3 references"):
        metrics.accuracy(np.zeros(2), np.zeros(3))
