"""Preparing in processes: the most telling shapes first, and no longer than a budget allows."""

import logging
import os
import time
from types import SimpleNamespace

import pytest
import torch

from engine.backend import BACKENDS
from eval.sweep import parallel
from eval.sweep.grid import COMPILED, FASTEST, Shape, System, shapes_of
from eval.sweep.run_folder import claim
from tests.eval.sweep.sweeps import COMMAND, sweep_options


def prepared(monkeypatch, tmp_path, seconds, budget_s):
    """Return the points that were prepared, each taking so many seconds, and all that were to be."""
    planned, begun, closed = [], [], []

    def jobs(num_processes, settings, pending):
        planned.extend(pending)
        try:
            for point in pending:
                begun.append(point)
                time.sleep(seconds)
                yield None
        finally:
            closed.append(True)

    monkeypatch.setattr(parallel, "_process_jobs", jobs)
    options = sweep_options("m", "d", methods=("fp32", "max", "mse"), batch_sizes=(1, 8, 32), seq_lengths=(8, 16))
    run, _ = claim(tmp_path / "run", options, {}, COMMAND)
    points = parallel.pending_points(run, options)
    parallel.prepare_in_parallel(run, options, COMMAND, points, 2, None, budget_s)
    assert closed == [True]  # what is being made is not waited for
    assert [(System(*system), Shape(*shape)) for system, shape, _ in planned] == points
    return begun, planned, points, options


def test_every_point_is_prepared_shape_by_shape(monkeypatch, tmp_path):
    begun, planned, points, options = prepared(monkeypatch, tmp_path, 0, None)
    assert begun == planned and len(planned) == len(set(planned))
    shapes = [shape for _, shape in points]
    assert list(dict.fromkeys(shapes)) == list(shapes_of(options)) and shapes == sorted(shapes, key=shapes.index)
    assert not {system.method for system, _ in points} & {FASTEST, COMPILED}


def test_a_budget_ends_it(monkeypatch, tmp_path):
    begun, planned, *_ = prepared(monkeypatch, tmp_path, 0.05, 0.12)
    assert 1 <= len(begun) <= 4 < len(planned)


def test_processes_share_the_cores(monkeypatch):
    """Eight processes with sixteen threads each on sixteen cores wait for each other: minutes where seconds do."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(parallel, "die_with_parent", lambda: None)
    of_sessions = []
    monkeypatch.setattr(parallel, "make_bench", lambda *words: of_sessions.append(words[-1]))
    monkeypatch.setattr(parallel, "_bench", None)
    try:
        parallel._start({"threads": 8}, "run", COMMAND, threads=2)
        assert torch.get_num_threads() == 2 and os.environ["OMP_NUM_THREADS"] == "2"  # here, and in what it starts
        parallel._start({"threads": 1}, "run", COMMAND, threads=2)  # never more than the sweep was asked for
        assert torch.get_num_threads() == 1 and of_sessions == [2, 1]
    finally:
        torch.set_num_threads(before)
        logging.disable(logging.NOTSET)


class GpuBench:
    """A bench whose only backend builds for a GPU, where it can; it keeps what it was asked for."""

    def __init__(self, missing):
        self.asked = []
        self.workshop = self
        self.info = SimpleNamespace(uses_gpu=True)
        self.check_build = self.check_run = lambda: missing

    def backend(self, name):
        return self

    def onnx(self, system):
        self.asked.append(system)

    def open(self, system, shape):
        raise AssertionError("a build for a GPU times kernels, and others run beside this one")


@pytest.mark.parametrize("missing", [None, "no GPU here"])
def test_what_times_kernels_is_not_built_beside_others(missing):
    bench, system = GpuBench(missing), System("max", "int8_full", next(iter(BACKENDS)))
    assert parallel.prepare(bench, system, Shape(1, 8)) is None
    assert bench.asked == ([] if missing else [system])
