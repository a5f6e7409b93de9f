"""Throughput under load of the systems that matter: the references, and each backend's fastest INT8."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import ExitStack
from functools import partial
from typing import Any

from eval.load import MAX_STRETCH, OPEN_SHARES, measure_system
from eval.sweep.bench import Bench
from eval.sweep.grid import COMPILED, Shape, SweepOptions, System, primary_shape, systems_of
from eval.sweep.run_folder import LOAD, RunFolder, SweepRow
from eval.sweep.store import check_disk

logger = logging.getLogger(__name__)


def measure_load(run: RunFolder, bench: Bench) -> None:
    """Write load.json, if --load-clients asks for it and it is not there."""
    options = bench.options
    if not options.load_clients or run.read_json(LOAD) is not None:
        return
    shape = load_shape(bench)
    measured = []
    for system in loaded_systems(run.rows(), systems_of(options), primary_shape(options)):
        logger.info("load: %s at %s", system.name, shape.name)
        try:
            with ExitStack() as stack:
                open_runner = partial(_open, bench, system, shape, stack)
                points = measure_system(
                    open_runner, bench.feeds(shape), options.load_clients, options.load_seconds, system.backend
                )
        except Exception as error:  # one system that fails under load leaves the others theirs
            check_disk(error, run.path)
            measured.append({"system": system.name, "shape": shape.name, "error": " ".join(str(error).split())[:300]})
            continue
        measured += [{"system": system.name, "shape": shape.name, **dataclasses.asdict(p)} for p in points]
    run.write_json(LOAD, {"command": bench.command, "seconds": options.load_seconds, "points": measured})


def planned_seconds(run: RunFolder, options: SweepOptions) -> float:
    """Return how many seconds `measure_load` will measure at most; opening each system comes on top."""
    if not options.load_clients or (run.path / LOAD).is_file():
        return 0.0
    systems = systems_of(options)
    references = sum(system.is_reference and system.method != COMPILED for system in systems)
    num_systems = references + len({system.backend for system in systems if system.recipe})
    # A transformer on a CPU answers so few requests a second that an open loop is mostly stretched to its limit.
    return num_systems * (len(options.load_clients) + MAX_STRETCH * len(OPEN_SHARES)) * options.load_seconds


def _open(bench: Bench, system: System, shape: Shape, stack: ExitStack) -> Any:
    return stack.enter_context(bench.open(system, shape)).runner


def load_shape(bench: Bench) -> Shape:
    """Return what one request is: the smallest batch of the grid at the middle length."""
    return Shape(min(bench.options.batch_sizes), primary_shape(bench.options).sequence_length)


def loaded_systems(rows: list[SweepRow], systems: list[System], shape: Shape) -> list[System]:
    """Return the references but the compiled one, and each backend's fastest INT8 system at a shape."""
    latency = {r.system: r.row.latency_ms_p50 for r in rows if r.shape == shape.name and r.row.status == "ok"}
    timed = [system for system in systems if latency.get(system.name) is not None]
    chosen = [system for system in timed if system.is_reference and system.method != COMPILED]
    for backend in dict.fromkeys(system.backend for system in timed):
        candidates = [s for s in timed if s.backend == backend and s.recipe]
        if candidates:
            chosen.append(min(candidates, key=lambda s: latency[s.name] or 0.0))
    return chosen
