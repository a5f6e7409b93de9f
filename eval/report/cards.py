"""The three cards at a page's head: what to use, its cost, its speed; of float where INT8 does not pay."""

from __future__ import annotations

from eval.report.advice import Advice, is_noise
from eval.report.context import Context
from eval.report.document.blocks import Card
from eval.report.run_data import label
from eval.report.speeds import ratio_of, time_at
from eval.report.summary_section import unproven
from eval.report.writing import NOTHING, megabytes, milliseconds, ratio, small
from eval.sweep.grid import System

GOOD, UNSURE, BAD = "good", "unsure", "bad"


def cards(c: Context, advice: Advice | None = None, why_float: str = "") -> list[Card]:
    """Return the three cards, all of one system: the recommended one, or the fastest without INT8.

    Args:
        advice: another than the report's own.
        why_float: why it recommends no INT8, where that has other reasons than the report's.
    """
    advice = advice or c.advice
    system = advice.chosen or advice.rival
    return [_use(c, advice, system, why_float), _cost(c, advice, system), _speed(c, advice, system)]


def _use(c: Context, advice: Advice, system: System | None, why_float: str) -> Card:
    t, lines = c.t, []
    row = None if system is None else c.data.timed(system)
    if system is not None and row is not None:
        time, size = time_at(c.data, system), row.row.size_bytes
        lines.append(t("card_file", shape=c.shape(), ms=milliseconds(time.value if time else None),
                       size=megabytes(size)))  # fmt: skip
    if advice.chosen is not None:
        proof = unproven(c, advice) or t("card_proven", max_loss=c.loss(c.max_loss))
        return Card(t("card_use"), label(advice.chosen), (*lines, proof), GOOD if advice.is_proven else UNSURE)
    answer = NOTHING if system is None else label(system)
    return Card(t("card_use"), answer, (why_float or _why_float(c, advice), *lines), BAD)


def _why_float(c: Context, advice: Advice) -> str:
    """Return why no INT8 configuration is recommended."""
    t = c.t
    if not c.data.int8_systems:
        return t("not_measured_int8")
    if advice.within:
        return t("card_no_gain", max_loss=c.loss(c.max_loss))
    if advice.closest is None:
        return t("not_scored")
    return t("card_too_lossy", max_loss=c.loss(c.max_loss), system=label(advice.closest),
             loss=c.loss(c.data.loss(advice.closest)))  # fmt: skip


def _cost(c: Context, advice: Advice, system: System | None) -> Card:
    t = c.t
    row = None if system is None else c.data.ok(system)
    lost = None if system is None else c.data.loss(system)
    if row is None or lost is None:
        return Card(t("card_cost"), NOTHING, (t("card_no_loss"),), UNSURE)
    r, lines = row.row, []
    if r.loss_low is not None:
        lines.append(t("card_interval", low=c.loss_figure(r.loss_low), high=c.loss_figure(r.loss_high),
                       num_samples=r.num_samples))  # fmt: skip
    lines.append(t("card_values", value=c.value(r.metric), float=c.value(c.data.float_metric)))
    lines.append(t("card_changes", flips=NOTHING if r.num_flips is None else r.num_flips,
                   num_samples=r.num_samples, error=small(r.error_abs_mean)))  # fmt: skip
    if is_noise(c.data, row) and advice.chosen is not None:
        lines.append(t("card_noise"))
    return Card(t("card_cost"), c.loss(lost), tuple(lines), UNSURE if advice.chosen and not advice.is_proven else GOOD)


def _speed(c: Context, advice: Advice, system: System | None) -> Card:
    """Return how many times as fast as what stands against it the system is: the fastest float, or the best INT8."""
    data, t = c.data, c.t
    best = next(iter(advice.within), None) or advice.closest
    other = (advice.rival or data.baseline) if advice.chosen is not None else best
    found = None if system is None or other is None else ratio_of(data, system, other)
    if found is None or other is None or system is None:
        return Card(t("card_speed"), NOTHING, (t("card_no_ratio"),), UNSURE)
    num_shapes = sum(data.timed(system, s) is not None and data.timed(other, s) is not None for s in data.shapes)
    kind = "card_float" if advice.chosen is not None else "card_int8"
    lines = [t("card_over", low=ratio(found.low), high=ratio(found.high), num_shapes=num_shapes),
             t(kind, other=label(other))]  # fmt: skip
    if not (found.is_above_one or found.is_below_one):
        lines.append(t("card_no_sure_gain"))
    is_ahead = advice.chosen is not None and found.is_above_one
    return Card(t("card_speed"), t("card_times", ratio=ratio(found.value)), tuple(lines), GOOD if is_ahead else UNSURE)
