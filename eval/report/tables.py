"""The tables of a report, each computed from rows; the last column names the line of results.jsonl."""

from __future__ import annotations

from collections.abc import Callable

from engine.backend import BACKENDS, get_backend
from eval.report.context import Context
from eval.report.document.blocks import Block, Cell, Items, Prose, Section, Table, cell, row_cell
from eval.report.run_data import RunData, label, runtime_title
from eval.report.speeds import mean_speedup, middle, speedup_at, time_at, verdict
from eval.report.writing import (
    NOTHING,
    Texts,
    count,
    first_names,
    interval,
    megabytes,
    milliseconds,
    ratio,
    small,
)
from eval.sweep.grid import System
from eval.sweep.run_folder import SweepRow
from eval.timing.load_points import MIN_REQUESTS, LoadPoint, closed_knee, is_undecided, open_knee
from eval.timing.ratios import Estimate


def candidates(c: Context) -> Table:
    """Return every system at the primary shape, fastest first, those without a time last."""
    data, t = c.data, c.t
    known = [(system, row, time_at(data, system)) for system in data.systems if (row := data.ok(system)) is not None]
    known.sort(key=lambda each: each[2].value if each[2] else float("inf"))
    fastest = known[0][0] if known and known[0][2] else None
    headers = ["configuration", "metric_col", "loss_col", "p_col", "flips_col", "error_col", "size_col", "latency_col",
               "speedup_col", "row_col"]  # fmt: skip
    lines = []
    for system, row, time in known:
        r, gain = row.row, speedup_at(data, system)
        is_tie = fastest not in (None, system) and time and verdict(data, system, fastest, data.primary) == "equal"
        lines.append((
            Cell(label(system)), _value(c, r.metric, r.metric_low, r.metric_high), _loss(c, system, row),
            Cell(NOTHING) if r.mcnemar_p is None else Cell(f"{r.mcnemar_p:.2g}", r.mcnemar_p),
            cell(count, r.num_flips), cell(small, r.error_abs_mean), cell(megabytes, r.size_bytes),
            _estimate(milliseconds, time), _estimate(ratio, gain, " ≈" if is_tie else ""), row_cell(row.number),
        ))  # fmt: skip
    unit = data.metric.unit if data.metric else ""
    marked = frozenset(number for number, each in enumerate(known) if each[0] == (c.advice.chosen or c.advice.rival))
    return Table(tuple(t(h, metric=f"{c.metric_name}{unit}") for h in headers), tuple(lines), marked=marked)


def _estimate(form: Callable[[float | None], str], found: Estimate | None, mark: str = "") -> Cell:
    """Return the cell of an estimate with its interval."""
    if found is None:
        return Cell(NOTHING)
    return Cell(interval(*(form(x) for x in (found.value, found.low, found.high))) + mark, found.value)


def _value(c: Context, value: float | None, low: float | None, high: float | None) -> Cell:
    """Return a metric with its interval, in its own print."""
    if value is None or low is None or high is None or c.data.metric is None:
        return Cell(NOTHING)
    return Cell(interval(*(c.data.metric.text(each) for each in (value, low, high))), value)


def _loss(c: Context, system: System, row: SweepRow) -> Cell:
    """Return the loss, with its paired interval where the row has one."""
    loss = c.data.loss(system)
    if row.row.loss_low is None or loss is None:
        return cell(c.loss_figure, loss)
    low, high = c.loss_figure(row.row.loss_low), c.loss_figure(row.row.loss_high)
    return Cell(interval(c.loss_figure(loss), low, high, to=c.t("to")), loss)


def speedups(data: RunData, t: Texts) -> Table:
    """Return the speed-up of every system at every shape, and over all of them."""
    systems = [s for s in data.systems if any(data.timed(s, shape) for shape in data.shapes)]
    lines = []
    for system in systems:
        found = [*(speedup_at(data, system, shape) for shape in data.shapes), mean_speedup(data, system)]
        lines.append((Cell(label(system)), *(cell(ratio, middle(each)) for each in found)))
    return Table((t("configuration"), *(shape.name for shape in data.shapes), t("all_shapes")), tuple(lines))


def accuracy_by_length(c: Context) -> list[Block]:
    """Return the metric of every system at every sequence length; nothing where there is one length."""
    data, t = c.data, c.t
    lengths = sorted({s.sequence_length for s in data.shapes if s.sequence_length is not None})
    if len(lengths) < 2 or data.metric is None:
        return []
    lines = []
    for system in data.systems:
        values = []
        for length in lengths:
            rows = [data.ok(system, shape) for shape in data.shapes if shape.sequence_length == length]
            found = next((r.row.metric for r in rows if r is not None), None)
            values.append(cell(data.metric.text, found))
        if any(each.value is not None for each in values):
            lines.append((Cell(label(system)), *values))
    title = t("accuracy_lengths", metric=f"{c.metric_name}{data.metric.unit}")
    table = Table((t("configuration"), *map(str, lengths)), tuple(lines))
    return [Section("lengths", f"{title[:1].upper()}{title[1:]}", (table,))]


def errors(data: RunData, t: Texts) -> Table:
    """Return absolute and relative errors of the outputs at the primary shape."""
    names = ("abs_max", "abs_mean", "abs_median", "rel_max", "rel_mean", "rel_median")
    lines = []
    for system in data.systems:
        row = data.ok(system)
        if row is None or row.row.error_abs_mean is None:
            continue
        values = [cell(small, getattr(row.row, f"error_{name}")) for name in names]
        sqnr = Cell(NOTHING) if row.row.sqnr_db is None else Cell(f"{row.row.sqnr_db:.1f}", row.row.sqnr_db)
        lines.append((Cell(label(system)), *values, sqnr, row_cell(row.number)))
    headers = (name.replace("_", ". ") for name in names)
    return Table((t("configuration"), *headers, "SQNR dB", t("row_col")), tuple(lines))


def products(data: RunData, t: Texts) -> list[Block]:
    """Return what each engine at the primary shape runs in INT8, or is planned to where its runtime hides it."""
    lines, notes = [], {}
    for system in data.systems:
        row = data.ok(system)
        found = row.details.products if row is not None and system.is_int8 else None
        if found is None or row is None:
            continue
        linears = len(found.int8) + len(found.float)
        attention = found.attention_int8 + found.attention_float
        is_known = system.backend in BACKENDS
        is_plan = is_known and not get_backend(system.backend).info.are_products_measured
        notes[is_plan] = t("planned_note" if is_plan else "products_note")
        planned = f" {t('planned')}" if is_plan else ""
        lines.append((
            Cell(label(system)), Cell(first_names(found.float) or NOTHING),
            Cell(f"{len(found.int8)} / {linears}{planned}", len(found.int8)),
            Cell(f"{len(found.attention_int8)} / {len(attention)}{planned}", len(found.attention_int8)),
            row_cell(row.number),
        ))  # fmt: skip
    if not lines:
        return []
    headers = tuple(t(h) for h in ("configuration", "float_col", "linears_col", "attention_col", "row_col"))
    return [Table(headers, tuple(lines), left=2), Prose(" ".join(notes[key] for key in sorted(notes)), is_note=True)]


def load(data: RunData, t: Texts) -> list[Block]:
    """Return the points under load, and each system's knee."""
    if not data.load:
        return []
    lines, knees = [], []
    by_system: dict[str, list[LoadPoint]] = {}
    for each in data.load["points"]:
        name = label(data.system_named(each["system"]))
        if "error" in each:
            knees.append(Prose(t("load_failed", system=name, error=each["error"])))
            continue
        point = LoadPoint(**{k: v for k, v in each.items() if k not in ("system", "shape")})
        by_system.setdefault(name, []).append(point)
        offered = Cell(NOTHING) if point.offered_per_s is None else _per_second(point.offered_per_s)
        p99 = cell(milliseconds, point.latency_ms_p99) if point.has_enough else Cell(
            t("too_few", count=point.num_requests))  # fmt: skip
        lines.append((Cell(name), Cell(t(point.mode)), cell(count, point.clients), offered, _per_second(
            point.throughput_per_s), cell(milliseconds, point.latency_ms_p50), p99,
            cell(count, point.num_dropped)))  # fmt: skip
    for name, measured in by_system.items():
        closed, opened = closed_knee(measured), open_knee(measured)
        kept = t("kept_none") if opened is None else t("kept_rate", rate=f"{opened.offered_per_s:.1f}")
        kept = t("kept_unknown", count=MIN_REQUESTS) if is_undecided(measured) else kept
        knees.append(Prose(t("knee", system=name, clients=closed.clients, kept=kept,
                             throughput=f"{closed.throughput_per_s:.1f}")))  # fmt: skip
    headers = (t("configuration"), t("loop_col"), t("clients_col"), t("offered_col"), t("answered_col"), "p50 ms",
               "p99 ms", t("dropped_col"))  # fmt: skip
    return [Items(tuple(knees)), Table(headers, tuple(lines), left=2)]


def _per_second(rate: float) -> Cell:
    return Cell(f"{rate:.1f}", rate)


def not_measured(data: RunData, t: Texts) -> list[Block]:
    """Return failed and skipped points with their reasons, equal ones in one line."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for row in data.rows:
        if row.row.status != "ok":
            grouped.setdefault((row.system, row.row.status, row.row.error or ""), []).append(row.shape)
    lines = tuple((Cell(label(data.system_named(name))), Cell(status), Cell(", ".join(shapes)), Cell(reason))
                  for (name, status, reason), shapes in grouped.items())  # fmt: skip
    left = len(data.systems) * len(data.shapes) - len(data.rows)
    text = [Prose(t("left_out", count=left))] if left else []
    if not lines:
        return [*text, *([] if left else [Prose(t("none_not_measured"))])]
    return [*text, Table((t("configuration"), t("status_col"), t("shape_col"), t("reason_col")), lines, left=4)]


def ablation(c: Context, backend: str) -> list[Block]:
    """Return what each step gained on one backend at the primary shape: float, fp16, INT8 linear, + attention, ..."""
    data, t = c.data, c.t
    methods = [s.method for s in data.systems if s.recipe and s.method not in ("smoothquant", "qat")]
    method = methods[0] if methods else "max"
    wanted = [
        ("step_float", "fp32", None), ("step_fp16", "fp16", None), ("step_linear", method, "int8_linear"),
        ("step_attention", method, "int8_attention"), ("step_residual", method, "int8_full"),
        ("step_smoothquant", method, "int8_smoothquant"), ("step_qat", "qat", None),
    ]  # fmt: skip
    if all(_step(data, backend, each, recipe) is None for _, each, recipe in wanted):
        reason = next((r.row.error for r in data.rows if r.row.backend == backend and r.row.error), "")
        return [Prose(t("h_no_step", backend=runtime_title(backend), reason=reason))]
    lines: list[tuple[Cell, ...]] = []
    before: Estimate | None = None
    for key, wanted_method, recipe in wanted:
        row = _step(data, backend, wanted_method, recipe)
        if row is None:
            lines.append((Cell(t(key)), Cell(t("h_not_measured")), *[Cell(NOTHING)] * 6))
            continue
        system = data.system_named(row.system)
        time = time_at(data, system)
        gain = before.value / time.value if before and time else None
        r = row.row
        lines.append((
            Cell(t(key)), Cell(label(system)),
            Cell(NOTHING) if data.metric is None else cell(data.metric.text, r.metric),
            cell(c.loss_figure, data.loss(system)), cell(small, r.error_abs_mean), cell(milliseconds, middle(time)),
            Cell(NOTHING) if gain is None else Cell(f"{gain:.2f} x", gain), row_cell(row.number),
        ))  # fmt: skip
        before = time or before
    unit = data.metric.unit if data.metric else ""
    headers = (t("step_col"), t("configuration"), f"{c.metric_name}{unit}", t("loss_col"),
               t("error_col"), "ms", t("gain_col"), t("row_col"))  # fmt: skip
    title = t("h_ablation", backend=runtime_title(backend), shape=c.shape())
    return [Section(f"steps-{backend}", title, (Table(headers, tuple(lines), left=2),))]


def _step(data: RunData, backend: str, method: str, recipe: str | None) -> SweepRow | None:
    """Return the row of one step; SmoothQuant may be a recipe or a method, QAT may have any recipe."""
    for system in data.systems:
        if system.backend != backend or system.is_reference:
            continue
        is_smooth = recipe == "int8_smoothquant" and system.method == "smoothquant"
        is_trained = method == "qat" and system.method == "qat"
        if is_smooth or is_trained or (system.method, system.recipe) == (method, recipe):
            return data.ok(system)
    return None


def rows(data: RunData, t: Texts) -> Table:
    """Return one line for each row: number, system, shape, status, the digest of what ran."""
    lines = []
    for row in data.rows:
        digest = row.details.digests.onnx or row.details.digests.source or NOTHING
        system = data.system_named(row.system)
        lines.append((row_cell(row.number), Cell(label(system)), Cell(row.shape), Cell(row.row.status),
                      Cell(f"`{digest[:16]}`")))  # fmt: skip
    headers = (t("row_col"), t("system_col"), t("shape_col"), t("status_col"), t("digest_col"))
    return Table(headers, tuple(lines), left=5, is_row_list=True)
