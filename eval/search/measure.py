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
from eval.search.cut import cut_graphs
from eval.search.plans import plan_recipe, write_recipe
from eval.search.sensitivity import Errors, Prediction, Sensitivity, Unit, measure_units, predict_from
from eval.sweep.bench import Bench
from eval.sweep.grid import Shape, System
from eval.sweep.parallel import Point
from eval.sweep.workshop import STATISTICS_FILE, Workshop
from eval.timing.in_turn import time_systems
from eval.timing.ratios import time_of
from quant.insert import insert_quantizers
from quant.recipe import METHODS, Recipe
from quant.sites.site import Site, quantization_of

SCHEMA = 1
WORTH = 0.95  # an error with another calibrator must be so much smaller, on both halves of the samples


@dataclass(frozen=True)
class Measured:
    """What the samples say.

    Attributes:
        alone: unit → its error alone, by the calibrator chosen for it. without: unit → the model's with it off.
        methods: unit → its calibrator, where another than the recipe's is better on both halves of the samples.
        tried: unit → calibrator → error alone on (first, second half).
        together: with all units on, recipe as it is. fixed: with the chosen calibrators.
        num_shared: how many of the samples also calibrated, because there are no others.
    """

    units: tuple[Unit, ...]
    alone: dict[str, Errors]
    without: dict[str, Errors]
    methods: dict[str, str]
    tried: dict[str, dict[str, tuple[float, float]]]
    together: Errors
    fixed: Errors
    num_samples: int
    num_shared: int = 0

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

    Args: with_fixes: also every calibrator for every unit.
    """
    samples = workshop.draw(workshop.options.seed, after=workshop.options.num_calibration)
    inputs = {"schema": SCHEMA, "model": workshop.model_digest, "recipe": recipe.to_dict(), "samples": samples.digest,
              "calibration": workshop.samples.digest, "seed": workshop.options.seed, "fixes": with_fixes}  # fmt: skip

    def compute() -> dict[str, Any]:
        return _sensitivity(workshop, recipe, batch_of(samples, workshop.loaded.model), with_fixes)

    num_shared = samples.num_shared_with(workshop.samples)
    return _measured(num_shared, workshop.store.make_json("sensitivity", inputs, compute, "sensitivity of each unit"))


def _sensitivity(workshop: Workshop, recipe: Recipe, batch: dict[str, Any], with_fixes: bool) -> dict[str, Any]:
    if len(next(iter(batch.values()))) < 2:
        raise ValueError("one sample cannot be halved; a search takes at least 2 samples, better 256")
    model = calibrated(workshop, recipe)
    halves = [Sensitivity(model, {name: x[start::2] for name, x in batch.items()}) for start in (0, 1)]
    units = halves[0].units
    own = recipe.calibrator.method
    others = [method for method in METHODS if method != own] if with_fixes else []
    reading = [unit for unit in units if _reads_samples(model, unit)]
    steps = len(halves) * (1 + 2 * len(units) + len(others) * len(reading))
    with tqdm(total=steps, desc="sensitivity", unit="unit", disable=None) as bar:
        (first, all_first), (second, all_second) = (measure_units(half, bar.update) for half in halves)
        together, alone, without = _mean([all_first, all_second]), {}, {}
        by: dict[str, dict[str, tuple[Errors, Errors]]] = {}
        for a, b in zip(first, second, strict=True):
            name = a.unit.name
            alone[name], without[name] = _mean([a.alone, b.alone]), _mean([a.without, b.without])
            by[name] = {own: (a.alone, b.alone)}
        statistics = Statistics.load(workshop.statistics(recipe) / STATISTICS_FILE)
        for method in others:
            apply_statistics(model, statistics, method)
            for unit in reading:
                by[unit.name][method] = (halves[0].measure([unit]), halves[1].measure([unit]))
                bar.update(len(halves))
    tried = {name: {m: (a.output, b.output) for m, (a, b) in each.items()} for name, each in by.items()}
    methods = {name: best for name, each in tried.items() if (best := best_method(each, own)) != own}
    fixed = together
    if methods:
        sites = quantization_of(model).sites
        everything = frozenset(unit.name for unit in units)
        planned = plan_recipe(sites, recipe, units, everything, methods, f"{recipe.name}_fixed")
        found = Sensitivity(calibrated(workshop, planned), batch)
        fixed = found.measure(found.units)
        if fixed.output < together.output:
            alone |= {name: _mean(list(by[name][method])) for name, method in methods.items()}
        else:  # each helped alone, together they do not
            methods, fixed = {}, together
    return {"units": [asdict(unit) for unit in units], "alone": _dicts(alone), "without": _dicts(without),
            "methods": methods, "tried": tried, "together": together.to_dict(), "fixed": fixed.to_dict(),
            "num_samples": len(next(iter(batch.values())))}  # fmt: skip


def best_method(tried: Mapping[str, tuple[float, float]], own: str) -> str:
    """Return the calibrator with the least error on the first half, where the second half says so too; else `own`."""
    best = min(tried, key=lambda method: tried[method][0])
    return best if all(tried[best][half] < WORTH * tried[own][half] for half in (0, 1)) else own


def _reads_samples(model: Any, unit: Unit) -> bool:
    names = set(unit.sites)
    return any(site.name in names and site.reads_samples for site in quantization_of(model).sites)


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
    return Measured(units, alone, without, values["methods"], tried, Errors(**values["together"]),
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
        if not backend.info.uses_gpu:
            unit_of = {site: unit.name for unit in units for site in unit.sites}
            cut_graphs(bench.workshop, systems["all"], [
                (systems[name], [site for site in sites if site.name in unit_of and unit_of[site.name] not in plan])
                for name, plan in plans.items()
            ])  # fmt: skip
        elif prepare is not None:  # a program for a GPU is made for its plan
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
