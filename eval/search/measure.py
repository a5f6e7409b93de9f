"""The measured parts of a search: sensitivity, fixes and costs, each kept in the run's store and found after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from calib.apply import apply_statistics
from calib.bias_correction import batch_of
from calib.statistics import Statistics
from engine.gpu import find_gpu
from eval.search.cost import Costs, fit, plans_to_time, sure_pairs
from eval.search.fixes import FIXES, fixable, worth_fixing
from eval.search.plans import plan_recipe, write_recipe
from eval.search.sensitivity import Errors, Prediction, Sensitivity, Unit, measure_units, predict_from
from eval.sweep.bench import Bench
from eval.sweep.grid import Shape, System
from eval.sweep.parallel import Point
from eval.sweep.workshop import STATISTICS_FILE, Workshop
from eval.timing.in_turn import time_systems
from eval.timing.ratios import time_of
from quant.insert import insert_quantizers
from quant.recipe import Recipe
from quant.sites.site import Site

SCHEMA = 4
WORTH = 0.95  # an error with a fix must be so much smaller, on both halves of the samples
AS_IT_IS = "recipe"  # among what was tried: the unit as the recipe calibrates it


@dataclass(frozen=True)
class Measured:
    """What the samples say.

    Attributes:
        alone: unit → its error alone, with the fix chosen for it. without: unit → the model's with it off.
        fixes: unit → its fix, where one is better than the recipe on both halves of the samples.
        tried: unit → fix, or "recipe" → error alone on (first, second half); None where the first was no better.
        together: with all units on, recipe as it is. fixed: with the chosen fixes.
        num_shared: how many of the samples also calibrated, because there are no others.
        untried: the fixes for which --budget left no time.
    """

    units: tuple[Unit, ...]
    alone: dict[str, Errors]
    without: dict[str, Errors]
    fixes: dict[str, str]
    tried: dict[str, dict[str, tuple[float, float | None]]]
    together: Errors
    fixed: Errors
    num_samples: int
    num_shared: int = 0
    untried: tuple[str, ...] = ()

    @property
    def everything(self) -> frozenset[str]:
        """The names of all units."""
        return frozenset(unit.name for unit in self.units)

    @property
    def prediction(self) -> Prediction:
        """Errors of sets of units."""
        return predict_from(self.alone, self.fixed)


def calibrated(workshop: Workshop, recipe: Recipe) -> Any:
    """Return a fresh model with the recipe's quantizers, calibrated from the run's statistics; biases as they were.

    Nor is a rounding learned, also where the recipe asks for it.
    """
    model = workshop.fresh_model().model.to(workshop.options.device)  # type: ignore[arg-type]
    insert_quantizers(model, recipe)
    apply_statistics(model, Statistics.load(workshop.statistics(recipe) / STATISTICS_FILE))
    return model


def measure_sensitivity(workshop: Workshop, recipe: Recipe, *, with_fixes: bool, fixes_s: float | None = None,
                        answers: Collection[str] = ()) -> Measured:  # fmt: skip
    """Return what quantizing each unit does, on samples that did not calibrate, as far as there are others.

    The errors and each fix are artifacts of their own, so that a kill loses at most one of them.

    Args:
        with_fixes: also every fix for every unit that it is worth for.
        answers: outputs of the model that are answers, as `Task.answers` names them.
        fixes_s: so many seconds after the first no further one is begun. What was tried then is what counts, also for
            a later process.
    """
    samples = workshop.draw(workshop.options.seed, after=workshop.options.num_calibration)
    inputs = {"schema": SCHEMA, "model": workshop.model_digest, "recipe": recipe.to_dict(), "samples": samples.digest,
              "calibration": workshop.samples.digest, "seed": workshop.options.seed,
              "answers": list(answers)}  # fmt: skip

    @cache  # which many artifacts ask for, and none where all are stored
    def batch() -> dict[str, Any]:
        found = batch_of(samples, workshop.loaded.model)
        if len(next(iter(found.values()))) < 2:
            raise ValueError("one sample cannot be halved; a search takes at least 2 samples, better 256")
        return found

    values = workshop.store.make_json(
        "sensitivity", inputs, lambda: _sensitivity(workshop, recipe, batch(), answers), "sensitivity of each unit"
    )
    none = {"fixes": {}, "fixed": values["together"]}
    values |= _fixed(workshop, recipe, batch, values, inputs, fixes_s) if with_fixes else none
    return _measured(samples.num_shared_with(workshop.samples), values)


def _sensitivity(workshop: Workshop, recipe: Recipe, batch: dict[str, Any], answers: Collection[str]) -> dict[str, Any]:
    """Return the errors of each unit alone, of all but it and of all, with the recipe as it is."""
    model = calibrated(workshop, recipe)
    halves = [Sensitivity(model, half, answers) for half in _halves(batch)]
    with tqdm(total=2 * (1 + 2 * len(halves[0].units)), desc="sensitivity", unit="unit", disable=None) as bar:
        (first, all_first), (second, all_second) = (measure_units(half, bar.update) for half in halves)
    pairs = {a.unit.name: (a, b) for a, b in zip(first, second, strict=True)}
    return {"units": [asdict(unit) for unit in halves[0].units],
            "alone": _dicts({name: _mean([a.alone, b.alone]) for name, (a, b) in pairs.items()}),
            "without": _dicts({name: _mean([a.without, b.without]) for name, (a, b) in pairs.items()}),
            "tried": {name: {AS_IT_IS: (a.alone.output, b.alone.output)} for name, (a, b) in pairs.items()},
            "together": _mean([all_first, all_second]).to_dict(),
            "num_samples": len(next(iter(batch.values())))}  # fmt: skip


def _fixed(workshop: Workshop, recipe: Recipe, batch: Callable[[], dict[str, Any]], plain: dict[str, Any],
           inputs: dict[str, Any], seconds: float | None) -> dict[str, Any]:  # fmt: skip
    """Return what changes of `_sensitivity`'s values with the fixes, each tried on the units that are worth it."""
    units = _units(plain)
    everything = frozenset(unit.name for unit in units)
    sites = insert_quantizers(workshop.fresh_model().model, recipe)
    worth = worth_fixing({name: errors["output"] ** 2 for name, errors in plain["alone"].items()})
    tried = {name: dict(each) for name, each in plain["tried"].items()}

    def planned(fixes: Mapping[str, str], name: str) -> Recipe:
        return plan_recipe(sites, recipe, units, everything, fixes, f"{recipe.name}_{name}")

    def try_each() -> list[str]:
        """Return the fixes that were begun in time, each tried and stored."""
        begun, start = [], time.monotonic()
        for fix in tqdm(FIXES, desc="fixes", unit="fix", disable=None):
            if seconds is not None and time.monotonic() - start > seconds:
                break
            begun.append(fix)
            try_one(fix)
        return begun

    def try_one(fix: str) -> None:
        of = fixable([unit for unit in units if unit.name in worth], fix, sites, recipe)
        if not of:
            return
        own = {unit.name: tried[unit.name][AS_IT_IS][0] for unit in of}

        def tries() -> dict[str, tuple[float, float | None]]:
            return _try_fix(workshop, planned(dict.fromkeys(own, fix), "tried"), batch, own)

        given = {**inputs, "fix": FIXES[fix], "units": sorted(own), "worth": WORTH}
        for name, pair in workshop.store.make_json("fix", given, tries, f"{fix} for {len(own)} units").items():
            tried[name][fix] = tuple(pair)

    decided = {**inputs, "fixes": FIXES}  # once in a run's folder: other fixes would make other plans
    stored = workshop.store.path_of("fixes_tried", decided).is_dir()
    begun = [] if stored else try_each()
    begun = workshop.store.make_json("fixes_tried", decided, lambda: begun, "which fixes were tried")
    for fix in begun if stored else ():
        try_one(fix)
    untried = [fix for fix in FIXES if fix not in begun]
    fixes = {name: best for name, each in tried.items() if (best := best_of(each)) != AS_IT_IS}
    if not fixes:
        return {"tried": tried, "untried": untried, "fixes": {}, "fixed": plain["together"]}

    def together() -> dict[str, Any]:
        whole = Sensitivity(calibrated(workshop, planned(fixes, "fixed")), batch(), inputs["answers"])
        alone = {unit.name: whole.measure([unit]) for unit in units if unit.name in fixes}
        return {"fixed": whole.measure(whole.units).to_dict(), "alone": _dicts(alone)}

    found = workshop.store.make_json("fixes", {**inputs, "fixes": fixes}, together, "all fixes together")
    if found["fixed"]["output"] >= plain["together"]["output"]:  # each helped alone, together they do not
        return {"tried": tried, "untried": untried, "fixes": {}, "fixed": plain["together"]}
    return {"tried": tried, "untried": untried, "fixes": fixes, "fixed": found["fixed"],
            "alone": plain["alone"] | found["alone"]}  # fmt: skip


def _try_fix(workshop: Workshop, planned: Recipe, batch: Callable[[], dict[str, Any]], own: Mapping[str, float]
             ) -> dict[str, tuple[float, float | None]]:  # fmt: skip
    """Return units → errors alone on (first, second half) as `planned`; on the second only where the first is better.

    Args: own: the errors on the first half with the recipe as it is.
    """
    model, halves = calibrated(workshop, planned), _halves(batch())
    found = Sensitivity(model, halves[0])
    of = [unit for unit in found.units if unit.name in own]
    first = {unit.name: found.measure([unit]).output for unit in of}
    better = [unit for unit in of if first[unit.name] < WORTH * own[unit.name]]
    found = Sensitivity(model, halves[1]) if better else found
    second = {unit.name: found.measure([unit]).output for unit in better}
    return {name: (error, second.get(name)) for name, error in first.items()}


def _halves(batch: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: x[start::2] for name, x in batch.items()} for start in (0, 1)]


def best_of(tried: Mapping[str, tuple[float, float | None]]) -> str:
    """Return the way with the least error on the first half of those that the second half confirms; else `AS_IT_IS`.

    A way that lost on the first half was not tried on the second.
    """
    own = tried[AS_IT_IS]
    for fix in sorted(tried, key=lambda each: tried[each][0]):
        first, second = tried[fix]
        if first < WORTH * own[0] and second is not None and second < WORTH * (own[1] or 0.0):
            return fix
    return AS_IT_IS


def _mean(errors: list[Errors]) -> Errors:
    squares = sum(each.hidden**2 for each in errors) / len(errors)
    return Errors(squares**0.5, sum(each.output for each in errors) / len(errors),
                  sum(each.num_changed for each in errors), sum(each.num_answers for each in errors))  # fmt: skip


def _dicts(errors: Mapping[str, Errors]) -> dict[str, dict[str, float]]:
    return {name: each.to_dict() for name, each in errors.items()}


def _units(values: dict[str, Any]) -> tuple[Unit, ...]:
    return tuple(Unit(**{**each, "sites": tuple(each["sites"]), "layers": tuple(each["layers"])})
                 for each in values["units"])  # fmt: skip


def _measured(num_shared: int, values: dict[str, Any]) -> Measured:
    units = _units(values)
    alone, without = ({name: Errors(**each) for name, each in values[key].items()} for key in ("alone", "without"))
    tried = {name: {m: (x[0], x[1]) for m, x in each.items()} for name, each in values["tried"].items()}
    together, fixed = (Errors(**values[key]) for key in ("together", "fixed"))
    return Measured(units, alone, without, values["fixes"], tried, together, fixed, values["num_samples"], num_shared,
                    tuple(values.get("untried", ())))  # fmt: skip


def measure_costs(
    bench: Bench, recipe: Recipe, sites: list[Site], units: tuple[Unit, ...], system: Callable[[str], System],
    shape: Shape, folder: Path, prepare: Callable[[Sequence[Point]], None] | None = None,
) -> Costs:  # fmt: skip
    """Return what each unit saves in the runtime itself; see `eval.search.cost`.

    Args: system, folder, prepare: of `time_plans`.
    """
    plans, checks = plans_to_time(units, bench.options.seed)
    planned = {name: plan_recipe(sites, recipe, units, plan, {}, f"{recipe.name}_{number:02}")
               for number, (name, plan) in enumerate(plans.items())}  # fmt: skip
    blocks = time_plans(bench, planned, system, shape, folder, prepare)
    times = {name: time_of(each).value for name, each in blocks.items()}
    return fit(units, plans, times, checks, shape.name, sure_pairs(units, blocks))


def time_plans(bench: Bench, plans: Mapping[str, Recipe], system: Callable[[str], System], shape: Shape, folder: Path,
               prepare: Callable[[Sequence[Point]], None] | None = None) -> dict[str, list[float]]:  # fmt: skip
    """Return the milliseconds of each plan's engine, and of "float", in rounds in which all ran in turn.

    Args:
        system: from a recipe's file, the system of the backend that is searched for; from "" the float one.
        folder: for their recipes. prepare: makes what these points need, in several processes; None: one by one.
    Raises: RuntimeError: an engine does not run.
    """
    options = bench.options
    folder.mkdir(parents=True, exist_ok=True)
    systems = {"float": system("")}
    for number, (name, planned) in enumerate(plans.items()):
        path = folder / f"{number:02}.yaml"
        write_recipe(planned.with_options(bias_correction="off", rounding="nearest"),  # which change no time
                     path, f"timed for the costs: {name}")  # fmt: skip
        systems[name] = system(str(path))
    backend = bench.workshop.backend(systems["float"].backend)
    inputs = {"schema": SCHEMA, "model": bench.workshop.model_digest, "shape": shape.name,
              "plans": {name: planned.digest for name, planned in plans.items()}, "backend": backend.name,
              "version": backend.version(), "threads": options.threads, "rounds": options.rounds,
              "device": bench.origin["device"]}  # fmt: skip
    if backend.info.uses_gpu:
        inputs["gpu"] = str(find_gpu())

    def compute() -> dict[str, list[float]]:
        if prepare is not None:
            prepare([(each, shape) for each in systems.values()])
        with ExitStack() as stack:
            runners = {}
            for name, each in tqdm(systems.items(), desc="engines to time", unit="engine", disable=None):
                runners[name] = stack.enter_context(bench.open(each, shape)).runner
            timing = time_systems(runners, bench.feeds(shape), "float", options.rounds, max_rounds=options.max_rounds)
        if timing.errors:
            name, error = next(iter(timing.errors.items()))
            raise RuntimeError(f"the engine '{name}' does not run: {error}")
        return {name: each["block_ms"] for name, each in timing.systems.items()}

    return dict(bench.workshop.store.make_json("costs", inputs, compute, "what each unit saves"))
