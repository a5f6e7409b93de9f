"""One whole sweep as a function: claim the run folder, measure what is missing, then analysis and load."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from eval.sweep.analysis import analyse
from eval.sweep.bench import Bench
from eval.sweep.conduct import PREPARE_SHARE, Conductor
from eval.sweep.grid import SweepOptions
from eval.sweep.load_step import measure_load
from eval.sweep.parallel import pending_points, prepare_in_parallel
from eval.sweep.run_folder import RunFolder, claim
from eval.sweep.store import ArtifactStore, check_disk
from eval.sweep.workshop import Workshop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has measured so far; `counts` by status."""

    run: RunFolder
    num_points: int
    num_left: int
    counts: dict[str, int]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM after `num_done` of `num_points` points; all of them are kept."""

    def __init__(self, num_done: int, num_points: int) -> None:
        super().__init__(f"interrupted after {num_done} of {num_points} points; the same command goes on from there")


def run_sweep(
    options: SweepOptions,
    out: str | Path,
    command: str,
    *,
    budget_s: float | None = None,
    num_processes: int = 1,
    ray: str | None = None,
    retry_failed: bool = False,
    artifacts: Path | None = None,
) -> SweepResult:
    """Measure every point that has no row yet and return the counts.

    Args:
        out: the run folder; one that holds the same sweep is gone on with.
        command: what the rows name as their command.
        budget_s: no new shape is begun after so many seconds; the most telling points come first. Processes that
            prepare get half of it.
        retry_failed: measure points again whose last row is a failed one.
        num_processes: prepare in so many processes.
        ray: prepare on the Ray cluster at this address.
        artifacts: the folder of another run whose artifacts are shared.
    Raises: RuntimeError: the folder is in use. FileExistsError: it holds another sweep. OSError: the disk is full.
        Interrupted: by Ctrl-C or SIGTERM.
    """
    path = Path(out)
    path.mkdir(parents=True, exist_ok=True)
    try:
        with RunFolder(path).locked():
            return _run(options, path, command, budget_s, num_processes, ray, retry_failed, artifacts)
    except OSError as error:
        check_disk(error, path)
        raise


def _run(
    options: SweepOptions,
    path: Path,
    command: str,
    budget_s: float | None,
    num_processes: int,
    ray: str | None,
    retry_failed: bool,
    artifacts: Path | None,
) -> SweepResult:
    bench = Bench(Workshop(options, ArtifactStore(RunFolder(path).artifacts)), command)
    identity = {"model_digest": bench.workshop.model_digest, "data_digest": bench.data_digest,
                "samples_digest": bench.workshop.samples.digest, **bench.task_digest}  # fmt: skip
    bench.check_lengths()
    run, is_resumed = claim(path, options, identity, command)
    if artifacts is not None and not run.artifacts.exists():
        run.artifacts.symlink_to(os.path.relpath(artifacts, run.path), target_is_directory=True)
    repaired = run.repair()
    if repaired:
        print(repaired, file=sys.stderr)
    conductor = Conductor(run, bench, budget_s, retry_failed)
    num_points = len(conductor.systems) * len(conductor.shapes)
    if is_resumed:
        logger.info("%s: going on, %d of %d points are there", path, len(conductor.done), num_points)
    try:
        if num_processes > 1 or ray:
            share = None if budget_s is None else PREPARE_SHARE * budget_s
            prepare_in_parallel(run, options, command, pending_points(run, options), num_processes, ray, share)
        num_left = conductor.conduct()
        if num_left == 0:
            analyse(run, bench)
            measure_load(run, bench)
    except KeyboardInterrupt:
        raise Interrupted(len(conductor.done), num_points) from None
    last = {(row.system, row.shape): row.row.status for row in run.rows()}
    return SweepResult(run, num_points, num_left, dict(Counter(last.values())))
