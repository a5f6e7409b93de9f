"""Learned rounding: whether each weight of a layer goes to the code below or above, so that the layer errs least.

AdaRound (Nagel et al. 2020, arXiv:2004.10568), layer after layer in order of running. What differs:

- The target is the float weight's output from the same rounded input. The paper's is that of the float model's input,
  whose error the weights then make up for: on MiniLM the layers err less so, and the model does not.
- All samples are one batch and one forward pass learns all layers, as in bias correction; the error is a quadratic form
  of the weights, so that a step multiplies by the inputs' second moments and reads no sample.
- A position weighs by 1 / |float output|^2, and a constant shift counts for nothing: bias correction takes it.
- Held-out samples judge twice, as in bias correction: a layer keeps its learned rounding where its output errs less on
  them, and the model keeps all of them where the relative error of its last hidden state falls on them.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from calib.bias_correction import (
    HELD_OUT,
    MIN_SAMPLES,
    BiasCorrection,
    batch_of,
    correct_as_told,
    held_out_error,
    last_hidden,
    positions_of,
)
from calib.collect import MASK, mask_names
from calib.folding import AppliedValues
from calib.samples import Samples
from quant.dropout import evaluation_mode
from quant.fake_quantize import along_axis
from quant.models.encoder_decoder import is_encoder_decoder, write_greedily
from quant.modules import QuantConv1D, QuantLinear
from quant.recipe import LEARNED, Recipe
from quant.sites.site import quantization_of
from quant.tensor_quantizer import TensorQuantizer, quantizers_disabled

STEPS, RATE = 500, 1e-2
STRETCH = 0.1  # of the sigmoid beyond 0 and 1, so that a rounding can be decided
STRENGTH = 1.0  # of what asks a weight to decide, over the size of the error's slopes
WARMUP = 0.2  # of the steps, before a weight is asked to
SHARPNESS = (20.0, 2.0)
TIMES = 4  # so many times the samples of bias correction
MOST = 65_536  # positions of a layer's input


class AppliedRounding(AppliedValues):
    """Weights on their grids."""


@dataclass(frozen=True)
class LearnedRounding:
    """What was learned."""

    gains: dict[str, float]
    """Layer → squared error of its output on held-out samples with the learned rounding, over that with the nearest."""
    error_before: float
    """Relative error of the last hidden state on held-out samples, rounded to the nearest."""
    error_after: float
    num_samples: int
    seconds: float

    @property
    def is_kept(self) -> bool:
        """Whether the model bears it."""
        return bool(self.better) and self.error_after < self.error_before

    @property
    def better(self) -> list[str]:
        """The layers that err less by it, which bear it where the model does."""
        return [name for name, gain in self.gains.items() if gain < 1]

    def to_dict(self) -> dict[str, Any]:
        """Return it as a checkpoint's provenance and a result row hold it."""
        return {"kept": self.is_kept, "num_learned": len(self.better), "num_layers": len(self.gains),
                "error_before": self.error_before, "error_after": self.error_after,
                "gains": {name: round(gain, 4) for name, gain in self.gains.items()},
                "num_samples": self.num_samples, "seconds": round(self.seconds, 1)}  # fmt: skip

    def __str__(self) -> str:
        if self.num_samples < MIN_SAMPLES:
            return f"learned rounding: left out, it takes at least {MIN_SAMPLES} samples"
        if not self.better:
            return f"learned rounding: of {len(self.gains)} layers none errs less by it"
        mean = sum(self.gains[name] for name in self.better) / len(self.better)
        return (f"learned rounding: {len(self.better)} of {len(self.gains)} layers, whose squared error falls to "
                f"{mean:.2f}; relative error of the last hidden state on held-out samples {self.error_before:.4f} -> "
                f"{self.error_after:.4f}: {'kept' if self.is_kept else 'not kept, more samples teach it better'}"
                )  # fmt: skip


def refine_as_told(model: Any, recipe: Recipe, samples: Samples, seed: int = 0
                   ) -> dict[str, LearnedRounding | BiasCorrection]:  # fmt: skip
    """Learn the rounding and correct the biases of a model calibrated from these samples, as its recipe says.

    Returns: what was tried, by the name under which a checkpoint's provenance holds it.
    """
    with rounded_as_told(model, recipe, samples, seed) as rounding:
        found = {"rounding": rounding, "bias_correction": correct_as_told(model, recipe, samples, seed)}
    return {name: each for name, each in found.items() if each is not None}


@contextmanager
def rounded_as_told(model: Any, recipe: Recipe, samples: Samples, seed: int = 0) -> Iterator[LearnedRounding | None]:
    """Learn the rounding of a model calibrated from these samples, where its recipe says so; None where not."""
    if recipe.calibrator.rounding != LEARNED:
        yield None
        return
    with learned_rounding(model, batch_of(samples, model, TIMES), seed) as found:
        yield found


@contextmanager
def learned_rounding(model: Any, batch: dict[str, Tensor], seed: int = 0) -> Iterator[LearnedRounding]:
    """Learn the rounding of a calibrated model's linear layers; those that run several times in a forward stay.

    Within the block the layers compute with it and keep their float weights, which bias correction compares with;
    after it their weights lie on their grids, so that rounding to the nearest gives the learned codes.

    Args:
        batch: inputs as model(**batch) takes them; every third sample is held out. With fewer than 6 nothing is done.
        seed: of the positions that are kept.
    """
    start = time.perf_counter()
    num_samples = len(next(iter(batch.values())))
    learner = _Learner(model, batch, seed)
    before, after = learner.learn() if num_samples >= MIN_SAMPLES else (0.0, 0.0)
    found = LearnedRounding(learner.gains, before, after, num_samples, time.perf_counter() - start)
    if not found.is_kept:
        learner.forget()
    yield found
    learner.finish()


class _Learner:
    """Hooks on the linear layers: how often each runs in the first pass, its rounding in the second."""

    def __init__(self, model: Any, batch: dict[str, Tensor], seed: int) -> None:
        device = next(model.parameters()).device
        self.model, self.seed, self.rows = model, seed, len(next(iter(batch.values())))
        self.batch = {name: x.to(device) for name, x in batch.items()}
        sites = [site for site in quantization_of(model).sites if site.enabled]
        masks = mask_names(model, sites)
        self.mask_of = {layer: masks[site.name] for site in sites for layer in site.consumers}
        on = {site.module for site in sites if site.is_weight}
        owners = Counter(id(p) for m in model.modules() if isinstance(p := getattr(m, "weight", None), nn.Parameter))
        self.layers: dict[str, Any] = {
            n: m for n, m in model.named_modules()
            if n in on and isinstance(m, QuantLinear | QuantConv1D) and owners[id(m.weight)] == 1
        }  # fmt: skip
        self.calls: Counter[str] = Counter()
        self.gains: dict[str, float] = {}
        self.learned: dict[str, Tensor] = {}

    @torch.no_grad()
    def learn(self) -> tuple[float, float]:
        """Learn every layer's rounding; the weight quantizers give it from then on.

        Returns: the relative error of the last hidden state on held-out samples before and after.
        """
        with evaluation_mode(self.model):
            if is_encoder_decoder(self.model) and "decoder_input_ids" not in self.batch:
                with quantizers_disabled(self.model):
                    self.batch |= write_greedily(self.model, self.batch)
            with quantizers_disabled(self.model):
                target = self._watch(self._count)
            with tqdm(total=len(self.layers), desc="rounding", unit="layer", disable=None) as bar:
                after = self._watch(lambda name, layer, x: bar.update(self._round(name, layer, x)))
            learned = self.forget()
            before = self._watch(lambda *_: None)
            for name, values in learned.items():
                self._give(name, values)
        held = partial(held_out_error, self.model, self.batch)
        return held(before, target), held(after, target)

    def forget(self) -> dict[str, Tensor]:
        """Let the weight quantizers round to the nearest again; return what they gave."""
        learned, self.learned = self.learned, {}
        for name in learned:
            del self.layers[name].weight_quantizer.forward  # the instance's own, which `give` put there
        return learned

    def _give(self, name: str, values: Tensor) -> None:
        self.learned[name] = values
        give(self.layers[name].weight_quantizer, values)

    @torch.no_grad()
    def finish(self) -> None:
        """Write what was learned into the weights and let their quantizers round to the nearest again."""
        done = []
        for name, learned in self.forget().items():
            layer = self.layers[name]
            quantizer = layer.input_quantizer
            factor = quantizer.pre_quant_scale if quantizer.is_active else None
            after = learned if factor is None else learned * along_axis(factor, learned, layer.input_axis)
            before = layer.weight.detach().clone()
            layer.weight.copy_(after.to(before.dtype))
            done.append((layer.weight, before, layer.weight.detach().clone()))
        if done:
            quantization = quantization_of(self.model)
            folds = (*quantization.folds, AppliedRounding(tuple(done)))
            self.model.quantization = dataclasses.replace(quantization, folds=folds)

    def _watch(self, see: Callable[[str, Any, Tensor], object]) -> Tensor:
        """Run the model with `see(name, layer, input)` before each; return the held-out samples' last hidden state."""

        def hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
            def before(layer: Any, args: tuple[Any, ...]) -> None:
                see(name, layer, args[0])

            return before

        handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in self.layers.items()]
        try:
            return last_hidden(self.model(**self.batch, output_hidden_states=True))[::HELD_OUT]
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, name: str, layer: Any, x: Tensor) -> None:
        self.calls[name] += 1

    def _round(self, name: str, layer: Any, x: Tensor) -> bool:
        if self.calls[name] != 1 or len(x) % self.rows:  # one that runs several times has one weight for all of them
            return False
        mask = self.batch.get(self.mask_of.get(name, MASK))
        rows, is_held_out = positions_of(x, self.rows, mask, MOST, self.seed)
        quantizer, weight = layer.weight_quantizer, layer.smoothed_weight().float()
        scale = quantizer.broadcast_scale(weight).movedim(layer.weight_axis, 0)
        weight = weight.movedim(layer.weight_axis, 0)
        x = layer.input_quantizer(rows)
        y = x @ weight.T if layer.bias is None else x @ weight.T + layer.bias
        weigh = 1 / y.square().sum(1, keepdim=True).clamp_min(1e-20)
        fit, judge = weigh * ~is_held_out[:, None], weigh * is_held_out[:, None]
        if not (bool(fit.any()) and bool(judge.any())):
            return False
        x = x - (x * fit).sum(0) / fit.sum()
        limits = (quantizer.format.qmin, quantizer.format.qmax)
        nearest = (weight / scale).round().clamp(*limits) * scale
        learned = learn_codes(weight, scale, limits, x.T @ (x * fit)) * scale
        before, after = (float(((x @ (each - weight).T).square() * judge).sum()) for each in (nearest, learned))
        self.gains[name] = after / max(before, 1e-30)
        if self.gains[name] < 1:
            self._give(name, learned.movedim(0, layer.weight_axis))
        return True


def give(quantizer: TensorQuantizer, values: Tensor) -> None:
    """Let a quantizer give these values, where it is active; `del quantizer.forward` ends that."""
    plain = quantizer.forward

    def forward(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return values.to(dtype or x.dtype) if quantizer.is_active else plain(x, dtype)

    quantizer.forward = forward  # type: ignore[method-assign]


def learn_codes(weight: Tensor, scale: Tensor, limits: tuple[int, int], gram: Tensor, steps: int = STEPS) -> Tensor:
    """Return the codes of a weight, each the one below or above it, for which its product with the inputs errs least.

    Args:
        weight: (N, K). scale: (N, 1). limits: the smallest and largest code.
        gram: x^T D x over the positions, (K, K); D weighs them.
    """

    def slope_at(rounded: Tensor) -> Tensor:
        return 2 * (rounded - weight) @ gram

    codes = weight / scale
    floor = codes.floor()
    unit = (slope_at(codes.round().clamp(*limits) * scale).square().mean().sqrt() * scale.mean()).clamp_min(1e-30)
    share = (codes - floor).clamp(1e-3, 1 - 1e-3)
    v = -torch.log((1 + 2 * STRETCH) / (share + STRETCH) - 1)
    first, second = torch.zeros_like(v), torch.zeros_like(v)
    for step in range(1, steps + 1):
        sigmoid = torch.sigmoid(v)
        up = (sigmoid * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
        slope = slope_at((floor + up).clamp(*limits) * scale) * scale / unit
        if (progress := (step / steps - WARMUP) / (1 - WARMUP)) > 0:  # of the sum of 1 - |2 up - 1|^beta
            beta = SHARPNESS[1] + (SHARPNESS[0] - SHARPNESS[1]) * (1 - progress)
            distance = 2 * up - 1
            slope -= STRENGTH * progress * 2 * beta * distance.abs().clamp_min(0.02).pow(beta - 1) * distance.sign()
        slope *= (1 + 2 * STRETCH) * sigmoid * (1 - sigmoid) * ((up > 0) & (up < 1))
        first.lerp_(slope, 0.1)  # Adam
        second.lerp_(slope.square().clamp_min(1e-20), 0.001)  # and above: denormal numbers are slow
        v -= RATE * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-12)
    return (floor + (torch.sigmoid(v) >= 0.5)).clamp(*limits)
