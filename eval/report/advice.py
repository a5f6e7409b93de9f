"""What a manager asks: which configuration, what does it cost, and where does INT8 not pay."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eval.report.run_data import RunData
from eval.report.speeds import mean_speedup, speedup_at, time_at, verdict
from eval.sweep.grid import Shape, System
from eval.sweep.run_folder import SweepRow

FP8_GPUS = re.compile(r"H100|H200|H20\b|GH200|\bL4\b|L40|RTX (PRO )?[456]0\d\d|Ada|B[123]00|GB[123]00|MI3\d\d")
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Advice:
    """The recommendation.

    Attributes:
        chosen: the INT8 system to take, None where none keeps the loss or none is faster than all float ones.
        row: its row at the primary shape.
        within: every INT8 system that keeps the loss, fastest first.
        is_proven: whether those keep it surely (the upper end of the loss's interval), or by the value alone, because
            none does surely.
        closest: where none keeps the loss, the one that loses least.
        rival: the fastest system without INT8, fp16 and bf16 among them, over all shapes.
    """

    chosen: System | None
    row: SweepRow | None
    within: tuple[System, ...]
    is_proven: bool
    closest: System | None
    rival: System | None


def advise(data: RunData, max_loss: float) -> Advice:
    """Return the recommended configuration: the fastest over all shapes together among those that keep `max_loss`.

    Those count that keep it surely; where none does, those whose value does. Among systems that cannot be told apart
    from the fastest over all shapes, the one with the smallest mean error is taken. INT8 is recommended only where it
    is surely faster, over all shapes together, than the fastest system without INT8.
    """
    candidates = [s for s in data.int8_systems if data.loss(s) is not None]
    proven = [s for s in candidates if keeps_surely(data, s, max_loss)]
    within = proven or [s for s in candidates if keeps_by_value(data, s, max_loss)]
    within.sort(key=lambda s: -speed_of(data, s))
    closest = min(candidates, key=lambda s: (data.loss(s) or 0, -speed_of(data, s)), default=None)
    rival = max(data.float_systems, key=lambda s: speed_of(data, s), default=None)
    faster = [s for s in within if _pays(data, s, rival)]
    if not faster:
        return Advice(None, None, tuple(within), bool(proven), None if within else closest, rival)
    equal = [s for s in faster if verdict(data, s, faster[0]) == "equal"]
    chosen = min(equal, key=lambda s: (error_of(data, s), -speed_of(data, s)))
    return Advice(chosen, data.timed(chosen), tuple(within), bool(proven), None, rival)


def keeps_surely(data: RunData, system: System, max_loss: float) -> bool:
    """Return whether a system's loss is surely at most `max_loss`: the upper end of its paired interval is."""
    row = data.ok(system)
    return row is not None and row.row.loss_high is not None and row.row.loss_high <= max_loss + 1e-12


def keeps_by_value(data: RunData, system: System, max_loss: float) -> bool:
    """Return whether a system's loss is at most `max_loss`, however sure that is; not where it was not scored."""
    lost = data.loss(system)
    return lost is not None and lost <= max_loss + 1e-12


def is_noise(data: RunData, row: SweepRow) -> bool | None:
    """Return whether a loss may well be chance: its paired interval holds 0, or the exact McNemar test does not reject.

    None: the row is of a version that measured neither.
    """
    r = row.row
    if r.loss_low is None or r.loss_high is None:
        return None
    is_inside = r.loss_low <= 0 <= r.loss_high
    if data.metric is None or not data.metric.is_share_right or r.mcnemar_p is None:
        return is_inside
    return is_inside or r.mcnemar_p >= SIGNIFICANT


def smallest(data: RunData) -> tuple[System | None, System | None]:
    """Return the INT8 systems with the smallest mean error and with the smallest file; of equals the faster."""
    scored = [s for s in data.int8_systems if error_of(data, s) < float("inf")]
    sized = [(row.row.size_bytes, s) for s in scored if (row := data.timed(s)) is not None and row.row.size_bytes]
    by_error = min(scored, key=lambda s: (error_of(data, s), -speed_of(data, s)), default=None)
    by_size = min(sized, key=lambda each: (round(each[0] / 1e5), error_of(data, each[1])), default=None)
    return by_error, None if by_size is None else by_size[1]  # 0.1 MB: metadata alone makes files of one graph differ


def _pays(data: RunData, system: System, rival: System | None) -> bool:
    if rival is None:
        found = mean_speedup(data, system)
        return found is not None and found.is_above_one
    return verdict(data, system, rival) == "faster"


def speed_of(data: RunData, system: System) -> float:
    """Return how many times as fast as the baseline a system is over all shapes; 0 where it was not timed."""
    found = mean_speedup(data, system)
    return 0.0 if found is None else found.value


def error_of(data: RunData, system: System) -> float:
    """Return a system's mean error, infinite where it was not measured."""
    row = data.ok(system)
    return row.row.error_abs_mean if row is not None and row.row.error_abs_mean is not None else float("inf")


def fastest_float(data: RunData, shape: Shape) -> System | None:
    """Return the fastest system without INT8 at a shape; None where none was timed."""
    timed = [(ratio.value, s) for s in data.float_systems if (ratio := speedup_at(data, s, shape)) is not None]
    return max(timed, key=lambda each: each[0])[1] if timed else None


def shapes_without_gain(data: RunData, system: System) -> list[tuple[Shape, System, str]]:
    """Return (shape, fastest float system, verdict) where a system is not surely faster than that."""
    found = []
    for shape in data.shapes:
        rival = fastest_float(data, shape)
        if data.timed(system, shape) is None or rival is None:
            continue
        word = verdict(data, system, rival, shape)
        if word != "faster":
            found.append((shape, rival, word))
    return found


def never_faster(data: RunData) -> list[System]:
    """Return the INT8 systems that are surely faster than the fastest float system neither at a shape nor over all."""
    rival = max(data.float_systems, key=lambda s: speed_of(data, s), default=None)
    return [
        s for s in data.int8_systems
        if len(shapes_without_gain(data, s)) == sum(data.timed(s, shape) is not None for shape in data.shapes)
        and (rival is None or verdict(data, s, rival) != "faster")
    ]  # fmt: skip


def dominated_recipes(data: RunData) -> list[tuple[System, System]]:
    """Return (recipe that costs more, recipe that does better) of one method and backend.

    The first is surely faster neither at a shape nor over all, and has at least a tenth more mean error at the primary
    shape.
    """
    pairs = []
    for system in data.int8_systems:
        for other in data.int8_systems:
            same = (system.method, system.backend) == (other.method, other.backend) and system.recipe != other.recipe
            if not same or not system.recipe or error_of(data, system) <= 1.1 * error_of(data, other):
                continue
            if verdict(data, system, other) == "faster" or _is_ever_faster(data, system, other):
                continue
            pairs.append((system, other))
            break
    return pairs


def _is_ever_faster(data: RunData, system: System, other: System) -> bool:
    """Return whether a system is surely faster than another at one of the shapes that both were timed at."""
    return any(verdict(data, system, other, shape) == "faster" for shape in data.shapes)


def pareto(data: RunData) -> list[System]:
    """Return the systems that no other beats in both time and metric at the primary shape, fastest first."""
    known = [(time.value, loss, s) for s in data.systems
             if (time := time_at(data, s)) is not None and (loss := data.loss(s)) is not None]  # fmt: skip
    front: list[System] = []
    best = float("inf")
    for _, loss, system in sorted(known, key=lambda each: each[:2]):
        if loss < best:
            front.append(system)
            best = loss
    return front


def has_fp8(device: str | None) -> bool:
    """Return whether this GPU multiplies FP8."""
    return bool(device and FP8_GPUS.search(device))
