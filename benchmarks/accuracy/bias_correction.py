"""What bias correction brings: error of the logits with and without it, for recipes, calibrators and draws.

    python -m benchmarks.accuracy.bias_correction --model MODELS/minilm-sst2 --data DATA/sst2 --out rows.jsonl

Calibrated on train sentences, measured on all validation sentences (simulated INT8 in PyTorch, float32). The rows
also say what the held-out samples of the calibration said, which decides whether the correction is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import append_row
from calib.apply import apply_statistics
from calib.bias_correction import AppliedCorrection, batch_of, correct_biases
from calib.collect import collect
from calib.samples import Samples, load_samples
from calib.statistics import Statistics
from quant.insert import insert_quantizers
from quant.models.pretrained import load_float_model
from quant.recipe import load_recipe
from quant.sites.site import quantization_of

CASES = ("int8_linear:max", "int8_smoothquant:max", "int8_smoothquant:mse", "int8_attention:max", "int8_full:max",
         "int8_full:mse", "int8_full:entropy")  # fmt: skip


@torch.no_grad()
def logits_of(model: Any, samples: Samples) -> Tensor:
    """Return the logits of all samples, (N, labels)."""
    return torch.cat([model(**batch).logits for batch in samples])


def errors(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Return the mean absolute error and the number of changed predictions."""
    return {"error": float((logits - target).abs().mean()),
            "flips": int((logits.argmax(1) != target.argmax(1)).sum())}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder with train.parquet and validation.parquet")
    parser.add_argument("--column", default="sentence")
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="RECIPE:METHOD")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    loaded = load_float_model(args.model)
    files = [Path(args.data) / f"{split}.parquet" for split in ("train", "validation")]
    scored = load_samples(files[1], loaded, columns=[args.column], num_samples=None)
    target = logits_of(loaded.model, scored)
    statistics: dict[tuple[str, int], Statistics] = {}
    for draw in range(args.draws):
        samples = load_samples(files[0], loaded, columns=[args.column], seed=draw)
        batch = batch_of(samples, loaded.model)
        for case in args.cases:
            recipe, method = case.split(":")
            model = load_float_model(args.model).model
            insert_quantizers(model, load_recipe(recipe))
            if (recipe, draw) not in statistics:
                statistics[recipe, draw] = collect(model, samples, seed=draw, progress=False)
            apply_statistics(model, statistics[recipe, draw], method)
            before = errors(logits_of(model, scored), target)
            correction = correct_biases(model, batch, draw)
            after = errors(logits_of(model, scored), target) if correction.is_kept else before
            folds = quantization_of(model).folds
            assert correction.is_kept == any(isinstance(each, AppliedCorrection) for each in folds)
            row = append_row(args.out, "bias_correction", model=Path(args.model).name, recipe=recipe, method=method,
                             seed=draw, before=before, after=after, num_scored=len(target),
                             **{f"held_out_{k}" if k.startswith("error") else k: v
                                for k, v in correction.to_dict().items()})  # fmt: skip
            print(f"{case} draw {draw}: {before['error']:.4f} ({before['flips']}) -> {after['error']:.4f} "
                  f"({after['flips']}), {correction}, {row['seconds']} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
