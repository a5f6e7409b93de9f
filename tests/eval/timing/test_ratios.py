"""One estimator of speed: times and ratios agree, equal systems are not called different, 10 % is seen.

1,000 simulated sweeps; the noise is that of a shared machine: lognormal blocks, a drift that all share, bursts.
"""

import numpy as np
import pytest

from eval.timing import latency, ratios
from eval.timing.ratios import (
    Estimate,
    Term,
    estimate,
    interval_of_means,
    ratio_of,
    ratio_term,
    shared_confidence,
    time_of,
)

NUM_SWEEPS, SYSTEMS, SHAPES, FIRST, LIMIT = 1000, 6, 3, 8, 40
PAIRS = [(a, b) for a in range(SYSTEMS) for b in range(SYSTEMS) if a != b]


def simulated_blocks(speeds, seed, block_sd, drift_sd, burst_share):
    """Return block times, shape (sweeps, shapes, systems, rounds), of systems that take 10 ms / speed.

    Each block has lognormal noise of its own; all share a random walk from block to block; in some blocks another
    process takes 1.1 to 2 times the time.
    """
    rng = np.random.default_rng(seed)
    num = len(speeds)
    logs = np.log(10.0 / np.asarray(speeds))[:, None] + rng.normal(0, block_sd, (NUM_SWEEPS, SHAPES, num, LIMIT))
    walk = np.cumsum(rng.normal(0, drift_sd, (NUM_SWEEPS, SHAPES, LIMIT * num)), axis=-1)
    for round_ in range(LIMIT):
        order = latency.turn_order(list(range(num)), round_)
        logs[..., order, round_] += walk[..., round_ * num : (round_ + 1) * num]
    is_burst = rng.random(logs.shape) < burst_share
    logs += is_burst * np.log(rng.uniform(1.1, 2.0, logs.shape))
    return np.exp(logs)


def rounds_of(blocks):
    """Return after how many rounds each shape's timing ends, shape (sweeps, shapes): the rule of `compare`."""
    logs = np.log(blocks)
    rounds = np.full(blocks.shape[:2], LIMIT)
    for num in range(LIMIT - 2, FIRST - 1, -2):
        middle, low, high = interval_of_means([Term(logs[:, :, :1, :num], logs[:, :, 1:, :num])])  # over the baseline
        is_narrow = ((np.exp(high) - np.exp(low)) / np.exp(middle) < ratios.MAX_WIDTH).all(-1)
        rounds = np.where(is_narrow, num, rounds)
    return rounds


def verdicts(blocks, rounds):
    """Return whether the second of each pair is surely faster: over all shapes (sweeps, pairs), and at one of them.

    With the confidences of `eval.report.speeds.ratio_over`: all pairs over all shapes, at a shape all against one.
    """
    first, second = (np.array(each) for each in zip(*PAIRS, strict=True))
    num_pairs = len(PAIRS) // 2  # each is in there both ways
    pooled, single = np.empty((len(blocks), len(PAIRS)), bool), np.empty((len(blocks), len(PAIRS)), bool)
    logs = np.log(blocks)
    for kind in np.unique(rounds, axis=0):  # sweeps whose shapes had the same numbers of rounds, at once
        chosen = np.flatnonzero((rounds == kind).all(1))
        terms = []
        for shape, num in enumerate(kind):
            own = logs[chosen, shape, :, :num]
            terms.append(Term(own[:, first], own[:, second], 1 / SHAPES))  # (chosen, pairs, rounds)
        pooled[chosen] = interval_of_means(terms, shared_confidence(num_pairs))[1] > 0
        confidence = shared_confidence((SYSTEMS - 1) * SHAPES)
        single[chosen] = np.any([interval_of_means([term], confidence)[1] > 0 for term in terms], axis=0)
    return pooled, single


# Of a quiet and of a shared machine: noise of a block, drift from block to block, share of blocks that a burst hits.
NOISE = {"quiet": (0.02, 0.002, 0.01), "shared": (0.05, 0.005, 0.05), "busy": (0.09, 0.01, 0.15)}


@pytest.mark.parametrize("noise", NOISE)
def test_of_equal_systems_at_most_five_percent_of_sweeps_hold_a_false_surely_faster(noise):
    blocks = simulated_blocks([1.0] * SYSTEMS, 0, *NOISE[noise])
    pooled, single = verdicts(blocks, rounds_of(blocks))
    over_float = np.array([0 in pair for pair in PAIRS])
    assert pooled.any(1).mean() <= 0.05 and single[:, over_float].any(1).mean() <= 0.05


@pytest.mark.parametrize("noise", NOISE)
def test_of_systems_ten_percent_apart_at_least_eighty_percent_are_seen(noise):
    blocks = simulated_blocks([1.0] * (SYSTEMS - 1) + [1.1], 1, *NOISE[noise])
    pooled, _ = verdicts(blocks, rounds_of(blocks))
    is_true = np.array([b == SYSTEMS - 1 for _, b in PAIRS])
    assert pooled[:, is_true].mean() >= 0.8 and pooled[:, ~is_true].any(1).mean() <= 0.05


def test_times_and_ratios_of_a_page_agree_to_the_last_digit():
    rng = np.random.default_rng(0)
    slow, fast = rng.lognormal(4.1, 0.2, 8), rng.lognormal(3.2, 0.2, 8)
    ratio = ratio_of(slow, fast)
    pooled = estimate([ratio_term(slow, fast, 0.5), ratio_term(slow, slow, 0.5)])
    assert ratio.value == pytest.approx(time_of(slow).value / time_of(fast).value, rel=1e-12)
    assert ratio.low < ratio.value < ratio.high and pooled.value == pytest.approx(ratio.value**0.5)
    assert ratio_of(slow, slow) == Estimate(1.0, 1.0, 1.0)


def test_rounds_are_added_until_every_ratio_is_narrow_or_the_limit_is_reached(monkeypatch):
    monkeypatch.setattr(latency, "PAUSE_S", 0.0)
    monkeypatch.setattr(latency, "BLOCK_WARMUP", 0)
    rng = np.random.default_rng(0)

    def runner(spread):
        class Clock:
            has_device_clock = True

            def time(self, feeds, iterations, warmup):
                return [float(rng.lognormal(0, spread))] * iterations

        return Clock()

    def num_rounds(spread, **options):
        found = latency.compare({"a": runner(0.0), "b": runner(spread)}, {}, num_blocks=4, **options)
        return len(found["b"].block_ms), found["b"].ratio.width

    assert num_rounds(0.001, max_blocks=30)[0] == 4 and num_rounds(0.2)[0] == 4
    rounds, width = num_rounds(0.12, max_blocks=80)
    assert 4 < rounds < 80 and width < ratios.MAX_WIDTH
    rounds, width = num_rounds(0.5, max_blocks=9)
    assert rounds == 9 and width > ratios.MAX_WIDTH


def test_a_drift_of_the_machine_cancels_in_every_pair_of_rounds():
    names = ["a", "b", "c", "d"]
    for start in range(0, 8, 2):
        there, back = latency.turn_order(names, start), latency.turn_order(names, start + 1)
        assert {there.index(name) + back.index(name) for name in names} == {len(names) - 1}


def test_ratios_of_different_rounds_are_refused():
    with pytest.raises(ValueError, match="8 rounds against 6: only blocks of the same rounds"):
        ratio_of([1.0] * 8, [1.0] * 6)
    with pytest.raises(ValueError, match="at least 2 rounds, got 1"):
        time_of([1.0])
