"""What a manager asks: which configuration, what does it cost, and where does INT8 not pay."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eval.report.run_data import RunData
from eval.sweep.grid import Shape, System
from eval.sweep.run_folder import SweepRow

FP8_GPUS = re.compile(r"H100|H200|H20\b|GH200|\bL4\b|L40|RTX (PRO )?[456]0\d\d|Ada|B[123]00|GB[123]00|MI3\d\d")


@dataclass(frozen=True)
class Advice:
    """The recommendation.

    Attributes:
        chosen: the fastest INT8 system within the loss, None where none keeps it or none is faster than all float ones.
        row: its row at the primary shape.
        within: every INT8 system within the loss, fastest first.
        closest: where none is within the loss, the one that loses least.
        rival: the fastest system without INT8, fp16 and bf16 among them, over all shapes.
    """

    chosen: System | None
    row: SweepRow | None
    within: tuple[System, ...]
    closest: System | None
    rival: System | None


def advise(data: RunData, max_loss: float) -> Advice:
    """Return the recommended configuration: the largest mean speed-up over all shapes among those within `max_loss`.

    Among systems that cannot be told apart from it at any shape, the one with the smallest mean error is taken. INT8 is
    recommended only where it is ahead of the fastest system without INT8, over all shapes and surely at one of them.
    """
    candidates = [s for s in data.int8_systems if data.loss(s) is not None]
    within = sorted((s for s in candidates if (data.loss(s) or 0) <= max_loss + 1e-12), key=lambda s: -_speed(data, s))
    closest = min(candidates, key=lambda s: (data.loss(s) or 0, -_speed(data, s)), default=None)
    rival = max(data.float_systems, key=lambda s: _speed(data, s), default=None)
    faster = [s for s in within if _pays(data, s, rival)]
    if not faster:
        return Advice(None, None, tuple(within), None if within else closest, rival)
    best_rows = [row for shape in data.shapes if (row := data.timed(faster[0], shape)) is not None]
    equal = [faster[0], *(s for s in faster[1:] if all(s.name in row.details["ties"] for row in best_rows))]
    chosen = min(equal, key=lambda s: (_error(data, s), -_speed(data, s)))
    return Advice(chosen, data.timed(chosen), tuple(within), None, rival)


def _pays(data: RunData, system: System, rival: System | None) -> bool:
    if rival is None:
        return _speed(data, system) > 1
    return _speed(data, system) > _speed(data, rival) and _is_ever_faster(data, system, rival)


def _speed(data: RunData, system: System) -> float:
    return data.mean_speedup(system) or 0.0


def _error(data: RunData, system: System) -> float:
    row = data.ok(system)
    return row.row.error_abs_mean if row is not None and row.row.error_abs_mean is not None else float("inf")


def verdict(row: SweepRow, other: SweepRow) -> str:
    """Return "faster", "slower" or "equal" (they cannot be told apart) than another system at the same shape."""
    if other.system in row.details["ties"]:
        return "equal"
    return "faster" if row.details["speedup"] > other.details["speedup"] else "slower"


def fastest_float(data: RunData, shape: Shape) -> SweepRow | None:
    """Return the row of the fastest system without INT8 at a shape; None where none was timed."""
    rows = [row for s in data.float_systems if (row := data.timed(s, shape)) is not None]
    return max(rows, key=lambda row: row.details["speedup"], default=None)


def shapes_without_gain(data: RunData, system: System) -> list[tuple[Shape, SweepRow, SweepRow]]:
    """Return (shape, row, row of the fastest float system) where a system is not surely faster than that."""
    rows = [(shape, data.timed(system, shape), fastest_float(data, shape)) for shape in data.shapes]
    return [
        (shape, row, other) for shape, row, other in rows
        if row is not None and other is not None and verdict(row, other) != "faster"
    ]  # fmt: skip


def never_faster(data: RunData) -> list[System]:
    """Return the INT8 systems that are surely faster than the fastest float system at no shape."""
    return [
        s for s in data.int8_systems
        if len(shapes_without_gain(data, s)) == sum(data.timed(s, shape) is not None for shape in data.shapes)
    ]  # fmt: skip


def dominated_recipes(data: RunData) -> list[tuple[System, System]]:
    """Return (recipe that costs more, recipe that does better) of one method and backend.

    The first is surely faster at no shape, and has at least a tenth more mean error at the primary shape.
    """
    pairs = []
    for system in data.int8_systems:
        for other in data.int8_systems:
            same = (system.method, system.backend) == (other.method, other.backend) and system.recipe != other.recipe
            if not same or not system.recipe or _is_ever_faster(data, system, other):
                continue
            if _error(data, system) > 1.1 * _error(data, other):
                pairs.append((system, other))
                break
    return pairs


def _is_ever_faster(data: RunData, system: System, other: System) -> bool:
    """Return whether a system is surely faster than another at one of the shapes that both were timed at."""
    rows = [(data.timed(system, shape), data.timed(other, shape)) for shape in data.shapes]
    return any(verdict(mine, theirs) == "faster" for mine, theirs in rows if mine is not None and theirs is not None)


def pareto(data: RunData) -> list[System]:
    """Return the systems that no other beats in both latency and metric at the primary shape, fastest first."""
    timed = [(s, r.row) for s in data.systems if (r := data.timed(s)) is not None and r.row.metric is not None]
    front: list[System] = []
    best = -1.0
    for system, row in sorted(timed, key=lambda each: (each[1].latency_ms_p50 or 0, -(each[1].metric or 0))):
        if (row.metric or 0) > best:
            front.append(system)
            best = row.metric or 0
    return front


def has_fp8(device: str | None) -> bool:
    """Return whether this GPU multiplies FP8."""
    return bool(device and FP8_GPUS.search(device))
