"""One whole search: sensitivity, fixes, costs, the choice, its proof in the runtime, and what is left behind."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eval.report.advice import Advice, advise
from eval.report.run_data import RunData, read_run
from eval.report.speeds import mean_speedup
from eval.search.cost import Costs
from eval.search.measure import Measured, measure_costs, measure_sensitivity
from eval.search.plans import plan_recipe, write_recipe
from eval.search.solve import distinct, fastest_within
from eval.sweep.bench import Bench
from eval.sweep.grid import SweepOptions, System, primary_shape
from eval.sweep.run import run_sweep
from eval.sweep.run_folder import RunFolder
from eval.sweep.store import ArtifactStore
from eval.sweep.workshop import Workshop
from quant.insert import insert_quantizers
from quant.recipe import Recipe, load_recipe

logger = logging.getLogger(__name__)
SHARES = (1.0, 0.85, 0.7, 0.55, 0.4)  # of the error of all units in INT8: where plans are looked for
MOST_PLANS = 5
RESULT, RECIPE_FILE, PLANS, PROOF = "search.json", "RECIPE.yaml", "plans", "proof"
CHECKPOINT, ENGINE = "checkpoint", "engine"


@dataclass(frozen=True)
class SearchOptions:
    """What is asked.

    Attributes:
        sweep: model, data, shapes and backend; its recipes are those that plans are held against, the first of them
            the one whose sites the search chooses from.
        max_loss: of the metric. max_error: mean |output - float output|; None: any.
        with_fixes: whether calibrators are chosen for each unit.
    """

    sweep: SweepOptions
    max_loss: float
    max_error: float | None
    with_fixes: bool = True

    @property
    def backend(self) -> str:
        """The runtime that is searched for."""
        return self.sweep.backends[0]


@dataclass(frozen=True)
class Plan:
    """A set of units in INT8, with what was predicted for it."""

    name: str
    units: frozenset[str]
    error: float
    ms: float
    path: str


@dataclass(frozen=True)
class SearchResult:
    """All that a search found; the page is written from it."""

    options: SearchOptions
    measured: Measured
    costs: Costs | None
    plans: tuple[Plan, ...]
    proof: RunData | None
    chosen: System | None
    advice: Advice | None
    seconds: float

    @property
    def verdict(self) -> str:
        """Whether INT8 pays here, in one sentence."""
        if self.proof is None or self.advice is None:
            return "not asked: only the sensitivity was measured"
        return verdict_of(self)


def run_search(options: SearchOptions, out: str | Path, command: str, budget_s: float | None = None,
               sensitivity_only: bool = False) -> SearchResult:  # fmt: skip
    """Search, and leave RECIPE.yaml, checkpoint, engine, search.json and the proof's run folder in `out`.

    Args:
        budget_s: the proof begins no new shape after so many seconds from the start; all else is measured whole.
    Raises: FileExistsError: `out` holds another search. RuntimeError: in use, or an engine that does not run.
    """
    start = time.monotonic()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with RunFolder(out).locked():
        bench = Bench(Workshop(options.sweep, ArtifactStore(out / "artifacts")), command)
        _claim(options, out, bench, command)
        bench.check_lengths()
        recipe = load_recipe(options.sweep.recipes[0])
        measured = measure_sensitivity(bench.workshop, recipe, with_fixes=options.with_fixes and not sensitivity_only)
        logger.info(
            "%d units; all in INT8 move the outputs by %.4f, with %d other calibrators by %.4f",
            len(measured.units), measured.together.output, len(measured.methods), measured.fixed.output,
        )  # fmt: skip
        result = SearchResult(options, measured, None, (), None, None, None, 0.0)
        if not sensitivity_only:
            result = _choose(result, bench, recipe, out, command, budget_s, start)
        result = replace(result, seconds=time.monotonic() - start)
        _write_json(out / RESULT, summary_of(result))
    return result


def _claim(options: SearchOptions, out: Path, bench: Bench, command: str) -> None:
    """Take the folder for this search. Raises: FileExistsError: another one's."""
    path = out / "search_manifest.json"
    wanted = {"options": {**options.sweep.as_dict(), "max_loss": options.max_loss, "max_error": options.max_error,
                          "with_fixes": options.with_fixes},
              "model_digest": bench.workshop.model_digest, "data_digest": bench.data_digest}  # fmt: skip
    wanted = json.loads(json.dumps(wanted))
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        both = {**found["options"], **{key: found.get(key) for key in ("model_digest", "data_digest")}}
        here = {**wanted["options"], **{key: wanted[key] for key in ("model_digest", "data_digest")}}
        wrong = [f"{key} is {both.get(key)} there, {here.get(key)} here" for key in here if both.get(key) != here[key]]
        if wrong:
            raise FileExistsError(f"{out} holds another search: {'; '.join(wrong[:3])}. Choose another --out")
        return
    if any(each.name not in (".lock", "artifacts") for each in out.iterdir()):
        raise FileExistsError(f"{out} exists and is no run folder of a search; choose another --out")
    _write_json(path, {**wanted, "command": command})


def _choose(result: SearchResult, bench: Bench, recipe: Recipe, out: Path, command: str, budget_s: float | None,
            start: float) -> SearchResult:  # fmt: skip
    options, measured = result.options, result.measured
    sites = insert_quantizers(bench.workshop.fresh_model().model, recipe)
    method = recipe.calibrator.method
    uses_gpu = bench.workshop.backend(options.backend).info.uses_gpu

    def system(path: str) -> System:
        if path:
            return System(method, path, options.backend)
        return System("fp16" if uses_gpu else "fp32", None, options.backend)

    shape = primary_shape(options.sweep)
    costs = measure_costs(bench, recipe, sites, measured.units, system, shape, out / "costs")
    logger.info("float %.3f ms at %s, all in INT8 %.3f; engines that were not fitted are off by %.1f %% at most",
                costs.float_ms, shape.name, costs.time(frozenset(costs.gains)), 100 * costs.error)  # fmt: skip
    plans = []
    (out / PLANS).mkdir(exist_ok=True)
    for number, units in enumerate(plans_for(measured, costs, options.max_error), 1):
        path = out / PLANS / f"plan{number}.yaml"
        planned = plan_recipe(sites, recipe, measured.units, units, measured.methods, path.stem)
        error, ms = measured.prediction.error(units), costs.time(units)
        share = f"{len(units)} of {len(measured.units)} units in INT8"
        write_recipe(planned, path, f"{share}; predicted: error {error:.4f}, {ms:.3f} ms at {shape.name}")
        plans.append(Plan(path.stem, units, error, ms, str(path)))
    left = None if budget_s is None else max(budget_s - (time.monotonic() - start), 1.0)
    floats = ("fp16",) if uses_gpu else ("fp32",)
    proven = replace(options.sweep, methods=(*floats, method),
                     recipes=(*(plan.path for plan in plans), *options.sweep.recipes))  # fmt: skip
    run_sweep(proven, out / PROOF, command, budget_s=left, artifacts=out / "artifacts")
    data = read_run(out / PROOF)
    advice = advise(data, options.max_loss)
    chosen = chosen_of(data, advice, options)
    found = replace(result, costs=costs, plans=tuple(plans), proof=data, chosen=chosen, advice=advice)
    if chosen is not None:
        _deliver(found, bench, out)
    return found


def plans_for(measured: Measured, costs: Costs, max_error: float | None) -> list[frozenset[str]]:
    """Return the plans worth building: the fastest for several budgets of error, the most precise whole model."""
    prediction = measured.prediction
    everything = frozenset(unit.name for unit in measured.units)
    whole = prediction.error(everything)
    errors = [whole * share for share in SHARES]
    if max_error is not None:
        errors = [each for each in errors if each <= max_error] + [max_error, 0.85 * max_error]
    budgets = sorted({prediction.budget(error) for error in errors}, reverse=True)
    squares = prediction.squares
    found = [fastest_within(costs.gains, squares, budget * (1 + 1e-9)) for budget in budgets]
    if max_error is None or whole <= max_error:
        found.insert(1, everything)  # with the chosen calibrators: what a user of the whole recipe would take
    return distinct(found, MOST_PLANS)


def chosen_of(data: RunData, advice: Advice, options: SearchOptions) -> System | None:
    """Return the system to take: as the report advises, but within the error too; None where none keeps both."""

    def keeps(system: System) -> bool:
        row = data.ok(system)
        error = None if row is None else row.row.error_abs_mean
        return options.max_error is None or (error is not None and error <= options.max_error)

    candidates = [each for each in advice.within if keeps(each) and each.recipe is not None]
    if advice.chosen in candidates:
        return advice.chosen
    return candidates[0] if candidates else None


def verdict_of(result: SearchResult) -> str:
    """Return "INT8 pays here: ..." or "INT8 does not pay here, because ..."."""
    data, advice, options = result.proof, result.advice, result.options
    assert data is not None and advice is not None
    metric = data.metric

    def scale(x: float) -> str:
        return f"{x:.4f}" if metric is None else f"{metric.scaled(x):.2f}{metric.unit}"

    if result.chosen is None:
        closest = advice.closest or next(iter(advice.within), None)
        lost = None if closest is None else data.loss(closest)
        near = "" if closest is None or lost is None else f"; the closest, {closest.name}, loses {scale(lost)}"
        limit = "" if options.max_error is None else f" and an error of {options.max_error:g}"
        train = f"python train_qat.py --model {options.sweep.model} --task {options.sweep.task} --out RUN"
        return (f"INT8 does not pay here, because no plan keeps a loss of {scale(options.max_loss)}{limit}{near}. "
                f"Train: {train}")  # fmt: skip
    speed, rival = mean_speedup(data, result.chosen), advice.rival
    over = None if rival is None else mean_speedup(data, rival)
    row = data.ok(result.chosen)
    lost = data.loss(result.chosen)
    facts = f"{result.chosen.name}: loss {scale(lost or 0.0)}"
    if row is not None and row.row.error_abs_mean is not None:
        facts += f", error {row.row.error_abs_mean:.4f}, {row.row.num_flips} changed answers of {row.row.num_samples}"
    if speed is None or over is None or rival is None:
        return f"INT8 keeps the loss here ({facts}); its speed was not measured"
    ratio = speed.value / over.value
    if advice.chosen == result.chosen:
        return f"INT8 pays here: {ratio:.2f} times as fast as {rival.name}, the fastest without INT8 ({facts})"
    return (f"INT8 does not pay here, because the fastest plan within the loss is {ratio:.2f} times as fast as "
            f"{rival.name}, which is no sure gain ({facts})")  # fmt: skip


def _deliver(result: SearchResult, bench: Bench, out: Path) -> None:
    """Put the chosen recipe, its checkpoint and its engine of the primary shape into the folder."""
    system = result.chosen
    assert system is not None and system.recipe is not None
    recipe = bench.workshop.recipe(system)
    write_recipe(recipe, out / RECIPE_FILE, result.verdict)
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
    shutil.copytree(bench.workshop.checkpoint(system), out / CHECKPOINT)
    shape = primary_shape(result.options.sweep)
    engine = bench.workshop.engine(system, shape)
    for part in (engine, *engine.parent.glob(f"{engine.name}.*")):  # its manifest, and what a runtime keeps beside it
        shutil.copy2(part, out / f"{ENGINE}{part.name.removeprefix(engine.name)}")


def summary_of(result: SearchResult) -> dict[str, Any]:
    """Return the result as plain JSON values."""
    measured, costs = result.measured, result.costs
    rows = []
    for unit in measured.units:
        rows.append({"unit": unit.name, "block": unit.block, "part": unit.part, "layers": list(unit.layers),
                     "weights": unit.weights, "alone": measured.alone[unit.name].to_dict(),
                     "without": measured.without[unit.name].to_dict(),
                     "method": measured.methods.get(unit.name), "tried": measured.tried[unit.name],
                     "gain_ms": None if costs is None else costs.gains[unit.name]})  # fmt: skip
    return {
        "options": {**result.options.sweep.as_dict(), "max_loss": result.options.max_loss,
                    "max_error": result.options.max_error},
        "verdict": result.verdict, "seconds": round(result.seconds, 1), "units": rows,
        "together": measured.together.to_dict(), "fixed": measured.fixed.to_dict(),
        "bend": measured.prediction.bend, "num_samples": measured.num_samples,
        "costs": None if costs is None else {**costs.to_dict(), "error": costs.error},
        "plans": [{**asdict(plan), "units": sorted(plan.units)} for plan in result.plans],
        "chosen": None if result.chosen is None else result.chosen.name,
    }  # fmt: skip


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
