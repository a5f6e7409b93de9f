"""How well errors of units alone predict those of sets: random plans, predicted and measured.

    python -m benchmarks.accuracy.search_prediction --model MODELS/minilm-sst2 --task sst2 --data DATA/sst2 --out ROWS
    python -m benchmarks.accuracy.search_prediction --plot ROWS docs/images/search_prediction.png

The prediction is `eval.search`'s own (`eval.search.sensitivity.Prediction`): squares of the units alone, bent by the
error of the whole model. The plans are measured in PyTorch on the samples that the units were measured on, with the
quantizers of all other units bypassed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.accuracy.search_draws import options_of
from benchmarks.rows import append_row, read_rows
from benchmarks.tables import newest
from calib.bias_correction import batch_of
from eval.report.figure_style import COLORS, FAINT, new_figure
from eval.search.measure import calibrated
from eval.search.sensitivity import Sensitivity, measure_units, predict_from
from eval.sweep.grid import SweepOptions
from eval.sweep.store import ArtifactStore
from eval.sweep.workshop import Workshop
from quant.recipe import DEFAULT_RECIPE, load_recipe

LARGE = 0.75  # of the units: what counts as a large set
MARKERS = "osD^vP"


def predictions(options: SweepOptions, num_plans: int, seed: int, folder: Path) -> dict[str, Any]:
    """Return (units on, predicted, measured) of random plans, of every size alike, and how well they agree."""
    workshop = Workshop(options, ArtifactStore(folder))
    samples = workshop.draw(options.seed, after=options.num_calibration)
    found = Sensitivity(calibrated(workshop, load_recipe(options.recipes[0])), batch_of(samples, workshop.loaded.model))
    start = time.perf_counter()
    units, together = measure_units(found)
    seconds = time.perf_counter() - start
    prediction = predict_from({each.unit.name: each.alone for each in units}, together)
    rng, plans = np.random.default_rng(seed), []
    for _ in range(num_plans):
        size = int(rng.integers(1, len(found.units)))
        on = [found.units[i] for i in rng.permutation(len(found.units))[:size]]
        plans.append((size, prediction.error(unit.name for unit in on), found.measure(on).output))
    sizes, predicted, measured = (np.array(each) for each in zip(*plans, strict=True))
    ratios, large = measured / predicted, sizes >= LARGE * len(found.units)
    return {
        "num_units": len(found.units), "num_samples": sum(len(next(iter(batch.values()))) for batch in found.batches),
        "sensitivity_seconds": round(seconds, 1), "bend": prediction.bend, "together": together.output, "plans": plans,
        "rank_correlation": float(spearmanr(predicted, measured).statistic),
        "rank_correlation_of_size": float(spearmanr(sizes, measured).statistic),
        "measured_over_predicted": [float(x) for x in np.quantile(ratios, (0, 0.5, 1))],
        "large_sets": [float(x) for x in np.quantile(ratios[large], (0, 0.5, 1))] if large.any() else None,
    }  # fmt: skip


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Draw predicted against measured, each as a share of the whole model's error."""
    figure, axis = new_figure(6.4, 4.6)
    axis.plot([0.02, 1.1], [0.02, 1.1], color=FAINT, lw=1.5, zorder=0)
    for number, row in enumerate(rows):
        _, predicted, measured = zip(*row["plans"], strict=True)
        axis.loglog(np.array(predicted) / row["together"], np.array(measured) / row["together"], ls="none", ms=5,
                    marker=MARKERS[number % len(MARKERS)], color=COLORS[number % len(COLORS)], alpha=0.75,
                    label=f"{row['model']}, {row['recipe']}: {row['rank_correlation']:.2f}")  # fmt: skip
    axis.set(xlabel="predicted error, over the whole model's", ylabel="measured")
    axis.legend(title="rank correlation", fontsize=8, title_fontsize=8, frameon=False)
    figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", nargs=2, metavar=("ROWS", "PNG"), help="draw the newest rows instead")
    parser.add_argument("--model")
    parser.add_argument("--data", help="folder of the task's data set, with a train split")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE)
    parser.add_argument("--num-calibration", type=int, default=256)
    parser.add_argument("--plans", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="where the row goes")
    args = parser.parse_args()
    if args.plot:
        plot(newest(read_rows(args.plot[0]), "model", "recipe"), args.plot[1])
        return
    if not args.model or not args.out:
        sys.exit("give --model and --out, or --plot")
    options = replace(options_of(args, args.seed), num_calibration=args.num_calibration)
    with tempfile.TemporaryDirectory() as folder:
        found = predictions(options, args.plans, args.seed, Path(folder))
    append_row(args.out, "search_prediction", model=Path(args.model).name, task=args.task, recipe=args.recipe, **found)
    print({name: value for name, value in found.items() if name != "plans"})


if __name__ == "__main__":
    main()
