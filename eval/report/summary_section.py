"""The first lines of a report: the machine, what to use, what it costs, what is best by error or size, how sure."""

from __future__ import annotations

from collections import Counter

from engine.backend import saturation_mends
from engine.hardware import int8_outlook, saturates
from eval.report.advice import Advice, is_noise, smallest
from eval.report.context import Context
from eval.report.document.blocks import Block, Items, Prose, Section
from eval.report.run_data import label
from eval.report.speeds import mean_speedup, middle, ratio_over, speedup_at, time_at, widths
from eval.report.writing import NOTHING, megabytes, milliseconds, ratio, small
from eval.sweep.grid import PYTORCH, System
from eval.timing.ratios import MAX_WIDTH

MAX_SPREAD = 0.25  # of a time's interval; on a quiet machine it is 2 to 10 %


def machine(c: Context) -> list[Block]:
    """Return what INT8 can gain at most on the rows' processors, and what was done about sums that saturate there;
    nothing for GPUs, and where the rows do not say."""
    if c.data.options.device != "cpu":
        return []
    known = {(d.cpu_flags, d.machine or "") for row in c.data.rows if (d := row.details).cpu_flags is not None}
    lines = [c.t("machine", device=c.data.rows[0].row.device or NOTHING, threads=c.data.options.threads,
                 outlook=int8_outlook(flags, kind)) for flags, kind in sorted(known)]  # fmt: skip
    if any(saturates(flags, kind) for flags, kind in known):
        mends = saturation_mends(c.data.options.backends)
        lines += [c.t("saturation", backend=name, mend=mend) for name, mend in mends.items()]
    return [Prose(line) for line in lines]


def summary(c: Context) -> Section:
    """Return what a manager reads."""
    data, t, advice = c.data, c.t, c.advice
    if not data.int8_systems:
        found = [Prose(t("not_measured_int8"))]
    elif advice.chosen is None and advice.closest is not None:
        found = [Prose(t("too_lossy", max_loss=c.loss(c.max_loss), system=label(advice.closest),
                         loss=c.loss(data.loss(advice.closest))))]  # fmt: skip
    elif advice.chosen is None and advice.within:
        found = [_stay_with_float(c, advice)]
    elif advice.chosen is None:  # INT8 was timed, and nothing was scored
        found = [Prose(t("not_scored"))]
    else:
        found = _recommendation(c, advice.chosen)
    if text := unproven(c, advice):
        found.append(Prose(text))
    return Section("summary", t("summary"), (*found, *_also(c, advice.chosen), _coverage(c), *_noise(c)))


def unproven(c: Context, advice: Advice) -> str:
    """Return why the samples do not show that the loss is kept; nothing where they do, or where none keeps it."""
    t = c.t
    if not advice.within or advice.is_proven:
        return ""
    row = c.data.ok(advice.chosen or advice.within[0])
    if row is None or row.row.loss_high is None:
        return t("unproven_old")
    return t("unproven", max_loss=c.loss(c.max_loss), high=c.loss(row.row.loss_high))


def _recommendation(c: Context, chosen: System) -> list[Prose]:
    data, t = c.data, c.t
    row, base = data.timed(chosen), data.timed(data.baseline)
    own, gain = time_at(data, chosen), speedup_at(data, chosen)
    assert row is not None and own is not None
    base_ms = own.value * gain.value if gain else None  # the baseline's in the session that timed the chosen one
    use = t("recommended", system=label(chosen), shape=c.shape(), baseline=label(data.baseline),
            latency=milliseconds(own.value), baseline_ms=milliseconds(base_ms),
            **_interval("speedup", gain),
            over="" if len(data.shapes) == 1 else t(
                "over_all", num_shapes=len(data.shapes), mean=ratio(middle(mean_speedup(data, chosen)))))  # fmt: skip
    size_ratio = ""
    if base is not None and base.row.size_bytes and row.row.size_bytes:
        size_ratio = f" ({row.row.size_bytes / base.row.size_bytes:.2f} x)"
    cost = t("cost", loss=c.loss(data.loss(chosen)), value=c.value(row.row.metric), float=c.value(
             data.float_metric), num_samples=row.row.num_samples, error=small(row.row.error_abs_mean),
             flips=NOTHING if row.row.num_flips is None else row.row.num_flips,
             interval=_loss_interval(c, chosen), size=megabytes(row.row.size_bytes),
             ratio=size_ratio)  # fmt: skip
    if is_noise(data, row):
        cost += " " + t("cost_noise")
    own_float = System("fp32", None, chosen.backend)
    same = ratio_over(data, chosen, own_float, [data.primary]) if chosen.backend != PYTORCH else None
    if same is not None:
        cost += " " + t("same_runtime", ratio=ratio(same.value))
    return [Prose(use, (row.number,)), Prose(cost)]


def _interval(name: str, found: object) -> dict[str, str]:
    """Return the three figures of an estimate, for a sentence."""
    return {key: ratio(getattr(found, part, None)) for key, part in ((name, "value"), ("low", "low"), ("high", "high"))}


def _loss_interval(c: Context, system: System) -> str:
    """Return the paired interval of the loss and McNemar's p in brackets, nothing where the row has neither."""
    row = c.data.ok(system)
    if row is None or row.row.loss_low is None:
        return ""
    low, high = (c.loss_figure(each) for each in (row.row.loss_low, row.row.loss_high))
    p = "" if row.row.mcnemar_p is None else c.t("cost_p", p=f"{row.row.mcnemar_p:.2g}")
    return c.t("cost_interval", low=low, high=high, p=p)


def _stay_with_float(c: Context, advice: Advice) -> Prose:
    """Return that INT8 does not pay, and by how much float is ahead of the best of it."""
    data, t, rival, best = c.data, c.t, advice.rival or c.data.baseline, advice.within[0]
    text = t("no_gain", max_loss=c.loss(c.max_loss), rival=label(rival))
    row, other = data.timed(best), data.timed(rival)
    own, theirs, ahead = time_at(data, best), time_at(data, rival), ratio_over(data, rival, best)
    if row is None or other is None or own is None or theirs is None or ahead is None:
        return Prose(text)
    more = t("float_ahead", rival=label(rival), system=label(best), shape=c.shape(),
             rival_ms=milliseconds(theirs.value), latency=milliseconds(own.value),
             over=t("over_one_ahead" if len(data.shapes) == 1 else "over_all_ahead", rival=label(rival),
                    mean=ratio(ahead.value), num_shapes=len(data.shapes)))  # fmt: skip
    return Prose(f"{text} {more}", (other.number, row.number))


def _also(c: Context, chosen: System | None) -> list[Block]:
    """Return the best by error and by size: what a reader who cares for those takes instead."""
    items = []
    by_error, by_size = smallest(c.data)
    for key, system in [("best_both", by_error)] if by_error == by_size else [("best_error", by_error), (
        "best_size", by_size)]:  # fmt: skip
        row = None if system is None else c.data.timed(system)
        if system is None or row is None:
            continue
        if system == chosen:
            items.append(Prose(c.t(f"{key}_same")))
            continue
        mean = mean_speedup(c.data, system)
        text = c.t(key, system=label(system), error=small(row.row.error_abs_mean), size=megabytes(
                   row.row.size_bytes), flips=NOTHING if row.row.num_flips is None else row.row.num_flips,
                   loss=c.loss(c.data.loss(system)), mean=ratio(middle(mean)))  # fmt: skip
        items.append(Prose(text, (row.number,)))
    return [Items(tuple(items))] if items else []


def _coverage(c: Context) -> Prose:
    counts = Counter(row.row.status for row in c.data.rows)
    total = len(c.data.systems) * len(c.data.shapes)
    return Prose(c.t("coverage", ok=counts["ok"], failed=counts["failed"], skipped=counts["skipped"], total=total,
                     left=total - len(c.data.rows)))  # fmt: skip


def _noise(c: Context) -> list[Prose]:
    """Return how many of all speed-ups, and of all times, are uncertain, and which most."""
    data, t, lines = c.data, c.t, []
    found = widths(data)
    wide = [each for each in found if each[0] > MAX_WIDTH]
    if wide:
        width, system, shape = wide[0]
        row = data.timed(system, shape)
        lines.append(Prose(t("wide_ratios", count=len(wide), total=len(found), limit=f"{100 * MAX_WIDTH:.0f}",
                             rounds=len(row.details.block_ms) if row else NOTHING, system=label(system),
                             shape=c.shape(shape), width=f"{100 * width:.0f}")))  # fmt: skip
    times = [(time.width, s, shape) for s in data.systems for shape in data.shapes
             if (time := time_at(data, s, shape)) is not None]  # fmt: skip
    busy = sorted((each for each in times if each[0] > MAX_SPREAD), key=lambda each: -each[0])
    if busy:
        spread, system, shape = busy[0]
        lines.append(Prose(t("noisy", count=len(busy), total=len(times), limit=f"{100 * MAX_SPREAD:.0f}",
                             system=label(system), shape=c.shape(shape),
                             spread=f"{100 * spread:.0f}")))  # fmt: skip
    return lines
