import dataclasses
import time

import numpy as np
import pytest

from eval import load
from eval.sweep.load_step import planned_seconds
from eval.sweep.run_folder import LOAD, RunFolder
from eval.timing.load_points import GROWTH_LIMIT, LoadPoint, backlog_growth, closed_knee, is_undecided, open_knee, table
from tests.eval.sweep.sweeps import sweep_options


def sleeper(seconds):
    return lambda: time.sleep(seconds)


def test_closed_loop_throughput_grows_with_clients_until_the_system_is_full():
    import threading

    lock = threading.Lock()

    def one_at_a_time():
        with lock:
            time.sleep(0.01)

    free = [load.closed_loop([sleeper(0.01)] * n, 0.3) for n in (1, 4)]
    full = [load.closed_loop([one_at_a_time] * n, 0.3) for n in (1, 4)]
    assert free[1].throughput_per_s > 2.5 * free[0].throughput_per_s
    assert full[1].throughput_per_s < 1.5 * full[0].throughput_per_s
    assert full[1].latency_ms_p99 > 2 * full[0].latency_ms_p50  # a lock is not fair: the median need not show it
    assert closed_knee(free).clients == 4


def test_the_closed_knee_is_the_fewest_clients_that_reach_95_percent():
    def at(clients, answered):
        return LoadPoint("closed", clients, None, answered, 1.0, 1.0, 1000)

    assert closed_knee([at(8, 100), at(1, 60), at(4, 95), at(2, 94)]).clients == 4
    assert closed_knee([at(1, 95), at(4, 100)]).clients == 1


def test_open_loop_counts_the_queue_in_the_latency():
    calm = load.open_loop([sleeper(0.01)], 20, 2)  # long: the last answer's own time is no share of it
    crowded = load.open_loop([sleeper(0.01)], 300, 0.5)
    assert calm.num_dropped == 0 and calm.latency_ms_p50 < 40
    assert crowded.latency_ms_p50 > 3 * calm.latency_ms_p50 and crowded.throughput_per_s < 110
    assert crowded.num_dropped > 0 and crowded.is_kept_up_with is False
    assert calm.num_requests == 240 and not calm.has_enough  # of 20 a second for 2 s, and at most 6 times as long
    assert calm.is_kept_up_with is None and open_knee([calm, crowded]) is None and is_undecided([calm])
    with pytest.raises(ValueError, match="the rate must be above 0"):
        load.open_loop([sleeper(0)], 0, 1)


def served(share, num_requests=1000, seed=0):
    """Return arrivals and ends of a simulated queue: random arrivals at this share of what one worker can serve."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1, num_requests)
    arrivals = np.cumsum(gaps / gaps.mean() / share)
    ends, free = [], 0.0
    for arrival, seconds in zip(arrivals, rng.lognormal(0, 0.05, num_requests), strict=True):
        free = max(free, arrival) + seconds
        ends.append(free)
    return arrivals, np.array(ends)


@pytest.mark.parametrize(("share", "is_kept"), [(0.5, True), (0.8, True), (0.95, True), (1.05, False), (1.1, False)])
def test_what_is_kept_up_with_is_judged_by_the_growth_of_the_backlog(share, is_kept):
    grown = np.array([backlog_growth(*served(share, seed=seed)) for seed in range(20)]) > GROWTH_LIMIT
    assert grown.sum() <= 1 if is_kept else grown.sum() >= 19


def point(rate, growth, num_requests=1000, num_dropped=0):
    return LoadPoint("open", 1, rate, rate, 1.0, 2.0, num_requests, num_dropped, growth)


def test_the_knee_is_the_last_rate_before_the_first_that_is_not_kept_up_with():
    kept, slow, fluke = point(10, 0.0), point(20, 0.04), point(30, 0.0)
    assert open_knee([fluke, slow, kept]) == kept and open_knee([slow]) is None
    assert open_knee([kept, point(12, 0.0, 999), point(15, 0.002)]).offered_per_s == 15
    assert point(10, 0.0, 990, 10).is_kept_up_with is False  # dropped: no doubt whatever the number
    older = LoadPoint("open", 1, 10.0, 10.0, 1.0, 2.0, 2000)
    assert older.is_kept_up_with is None and is_undecided([older]) and not is_undecided([older, kept])


def test_a_percentile_of_few_requests_is_not_printed():
    closed = LoadPoint("closed", 1, None, 50.0, 1.0, 2.5, 400)
    text = table([closed, point(10, 0.0, 300)], "1x8")
    assert text.count("too few") == 2 and "2.50" not in text and "fewer than 1000 requests each" in text
    assert "2.00" in table([closed, point(10, 0.0)], "1x8")


def test_an_error_under_load_is_raised_not_swallowed():
    def fail():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        load.closed_loop([fail, sleeper(0.01)], 0.2)
    calls = iter([None])  # the warm call works
    with pytest.raises(StopIteration):
        load.open_loop([lambda: next(calls)], 50, 0.2)


def test_one_runner_serves_threads_where_the_runtime_allows_it():
    opened = []

    class Runner:
        input_names = ("x",)

        def __call__(self, feeds):
            time.sleep(0.002)

    def open_runner():
        opened.append(Runner())
        return opened[-1]

    points = load.measure_system(open_runner, {"x": None, "y": None}, (1, 2), 0.05, "onnxruntime")
    assert len(opened) == 1 and [p.mode for p in points] == ["closed"] * 2 + ["open"] * len(load.OPEN_SHARES)
    load.measure_system(open_runner, {"x": None}, (1, 3), 0.05, "openvino", rates=[10])
    assert len(opened) == 1 + 3


def test_the_time_left_of_a_sweep_counts_its_load(tmp_path):
    options = sweep_options("m", "d", backends=("onnxruntime", "openvino"), load_clients=(1, 2), load_seconds=0.5)
    run = RunFolder(tmp_path)
    assert planned_seconds(run, options) == 3 * (2 + 6 * 6) * 0.5  # PyTorch, and the fastest INT8 of each backend
    assert planned_seconds(run, dataclasses.replace(options, load_clients=())) == 0
    run.write_json(LOAD, {})
    assert planned_seconds(run, options) == 0
