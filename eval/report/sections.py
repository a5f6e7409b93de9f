"""The sections of the plain report, in order: summary, where INT8 does not pay, tables, plots, how it was measured."""

from __future__ import annotations

from pathlib import Path

from eval.report import tables
from eval.report.advice import dominated_recipes, has_fp8, never_faster, shapes_without_gain
from eval.report.cards import cards
from eval.report.context import Context
from eval.report.document.blocks import Block, Code, Document, Figure, Items, Prose, Section
from eval.report.run_data import SEARCH, label, runtime_title
from eval.report.speeds import mean_speedup, middle, time_at
from eval.report.summary_section import machine, summary
from eval.report.writing import NOTHING, milliseconds, ratio


def plain_report(c: Context) -> Document:
    """Return the whole report."""
    data = c.data
    title = c.t("title", model=Path(data.options.model).name, task=data.task)
    found = [summary(c), where_not(c), at_primary(c), over_shapes(c), errors(c), sizes(c), under_load(c),
             searched(c), not_measured(c), provenance(c), row_list(c)]  # fmt: skip
    sections = tuple(each for each in found if each is not None)
    return Document(title, tuple(machine(c)), sections, tuple(cards(c)), c.t.lang, c.t("contents"))


def where_not(c: Context) -> Section:
    """Return plainly where INT8 does not pay."""
    data, t, chosen = c.data, c.t, c.advice.chosen
    items = []
    subject = chosen or next(iter(c.advice.within), None) or c.advice.closest
    if subject is not None:
        without = shapes_without_gain(data, subject)
        for shape, rival, word in without:
            own, theirs = time_at(data, subject, shape), time_at(data, rival, shape)
            items.append(t("no_gain_at", shape=c.shape(shape), system=label(subject), verdict=t(word),
                           rival=label(rival), latency=milliseconds(middle(own)),
                           rival_ms=milliseconds(middle(theirs))))  # fmt: skip
        if chosen is not None and not without:
            items.append(t("pays_everywhere"))
    losers = [t("never_faster", system=label(s)) for s in never_faster(data) if s != subject]
    for system, other in dominated_recipes(data):
        key = "alternative" if system == chosen else "dominated"
        mean = mean_speedup(data, other)
        losers.append(t(key, system=label(system), other=label(other), mean=ratio(middle(mean))))
    items += losers or ([t("nothing_lost")] if chosen is not None else [])
    if has_fp8(data.rows[0].row.device):
        items.append(t("fp8"))
    return Section("where-not", t("where_not"), (Items(tuple(map(Prose, items))),) if items else ())


def figure(c: Context, name: str, key: str, leads: bool = False, **values: str | int) -> list[Block]:
    """Return a plot with its caption; nothing where there was nothing to draw."""
    return [Figure(name, c.t(key, **values), leads)] if name in c.plots else []


def at_primary(c: Context) -> Section:
    """Return all systems at the primary shape: table and Pareto plot."""
    shape = c.shape()
    return Section("configurations", c.t("candidates", shape=shape), (
        *figure(c, "pareto", "plot_pareto", leads=True, shape=shape), tables.candidates(c),
        Prose(c.t("ties_note"), is_note=True)))  # fmt: skip


def over_shapes(c: Context) -> Section:
    """Return speed-up over batch size and length."""
    data, base = c.data, label(c.data.baseline)
    length = data.primary.sequence_length
    return Section("speed-up", c.t("speedups", baseline=base), (
        *figure(c, "batch", "plot_batch", baseline=base, length=f" ({length} tokens)" if length else ""),
        *figure(c, "length", "plot_length", baseline=base, batch=data.primary.batch_size),
        tables.speedups(data, c.t), Prose(c.t("speedups_note"), is_note=True)))  # fmt: skip


def errors(c: Context) -> Section:
    """Return errors of outputs, by layer and by site."""
    row = next((row.row for row in c.data.rows if row.row.num_samples), None)
    data_name = Path(c.data.options.data or c.data.options.samples).name
    note = c.t("errors_note", num_samples=row.num_samples if row else 0, data=data_name)
    return Section("errors", c.t("errors"), (
        tables.errors(c.data, c.t), Prose(note, is_note=True), *tables.accuracy_by_length(c),
        *figure(c, "layers", "plot_layers"), *figure(c, "sites", "plot_sites")), is_folded=True)  # fmt: skip


def sizes(c: Context) -> Section | None:
    """Return sizes and what runs in INT8; None where neither is known."""
    found = (*tables.products(c.data, c.t), *figure(c, "size", "plot_size"))
    return Section("products", c.t("products"), found, is_folded=True) if found else None


def under_load(c: Context) -> Section | None:
    """Return throughput under load, if it was measured."""
    found = tables.load(c.data, c.t)
    if not found:
        return None
    measured = c.data.load["points"][0]["shape"] if c.data.load["points"] else None
    shape = next((shape for shape in c.data.shapes if shape.name == measured), None)
    note = c.t("load_note", shape=c.shape(shape) if shape else NOTHING)
    return Section("load", c.t("load"), (Prose(note), *figure(c, "load", "plot_load"), *found))


def searched(c: Context) -> Section | None:
    """Return the answer and the map of a search that stands in the run's folder; None where there is none."""
    found, page = c.data.search, f"{SEARCH}/search.html"
    if not found:
        return None
    words = [f"**{found['verdict']}.**"] if found["plans"] else []  # else only the sensitivity was asked for
    words += [c.t("searched_more", page=page)] if (c.data.run.path / page).is_file() else []
    shown = figure(c, "search", "plot_search", num_samples=found["num_samples"])
    title = c.t("searched", runtime=runtime_title(found["options"]["backends"][0]))
    return Section("search", title, (*([Prose(" ".join(words))] if words else []), *shown))


def not_measured(c: Context) -> Section:
    """Return failed and skipped points."""
    return Section("not-measured", c.t("not_measured"), tuple(tables.not_measured(c.data, c.t)), is_folded=True)


def provenance(c: Context) -> Section:
    """Return hardware, software, data, protocol and command."""
    data, t, options = c.data, c.t, c.data.options
    first, base = data.rows[0].row, data.timed(data.baseline)
    versions = ", ".join(f"{name} {version}" for name, version in sorted((first.versions or {}).items()))
    parameters = data.analysis.get("model", {}).get("num_parameters")
    measured = next((row.row.num_samples for row in data.rows if row.row.num_samples), 0)
    items = [
        t("hardware", device=first.device or NOTHING, threads=options.threads),
        t("software", versions=versions, commit=(first.commit or NOTHING)[:12],
          dirty=t("dirty") if first.dirty else ""),
        t("weights_real", model=Path(options.model).name, num_samples=measured, split=options.split,
          parameters=f"{parameters:,}" if parameters else NOTHING, seed=options.seed,
          data=Path(options.data or options.samples).name, samples=Path(options.samples).name,
          num_calibration=options.num_calibration),
        t("protocol", rounds=_rounds(c), baseline=label(data.baseline), shape=c.shape(),
          session=base.details.session or label(data.baseline) if base else NOTHING),
        *([t("plots_language")] if t("plots_language") else []),
    ]  # fmt: skip
    return Section("provenance", t("provenance"), (
        Items(tuple(map(Prose, items))), Prose(t("command")), Code(data.manifest["command"], "bash"),
        *figure(c, "timeline", "plot_timeline")), is_folded=True)  # fmt: skip


def _rounds(c: Context) -> str:
    """Return how many rounds the shapes had, e.g. "8" or "8 to 40"."""
    counts = sorted({len(row.details.block_ms) for row in c.data.rows if row.row.latency_ms_p50 is not None})
    return " - ".join(dict.fromkeys(str(n) for n in (counts[0], counts[-1]))) if counts else NOTHING


def row_list(c: Context) -> Section:
    """Return the list of rows that the figures name."""
    note = Prose(c.t("rows_note", run=c.data.run.path.name))
    return Section("rows", c.t("rows_title"), (note, tables.rows(c.data, c.t)), is_folded=True)
