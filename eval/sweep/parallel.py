"""Preparing in several processes, or on a Ray cluster: checkpoints, ONNX files, engines and scores go to the store.

Timing is never done here: competitors of one shape take turns in one process that has the machine to itself.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from engine.backend import BACKENDS
from eval.sweep.bench import Bench
from eval.sweep.grid import COMPILED, FASTEST, Shape, SweepOptions, System, options_from_dict, shapes_of, systems_of
from eval.sweep.run_folder import RunFolder
from eval.sweep.scripts import ROOT, die_with_parent
from eval.sweep.store import ArtifactStore, check_disk
from eval.sweep.workshop import Workshop

logger = logging.getLogger(__name__)
Point = tuple[System, Shape]
Words = tuple[tuple[Any, ...], tuple[Any, ...], bool]  # a point as it is sent, and whether it is scored too
_bench: Bench | None = None


def pending_points(run: RunFolder, options: SweepOptions) -> list[Point]:
    """Return every point that has no row and can be prepared, the most telling shapes first."""
    done = {(row.system, row.shape) for row in run.rows()}
    return [
        (system, shape) for shape in shapes_of(options) for system in systems_of(options)
        if system.method not in (FASTEST, COMPILED)  # these are made of timings, or made while timing
        and (system.name, shape.name) not in done
    ]  # fmt: skip


def prepare_in_parallel(
    run: RunFolder,
    options: SweepOptions,
    command: str,
    points: Sequence[Point],
    num_processes: int,
    ray: str | None,
    budget_s: float | None = None,
    with_scores: bool = True,
) -> None:
    """Make what the points need, in their order, in so many processes or on a Ray cluster.

    What fails here fails again, and is noted, when it is measured. After `budget_s` seconds the rest is left to that.
    """
    deadline = None if budget_s is None else time.monotonic() + budget_s
    settings = (options.as_dict(), str(run.path.resolve()), command)
    words = [(dataclasses.astuple(system), dataclasses.astuple(shape), with_scores) for system, shape in points]
    jobs = _ray_jobs(ray, settings, words) if ray else _process_jobs(num_processes, settings, words)
    for problem in tqdm(jobs, total=len(points), desc="prepare", unit="point", disable=not sys.stderr.isatty()):
        if problem:
            logger.info("preparing %s", problem)
        if deadline is not None and time.monotonic() >= deadline:
            jobs.close()
            break


def _process_jobs(
    num_processes: int, settings: tuple[dict[str, Any], str, str], pending: Sequence[Words]
) -> Generator[str | None, None, None]:
    context = multiprocessing.get_context("spawn")  # torch's and onnxruntime's threads do not survive a fork
    threads = max(1, round(len(os.sched_getaffinity(0)) / num_processes))  # rounded down, cores could be idle
    with ProcessPoolExecutor(num_processes, context, _start, (*settings, threads)) as pool:
        futures = [pool.submit(_prepare, *point) for point in pending]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:  # Ctrl-C, or no time left
            # What is being made is made again later, and the pool would wait for all of it.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _start(options: dict[str, Any], path: str, command: str, threads: int) -> None:
    """Load model and samples once in each process, and let it end with its parent, however that ends.

    Args: threads: of PyTorch, here and in the scripts it runs, and of the sessions that are scored: with all cores
        each, they would wait for each other.
    """
    global _bench
    die_with_parent()
    logging.disable(logging.WARNING)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threads = min(threads, options["threads"])
    _bench = make_bench(options, path, command, threads)
    torch.set_num_threads(threads)


def _prepare(system: tuple[Any, ...], shape: tuple[Any, ...], with_scores: bool) -> str | None:
    assert _bench is not None
    return prepare(_bench, System(*system), Shape(*shape), with_scores)


def make_bench(options: dict[str, Any], path: str, command: str, threads: int | None = None) -> Bench:
    """Return a bench on the run folder at `path`, whose sessions take so many threads (None: as the sweep's)."""
    return Bench(Workshop(options_from_dict(options), ArtifactStore(RunFolder(Path(path)).artifacts)), command, threads)


def prepare(bench: Bench, system: System, shape: Shape, with_scores: bool = True) -> str | None:
    """Make everything of a point but its timings; return what went wrong, None if nothing did.

    A build for a GPU times kernels on it and wants it for itself: only the file that it starts from is made here.
    """
    try:
        backend = bench.workshop.backend(system.backend) if system.backend in BACKENDS else None
        if backend is not None and backend.info.uses_gpu:
            if not (backend.check_build() or backend.check_run()):  # else its points are skipped
                bench.workshop.onnx(system)
            return None
        with ExitStack() as stack:
            opened = stack.enter_context(bench.open(system, shape))
            if with_scores:
                bench.score(opened, shape)
    except Exception as error:  # said again, as a row, when the point is measured
        check_disk(error, bench.workshop.store.folder)
        return f"{system.name} {shape.name}: {' '.join(str(error).split())[:200]}"
    return None


def _ray_jobs(
    address: str | None, settings: tuple[dict[str, Any], str, str], pending: Sequence[Words]
) -> Generator[str | None, None, None]:
    try:
        import ray
    except ImportError:
        raise RuntimeError("--ray needs the package ray; run 'pip install -r requirements-ray.txt'") from None
    root = str(ROOT)

    def prepare_there(settings: tuple[dict[str, Any], str, str], system: tuple[Any, ...], shape: tuple[Any, ...],
                      with_scores: bool) -> str | None:  # fmt: skip
        # Sent by value, as a nested function: the node may not have the project on its path yet.
        sys.path.insert(0, root)
        from eval.sweep.parallel import prepare_on_node

        return prepare_on_node(settings, system, shape, with_scores)

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        remote = ray.remote(max_retries=1, num_cpus=1)(prepare_there)
        futures = [remote.remote(settings, *point) for point in pending]
        while futures:
            ready, futures = ray.wait(futures)
            yield ray.get(ready[0])
    finally:
        ray.shutdown()


def prepare_on_node(
    settings: tuple[dict[str, Any], str, str], system: tuple[Any, ...], shape: tuple[Any, ...], with_scores: bool
) -> str | None:
    """Prepare one point in a process of another node; the model is loaded once in each process."""
    global _bench
    if _bench is None or _bench.workshop.store.folder != RunFolder(Path(settings[1])).artifacts:
        _bench = make_bench(*settings, threads=1)
        torch.set_num_threads(1)  # a task has one core of its node
    return prepare(_bench, System(*system), Shape(*shape), with_scores)
