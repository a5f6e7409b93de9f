"""Whether learned rounding of weights pays beside bias correction: AdaRound, and what any rounding could gain.

    python -m benchmarks.accuracy.learned_rounding --model MODELS/minilm-sst2 --data DATA/sst2 --out ROWS

For each recipe and draw, with bias correction: weights rounded to the nearest; learned by AdaRound (Nagel et al. 2020,
arXiv:2004.10568), layer after layer as the paper's asymmetric form has it: the input is that of the model quantized so
far, the target the float layer's output, positions weigh as in bias correction; a layer keeps its learned rounding
where held-out sentences say so. Two rows bound what could be gained: weights in float and inputs quantized, and the
reverse. Scored on all validation sentences (simulated INT8 in PyTorch).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.accuracy.bias_correction import errors, logits_of
from benchmarks.rows import append_row
from calib.apply import apply_statistics
from calib.bias_correction import HELD_OUT, batch_of, correct_biases
from calib.collect import collect
from calib.samples import load_samples
from quant.insert import insert_quantizers
from quant.models.pretrained import load_float_model
from quant.modules import QuantLinear
from quant.recipe import load_recipe
from quant.tensor_quantizer import quantizers_disabled

STRETCH = 0.1  # of the sigmoid beyond 0 and 1, so that a rounding can be decided
RATE, STRENGTH = 1e-2, 0.1
WARMUP = 0.2  # of the steps, before a weight is asked to decide
SHARPNESS = (20.0, 2.0)


def learned_codes(weight: Tensor, scale: Tensor, limits: tuple[int, int], gram: Tensor, cross: Tensor, steps: int
                  ) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the weight on its grid, rounded to the nearest and as learned.

    Args:
        weight: (N, K). scale: (N, 1). limits: the smallest and largest code.
        gram: x^T D x over the positions, (K, K). cross: y^T D x, (N, K); the error is |w x - y|^2 in D.
    """

    def loss_and_slope(rounded: Tensor) -> tuple[Tensor, Tensor]:
        product = rounded @ gram
        return ((product - 2 * cross) * rounded).sum(), 2 * (product - cross)

    codes = weight / scale
    floor = codes.floor()
    nearest = codes.round().clamp(*limits) * scale
    unit = loss_and_slope(nearest)[1].square().mean().sqrt() * scale.mean()  # of the slopes, so that one strength fits
    share = (codes - floor).clamp(1e-3, 1 - 1e-3)
    v = -torch.log((1 + 2 * STRETCH) / (share + STRETCH) - 1)
    first, second = torch.zeros_like(v), torch.zeros_like(v)
    for step in range(1, steps + 1):
        sigmoid = torch.sigmoid(v)
        h = (sigmoid * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
        slope = loss_and_slope((floor + h).clamp(*limits) * scale)[1] * scale / unit
        if (progress := (step / steps - WARMUP) / (1 - WARMUP)) > 0:
            beta = SHARPNESS[1] + (SHARPNESS[0] - SHARPNESS[1]) * (1 - progress)
            distance = 2 * h - 1
            slope -= STRENGTH * progress * 2 * beta * distance.abs().pow(beta - 1) * distance.sign()
        slope *= (1 + 2 * STRETCH) * sigmoid * (1 - sigmoid) * ((h > 0) & (h < 1))
        first.lerp_(slope, 0.1)
        second.lerp_(slope.square(), 0.001)
        v -= RATE * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-12)
    up = torch.sigmoid(v) * (1 + 2 * STRETCH) - STRETCH >= 0.5
    return nearest, (floor + up).clamp(*limits) * scale


class Learner:
    """Hooks on the linear layers: the float outputs first, then in one pass the rounding of each, in order of running.

    Args: batch: inputs of the model; every third sample is held out.
    """

    def __init__(self, model: Any, batch: dict[str, Tensor], steps: int) -> None:
        self.model, self.batch, self.steps = model, batch, steps
        self.layers = {n: m for n, m in model.named_modules()
                       if isinstance(m, QuantLinear) and m.weight_quantizer.is_active}  # fmt: skip
        self.seen = batch["attention_mask"].bool()
        self.target: dict[str, Tensor] = {}
        self.kept: list[str] = []
        self.gains: dict[str, float] = {}

    def _watch(self, see: Callable[[str, Any, Tensor], None]) -> None:
        handles = [layer.register_forward_pre_hook(lambda module, args, name=name: see(name, module, args[0]))
                   for name, layer in self.layers.items()]  # fmt: skip
        self.model(**self.batch)
        for handle in handles:
            handle.remove()

    @torch.no_grad()
    def learn(self) -> None:
        """Round every layer's weight in place."""
        with quantizers_disabled(self.model):
            self._watch(self._keep)
        self.bar = tqdm(total=len(self.layers), desc="rounding", unit="layer", disable=None)
        self._watch(self._round)
        self.bar.close()

    def _positions(self, layer: Any, x: Tensor) -> Tensor | None:
        return x[self.seen] if x.shape[:2] == self.seen.shape else None

    def _keep(self, name: str, layer: Any, x: Tensor) -> None:
        if (rows := self._positions(layer, x)) is not None:
            self.target[name] = rows @ layer.weight.T

    def _round(self, name: str, layer: Any, x: Tensor) -> None:
        self.bar.update()
        rows = self._positions(layer, x)
        if rows is None or name not in self.target:
            return
        x = layer.input_quantizer(rows)
        y = self.target.pop(name)
        weight = layer.smoothed_weight()
        d = 1 / (y + layer.bias).square().sum(1, keepdim=True).clamp_min(1e-20)
        sample = torch.arange(len(self.seen))[:, None].expand(self.seen.shape)[self.seen]
        is_fit = (sample % HELD_OUT != 0)[:, None]
        fit = d * is_fit
        # a constant shift is bias correction's business, not rounding's
        mean_x, mean_y = ((each * fit).sum(0) / fit.sum() for each in (x, y))
        x, y = x - mean_x, y - mean_y
        limits = (layer.weight_quantizer.format.qmin, layer.weight_quantizer.format.qmax)
        scale = layer.weight_quantizer.broadcast_scale(weight)
        nearest, learned = learned_codes(weight, scale, limits, x.T @ (x * fit), y.T @ (x * fit), self.steps)
        judge = d * ~is_fit
        before, after = (float(((x @ w.T - y).square() * judge).sum()) for w in (nearest, learned))
        self.gains[name] = after / before
        if after < before:
            self.kept.append(name)
            unsmoothed = layer.input_quantizer.pre_quant_scale
            layer.weight.copy_(learned if unsmoothed is None else learned * unsmoothed)


def switch(model: Any, *, weights: bool) -> None:
    """Leave the weights (or the inputs) of the linear layers in float."""
    for layer in (m for m in model.modules() if isinstance(m, QuantLinear)):
        (layer.weight_quantizer if weights else layer.input_quantizer).is_bypassed = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder with train.parquet and validation.parquet")
    parser.add_argument("--column", default="sentence")
    parser.add_argument("--recipes", nargs="+", default=["int8_smoothquant", "int8_linear"])
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sentences", type=int, default=1024, help="from which a rounding is learned")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    loaded = load_float_model(args.model)
    files = [Path(args.data) / f"{split}.parquet" for split in ("train", "validation")]
    scored = load_samples(files[1], loaded, columns=[args.column], num_samples=None)
    target = logits_of(loaded.model, scored)
    for draw in range(args.draws):
        samples = load_samples(files[0], loaded, columns=[args.column], seed=draw)
        more = load_samples(files[0], loaded, columns=[args.column], seed=draw, num_samples=args.sentences)
        for recipe in args.recipes:
            statistics = None
            for kind in ("nearest", "learned", "weights in float", "inputs in float"):
                model = load_float_model(args.model).model
                insert_quantizers(model, load_recipe(recipe))
                if statistics is None:
                    statistics = collect(model, samples, seed=draw, progress=False)
                apply_statistics(model, statistics)
                start = time.perf_counter()
                found: dict[str, Any] = {}
                if kind == "learned":
                    learner = Learner(model, next(iter(more.spread(more.num_samples))), args.steps)
                    learner.learn()
                    found = {"num_kept": len(learner.kept), "num_layers": len(learner.layers),
                             "layer_errors": learner.gains}  # fmt: skip
                elif kind != "nearest":
                    switch(model, weights=kind == "weights in float")
                seconds = time.perf_counter() - start
                correct_biases(model, batch_of(samples, model), draw)
                row = append_row(args.out, "learned_rounding", model=Path(args.model).name, recipe=recipe, kind=kind,
                                 seed=draw, steps=args.steps, num_sentences=more.num_samples,
                                 num_scored=len(target), rounding_s=round(seconds, 1),
                                 **errors(logits_of(model, scored), target), **found)  # fmt: skip
                print(f"{recipe} draw {draw}, {kind}: {row['error']:.4f}, {row['flips']} flips, {seconds:.0f} s",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
