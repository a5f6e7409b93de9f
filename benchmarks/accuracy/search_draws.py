"""What sensitivity gives over draws of the calibration samples: errors in the runtimes themselves, medians of draws.

    python -m benchmarks.accuracy.search_draws --model MODELS/minilm-sst2 --data DATA/sst2 --out ROWS

For each draw: the sensitivity of every unit on train sentences that are neither calibrated on nor scored, then two
plans, every unit in INT8 and the `--share` of the linear arithmetic that moves the outputs least, and the recipes of
`--against`, each exported, built and scored on all validation samples. Times are not asked for: `eval.search` does.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.rows import append_row
from eval.report.run_data import RunData, read_run
from eval.search.measure import Measured, measure_sensitivity
from eval.search.plans import plan_recipe, write_recipe
from eval.search.solve import fastest_within
from eval.sweep.bench import Bench
from eval.sweep.grid import SweepOptions
from eval.sweep.run import run_sweep
from eval.sweep.store import ArtifactStore
from eval.sweep.workshop import Workshop
from quant.insert import insert_quantizers
from quant.recipe import DEFAULT_RECIPE, load_recipe


def lightest(measured: Measured, share: float) -> frozenset[str]:
    """Return the units that keep `share` of the linear layers' arithmetic and leave out the most error.

    Weights stand for the arithmetic: each is used once a token.
    """
    weights = {unit.name: float(unit.weights) for unit in measured.units}
    left_out = fastest_within(measured.prediction.squares, weights, (1 - share) * sum(weights.values()) * (1 + 1e-9))
    return frozenset(weights) - left_out


def draw_rows(options: SweepOptions, share: float, folder: Path) -> list[dict[str, object]]:
    """Return the errors of one draw's plans and recipes, by backend."""
    bench = Bench(Workshop(options, ArtifactStore(folder / "artifacts")), "")
    recipe = load_recipe(options.recipes[0])
    measured = measure_sensitivity(bench.workshop, recipe, with_fixes=False)
    sites = insert_quantizers(bench.workshop.fresh_model().model, recipe)
    total = sum(unit.weights for unit in measured.units)
    paths, shares = {}, {}
    for name, units in (("every product", measured.everything),
                        ("least error", lightest(measured, share))):  # fmt: skip
        path = folder / f"{name.replace(' ', '_')}.yaml"
        write_recipe(plan_recipe(sites, recipe, measured.units, units, {}, path.stem), path, name)
        paths[str(path)] = name
        shares[name] = sum(unit.weights for unit in measured.units if unit.name in units) / total
    proven = replace(options, recipes=(*paths, *options.recipes[1:]))
    run_sweep(proven, folder / "run", "", artifacts=folder / "artifacts")
    found = read_run(folder / "run")
    return [{**row, "share": shares.get(str(row["plan"]))} for row in errors_of(found, paths)]


def errors_of(data: RunData, paths: dict[str, str]) -> list[dict[str, object]]:
    """Return error, flips and metric of each plan or recipe on each backend; `paths` gives plans their names."""
    rows: list[dict[str, object]] = []
    for system in data.systems:
        row = data.ok(system)
        if row is not None and row.row.error_abs_mean is not None and system.recipe is not None:
            rows.append({"plan": paths.get(system.recipe, system.recipe), "backend": system.backend,
                         "error": row.row.error_abs_mean, "flips": row.row.num_flips, "metric": row.row.metric,
                         "num_scored": row.row.num_samples})  # fmt: skip
    return rows


def add_flags(parser: argparse.ArgumentParser, recipe: str) -> None:
    """Add what `options_of` reads, and the data's columns; --recipe is `recipe` by default."""
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder of the task's data set, with a train split")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--column", nargs="+", default=["sentence"])
    parser.add_argument("--recipe", default=recipe)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", required=True)


def options_of(args: argparse.Namespace, seed: int) -> SweepOptions:
    """Return the options of one draw of a model, on the CPU, by --model, --task, --data, --recipe and --threads."""
    return SweepOptions(
        model=args.model, task=args.task, data=args.data, split="validation", columns=None, label_column=None,
        samples=args.data, num_calibration=256, num_samples=None, seed=seed,
        methods=(load_recipe(args.recipe).calibrator.method,), recipes=(args.recipe,), backends=("onnxruntime",),
        references=(), batch_sizes=(8,), seq_lengths=(64,), shapes="auto", threads=args.threads, rounds=2,
        device="cpu", qat_arguments="", load_clients=(), load_seconds=0.5,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, DEFAULT_RECIPE)
    parser.add_argument("--against", nargs="*", default=["int8_linear"])
    parser.add_argument("--backends", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--share", type=float, default=0.9, help="of the linear arithmetic that stays in INT8")
    parser.add_argument("--num-calibration", type=int, default=256, metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="a draw of samples for each")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    errors: dict[tuple[object, object], list[float]] = {}
    for draw in args.seeds:
        options = replace(options_of(args, draw), columns=tuple(args.column),
                          recipes=(args.recipe, *args.against), backends=tuple(args.backends),
                          num_calibration=args.num_calibration)  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            rows = draw_rows(options, args.share, Path(folder))
        for row in rows:
            append_row(args.out, "search_draws", model=Path(args.model).name, recipe=args.recipe, seed=draw,
                       num_calibration=args.num_calibration, **row)  # fmt: skip
            errors.setdefault((row["plan"], row["backend"]), []).append(float(str(row["error"])))
            print(f"draw {draw}: {row}", flush=True)
    for (plan, backend), values in errors.items():
        print(f"{plan}, {backend}: median {np.median(values):.4f} of {[round(x, 4) for x in sorted(values)]}")


if __name__ == "__main__":
    main()
