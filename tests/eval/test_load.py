import dataclasses
import time

import pytest
from sweeps import sweep_options

from eval import load
from eval.sweep.load_step import planned_seconds
from eval.sweep.run_folder import LOAD, RunFolder


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
    assert load.closed_knee(free).clients == 4


def test_the_closed_knee_is_the_fewest_clients_that_reach_95_percent():
    def at(clients, answered):
        return load.LoadPoint("closed", clients, None, answered, 1.0, 1.0, 1000)

    assert load.closed_knee([at(8, 100), at(1, 60), at(4, 95), at(2, 94)]).clients == 4
    assert load.closed_knee([at(1, 95), at(4, 100)]).clients == 1


def test_open_loop_counts_the_queue_in_the_latency():
    calm = load.open_loop([sleeper(0.01)], 20, 2)  # long: the last answer's own time is no share of it
    crowded = load.open_loop([sleeper(0.01)], 300, 0.5)
    assert calm.num_dropped == 0 and calm.latency_ms_p50 < 40
    assert crowded.latency_ms_p50 > 3 * calm.latency_ms_p50 and crowded.throughput_per_s < 110
    assert crowded.num_dropped > 0 and load.open_knee([calm, crowded]) is calm
    with pytest.raises(ValueError, match="the rate must be above 0"):
        load.open_loop([sleeper(0)], 0, 1)


def test_the_open_knee_is_the_highest_rate_that_is_kept_up_with():
    def at(rate, answered, num_dropped=0):
        return load.LoadPoint("open", 1, rate, answered, 1.0, 1.0, 1000, num_dropped)

    kept, higher, slow, dropping = at(100, 99), at(200, 190), at(300, 284), at(400, 399, num_dropped=1)
    closed = load.LoadPoint("closed", 1, None, 500, 1.0, 1.0, 1000)
    assert load.open_knee([higher, kept, slow, dropping, closed]) is higher
    assert load.open_knee([slow, dropping, closed]) is None and load.open_knee([]) is None


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
    assert planned_seconds(run, options) == 3 * (2 + 6) * 0.5  # PyTorch, and the fastest INT8 of each backend
    assert planned_seconds(run, dataclasses.replace(options, load_clients=())) == 0
    run.write_json(LOAD, {})
    assert planned_seconds(run, options) == 0
