"""The page of a search: the verdict, plans predicted and measured, the map of sensitivity, and what each part saves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from calib.bias_correction import in_words
from engine.inspect.expect import Difference
from eval.report.cards import cards
from eval.report.context import Context
from eval.report.document.blocks import Block, Card, Cell, Document, Figure, Prose, Section, Table, cell
from eval.report.document.markdown import to_markdown
from eval.report.document.page import render_page, write_svgs, write_whole
from eval.report.plots import Plot
from eval.report.run_data import label
from eval.report.speeds import mean_speedup, middle, time_at
from eval.report.writing import Texts, count, milliseconds, percent, ratio, small
from eval.search.answer import answer_of, failures, pays
from eval.search.cost import Costs
from eval.search.measure import AS_IT_IS, Measured
from eval.search.plots import draw_all
from eval.search.result import SearchResult
from eval.search.sensitivity import Errors

MARKDOWN, PAGE, PLOTS_FOLDER = "search.md", "search.html", "plots"
MOST_ROWS = 40
SHOWN = 4  # names in a sentence


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
    sections = [_units(result), *([fixes] if (fixes := _fixes(result)).blocks else []),
                *([_costs(result)] if result.costs is not None else [])]  # fmt: skip
    lead: list[Block] = []
    if result.proof is not None:
        lead = [Prose(f"**{answer_of(result)}.**")]
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
    why = "" if is_paying else f"{answer_of(result)}."
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
    failed = tuple(Prose(f"{label(system)}: {reason}", is_note=True) for system, reason in failures(data).items())
    ran = () if result.gate is None else (Prose(_gate(result.gate)),)
    return Section("plans", "Plans, predicted and measured", (
        Table(headers, tuple(rows), marked=frozenset(marked)), *failed, Prose(note, is_note=True), *ran,
        Figure("plans", "Plans: what was predicted (hollow) and measured (filled); crosses are the recipes they are "
               "held against, the grey line joins what nothing measured beats in both")))  # fmt: skip


def _gate(gate: Difference) -> str:
    """Return whether the chosen engine runs as planned, in a sentence or two."""
    if gate.is_met:
        return f"The chosen engine runs as planned: {gate.num_met} layers with a weight in INT8, none else."
    words = [f"The chosen engine runs {gate.num_met} layers with a weight in INT8 as planned"]
    for names, what in ((gate.missing, "planned in INT8 do not run so"), (gate.unplanned, "run in INT8 unplanned"),
                        (gate.unknown, "are planned in INT8 and the runtime does not say what they run in")):
        if names:
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            words.append(f"{len(names)} {what} ({shown})")
    return "; ".join(words) + "."


def _fixes(result: SearchResult) -> Section:
    """Return what each fix brought: to its unit alone, on both halves of the samples, and to the whole."""
    measured, blocks = result.measured, list[Block]()
    if measured.fixes:
        rows = []
        for name, fix in measured.fixes.items():
            before, after = measured.tried[name][AS_IT_IS], measured.tried[name][fix]
            rows.append((Cell(name), Cell(fix), *(cell(small, x) for x in (before[0], after[0], before[1], after[1])),
                         cell(count, len(measured.tried[name]) - 1)))  # fmt: skip
        headers = ("unit", "fix", "error before", "after", "before, other half", "after, other half", "ways tried")
        blocks += [
            Prose(f"Error of each unit alone, by its fix, on two halves of the samples. Together they take the whole "
                  f"from {small(measured.together.output)} to {small(measured.fixed.output)}."),
            Table(headers, tuple(rows)),
        ]  # fmt: skip
    elif ways := max((len(each) - 1 for each in measured.tried.values()), default=0):
        blocks.append(Prose(f"No other way to calibrate ({ways} were tried) helps: on both halves of the samples and "
                            "with those of other units."))  # fmt: skip
    if measured.untried:
        blocks.append(Prose(f"--budget left no time to try: {', '.join(measured.untried)}."))
    if bias := result.bias_correction:
        blocks.append(Prose(f"Bias correction of the chosen plan: {in_words(bias)}."))
    return Section("fixes", "What each fix bought", tuple(blocks))


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
        f"{small(measured.together.output)} on average" + _changed(measured.together)
        + (f", with the fixes below by {small(measured.fixed.output)}{_changed(measured.fixed)}." if measured.fixes
           else ".")
    )  # fmt: skip
    has_answers = any(errors.num_changed for errors in measured.alone.values())  # else a column of zeros
    worst = sorted(measured.units, key=lambda unit: -measured.alone[unit.name].output)
    total = sum(errors.output**2 for errors in measured.alone.values())
    rows = []
    for unit in worst[:MOST_ROWS]:
        alone = measured.alone[unit.name].output
        share = 100 * alone**2 / total if total else None
        rows.append((
            Cell(unit.name), cell(small, alone), Cell("") if share is None else Cell(f"{share:.0f} %", share),
            *([cell(percent, measured.alone[unit.name].changed)] if has_answers else []),
            cell(small, measured.without[unit.name].output), Cell(measured.fixes.get(unit.name, "")),
            cell(milliseconds, costs.saved_by((unit.name,))) if costs else Cell(""),
        ))  # fmt: skip
    headers = ("unit", "error alone", "share of squares", *(["answers it changes, %"] if has_answers else []),
               "error of all others", "fix", "saves, ms")  # fmt: skip
    more = Prose(f"{len(worst) - MOST_ROWS} more units bring less each; all are in search.json.", is_note=True)
    return Section("units", "Where the error comes from", (
        Prose(text), Figure("map", "Mean change of the outputs by each unit alone; darker is more"),
        Table(headers, tuple(rows)), *([more] if len(worst) > MOST_ROWS else [])))  # fmt: skip


def _changed(errors: Errors) -> str:
    if not errors.num_answers:
        return ""
    return f" and change {errors.num_changed} of {errors.num_answers} answers (the place of the largest logit)"


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
                 for saved, part, names in sorted(((costs.saved_by(names), part, names)
                                                   for part, names in parts.items()), reverse=True))  # fmt: skip
    checks = "; ".join(f"{milliseconds(m)} measured, {milliseconds(p)} predicted" for m, p in costs.checks)
    text = (f"Engines of {result.options.backend} at {costs.shape}, timed in turn: the float one takes "
            f"{milliseconds(costs.float_ms)} ms. Two engines that the fit has not seen: {checks}; off by "
            f"{100 * costs.error:.1f} % at most.")  # fmt: skip
    table = Table(("part", "blocks", "saves, ms", "remark"), rows)
    return Section("costs", "What each part saves", (Prose(text), table, *_pairs(costs)))


def _pairs(costs: Costs) -> list[Block]:
    """Return what neighbours save together, in a sentence; nothing where timing tells no pair from its parts."""
    sums: dict[tuple[str, str], float] = {}
    for a, b, ms in costs.pairs:
        pair = costs.part_of[a], costs.part_of[b]
        sums[pair] = sums.get(pair, 0.0) + ms
    if not sums:
        return []
    said = "; ".join(f"{a} and {b} {abs(ms):.3f} ms {'more' if ms > 0 else 'less'}" for (a, b), ms in sums.items())
    return [Prose("Each part saves that where all others are in INT8. Neighbours save more or less together than the "
                  f"sum of what each saves beside a float one: {said}.", is_note=True)]  # fmt: skip


def _remark(costs: Costs, names: list[str], saved: float) -> str:
    """Return what a choice makes of a part that saves nothing."""
    if saved > 0:
        return ""
    return "no sure loss: may come in" if costs.worth[names[0]] > 0 else "slower in INT8: stays float"
