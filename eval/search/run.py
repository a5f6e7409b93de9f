"""One whole search: sensitivity, fixes, costs, the choice, its proof in the runtime, and what is left behind."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from eval.report.advice import advise
from eval.report.run_data import read_run
from eval.results import ResultRow, package_versions
from eval.search.answer import chosen_of
from eval.search.cost import Costs
from eval.search.deliver import PLANS, deliver
from eval.search.measure import Measured, measure_costs, measure_sensitivity
from eval.search.plans import plan_recipe, write_recipe
from eval.search.result import Plan, SearchOptions, SearchResult
from eval.search.saved import RESULT, summary_of
from eval.search.solve import distinct, fastest_within
from eval.search.spent import put_down, take_up
from eval.sweep.bench import Bench
from eval.sweep.grid import Shape, SweepOptions, System, primary_shape, usual_of
from eval.sweep.parallel import Point, prepare_in_parallel
from eval.sweep.run import SweepResult, run_sweep
from eval.sweep.run_folder import RunFolder, differences, machine_of, recipe_digests
from eval.sweep.store import ArtifactStore
from eval.sweep.workshop import Workshop
from quant.insert import insert_quantizers
from quant.models.encoder_decoder import is_encoder_decoder
from quant.recipe import Recipe, load_recipe

logger = logging.getLogger(__name__)
SHARES = (1.0, 0.85, 0.7, 0.55, 0.4)  # of the error of all units in INT8: where plans are looked for
FINER = (0.28, 0.2, 0.14, 0.1, 0.05)  # where the last of those still loses too much
MOST_PLANS = 5
FIXES_SHARE = 0.25  # of --budget: what trying fixes may take
WHOLE = "whole"  # the plan of all units
MANIFEST, PROOF = "search_manifest.json", "proof"


def run_search(options: SearchOptions, out: str | Path, command: str, budget_s: float | None = None,
               sensitivity_only: bool = False, num_processes: int = 1, ray: str | None = None
               ) -> SearchResult:  # fmt: skip
    """Search, and leave RECIPE.yaml, checkpoint, engine, search.json and the proof's run folder in `out`.

    Args:
        budget_s: fixes are tried for a quarter of so many seconds, and the proof begins no new shape so many seconds
            after this process's start; all else is measured whole.
        num_processes: prepare the engines in so many processes.
        ray: prepare them on the Ray cluster at this address.
    Raises: FileExistsError: `out` holds another search. RuntimeError: in use, or an engine that does not run.
    """
    start = time.monotonic()
    out = Path(out).resolve()  # plans are named by their files
    workshop = Workshop(options.sweep, ArtifactStore(out / "artifacts"))
    backend = workshop.backend(options.backend)
    if reason := backend.check_build() or backend.check_run():
        raise RuntimeError(f"backend {options.backend} cannot be searched for here: {reason}")
    out.mkdir(parents=True, exist_ok=True)
    with RunFolder(out).locked():
        bench = Bench(workshop, command)
        _claim(options, out, bench, command, sensitivity_only)
        spent = take_up(RunFolder(out), PROOF)
        bench.check_lengths()
        if is_encoder_decoder(bench.workshop.loaded.model):
            raise ValueError(f"{options.sweep.model} is an encoder-decoder, exported as two files, and a search takes "
                             "one model; sweep its recipes instead")  # fmt: skip
        recipe = load_recipe(options.sweep.recipes[0])
        measured = measure_sensitivity(bench.workshop, recipe, with_fixes=options.with_fixes and not sensitivity_only,
                                       fixes_s=None if budget_s is None else FIXES_SHARE * budget_s,
                                       answers=bench.task.answers)  # fmt: skip
        logger.info(
            "%d units; all in INT8 move the outputs by %.4f, with %d fixes by %.4f",
            len(measured.units), measured.together.output, len(measured.fixes), measured.fixed.output,
        )  # fmt: skip
        result = SearchResult(options, measured, None, (), None, None, None, 0.0)
        if not sensitivity_only:
            left = None if budget_s is None else start + budget_s

            def prove(plans: SweepOptions) -> SweepResult:
                rest = None if left is None else max(left - time.monotonic(), 1.0)
                return run_sweep(plans, out / PROOF, command, budget_s=rest, num_processes=num_processes, ray=ray,
                                 artifacts=out / "artifacts")  # fmt: skip

            def prepare(points: Sequence[Point]) -> None:
                prepare_in_parallel(RunFolder(out), options.sweep, command, points, num_processes, ray,
                                    with_scores=False)  # fmt: skip

            is_parallel = num_processes > 1 or ray is not None
            result = _choose(result, bench, recipe, out, prove, prepare if is_parallel else None)
        result = replace(result, seconds=spent + time.monotonic() - start)
        put_down(RunFolder(out), result.seconds)
        RunFolder(out).write_json(RESULT, summary_of(result))
    return result


def _claim(options: SearchOptions, out: Path, bench: Bench, command: str, sensitivity_only: bool) -> None:
    """Take the folder for this search. Raises: FileExistsError: another one's."""
    run = RunFolder(out)
    wanted = {**options.sweep.as_dict(), "max_loss": options.max_loss, "max_error": options.max_error,
              "with_fixes": options.with_fixes,
              "recipe_contents": {each: load_recipe(each).digest for each in options.sweep.recipes},
              "model_digest": bench.workshop.model_digest, "data_digest": bench.data_digest,
              "samples_digest": bench.workshop.samples.digest, "versions": package_versions(),
              **bench.task_digest, **machine_of(options.sweep)}  # fmt: skip
    if (found := run.read_json(MANIFEST)) is not None:
        if wrong := list(differences(wanted, {key: found.get(key) for key in wanted})):
            raise FileExistsError(f"{out} holds another search: {'; '.join(wrong[:3])}. Choose another --out")
        if sensitivity_only and (run.read_json(RESULT) or {}).get("plans"):
            raise FileExistsError(f"{out} holds a whole search, whose {RESULT} has the sensitivity too")
        return
    if any(each.name not in (".lock", "artifacts") for each in out.iterdir()):
        raise FileExistsError(f"{out} exists and is no run folder of a search; choose another --out")
    run.write_json(MANIFEST, {**wanted, "command": command})


def _choose(result: SearchResult, bench: Bench, recipe: Recipe, out: Path,
            prove: Callable[[SweepOptions], SweepResult], prepare: Callable[[Sequence[Point]], None] | None
            ) -> SearchResult:  # fmt: skip
    options, measured = result.options, result.measured
    sites = insert_quantizers(bench.workshop.fresh_model().model, recipe)
    method = recipe.calibrator.method
    floats = usual_of((options.backend,)).floats

    def system(path: str) -> System:
        return System(method, path, options.backend) if path else System(floats[0], None, options.backend)

    shape = primary_shape(options.sweep)
    costs = measure_costs(bench, recipe, sites, measured.units, system, shape, out / "costs", prepare)
    logger.info("float %.3f ms at %s, all in INT8 %.3f; engines that were not fitted are off by %.1f %% at most",
                costs.float_ms, shape.name, costs.time(measured.everything), 100 * costs.error)  # fmt: skip
    (out / PLANS).mkdir(exist_ok=True)

    def write(name: str, units: frozenset[str], said: str) -> str:
        path = out / PLANS / f"{name}.yaml"
        planned = plan_recipe(sites, recipe, measured.units, units, measured.fixes, name)
        write_recipe(planned, path, f"{len(units)} of {len(measured.units)} units in INT8; {said}")
        return str(path)

    whole = write(WHOLE, measured.everything, "all that the recipe quantizes, with the fixes")
    scale = scale_of(bench, measured, system(whole), shape)
    logger.info("the whole model moves the outputs of what is scored %.2f times as much as the search's samples", scale)

    def planned(units: frozenset[str], number: int) -> Plan:
        error, ms = scale * measured.prediction.error(units), costs.time(units)
        path = whole if units == measured.everything else write(
            f"plan{number}", units, f"predicted: error {error:.4f}, {ms:.3f} ms at {shape.name}")  # fmt: skip
        return Plan(Path(path).stem, units, error, ms, path)

    sets = plans_for(measured, costs, options.max_error, scale)
    plans = [planned(units, number) for number, units in enumerate(sets, 1)]
    finer = finer_than(sets, measured, costs) if plans else []
    base = scored(bench, system(""), shape) if finer else None
    for units in finer:
        lost = loss_over(base, scored(bench, system(plans[-1].path), shape))
        if lost is None or lost <= options.max_loss:
            break
        logger.info("%s loses %.4f, more than %g: a plan of %d units",
                    plans[-1].name, lost, options.max_loss, len(units))  # fmt: skip
        plans.append(planned(units, len(plans) + 1))
    plans = [*plans[:1], *plans[1:][1 - MOST_PLANS :]]
    proven = replace(options.sweep, methods=(*floats, method),
                     recipes=(*(plan.path for plan in plans), *options.sweep.recipes))  # fmt: skip
    _drop_other_proof(out / PROOF, proven)
    swept = prove(proven)
    data = read_run(out / PROOF)
    advice = advise(data, options.max_loss)
    chosen = chosen_of(data, advice, options)
    found = replace(result, costs=costs, plans=tuple(plans), proof=data, chosen=chosen, advice=advice,
                    num_left=swept.num_left, scale=scale)  # fmt: skip
    return deliver(found, bench, out)


def _drop_other_proof(folder: Path, wanted: SweepOptions) -> None:
    """Remove the proof of other plans (costs measured anew may lead to others); what it made stays in the store."""
    run = RunFolder(folder)
    try:
        is_same = run.options() == wanted and run.manifest().get("recipes", {}) == recipe_digests(wanted.recipes)
    except FileNotFoundError:
        return
    if not is_same:
        shutil.rmtree(folder)


def scored(bench: Bench, system: System, shape: Shape) -> ResultRow:
    """Return the row of a system at a shape without its latency; the proof, which scores the same engines, finds it."""
    with bench.open(system, shape) as opened:
        return bench.score(opened, shape)


def scale_of(bench: Bench, measured: Measured, whole: System, shape: Shape) -> float:
    """Return by how much more the whole model moves the outputs of the samples that are scored than of the search's.

    It is measured in the runtime, with bias correction, and holds for plans too: MiniLM's five, searched on phrases of
    SST-2's train split and scored on its sentences, were measured at 1.8 to 2.1 times their predictions. The proof
    scores the same engine, so it costs nothing where that is one of the plans.
    """
    error = scored(bench, whole, shape).error_abs_mean
    predicted = measured.fixed.output
    return error / predicted if error and predicted else 1.0


def loss_over(base: ResultRow | None, row: ResultRow) -> float | None:
    """Return what a row loses of the metric against the float engine's; None where the task has no metric."""
    if base is None or base.metric is None or row.metric is None or row.metric_type is None:
        return None
    return row.metric_type.loss(row.metric, base.metric)


def finer_than(sets: Sequence[frozenset[str]], measured: Measured, costs: Costs) -> list[frozenset[str]]:
    """Return smaller and smaller plans, for where the smallest of the usual ones still loses too much."""
    prediction = measured.prediction
    whole, most = prediction.error(measured.everything), prediction.error(sets[-1])
    budgets = [prediction.budget(whole * share) for share in FINER if whole * share < most]
    found = [fastest_within(costs.worth, prediction.squares, budget * (1 + 1e-9), costs.pairs) for budget in budgets]
    return distinct([units for units in found if units not in sets], len(FINER))


def plans_for(measured: Measured, costs: Costs, max_error: float | None, scale: float) -> list[frozenset[str]]:
    """Return the plans worth building: the fastest for several budgets of error, the most precise whole model.

    Args: max_error: on the samples that are scored. scale: errors there over errors on the search's samples.
    """
    max_error = None if max_error is None else max_error / scale
    prediction = measured.prediction
    whole = prediction.error(measured.everything)
    errors = [whole * share for share in SHARES]
    if max_error is not None:
        errors = [each for each in errors if each <= max_error] + [max_error, 0.85 * max_error]
    budgets = sorted({prediction.budget(error) for error in errors}, reverse=True)
    squares = prediction.squares
    found = [fastest_within(costs.worth, squares, budget * (1 + 1e-9), costs.pairs) for budget in budgets]
    if max_error is None or whole <= max_error:
        found.insert(1, measured.everything)  # with the chosen fixes: what a user of the whole recipe would take
    return distinct(found, MOST_PLANS)
