"""The sections of the plain report, in order: summary, where INT8 does not pay, tables, plots, how it was measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from eval.report import tables
from eval.report.advice import Advice, advise, dominated_recipes, has_fp8, never_faster, shapes_without_gain, verdict
from eval.report.plots import Plot
from eval.report.run_data import RunData, label
from eval.report.writing import NOTHING, Texts, megabytes, milliseconds, percent, points, ratio, small
from eval.sweep.grid import PYTORCH, Shape, System
from eval.sweep.run_folder import SweepRow

MAX_SPREAD = 0.25  # of a quiet machine's median it is 2 to 10 %


@dataclass(frozen=True)
class Context:
    """What every section gets.

    Attributes:
        plots: name -> drawn plot; a plot there is no data for is absent.
        notes: what a person wrote in notes.yaml.
    """

    data: RunData
    t: Texts
    max_loss: float
    plots: dict[str, Plot]
    notes: dict[str, object] = field(default_factory=dict)

    def shape(self, shape: Shape | None = None) -> str:
        """Return a shape (the primary one) in words."""
        shape = shape or self.data.primary
        if shape.sequence_length is None:
            return self.t("shape_image", batch=shape.batch_size)
        return self.t("shape_text", batch=shape.batch_size, length=shape.sequence_length)

    @property
    def advice(self) -> Advice:
        return advise(self.data, self.max_loss)


def plain_report(c: Context) -> list[str]:
    """Return the whole report as lines of Markdown."""
    data = c.data
    title = c.t("title", model=Path(data.options.model).name, task=data.options.task)
    return [
        f"# {title}", "", *summary(c), *where_not(c), *at_primary(c), *over_shapes(c), *errors(c), *sizes(c),
        *under_load(c), *not_measured(c), *provenance(c), *row_list(c),
    ]  # fmt: skip


def summary(c: Context) -> list[str]:
    """Return what a manager reads."""
    data, t, advice = c.data, c.t, c.advice
    lines = [f"## {t('summary')}", ""]
    metric = next((row.row.metric_name for row in data.rows if row.row.metric_name), "metric")
    if not data.int8_systems:
        lines.append(t("not_measured_int8"))
    elif advice.chosen is None and advice.closest is not None:
        lines.append(t("too_lossy", max_loss=points(c.max_loss), metric=metric, system=label(advice.closest),
                       loss=points(data.loss(advice.closest))))  # fmt: skip
    elif advice.chosen is None:
        lines += _stay_with_float(c, advice, metric)
    else:
        lines += _recommendation(c, advice.chosen, metric)
    lines += ["", *_coverage(c), ""]
    spread, shape = max(((_spread(row), shape) for shape in data.shapes if (row := data.timed(data.baseline, shape))),
                        key=lambda each: each[0], default=(0.0, data.primary))  # fmt: skip
    if spread > MAX_SPREAD:
        lines += [t("noisy", baseline=label(data.baseline), shape=c.shape(shape), spread=f"{100 * spread:.0f}"), ""]
    return lines


def _spread(row: SweepRow) -> float:
    """Return the width of the latency's 95 % interval as a share of the latency."""
    return (row.details["latency_ms_high"] - row.details["latency_ms_low"]) / (row.row.latency_ms_p50 or 1.0)


def _recommendation(c: Context, chosen: System, metric: str) -> list[str]:
    data, t = c.data, c.t
    row, base = data.timed(chosen), data.timed(data.baseline)
    assert row is not None
    d = row.details
    base_ms = base.row.latency_ms_p50 if base else (row.row.latency_ms_p50 or 0) * d["speedup"]
    lines = [t("recommended", system=label(chosen), shape=c.shape(), baseline=label(data.baseline),
               latency=milliseconds(row.row.latency_ms_p50), baseline_ms=milliseconds(base_ms),
               speedup=ratio(d["speedup"]), low=ratio(d["speedup_low"]), high=ratio(d["speedup_high"]),
               num_shapes=len(data.shapes), mean=ratio(data.mean_speedup(chosen)))]  # fmt: skip
    lines = [f"{lines[0]} (#{row.number})", ""]
    size_ratio = ""
    if base is not None and base.row.size_bytes and row.row.size_bytes:
        size_ratio = f" ({row.row.size_bytes / base.row.size_bytes:.2f} x)"
    lines.append(t("cost", loss=points(data.loss(chosen)), metric=metric, value=percent(row.row.metric),
                   float=percent(data.float_metric), num_samples=row.row.num_samples, low=percent(row.row.metric_low),
                   high=percent(row.row.metric_high), error=small(row.row.error_abs_mean), ratio=size_ratio,
                   flips=NOTHING if row.row.num_flips is None else row.row.num_flips,
                   size=megabytes(row.row.size_bytes)))  # fmt: skip
    low, high = row.row.metric_low, row.row.metric_high
    if low is not None and high is not None and data.float_metric is not None and low <= data.float_metric <= high:
        lines[-1] += " " + t("cost_noise")
    own = data.timed(System("fp32", None, chosen.backend))
    if own is not None and chosen.backend != PYTORCH:
        gain = own.row.latency_ms_p50 / row.row.latency_ms_p50  # type: ignore[operator]
        lines[-1] += " " + t("same_runtime", ratio=ratio(gain))
    return lines


def _stay_with_float(c: Context, advice: Advice, metric: str) -> list[str]:
    """Return that INT8 does not pay, and by how much float is ahead of the best of it."""
    data, t, rival = c.data, c.t, advice.rival or c.data.baseline
    lines = [t("no_gain", max_loss=points(c.max_loss), metric=metric, rival=label(rival))]
    row, own = data.timed(advice.within[0]), data.timed(rival)
    if row is not None and own is not None:
        ahead = (data.mean_speedup(rival) or 1.0) / (data.mean_speedup(advice.within[0]) or 1.0)
        lines.append(t("float_ahead", rival=label(rival), system=label(advice.within[0]), shape=c.shape(),
                       rival_ms=milliseconds(own.row.latency_ms_p50), latency=milliseconds(row.row.latency_ms_p50),
                       mean=ratio(ahead), num_shapes=len(data.shapes)))  # fmt: skip
        lines.append(f"(#{own.number}, #{row.number})")
    return [" ".join(lines)]


def _coverage(c: Context) -> list[str]:
    counts = Counter(row.row.status for row in c.data.rows)
    total = len(c.data.systems) * len(c.data.shapes)
    return [c.t("coverage", ok=counts["ok"], failed=counts["failed"], skipped=counts["skipped"], total=total,
                left=total - len(c.data.rows))]  # fmt: skip


def where_not(c: Context) -> list[str]:
    """Return plainly where INT8 does not pay."""
    data, t, chosen = c.data, c.t, c.advice.chosen
    lines = [f"## {t('where_not')}", ""]
    subject = chosen or next(iter(c.advice.within), None) or c.advice.closest
    if subject is not None:
        without = shapes_without_gain(data, subject)
        for shape, row, rival in without:
            lines.append("- " + t("no_gain_at", shape=c.shape(shape), system=label(subject),
                                  verdict=t(verdict(row, rival)), rival=label(data.system_named(rival.system)),
                                  latency=milliseconds(row.row.latency_ms_p50),
                                  rival_ms=milliseconds(rival.row.latency_ms_p50)))  # fmt: skip
        if chosen is not None and not without:
            lines.append("- " + t("pays_everywhere"))
    losers = [f"- {t('never_faster', system=label(s))}" for s in never_faster(data) if s != subject]
    for system, other in dominated_recipes(data):
        key = "alternative" if system == chosen else "dominated"  # the chosen one is ahead over all shapes together
        losers.append("- " + t(key, system=label(system), other=label(other), mean=ratio(data.mean_speedup(other))))
    lines += losers or ([f"- {t('nothing_lost')}"] if chosen is not None else [])
    if has_fp8(data.rows[0].row.device):
        lines.append(f"- {t('fp8')}")
    return [*lines, ""]


def figure(c: Context, name: str, key: str, **values: str | int) -> list[str]:
    """Return a plot with its caption; nothing where there was nothing to draw."""
    if name not in c.plots:
        return []
    return [f"![{c.t(key, **values)}](plots/{name}.png)", ""]


def at_primary(c: Context) -> list[str]:
    """Return all systems at the primary shape: table and Pareto plot."""
    shape = c.shape()
    return [f"## {c.t('candidates', shape=shape)}", "", *figure(c, "pareto", "plot_pareto", shape=shape),
            *tables.candidates(c.data, c.t), c.t("ties_note"), ""]  # fmt: skip


def over_shapes(c: Context) -> list[str]:
    """Return speed-up over batch size and length."""
    data, base = c.data, label(c.data.baseline)
    length = data.primary.sequence_length
    return [
        f"## {c.t('speedups', baseline=base)}", "",
        *figure(c, "batch", "plot_batch", baseline=base, length=f" ({length} tokens)" if length else ""),
        *figure(c, "length", "plot_length", baseline=base, batch=data.primary.batch_size),
        *tables.speedups(data, c.t), c.t("speedups_note"), "",
    ]  # fmt: skip


def errors(c: Context) -> list[str]:
    """Return errors of outputs, by layer and by site."""
    row = next((row.row for row in c.data.rows if row.row.num_samples), None)
    data_name = Path(c.data.options.data or c.data.options.samples).name
    return [
        f"## {c.t('errors')}", "", *tables.errors(c.data, c.t),
        c.t("errors_note", num_samples=row.num_samples if row else 0, data=data_name), "",
        *tables.accuracy_by_length(c.data, c.t), *figure(c, "layers", "plot_layers"), *figure(c, "sites", "plot_sites"),
    ]  # fmt: skip


def sizes(c: Context) -> list[str]:
    """Return sizes and what runs in INT8."""
    found = tables.products(c.data, c.t)
    text = [f"## {c.t('products')}", "", *found] if found else []
    return [*text, *figure(c, "size", "plot_size")]


def under_load(c: Context) -> list[str]:
    """Return throughput under load, if it was measured."""
    found = tables.load(c.data, c.t)
    if not found:
        return []
    measured = c.data.load["points"][0]["shape"] if c.data.load["points"] else None
    shape = next((shape for shape in c.data.shapes if shape.name == measured), None)
    note = c.t("load_note", shape=c.shape(shape) if shape else NOTHING)
    return [f"## {c.t('load')}", "", note, "", *figure(c, "load", "plot_load"), *found]


def not_measured(c: Context) -> list[str]:
    """Return failed and skipped points."""
    return [f"## {c.t('not_measured')}", "", *tables.not_measured(c.data, c.t)]


def provenance(c: Context) -> list[str]:
    """Return hardware, software, data, protocol and command."""
    data, t, options = c.data, c.t, c.data.options
    first, base = data.rows[0].row, data.timed(data.baseline)
    versions = ", ".join(f"{name} {version}" for name, version in sorted((first.versions or {}).items()))
    parameters = data.analysis.get("model", {}).get("num_parameters")
    measured = next((row.row.num_samples for row in data.rows if row.row.num_samples), 0)
    return [
        f"## {t('provenance')}", "",
        "- " + t("hardware", device=first.device or NOTHING, threads=options.threads),
        "- " + t("software", versions=versions, commit=(first.commit or NOTHING)[:12],
                 dirty=t("dirty") if first.dirty else ""),
        "- " + t("weights_real", model=Path(options.model).name, num_samples=measured, split=options.split,
                 parameters=f"{parameters:,}" if parameters else NOTHING, seed=options.seed,
                 data=Path(options.data or options.samples).name, samples=Path(options.samples).name,
                 num_calibration=options.num_calibration),
        "- " + t("protocol", rounds=options.rounds, baseline=label(data.baseline), shape=c.shape(),
                 session=base.details.get("session", label(data.baseline)) if base else NOTHING),
        *([f"- {t('plots_language')}"] if t("plots_language") else []),
        "", t("command"), "", "```bash", data.manifest["command"], "```", "", *figure(c, "timeline", "plot_timeline"),
    ]  # fmt: skip


def row_list(c: Context) -> list[str]:
    """Return the list of rows that the figures name."""
    run = c.data.run.path.name
    return [f"## {c.t('rows_title')}", "", c.t("rows_note", run=run), "", *tables.rows(c.data, c.t)]
