"""Bias correction: what quantization shifts a layer's output by on average goes into its bias.

Nagel et al. 2019 (arXiv:1906.04721), from samples as NNCF does it: layer after layer in order of running, the inputs
those of the model quantized and corrected so far, the target the float layer's output. Three things differ:

- One forward pass corrects all layers: all samples are one batch, and each layer's hook corrects before the next runs.
- A position weighs by 1 / |float output|^2: what follows is a norm, so relative errors count. The plain mean follows
  the few special tokens with huge outputs, which a calibrator that clips cuts off (MiniLM, int8_full with mse: the
  error of its logits rose from 0.18 to 0.26; weighted it is 0.17).
- Held-out samples judge twice: a layer keeps its correction where it lowers the layer's own error there, and the model
  keeps all of them where the relative error of its last hidden state falls there. Then a last pass fits what is kept
  once more, on all samples.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calib.collect import DECODER_MASK, MASK, mask_names
from calib.folding import AppliedValues
from calib.samples import Samples
from quant.dropout import evaluation_mode
from quant.models.encoder_decoder import is_encoder_decoder, write_greedily
from quant.modules import QUANT_LAYER_TYPES
from quant.recipe import OFF, Recipe
from quant.sites.site import quantization_of
from quant.tensor_quantizer import quantizers_disabled

MAX_SAMPLES = 256
MAX_POSITIONS = 16_384  # of the batch: tokens with padding, or 64 images
MAX_LOGITS = 200_000_000  # numbers that a language model gives for the batch: 0.8 GB
LEAST_ROWS = 24
MAX_ROWS = 64  # where the main input is no text
KEPT_BYTES = 1e9  # of the float outputs that all layers keep
HELD_OUT = 3  # every third sample judges
MIN_SAMPLES = 2 * HELD_OUT


class AppliedCorrection(AppliedValues):
    """Corrected biases of a model."""


@dataclass(frozen=True)
class BiasCorrection:
    """What was corrected and what it brought."""

    layers: tuple[str, ...]
    """The layers whose bias was corrected; those of a correction that is not kept were corrected and are not now."""
    num_layers: int
    """Layers with a bias that were looked at."""
    error_before: float
    """Relative error of the last hidden state on held-out samples (root mean square over positions)."""
    error_after: float
    num_samples: int
    num_held_out: int
    seconds: float

    @property
    def is_kept(self) -> bool:
        """Whether the model bears it."""
        return bool(self.layers) and self.error_after < self.error_before

    def to_dict(self) -> dict[str, Any]:
        """Return it as a checkpoint's provenance and a result row hold it."""
        return {"kept": self.is_kept, "num_corrected": len(self.layers), "num_layers": self.num_layers,
                "error_before": self.error_before, "error_after": self.error_after,
                "num_samples": self.num_samples, "num_held_out": self.num_held_out,
                "seconds": round(self.seconds, 2)}  # fmt: skip

    def __str__(self) -> str:
        if self.num_samples < MIN_SAMPLES:
            return f"bias correction: left out, it takes at least {MIN_SAMPLES} samples"
        if not self.num_layers:
            return "bias correction: no quantized layer has a bias of its own"
        return f"bias correction: {in_words(self.to_dict())}"


def in_words(values: dict[str, Any]) -> str:
    """Return what a correction did, by `BiasCorrection.to_dict`'s values."""
    return (f"{values['num_corrected']} of {values['num_layers']} layers; relative error of the last hidden state on "
            f"{values['num_held_out']} held-out samples {values['error_before']:.4f} -> {values['error_after']:.4f}: "
            f"{'kept' if values['kept'] else 'not kept'}")  # fmt: skip


def batch_of(samples: Samples, model: Any, times: int = 1) -> dict[str, Tensor]:
    """Return samples spread evenly over those drawn, as one batch that `correct_biases` takes, or `times` as large.

    Where they are too long for that, fewer samples, but not below `LEAST_ROWS`; then they are cut at their end.
    """
    num_samples = min(MAX_SAMPLES * times, samples.num_samples)
    if "input_ids" not in next(iter(samples.spread(1))):
        return next(iter(samples.spread(min(num_samples, MAX_ROWS * times))))
    batch = next(iter(samples.spread(num_samples)))
    has_logits = model.get_output_embeddings() is not None
    most = MAX_LOGITS // model.config.get_text_config().vocab_size if has_logits else MAX_POSITIONS * times
    most = min(most, MAX_POSITIONS * times)
    rows, length = shape = batch["input_ids"].shape
    kept = min(rows, max(most // length, LEAST_ROWS))
    chosen = torch.arange(kept) * rows // kept
    length = min(length, max(most // kept, 1))
    return {name: x[chosen][:, :length] if x.shape[:2] == shape else x[chosen] for name, x in batch.items()}


@torch.no_grad()
def correct_biases(model: Any, batch: dict[str, Tensor], seed: int = 0) -> BiasCorrection:
    """Correct the biases of a calibrated model's quantized layers in place, where held-out samples say that it helps.

    Layers without a bias, with one that others share, or run several times in a forward (ALBERT's) stay as they are.

    Args:
        batch: inputs as model(**batch) takes them; every third sample is held out. With fewer than 6 nothing is done.
        seed: of the positions that are kept.
    """
    start = time.perf_counter()
    if (rows := len(next(iter(batch.values())))) < MIN_SAMPLES:
        return BiasCorrection((), 0, 0.0, 0.0, rows, 0, 0.0)
    device = next(model.parameters()).device
    batch = {name: x.to(device) for name, x in batch.items()}
    with evaluation_mode(model):
        if is_encoder_decoder(model) and "decoder_input_ids" not in batch:
            with quantizers_disabled(model):
                batch |= write_greedily(model, batch)
        corrector = _Corrector(model, batch, seed)
        if not corrector.layers:
            return BiasCorrection((), 0, 0.0, 0.0, rows, 0, time.perf_counter() - start)
        with quantizers_disabled(model):
            target = last_hidden(corrector.watch(corrector.keep_float, batch))[::HELD_OUT]
        before = last_hidden(model(**batch, output_hidden_states=True))[::HELD_OUT]
        after = last_hidden(corrector.watch(corrector.correct, batch))[::HELD_OUT]
        error_before, error_after = (held_out_error(model, batch, each, target) for each in (before, after))
        if error_after < error_before:
            corrector.fit_on_all(batch)
    done = corrector.applied()
    result = BiasCorrection(
        tuple(corrector.corrected), len(corrector.kept), error_before, error_after, rows, len(target),
        time.perf_counter() - start,
    )  # fmt: skip
    if result.is_kept:
        quantization = quantization_of(model)
        model.quantization = dataclasses.replace(quantization, folds=(*quantization.folds, done))
    else:
        done.undo()
    return result


def correct_as_told(model: Any, recipe: Recipe, samples: Samples, seed: int = 0) -> BiasCorrection | None:
    """Correct the biases of a model calibrated from these samples; None where its recipe says off."""
    if recipe.calibrator.bias_correction == OFF:
        return None
    return correct_biases(model, batch_of(samples, model), seed)


def relative_error(x: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Return the root of the mean over positions of |x - target|^2 / |target|^2; both (B, ..., channels).

    Args: mask: (B, S), the positions that count.
    """
    x, target = (each.float() if mask is None else each[mask].float() for each in (x, target))
    square = (x - target).square().sum(-1) / target.square().sum(-1).clamp_min(1e-20)
    return float(square.mean().sqrt())


def held_out_error(model: Any, batch: dict[str, Tensor], x: Tensor, target: Tensor) -> float:
    """Return the relative error of the held-out samples' last hidden state, where the batch is not padded."""
    mask = batch.get(DECODER_MASK if is_encoder_decoder(model) else MASK)
    mask = None if mask is None else mask[::HELD_OUT].bool()
    return relative_error(x, target, mask if mask is not None and target.shape[:2] == mask.shape else None)


def last_hidden(outputs: Any) -> Tensor:
    """Return the last hidden state, of an encoder-decoder the decoder's; else the first output that is a tensor."""
    for name in ("decoder_hidden_states", "hidden_states"):
        if states := outputs.get(name):
            return states[-1]
    return next(x for x in outputs.values() if isinstance(x, Tensor))


class _Corrector:
    """Hooks on the quantized layers that have a bias of their own."""

    def __init__(self, model: Any, batch: dict[str, Tensor], seed: int) -> None:
        self.model, self.batch = model, batch
        self.rows = len(next(iter(batch.values())))
        sites = [site for site in quantization_of(model).sites if site.enabled]
        masks = mask_names(model, sites)
        self.mask_of = {layer: masks[site.name] for site in sites for layer in site.consumers}
        on = {site.module for site in sites if site.is_weight}
        layers = {n: m for n, m in model.named_modules() if n in on and isinstance(m, QUANT_LAYER_TYPES)}
        owners = Counter(
            id(bias) for m in model.modules() if isinstance(bias := getattr(m, "bias", None), nn.Parameter)
        )
        self.layers: dict[str, Any] = {
            n: m for n, m in layers.items() if m.bias is not None and owners[id(m.bias)] == 1
        }
        channels = sum(len(m.bias) for m in self.layers.values())
        self.num_kept = int(KEPT_BYTES / (4 * max(channels, 1)))
        self.seed = seed
        self.kept: dict[str, Tensor] = {}  # layer → its float outputs at the chosen positions
        self.calls: Counter[str] = Counter()
        self.corrected: list[str] = []
        self.judged: frozenset[str] | None = None  # layers whose correction the held-out samples were for
        self._biases: list[tuple[Tensor, Tensor, Tensor]] = []

    def watch(self, see: Any, batch: dict[str, Tensor]) -> Any:
        """Run the model with `see(layer's name, layer, output)` at each layer, whose return goes on in its place."""
        handles = [
            layer.register_forward_hook(lambda module, _, y, name=name: see(name, module, y))
            for name, layer in self.layers.items()
        ]
        try:
            return self.model(**batch, output_hidden_states=True)
        finally:
            for handle in handles:
                handle.remove()

    def keep_float(self, name: str, layer: Any, y: Tensor) -> None:
        self.calls[name] += 1
        table = self._positions(name, layer, y)
        if self.calls[name] > 1 or table is None:
            self.kept.pop(name, None)
        else:
            self.kept[name] = table[0]

    def correct(self, name: str, layer: Any, y: Tensor) -> Tensor | None:
        table = self._positions(name, layer, y) if name in self.kept else None
        if table is None or table[0].shape != self.kept[name].shape:  # a router sent it other positions
            return None
        now, is_held_out = table
        target = self.kept[name]
        error, weight = target - now, 1 / target.square().sum(1, keepdim=True).clamp_min(1e-20)
        if self.judged is not None:
            if name not in self.judged:
                return None
            shift = (error * weight).sum(0) / weight.sum()
        else:
            fit = weight * ~is_held_out[:, None]
            shift = (error * fit).sum(0) / fit.sum()
            judge = weight * is_held_out[:, None]
            if float((judge * (error - shift).square()).sum()) >= float((judge * error.square()).sum()):
                return None
        before = layer.bias.detach().clone()
        layer.bias += shift.to(before.dtype)
        self.corrected.append(name)
        self._biases.append((layer.bias, before, layer.bias.detach().clone()))
        axis = y.dim() - self._channel_axis(layer, y) - 1
        return y + shift.to(y.dtype).reshape(-1, *[1] * axis)

    def fit_on_all(self, batch: dict[str, Tensor]) -> None:
        """Correct the layers anew that the held-out samples were for, by all samples."""
        self.applied().undo()
        self.judged, self.corrected, self._biases = frozenset(self.corrected), [], []
        self.watch(self.correct, batch)

    def applied(self) -> AppliedCorrection:
        """Return what undoes the corrections."""
        return AppliedCorrection(tuple(self._biases))

    @staticmethod
    def _channel_axis(layer: Any, y: Tensor) -> int:
        return 1 if layer.kind == "conv" else y.dim() - 1

    def _positions(self, name: str, layer: Any, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the outputs at seeded positions without padding, (positions, channels), and which are held out."""
        y = y.movedim(self._channel_axis(layer, y), -1)
        if len(y) % self.rows:
            return None
        mask = self.batch.get(self.mask_of.get(name, MASK))
        return positions_of(y, self.rows, mask, self.num_kept, self.seed)


def positions_of(x: Tensor, rows: int, mask: Tensor | None, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return x (..., channels) at positions without padding, (positions, channels), and which are held out.

    Args: rows: of the batch. mask: (rows, S), the positions that count. most: so many are drawn with `seed`.
    """
    table = x.reshape(-1, x.shape[-1])
    sample = torch.arange(len(table), device=x.device) // (len(table) // rows)
    chosen = torch.arange(len(table), device=x.device)
    if mask is not None and mask.numel() == len(table):
        chosen = chosen[mask.flatten().bool()]
    if len(chosen) > most:
        generator = torch.Generator().manual_seed(seed)
        chosen = chosen[torch.randperm(len(chosen), generator=generator)[:most].sort().values.to(x.device)]
    return table[chosen].float(), sample[chosen] % HELD_OUT == 0
