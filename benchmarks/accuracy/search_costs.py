"""How well a search's costs predict engines that were not fitted: by a fit with pairs of neighbours and by one without.

    python -m benchmarks.accuracy.search_costs --model MODELS/minilm-sst2 --data DATA/sst2 --backend openvino --out ROWS

The engines of a search's fit and those of --checks random halves of the units are timed in turn, as a search does it.
A row holds the errors of both fits, and the pairs of neighbours that timing tells from none.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from benchmarks.accuracy.search_draws import add_flags, options_of
from benchmarks.rows import append_row
from eval.search.cost import Costs, fit, plans_to_time, sure_pairs
from eval.search.measure import calibrated, time_plans
from eval.search.plans import plan_recipe
from eval.search.sensitivity import units_of
from eval.sweep.bench import Bench
from eval.sweep.grid import Shape, System, usual_of
from eval.sweep.store import ArtifactStore
from eval.sweep.workshop import Workshop
from eval.timing.ratios import time_of
from quant.insert import insert_quantizers
from quant.recipe import load_recipe


def errors_of(costs: Costs) -> list[float]:
    """Return predicted over measured, less one, of the plans that were not fitted."""
    return [predicted / measured - 1 for measured, predicted in costs.checks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "benchmarks/recipes/smoothquant_attention.yaml")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--shape", default="8x64", metavar="BxS")
    parser.add_argument("--checks", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    shape = Shape(*map(int, args.shape.split("x")))
    options = replace(options_of(args, args.seed), columns=tuple(args.column), backends=(args.backend,),
                      batch_sizes=(shape.batch_size,), seq_lengths=(shape.sequence_length,), num_calibration=64,
                      rounds=args.rounds, max_rounds=2 * args.rounds)  # fmt: skip
    recipe, method = load_recipe(args.recipe), load_recipe(args.recipe).calibrator.method
    floats = usual_of((args.backend,)).floats
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Workshop(options, ArtifactStore(Path(folder) / "artifacts")), "")
        units = units_of(calibrated(bench.workshop, recipe))
        sites = insert_quantizers(bench.workshop.fresh_model().model, recipe)
        plans, checks = plans_to_time(units, args.seed, args.checks)
        planned = {name: plan_recipe(sites, recipe, tuple(units), plan, {}, f"plan{number:02}")
                   for number, (name, plan) in enumerate(plans.items())}  # fmt: skip
        blocks = time_plans(
            bench, planned, lambda path: System(method, path, args.backend) if path else
            System(floats[0], None, args.backend), shape, Path(folder) / "costs",
        )  # fmt: skip
    times = {name: time_of(each).value for name, each in blocks.items()}
    pairs = sure_pairs(units, blocks)
    found = {"pairs": fit(units, plans, times, checks, shape.name, pairs),
             "none": fit(units, plans, times, checks, shape.name)}  # fmt: skip
    errors = {name: errors_of(costs) for name, costs in found.items()}
    together: dict[str, float] = {}
    for a, b, ms in found["pairs"].pairs:
        pair = f"{found['pairs'].part_of[a]}, {found['pairs'].part_of[b]}"
        together[pair] = together.get(pair, 0.0) + ms
    append_row(args.out, "search_costs", model=Path(args.model).name, recipe=recipe.name, backend=args.backend,
               shape=shape.name, threads=args.threads, seed=args.seed, times_ms=times, pairs_ms=together,
               errors=errors["pairs"], errors_without_pairs=errors["none"])  # fmt: skip
    for name, each in errors.items():
        print(f"{name}: {fmean(map(abs, each)):.2%} off on average, {max(map(abs, each)):.2%} at most")
    print("pairs, ms:", together)


if __name__ == "__main__":
    main()
