"""The run itself: shape by shape, prepare what is missing, time all systems in one alternation, append the rows.

A shape's timings are written before its rows, so that a kill between two rows loses and repeats nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from contextlib import ExitStack
from typing import Any

from engine.cli import one_line
from engine.hardware import cpu_flags
from eval.results import ResultRow
from eval.sweep.bench import Bench, Opened, Skipped
from eval.sweep.grid import Shape, System, baseline_of, shapes_of, systems_of
from eval.sweep.load_step import planned_seconds
from eval.sweep.progress import Progress
from eval.sweep.run_folder import TIMINGS, RunFolder, SweepRow
from eval.sweep.store import check_disk
from eval.timing.in_turn import ShapeTiming, time_systems
from eval.timing.point_details import NO_DETAILS, Details

logger = logging.getLogger(__name__)
PREPARE_SHARE = 0.5  # of the budget left: what a shape may take for preparing before it times what is ready
CALLS_PER_ROUND = 8


class Conductor:
    """Measures every point of a run folder that has no row yet."""

    def __init__(self, run: RunFolder, bench: Bench, budget_s: float | None = None, retry_failed: bool = False) -> None:
        self.run, self.bench, self.options = run, bench, bench.options
        self.systems, self.shapes = systems_of(self.options), shapes_of(self.options)
        self.baseline = baseline_of(self.systems)
        self.deadline = None if budget_s is None else time.monotonic() + budget_s
        last = {(row.system, row.shape): row.row.status for row in run.rows()}
        self.done = {point for point, status in last.items() if not (retry_failed and status == "failed")}
        self.retry_failed = retry_failed
        pending = [(s, shape) for shape in self.shapes for s in self.systems if (s.name, shape.name) not in self.done]
        plan = {"prepare": float(len(pending)), "time": sum(self._time_units(shape) for _, shape in pending)}
        plan["load"] = planned_seconds(run, self.options)  # comes after the points, and may take as long
        self.progress = Progress(len(pending), plan)

    def _time_units(self, shape: Shape) -> float:
        return float(shape.batch_size * (shape.sequence_length or 64) * self.options.rounds * CALLS_PER_ROUND)

    def conduct(self) -> int:
        """Measure all points in order and return how many were left out because the budget was used up."""
        try:
            is_first = True  # measured whatever the budget, so that every run gets on
            for shape in self.shapes:
                pending = [s for s in self.systems if (s.name, shape.name) not in self.done]
                if pending and (is_first or not self._is_over()):
                    self._measure(shape, pending)
                    is_first = False
        finally:
            self.progress.close()
        return len(self.systems) * len(self.shapes) - len(self.done)

    def _is_over(self, share: float = 1.0, started: float | None = None) -> bool:
        if self.deadline is None:
            return False
        now = time.monotonic()
        return now >= (self.deadline if started is None else started + share * (self.deadline - started))

    def _measure(self, shape: Shape, pending: list[System]) -> None:
        """Append the row of every pending system at a shape; those the budget leaves no time for stay without one."""
        started = time.monotonic()
        rows: dict[str, ResultRow] = {}
        opened: dict[str, Opened] = {}
        with ExitStack() as stack:
            kept = self._kept_timings(shape)
            for system in pending:
                if opened and self._is_over(PREPARE_SHARE, started):
                    break
                with self.progress.step("prepare", 1, f"{system.name} {shape.name}"):
                    row, ready = self._prepare(system, shape, stack)
                rows[system.name] = row
                if ready is not None:
                    opened[system.name] = ready
            self._time(shape, pending, opened, kept, stack)
        timings = self._kept_timings(shape)
        for system in pending:
            if system.name in rows:
                details = opened[system.name].details if system.name in opened else NO_DETAILS
                self._append(shape, system, rows[system.name], details, timings)

    def _prepare(self, system: System, shape: Shape, stack: ExitStack) -> tuple[ResultRow, Opened | None]:
        """Return the row without its latency, and the system ready to run; None where it was skipped or failed."""
        try:
            ready = stack.enter_context(self.bench.open(system, shape))
            return self.bench.score(ready, shape), ready
        except Skipped as reason:
            return self.bench.base_row(system, shape, status="skipped", error=str(reason)), None
        except Exception as error:  # exporters, builders and runtimes raise what they like; the other points go on
            check_disk(error, self.run.path)
            logger.debug("%s at %s", system.name, shape.name, exc_info=True)
            return self.bench.base_row(system, shape, status="failed", error=one_line(error)[:400]), None

    def _time(
        self, shape: Shape, pending: list[System], opened: dict[str, Opened], kept: list[ShapeTiming], stack: ExitStack
    ) -> None:
        """Time all that is ready and not timed yet, the baseline always among them, and keep the result."""
        runners: dict[str, Any] = {}
        graphs: dict[str, str] = {}
        for name, each in opened.items():
            if not each.is_timed or self._is_timed(name, each.graph, kept) or each.graph in graphs.values():
                continue
            runners[name] = each.runner
            if each.graph is not None:
                graphs[name] = each.graph
        if not runners:
            return
        if self.baseline.name not in runners:
            _, ready = self._prepare(self.baseline, shape, stack)
            if ready is not None:
                runners = {self.baseline.name: ready.runner, **runners}
        amount = self._time_units(shape) * len(pending)
        with self.progress.step("time", amount, f"timing {len(runners)} systems at {shape.name}"):
            timing = time_systems(
                runners, self.bench.feeds(shape), self.baseline.name, self.options.rounds, self.progress.tick,
                max_rounds=self.options.max_rounds, graphs=graphs,
            )  # fmt: skip
        self.run.write_json(f"{TIMINGS}/{shape.name}.{len(kept)}.json", dataclasses.asdict(timing))

    def _is_timed(self, name: str, graph: str | None, kept: list[ShapeTiming]) -> bool:
        """Return whether earlier timings hold a system's time, or its error where failed points are not tried again."""
        found = [(timing, timing.timed_as(name, graph)) for timing in kept]
        return any(who in timing.systems or (who is not None and not self.retry_failed) for timing, who in found)

    def _kept_timings(self, shape: Shape) -> list[ShapeTiming]:
        timings: list[ShapeTiming] = []
        while (values := self.run.read_json(f"{TIMINGS}/{shape.name}.{len(timings)}.json")) is not None:
            timings.append(ShapeTiming(**values))
        return timings

    def _append(
        self, shape: Shape, system: System, row: ResultRow, details: Details, timings: list[ShapeTiming]
    ) -> None:
        if self.options.device == "cpu":
            details = dataclasses.replace(details, cpu_flags=tuple(cpu_flags()), machine=platform.machine())
        for number, timing in reversed(list(enumerate(timings))):
            who = timing.timed_as(system.name, details.graph) if row.status == "ok" else None
            if who in timing.errors:
                row = dataclasses.replace(row, status="failed", error=timing.errors[who])
                break
            if who in timing.systems:
                row = _with_latency(row, timing, who, shape)
                details = dataclasses.replace(timing.add_to(details, who), timing=number)
                if number:  # in a later session than the shape's first: its ratios are over that one's baseline
                    base_ms = tuple(timing.systems[timing.baseline]["block_ms"])
                    details = dataclasses.replace(details, baseline_ms=base_ms)
                break
        self.run.append(SweepRow(row, system.name, shape.name, details))
        self.done.add((system.name, shape.name))
        took = f"{row.latency_ms_p50:.2f} ms" if row.latency_ms_p50 is not None else row.error or "not timed"
        self.progress.finish_point(f"{system.name} {shape.name}: {row.status}, {took}")


def _with_latency(row: ResultRow, timing: ShapeTiming, name: str, shape: Shape) -> ResultRow:
    measured = timing.systems[name]
    return dataclasses.replace(
        row, latency_ms_p50=measured["p50"], latency_ms_p90=measured["p90"], latency_ms_p99=measured["p99"],
        iterations=measured["iterations"], throughput_per_s=shape.batch_size * 1000.0 / measured["p50"],
    )  # fmt: skip
