"""The tables of a report, each computed from rows; the last column names the line of results.jsonl."""

from __future__ import annotations

from engine.backend import BACKENDS, get_backend
from eval.report.context import Context
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
    table,
)
from eval.sweep.grid import System
from eval.sweep.run_folder import SweepRow
from eval.timing.load_points import MIN_REQUESTS, LoadPoint, closed_knee, is_undecided, open_knee
from eval.timing.ratios import Estimate


def candidates(c: Context) -> list[str]:
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
        lines.append([
            label(system), _value(c, r.metric, r.metric_low, r.metric_high), _loss(c, system, row),
            NOTHING if r.mcnemar_p is None else f"{r.mcnemar_p:.2g}",
            count(r.num_flips), small(r.error_abs_mean), megabytes(r.size_bytes),
            NOTHING if time is None else interval(*(milliseconds(x) for x in (time.value, time.low, time.high))),
            NOTHING if gain is None else interval(*(ratio(x) for x in (gain.value, gain.low, gain.high))) + (
                " ≈" if is_tie else ""), f"#{row.number}",
        ])  # fmt: skip
    unit = data.metric.unit if data.metric else ""
    return table([t(h, metric=f"{c.metric_name}{unit}") for h in headers], lines)


def _value(c: Context, value: float | None, low: float | None, high: float | None) -> str:
    """Return a metric with its interval, in its own print."""
    if value is None or low is None or high is None or c.data.metric is None:
        return NOTHING
    return interval(*(c.data.metric.text(each) for each in (value, low, high)))


def _loss(c: Context, system: System, row: SweepRow) -> str:
    """Return the loss, with its paired interval where the row has one."""
    loss = c.loss_figure(c.data.loss(system))
    if row.row.loss_low is None or loss == NOTHING:
        return loss
    return interval(loss, c.loss_figure(row.row.loss_low), c.loss_figure(row.row.loss_high), to=c.t("to"))


def speedups(data: RunData, t: Texts) -> list[str]:
    """Return the speed-up of every system at every shape, and over all of them."""
    systems = [s for s in data.systems if any(data.timed(s, shape) for shape in data.shapes)]
    lines = []
    for system in systems:
        found = [*(speedup_at(data, system, shape) for shape in data.shapes), mean_speedup(data, system)]
        lines.append([label(system), *(ratio(middle(each)) for each in found)])
    return table([t("configuration"), *(shape.name for shape in data.shapes), t("all_shapes")], lines)


def accuracy_by_length(c: Context) -> list[str]:
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
            values.append(NOTHING if found is None else data.metric.text(found))
        if set(values) != {NOTHING}:
            lines.append([label(system), *values])
    title = t("accuracy_lengths", metric=f"{c.metric_name}{data.metric.unit}")
    return [f"### {title[:1].upper()}{title[1:]}", "", *table([t("configuration"), *map(str, lengths)], lines)]


def errors(data: RunData, t: Texts) -> list[str]:
    """Return absolute and relative errors of the outputs at the primary shape."""
    names = ("abs_max", "abs_mean", "abs_median", "rel_max", "rel_mean", "rel_median")
    lines = []
    for system in data.systems:
        row = data.ok(system)
        if row is None or row.row.error_abs_mean is None:
            continue
        values = [small(getattr(row.row, f"error_{name}")) for name in names]
        sqnr = NOTHING if row.row.sqnr_db is None else f"{row.row.sqnr_db:.1f}"
        lines.append([label(system), *values, sqnr, f"#{row.number}"])
    headers = [name.replace("_", ". ") for name in names]
    return table([t("configuration"), *headers, "SQNR dB", t("row_col")], lines)


def products(data: RunData, t: Texts) -> list[str]:
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
        lines.append([
            label(system), first_names(found.float) or NOTHING, f"{len(found.int8)} / {linears}{planned}",
            f"{len(found.attention_int8)} / {len(attention)}{planned}", f"#{row.number}",
        ])  # fmt: skip
    headers = [t(h) for h in ("configuration", "float_col", "linears_col", "attention_col", "row_col")]
    return [*table(headers, lines, left=2), " ".join(notes[key] for key in sorted(notes)), ""] if lines else []


def load(data: RunData, t: Texts) -> list[str]:
    """Return the points under load, and each system's knee."""
    if not data.load:
        return []
    lines, knees = [], []
    by_system: dict[str, list[LoadPoint]] = {}
    for each in data.load["points"]:
        name = label(data.system_named(each["system"]))
        if "error" in each:
            knees.append(f"- {t('load_failed', system=name, error=each['error'])}")
            continue
        point = LoadPoint(**{k: v for k, v in each.items() if k not in ("system", "shape")})
        by_system.setdefault(name, []).append(point)
        offered = NOTHING if point.offered_per_s is None else f"{point.offered_per_s:.1f}"
        lines.append([name, t(point.mode), str(point.clients), offered, f"{point.throughput_per_s:.1f}", milliseconds(
            point.latency_ms_p50), milliseconds(point.latency_ms_p99) if point.has_enough else t("too_few",
            count=point.num_requests), str(point.num_dropped)])  # fmt: skip
    for name, measured in by_system.items():
        closed, opened = closed_knee(measured), open_knee(measured)
        kept = t("kept_none") if opened is None else t("kept_rate", rate=f"{opened.offered_per_s:.1f}")
        kept = t("kept_unknown", count=MIN_REQUESTS) if is_undecided(measured) else kept
        knees.append("- " + t("knee", system=name, clients=closed.clients, kept=kept,
                              throughput=f"{closed.throughput_per_s:.1f}"))  # fmt: skip
    headers = [t("configuration"), t("loop_col"), t("clients_col"), t("offered_col"), t("answered_col"), "p50 ms",
               "p99 ms", t("dropped_col")]  # fmt: skip
    return [*knees, "", *table(headers, lines, left=2)]


def not_measured(data: RunData, t: Texts) -> list[str]:
    """Return failed and skipped points with their reasons, equal ones in one line."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for row in data.rows:
        if row.row.status != "ok":
            grouped.setdefault((row.system, row.row.status, row.row.error or ""), []).append(row.shape)
    lines = [[label(data.system_named(name)), status, ", ".join(shapes), reason]
             for (name, status, reason), shapes in grouped.items()]  # fmt: skip
    left = len(data.systems) * len(data.shapes) - len(data.rows)
    text = [t("left_out", count=left), ""] if left else []
    if not lines:
        return [*text, *([] if left else [t("none_not_measured"), ""])]
    return [*text, *table([t("configuration"), t("status_col"), t("shape_col"), t("reason_col")], lines, left=4)]


def ablation(c: Context, backend: str) -> list[str]:
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
        return [t("h_no_step", backend=runtime_title(backend), reason=reason), ""]
    lines: list[list[str]] = []
    before: Estimate | None = None
    for key, wanted_method, recipe in wanted:
        row = _step(data, backend, wanted_method, recipe)
        if row is None:
            lines.append([t(key), t("h_not_measured"), *[NOTHING] * 6])
            continue
        system = data.system_named(row.system)
        time = time_at(data, system)
        gain = f"{before.value / time.value:.2f} x" if before and time else NOTHING
        metric = NOTHING if row.row.metric is None or data.metric is None else data.metric.text(row.row.metric)
        lines.append([t(key), label(system), metric, c.loss_figure(data.loss(system)), small(row.row.error_abs_mean),
                      milliseconds(middle(time)), gain, f"#{row.number}"])  # fmt: skip
        before = time or before
    unit = data.metric.unit if data.metric else ""
    headers = [t("step_col"), t("configuration"), f"{c.metric_name}{unit}", t("loss_col"),
               t("error_col"), "ms", t("gain_col"), t("row_col")]  # fmt: skip
    return [f"### {t('h_ablation', backend=runtime_title(backend), shape=c.shape())}", "",
            *table(headers, lines, left=2)]  # fmt: skip


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


def rows(data: RunData, t: Texts) -> list[str]:
    """Return one line for each row: number, system, shape, status, the digest of what ran."""
    lines = []
    for row in data.rows:
        digest = row.details.digests.onnx or row.details.digests.source or NOTHING
        system = data.system_named(row.system)
        lines.append([f"#{row.number}", label(system), row.shape, row.row.status, f"`{digest[:16]}`"])
    return table([t("row_col"), t("system_col"), t("shape_col"), t("status_col"), t("digest_col")], lines, left=5)
