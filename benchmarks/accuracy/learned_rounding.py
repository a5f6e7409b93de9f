"""What learned rounding of weights brings beside bias correction, and how much of the error is whose.

    python -m benchmarks.accuracy.learned_rounding --model MODELS/minilm-sst2 --data DATA/sst2 --out ROWS

For each recipe and draw, with bias correction: weights rounded to the nearest; learned (`calib.rounding`) from so many
--sentences; and two rows that say what is whose: weights in float and inputs quantized, and the reverse. Calibrated on
256 train sentences, scored on all validation sentences (simulated INT8 in PyTorch).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy.bias_correction import errors, logits_of
from benchmarks.rows import append_row
from calib.apply import apply_statistics
from calib.bias_correction import batch_of, correct_biases
from calib.collect import collect
from calib.rounding import rounded_as_told
from calib.samples import load_samples
from quant.insert import insert_quantizers
from quant.models.pretrained import load_float_model
from quant.modules import QuantLinear
from quant.recipe import LEARNED, load_recipe
from quant.tensor_quantizer import TensorQuantizer

NEAREST, FLOAT_WEIGHTS, FLOAT_INPUTS = "nearest", "weights in float", "inputs in float"


def only_smooth(quantizer: TensorQuantizer) -> Callable[..., Tensor]:
    """Return what a quantizer of inputs does but for rounding: SmoothQuant's factor."""

    def forward(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        factor = quantizer.pre_quant_scale if quantizer.is_active else None
        return (x if factor is None else x * factor).to(dtype or x.dtype)

    return forward


def leave_in_float(model: Any, kind: str) -> None:
    """Round the weights (or the inputs) of the linear layers no more."""
    for layer in (m for m in model.modules() if isinstance(m, QuantLinear)):
        if kind == FLOAT_WEIGHTS:
            layer.weight_quantizer.is_bypassed = True
        elif kind == FLOAT_INPUTS:
            layer.input_quantizer.forward = only_smooth(layer.input_quantizer)  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder with train.parquet and validation.parquet")
    parser.add_argument("--column", default="sentence")
    parser.add_argument("--recipes", nargs="+", default=["int8_smoothquant"])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--sentences", nargs="+", type=int, default=[1024], help="from which a rounding is learned")
    parser.add_argument("--kinds", nargs="+", default=[NEAREST, LEARNED, FLOAT_WEIGHTS, FLOAT_INPUTS])
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    loaded = load_float_model(args.model)
    files = [Path(args.data) / f"{split}.parquet" for split in ("train", "validation")]
    scored = load_samples(files[1], loaded, columns=[args.column], num_samples=None)
    target = logits_of(loaded.model, scored)
    for draw in range(args.draws):
        samples = load_samples(files[0], loaded, columns=[args.column], seed=draw)
        for recipe in map(load_recipe, args.recipes):
            statistics = None
            for kind, number in [(k, n) for k in args.kinds for n in (args.sentences if k == LEARNED else [None])]:
                model = load_float_model(args.model).model
                insert_quantizers(model, recipe)
                if statistics is None:
                    statistics = collect(model, samples, seed=draw, progress=False)
                apply_statistics(model, statistics)
                leave_in_float(model, kind)
                more = load_samples(files[0], loaded, columns=[args.column], seed=draw, num_samples=number or 1)
                told = recipe.with_options(rounding=kind if kind == LEARNED else NEAREST)
                with rounded_as_told(model, told, more, draw) as rounding:
                    correct_biases(model, batch_of(samples, model), draw)
                found = {} if rounding is None else {f"rounding_{k}": v for k, v in rounding.to_dict().items()}
                row = append_row(args.out, "learned_rounding", model=Path(args.model).name, recipe=recipe.name,
                                 kind=kind, seed=draw, num_scored=len(target),
                                 **errors(logits_of(model, scored), target), **found)  # fmt: skip
                print(f"{recipe.name} draw {draw}, {kind} {number or ''}: {row['error']:.4f}, {row['flips']} flips; "
                      f"{rounding or ''}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
