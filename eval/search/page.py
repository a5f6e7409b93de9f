"""The page of a search: the verdict, plans predicted and measured, the map of sensitivity, and what each part saves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from eval.report.cards import cards
from eval.report.context import Context
from eval.report.document.blocks import Block, Card, Cell, Document, Figure, Prose, Section, Table, cell
from eval.report.document.markdown import to_markdown
from eval.report.document.page import render_page, write_svgs, write_whole
from eval.report.plots import Plot
from eval.report.run_data import label
from eval.report.speeds import mean_speedup, middle, time_at
from eval.report.writing import Texts, count, milliseconds, ratio, small
from eval.search.cost import Costs
from eval.search.measure import Measured
from eval.search.plots import draw_all
from eval.search.result import SearchResult, pays

MARKDOWN, PAGE, PLOTS_FOLDER = "search.md", "search.html", "plots"
MOST_ROWS = 12


def write_page(result: SearchResult, out: str | Path) -> Path:
    """Write search.md, search.html and plots/ into a search's folder; return the page's path."""
    out = Path(out)
    plots = draw_all(result)
    (out / PLOTS_FOLDER).mkdir(exist_ok=True)
    for name, plot in plots.items():
        write_whole(out / PLOTS_FOLDER / f"{name}.png", plot.png)
    write_svgs(plots["map"], out / PLOTS_FOLDER / "map")  # which a run's report shows too
    text, page = build(result, plots)
    write_whole(out / MARKDOWN, text.encode())
    write_whole(out / PAGE, page.encode())
    return out / PAGE


def build(result: SearchResult, plots: dict[str, Plot]) -> tuple[str, str]:
    """Return the page as Markdown and as HTML."""
    found = document(result)
    return to_markdown(found), render_page(found, plots)


def document(result: SearchResult) -> Document:
    """Return what was found, as a document."""
    options = result.options.sweep
    sections = [_units(result), *([_costs(result)] if result.costs is not None else [])]
    lead: list[Block] = []
    if result.proof is not None:
        lead = [Prose(f"**{result.answer}.**")]
        sections.insert(0, _plans(result))
    title = f"Will INT8 pay: {Path(options.model).name}, {result.options.backend}"
    return Document(title, tuple(lead), tuple(sections), tuple(_cards(result)))


def _cards(result: SearchResult) -> list[Card]:
    """Return the report's three cards, of what the search has chosen."""
    data, advice = result.proof, result.advice
    if data is None or advice is None:
        return []
    is_paying = result.chosen is not None and pays(data, result.chosen, advice)
    advice = replace(advice, chosen=result.chosen if is_paying else None)
    why = "" if is_paying else f"{result.answer}."
    return cards(Context(data, Texts("en"), result.options.max_loss, {}), advice, why)


def _plans(result: SearchResult) -> Section:
    data, plans = result.proof, {plan.path: plan for plan in result.plans}
    assert data is not None
    text, loss_text = (data.metric.text, data.metric.loss_text) if data.metric else (small, small)
    rows: list[tuple[Cell, ...]] = []
    marked = set()
    for system in data.systems:
        row = data.ok(system)
        if row is None:
            continue
        plan, time = plans.get(system.recipe or ""), time_at(data, system)
        is_chosen = system == result.chosen
        if is_chosen:
            marked.add(len(rows))
        rows.append((
            Cell(f"**{label(system)}**" if is_chosen else label(system)),
            Cell(f"{len(plan.units)} of {len(result.measured.units)}", len(plan.units)) if plan else Cell(""),
            cell(text, row.row.metric), cell(loss_text, data.loss(system)), cell(small, row.row.error_abs_mean),
            cell(small, plan.error) if plan else Cell(""), cell(milliseconds, middle(time)),
            cell(milliseconds, plan.ms) if plan else Cell(""), cell(ratio, middle(mean_speedup(data, system))),
        ))  # fmt: skip
    length = f" x {data.primary.sequence_length}" if data.primary.sequence_length else ""
    metric = data.metric.name if data.metric else "metric"
    headers = ("system", "units in INT8", metric, "loss", "mean error", "predicted¹",
               f"ms at {data.primary.batch_size}{length}", "predicted²", "speed-up, all shapes")  # fmt: skip
    note = f"{_of_errors(result)} ² from engines timed before; the machine may have been faster or slower then."
    return Section("plans", "Plans, predicted and measured", (
        Table(headers, tuple(rows), marked=frozenset(marked)), Prose(note, is_note=True),
        Figure("plans", "Plans: what was predicted (hollow) and measured (filled); crosses are the recipes they are "
               "held against")))  # fmt: skip


def _of_errors(result: SearchResult) -> str:
    if result.scale == 1.0:
        return "¹ on the samples below, which are not those that are scored: compare plans with each other."
    return (f"¹ from the samples below, times {result.scale:.2f}: so much more the whole model moved the outputs of "
            "those that are scored, in the runtime.")  # fmt: skip


def _units(result: SearchResult) -> Section:
    measured, costs = result.measured, result.costs
    text = (
        f"Each unit (an activation and the weights of the layers that read it) alone in INT8, on "
        f"{measured.num_samples} samples {_which(measured)}. All together move the outputs by "
        f"{small(measured.together.output)} on average"
        + (f", with the fixes below by {small(measured.fixed.output)}." if measured.fixes else ".")
    )
    worst = sorted(measured.units, key=lambda unit: -measured.alone[unit.name].output)
    total = sum(errors.output**2 for errors in measured.alone.values())
    rows = []
    for unit in worst[:MOST_ROWS]:
        alone = measured.alone[unit.name].output
        share = 100 * alone**2 / total if total else None
        rows.append((
            Cell(unit.name), cell(small, alone), Cell("") if share is None else Cell(f"{share:.0f} %", share),
            cell(small, measured.without[unit.name].output), Cell(measured.fixes.get(unit.name, "")),
            cell(milliseconds, costs.gains[unit.name]) if costs else Cell(""),
        ))  # fmt: skip
    headers = ("unit", "error alone", "share of squares", "error of all others", "fix", "saves, ms")
    more = Prose(f"{len(worst) - MOST_ROWS} more units bring less each; all are in search.json.", is_note=True)
    return Section("units", "Where the error comes from", (
        Prose(text), Figure("map", "Mean change of the outputs by each unit alone; darker is more"),
        Table(headers, tuple(rows)), *([more] if len(worst) > MOST_ROWS else [])))  # fmt: skip


def _which(measured: Measured) -> str:
    if not measured.num_shared:
        return "that did not calibrate"
    return f"of which {measured.num_shared} also calibrated, as there are no others"


def _costs(result: SearchResult) -> Section:
    costs = result.costs
    assert costs is not None
    parts: dict[str, list[str]] = {}
    for unit in result.measured.units:
        parts.setdefault(costs.part_of[unit.name], []).append(unit.name)
    rows = tuple((Cell(part), cell(count, len(names)), Cell(f"{saved:.3f}", saved), Cell(_remark(costs, names, saved)))
                 for saved, part, names in sorted(((sum(costs.gains[name] for name in names), part, names)
                                                   for part, names in parts.items()), reverse=True))  # fmt: skip
    checks = "; ".join(f"{milliseconds(m)} measured, {milliseconds(p)} predicted" for m, p in costs.checks)
    text = (f"Engines of {result.options.backend} at {costs.shape}, timed in turn: the float one takes "
            f"{milliseconds(costs.float_ms)} ms. Two engines that the fit has not seen: {checks}.")  # fmt: skip
    return Section(
        "costs", "What each part saves", (Prose(text), Table(("part", "blocks", "saves, ms", "remark"), rows))
    )


def _remark(costs: Costs, names: list[str], saved: float) -> str:
    """Return what a choice makes of a part that saves nothing."""
    if saved > 0:
        return ""
    return "no sure loss: may come in" if costs.worth[names[0]] > 0 else "slower in INT8: stays float"
