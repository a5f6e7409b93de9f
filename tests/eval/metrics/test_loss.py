"""The loss against the reference: a paired interval and the exact McNemar test, in every row."""

import math

import numpy as np
import pytest

from eval.metrics import scores as metrics

Z = 1.959963984540054


def hits(num_examples, only_system, only_reference):
    """Return two vectors of correctness of which so many differ each way; the rest are right in both."""
    system, reference = np.ones(num_examples, bool), np.ones(num_examples, bool)
    system[:only_reference] = False
    reference[only_reference : only_reference + only_system] = False
    return system, reference


def paired(system, reference):
    ones = np.ones(len(system), int)
    return metrics.loss_interval(
        metrics.accuracy(system.astype(int), ones), metrics.accuracy(reference.astype(int), ones)
    )


def test_the_paired_interval_is_far_narrower_than_that_of_the_accuracy():
    low, high = paired(*hits(872, 21, 40))  # MiniLM, entropy int8_full: 61 flips, 19 more lost than won, p = 0.020
    assert 0 < low < 19 / 872 < high < 0.041
    p = metrics.mcnemar_p_value(*hits(872, 21, 40))
    assert p == pytest.approx(0.0203, abs=5e-4)


@pytest.mark.parametrize(("won", "lost"), [(21, 40), (9, 1), (1, 9), (3, 5), (0, 4), (12, 12), (30, 48)])
def test_the_interval_holds_zero_exactly_where_the_score_test_does_not_reject(won, lost):
    low, high = paired(*hits(500, won, lost))
    assert (low <= 0 <= high) == ((won - lost) ** 2 / (won + lost) <= Z**2)
    assert low <= (lost - won) / 500 <= high


def test_equal_predictions_leave_the_loss_that_so_few_samples_could_hide():
    low, high = paired(*hits(100, 0, 0))
    assert (low, high) == pytest.approx((-(Z**2) / (100 + Z**2), Z**2 / (100 + Z**2)))


def test_the_interval_covers_the_true_loss():
    rng = np.random.default_rng(0)
    both, only_reference, only_system, rounds = 0.85, 0.05, 0.03, 600
    covered = 0
    for _ in range(rounds):
        kind = rng.choice(4, size=300, p=[both, only_reference, only_system, 1 - both - only_reference - only_system])
        low, high = paired((kind == 0) | (kind == 2), (kind == 0) | (kind == 1))
        covered += low <= only_reference - only_system <= high
    assert covered / rounds > 0.93  # 0.95 - 2.3 standard errors of 600 draws


def test_other_metrics_take_a_seeded_paired_bootstrap():
    rng = np.random.default_rng(1)
    y = rng.normal(size=400)
    reference = y + rng.normal(size=400) * 0.5
    system = reference + rng.normal(size=400) * 0.05
    first, second = metrics.spearman(system, y), metrics.spearman(reference, y)
    low, high = metrics.loss_interval(first, second)
    assert low < second.value - first.value < high and (low, high) == metrics.loss_interval(first, second)
    assert high - low < 0.2 * (first.high - first.low)  # the same examples on both sides: what they share cancels
    losses, tokens = rng.gamma(4.0, size=50) * 10, np.full(50, 10)
    low, high = metrics.loss_interval(metrics.perplexity(losses * 1.01, tokens), metrics.perplexity(losses, tokens))
    true = math.exp(0.01 * losses.sum() / tokens.sum()) - 1
    assert 0 < low < true < high < 2 * true


def test_losses_of_different_metrics_or_examples_are_refused():
    ones = np.ones(5, int)
    with pytest.raises(ValueError, match="accuracy of 5 examples against exact_match of 5"):
        metrics.loss_interval(metrics.accuracy(ones, ones), metrics.mean_score("exact_match", ones.astype(float)))
    with pytest.raises(ValueError, match="accuracy of 5 examples against accuracy of 4"):
        metrics.loss_interval(metrics.accuracy(ones, ones), metrics.accuracy(ones[:4], ones[:4]))
