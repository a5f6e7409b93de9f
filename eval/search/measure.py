"""The measured parts of a search: sensitivity, fixes and costs, each kept in the run's store and found after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from calib.apply import apply_statistics
from calib.bias_correction import batch_of
from calib.statistics import Statistics
from engine.gpu import find_gpu
from eval.search.cost import Costs, costs_from_dict, fit, plans_to_time
from eval.search.fixes import FIXES, MOST, fixable, worth_fixing
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
from quant.sites.site import Site, quantization_of

SCHEMA = 2
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

    @property
    def everything(self) -> frozenset[str]:
        """The names of all units."""
        return frozenset(unit.name for unit in self.units)

    @property
    def prediction(self) -> Prediction:
        """Errors of sets of units."""
        return predict_from(self.alone, self.fixed)


def calibrated(workshop: Workshop, recipe: Recipe) -> Any:
    """Return a fresh model with the recipe's quantizers, calibrated from the run's statistics; biases as they were."""
    model = workshop.fresh_model().model.to(workshop.options.device)  # type: ignore[arg-type]
    insert_quantizers(model, recipe)
    apply_statistics(model, Statistics.load(workshop.statistics(recipe) / STATISTICS_FILE))
    return model


def measure_sensitivity(workshop: Workshop, recipe: Recipe, *, with_fixes: bool) -> Measured:
    """Return what quantizing each unit does, on samples that did not calibrate, as far as there are others.

    Args: with_fixes: also every fix for every unit that it is worth for.
    """
    samples = workshop.draw(workshop.options.seed, after=workshop.options.num_calibration)
    inputs = {"schema": SCHEMA, "model": workshop.model_digest, "recipe": recipe.to_dict(), "samples": samples.digest,
              "calibration": workshop.samples.digest, "seed": workshop.options.seed,
              "fixes": {"all": FIXES, "units": MOST, "worth": WORTH} if with_fixes else {}}  # fmt: skip

    def compute() -> dict[str, Any]:
        return _sensitivity(workshop, recipe, batch_of(samples, workshop.loaded.model), with_fixes)

    num_shared = samples.num_shared_with(workshop.samples)
    return _measured(num_shared, workshop.store.make_json("sensitivity", inputs, compute, "sensitivity of each unit"))


def _sensitivity(workshop: Workshop, recipe: Recipe, batch: dict[str, Any], with_fixes: bool) -> dict[str, Any]:
    if len(next(iter(batch.values()))) < 2:
        raise ValueError("one sample cannot be halved; a search takes at least 2 samples, better 256")
    model = calibrated(workshop, recipe)
    sites = quantization_of(model).sites
    halves = [{name: x[start::2] for name, x in batch.items()} for start in (0, 1)]
    plain = [Sensitivity(model, half) for half in halves]
    units = plain[0].units
    with tqdm(total=2 * (1 + 2 * len(units)), desc="sensitivity", unit="unit", disable=None) as bar:
        (first, all_first), (second, all_second) = (measure_units(half, bar.update) for half in plain)
    together, alone, without = _mean([all_first, all_second]), {}, {}
    tried: dict[str, dict[str, tuple[float, float | None]]] = {}
    for a, b in zip(first, second, strict=True):
        name = a.unit.name
        alone[name], without[name] = _mean([a.alone, b.alone]), _mean([a.without, b.without])
        tried[name] = {AS_IT_IS: (a.alone.output, b.alone.output)}
    everything = frozenset(unit.name for unit in units)
    worth = worth_fixing({name: errors.output**2 for name, errors in alone.items()}) if with_fixes else frozenset()
    del plain, model  # each holds a model and its outputs
    for fix in tqdm(FIXES if worth else (), desc="fixes", unit="fix", disable=None):
        of = fixable([unit for unit in units if unit.name in worth], fix, sites, recipe)
        if not of:
            continue
        planned = plan_recipe(sites, recipe, units, everything, {unit.name: fix for unit in of}, f"{recipe.name}_tried")
        fixed_model = calibrated(workshop, planned)
        found = Sensitivity(fixed_model, halves[0])
        errors = {unit.name: found.measure([unit]).output for unit in of}
        better = [unit for unit in of if errors[unit.name] < WORTH * tried[unit.name][AS_IT_IS][0]]
        found = Sensitivity(fixed_model, halves[1]) if better else found
        seconds = {unit.name: found.measure([unit]).output for unit in better}
        for name, error in errors.items():
            tried[name][fix] = (error, seconds.get(name))
        del fixed_model, found
    fixes = {name: best for name, each in tried.items() if (best := best_of(each)) != AS_IT_IS}
    fixed = together
    if fixes:
        planned = plan_recipe(sites, recipe, units, everything, fixes, f"{recipe.name}_fixed")
        whole = Sensitivity(calibrated(workshop, planned), batch)
        fixed = whole.measure(whole.units)
        if fixed.output < together.output:
            alone |= {unit.name: whole.measure([unit]) for unit in units if unit.name in fixes}  # as they are together
        else:  # each helped alone, together they do not
            fixes, fixed = {}, together
    return {"units": [asdict(unit) for unit in units], "alone": _dicts(alone), "without": _dicts(without),
            "fixes": fixes, "tried": tried, "together": together.to_dict(), "fixed": fixed.to_dict(),
            "num_samples": len(next(iter(batch.values())))}  # fmt: skip


def best_of(tried: Mapping[str, tuple[float, float | None]]) -> str:
    """Return the way with the least error on the first half, where the second half says so too; else `AS_IT_IS`.

    A way that lost on the first half was not tried on the second.
    """
    best = min(tried, key=lambda fix: tried[fix][0])
    second, own = tried[best][1], tried[AS_IT_IS]
    is_better = tried[best][0] < WORTH * own[0] and second is not None and second < WORTH * (own[1] or 0.0)
    return best if is_better else AS_IT_IS


def _mean(errors: list[Errors]) -> Errors:
    squares = sum(each.hidden**2 for each in errors) / len(errors)
    return Errors(squares**0.5, sum(each.output for each in errors) / len(errors))


def _dicts(errors: Mapping[str, Errors]) -> dict[str, dict[str, float]]:
    return {name: each.to_dict() for name, each in errors.items()}


def _measured(num_shared: int, values: dict[str, Any]) -> Measured:
    units = tuple(Unit(**{**each, "sites": tuple(each["sites"]), "layers": tuple(each["layers"])})
                  for each in values["units"])  # fmt: skip
    alone, without = ({name: Errors(**each) for name, each in values[key].items()} for key in ("alone", "without"))
    tried = {name: {m: (x[0], x[1]) for m, x in each.items()} for name, each in values["tried"].items()}
    return Measured(units, alone, without, values["fixes"], tried, Errors(**values["together"]),
                    Errors(**values["fixed"]), values["num_samples"], num_shared)  # fmt: skip


def measure_costs(
    bench: Bench, recipe: Recipe, sites: list[Site], units: tuple[Unit, ...], system: Callable[[str], System],
    shape: Shape, folder: Path, prepare: Callable[[Sequence[Point]], None] | None = None,
) -> Costs:  # fmt: skip
    """Return what each unit saves in the runtime itself; see `eval.search.cost`.

    Args:
        system: from a recipe's file, the system of the backend that is searched for; from "" the float one.
        folder: for the recipes of the engines that are timed.
        prepare: make what these points need for a GPU beforehand, in several processes; None: one after the other.
    """
    options = bench.options
    plans, checks = plans_to_time(units, options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    systems = {"float": system("")}
    for number, (name, plan) in enumerate(plans.items()):
        path = folder / f"{number:02}.yaml"
        planned = plan_recipe(sites, recipe, units, plan, {}, f"{recipe.name}_{number:02}")
        write_recipe(planned.with_options(bias_correction="off"), path, f"timed for the costs: {name}")
        systems[name] = system(str(path))
    backend = bench.workshop.backend(systems["float"].backend)
    inputs = {"schema": SCHEMA, "model": bench.workshop.model_digest, "recipe": recipe.to_dict(), "shape": shape.name,
              "plans": {name: sorted(plan) for name, plan in plans.items()}, "backend": backend.name,
              "version": backend.version(), "threads": options.threads, "rounds": options.rounds,
              "device": bench.origin["device"]}  # fmt: skip
    if backend.info.uses_gpu:
        inputs["gpu"] = str(find_gpu())

    def compute() -> dict[str, Any]:
        if prepare is not None and backend.info.uses_gpu:  # a program for a GPU is exported for its plan
            prepare([(each, shape) for each in systems.values()])
        with ExitStack() as stack:
            runners = {}
            for name, each in tqdm(systems.items(), desc="engines to time", unit="engine", disable=None):
                runners[name] = stack.enter_context(bench.open(each, shape)).runner
            timing = time_systems(runners, bench.feeds(shape), "float", options.rounds, max_rounds=options.max_rounds)
        if timing.errors:
            name, error = next(iter(timing.errors.items()))
            raise RuntimeError(f"the engine '{name}' does not run: {error}")
        times = {name: time_of(each["block_ms"]).value for name, each in timing.systems.items()}
        return fit(units, plans, times, checks, shape.name).to_dict()

    return costs_from_dict(bench.workshop.store.make_json("costs", inputs, compute, "what each unit saves"))
