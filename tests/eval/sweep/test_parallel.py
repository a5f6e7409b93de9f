"""Preparing in processes: the most telling shapes first, and no longer than a budget allows."""

import time

from eval.sweep import parallel
from eval.sweep.grid import COMPILED, FASTEST, shapes_of
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
    parallel.prepare_in_parallel(run, options, COMMAND, 2, None, budget_s)
    assert closed == [True]  # what is being made is not waited for
    return begun, planned, options


def test_every_point_is_prepared_shape_by_shape(monkeypatch, tmp_path):
    begun, planned, options = prepared(monkeypatch, tmp_path, 0, None)
    assert begun == planned and len(planned) == len(set(planned))
    shapes = [shape for _, shape in planned]
    assert list(dict.fromkeys(shapes)) == list(shapes_of(options)) and shapes == sorted(shapes, key=shapes.index)
    assert not {system.method for system, _ in planned} & {FASTEST, COMPILED}


def test_a_budget_ends_it(monkeypatch, tmp_path):
    begun, planned, _ = prepared(monkeypatch, tmp_path, 0.05, 0.12)
    assert 1 <= len(begun) <= 4 < len(planned)
