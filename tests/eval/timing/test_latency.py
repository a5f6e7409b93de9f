import time

import pytest

from eval.timing import latency


def test_percentiles_and_throughput():
    summary = latency.summarize([float(i) for i in range(1, 102)])
    assert (summary.latency_ms_p50, summary.latency_ms_p90, summary.latency_ms_p99) == (51, 91, 100)
    assert summary.iterations == 101 and summary.throughput_per_s(8) == pytest.approx(8000 / 51)


def test_compare_finds_the_ratio_and_alternates(monkeypatch):
    monkeypatch.setattr(latency, "PAUSE_S", 0.0)
    order = []

    def sleeper(name, seconds):
        def call(feeds):
            order.append(name)
            time.sleep(seconds)

        return call

    result = latency.compare({"float": sleeper("float", 0.006), "int8": sleeper("int8", 0.002)}, {}, num_blocks=4)
    assert result["float"].ratio.value == 1 and 1.3 < result["int8"].ratio.value < 4
    assert result["int8"].ratio.low <= result["int8"].ratio.value <= result["int8"].ratio.high
    assert result["int8"].latency.iterations == 20  # the 3 warm calls of each block are dropped
    assert order[:16] == ["float"] * 8 + ["int8"] * 8 and order[16:24] == ["int8"] * 8


def test_measure_drops_warm_up_and_takes_the_runners_own_clock():
    calls = []
    assert latency.measure(calls.append, {}, iterations=7, warmup=2).iterations == 7 and len(calls) == 9

    class OwnClock:
        def time(self, feeds, iterations, warmup):
            return [2.0] * iterations

    assert latency.measure(OwnClock(), {}, iterations=3).latency_ms_p50 == 2.0


def test_bad_comparisons_are_named():
    with pytest.raises(ValueError, match="baseline 'x' is not among the runners: a"):
        latency.compare({"a": lambda feeds: None}, {}, baseline="x")
    with pytest.raises(ValueError, match="at least 2 blocks of 5 calls, got 1 of 5"):
        latency.compare({"a": lambda feeds: None}, {}, num_blocks=1)
    with pytest.raises(ValueError, match="--iterations must be at least 1"):
        latency.summarize([])
