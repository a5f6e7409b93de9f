"""Folds: where the channels of a tensor come from one layer or norm, its parameters carry SmoothQuant's 1/s for free.

Which folds are exact is not looked up by architecture but tried on the model. So found: a pre-norm into Q, K, V and
gate, up (or FC1); V into the attention's output layer, grouped heads and GPT-2's joint product included; up into down
of a gated MLP; FC1 into FC2 through ReLU.

Folds can be undone to the bit, so that statistics are applied as often as one likes: a product and its division back
miss the weight by a step or two of the float grid, and that difference is kept, a byte for each value, where a copy of
the weight would take four.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quant.dropout import evaluation_mode
from quant.fake_quantize import along_axis
from quant.models.example_inputs import OUTPUT_NAMES, example_inputs, without_cache
from quant.modules import QUANT_LAYER_TYPES, is_norm
from quant.sites.site import site_quantizers
from quant.tensor_quantizer import quantizers_disabled

# Of the largest output; a fold that is not exact misses by orders of magnitude more (BERT's LayerNorm: by 1.17).
FOLD_TOLERANCE = 1e-4
# What may read the producer's tensor beside the consumers: the next part of the model, or its user.
SEEN_OUTPUTS = (*OUTPUT_NAMES, "encoder_last_hidden_state")
WORDS = {4: torch.int32, 2: torch.int16, 8: torch.int64}  # by the bytes of a value: floats seen as whole numbers


@dataclass(frozen=True)
class Fold:
    """A layer or norm that may carry 1/s, and the layers whose weights then carry s."""

    producer: Any
    consumers: tuple[Any, ...]
    num_channels: int
    """Input channels of the consumers."""
    head_dim: int
    channels: tuple[int, int] | None = None
    """The producer's output channels in question (start, end); None is all."""

    @property
    def is_possible(self) -> bool:
        """Whether the parameters fit at all."""
        producer = self.producer
        if not (is_norm(producer) or isinstance(producer, QUANT_LAYER_TYPES)):
            return False
        if getattr(producer, "weight", None) is None or producer in self.consumers:
            return False
        fits = self.num_channels == self.width or self._num_readers > 0
        return fits and all(isinstance(consumer, QUANT_LAYER_TYPES) for consumer in self.consumers)

    @property
    def width(self) -> int:
        """Return the number of the producer's channels in question."""
        start, end = self._range
        return end - start

    @property
    def _axis(self) -> int:
        return 0 if is_norm(self.producer) else self.producer.weight_axis

    @property
    def _range(self) -> tuple[int, int]:
        return self.channels or (0, self.producer.weight.shape[self._axis])

    @property
    def _num_readers(self) -> int:
        """Return how many query heads read one head of V; 0 where heads do not explain the widths."""
        per_head = self.num_channels % self.width == 0 and self.width % self.head_dim == 0
        return self.num_channels // self.width if per_head and not is_norm(self.producer) else 0

    def constrain(self, s: Tensor) -> Tensor:
        """Return an s that the producer can carry: grouped KV heads have several readers, so one s for all."""
        if len(s) == self.width:
            return s
        grouped = s.reshape(-1, self._num_readers, self.head_dim)  # (KV heads, readers, D)
        return grouped.amax(1, keepdim=True).expand_as(grouped).reshape(-1)

    def apply(self, s: Tensor) -> None:
        """Divide the producer's channels by a constrained s and multiply the consumers' input channels, in place."""
        with torch.no_grad():
            for part, factor, is_divided in self.parts(s):
                part.div_(factor) if is_divided else part.mul_(factor)

    def parts(self, s: Tensor) -> list[tuple[Tensor, Tensor, bool]]:
        """Return (view of a parameter, factor that broadcasts to it, whether it is divided) for all that s changes."""
        producer, axis, (start, end) = self.producer, self._axis, self._range
        own = s if len(s) == self.width else s.reshape(-1, self._num_readers, self.head_dim)[:, 0].reshape(-1)
        own, s = own.to(producer.weight), s.to(producer.weight)
        weight = producer.weight.detach().narrow(axis, start, end - start)
        parts = [(weight, along_axis(own, weight, axis), True)]
        if getattr(producer, "bias", None) is not None:
            parts.append((producer.bias.detach()[start:end], own, True))
        weights = [(consumer.weight.detach(), consumer.input_axis) for consumer in self.consumers]
        return parts + [(each, along_axis(s, each, input_axis), False) for each, input_axis in weights]

    def is_exact(self, model: Any) -> bool:
        """Return whether folding some s leaves the float model as it is: tried on the model, then undone.

        The consumers' outputs, the model's outputs and what the other quantizers see must stay. This finds every other
        reader of the tensor (a post-LayerNorm model's residual branch, a decoder that reads an encoder exported
        alone, V's own quantizer, whose amax is of the tensor as it was) and every operation in between that does not
        keep factors (GELU).
        """
        if not self.is_possible:
            return False
        parameters = [p for module in (self.producer, *self.consumers) for p in module.parameters(recurse=False)]
        saved = [p.detach().clone() for p in parameters]
        s = self.constrain(torch.linspace(0.5, 2.0, self.num_channels))
        inputs = example_inputs(model)
        with torch.no_grad(), quantizers_disabled(model), evaluation_mode(model):
            before = self._seen(model, inputs)
            self.apply(s)
            after = self._seen(model, inputs)
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)
        return all(_is_close(x, y) for x, y in zip(before, after, strict=True))

    def _seen(self, model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Return the tensors that the fold must leave as they are, from one forward."""
        seen: list[Tensor] = []
        own = {getattr(self.producer, "output_quantizer", None), *(c.input_quantizer for c in self.consumers)}
        others = [
            q for site, q in site_quantizers(model) if q.enabled and q not in own and not site.is_weight
        ]  # fmt: skip
        handles = [c.register_forward_hook(lambda _m, _x, y: seen.append(y)) for c in self.consumers]
        handles += [q.register_forward_pre_hook(lambda _q, x: seen.append(x[0])) for q in others]
        try:
            result = model(**inputs, return_dict=True, **without_cache(model))
        finally:
            for handle in handles:
                handle.remove()
        return seen + [result[name] for name in SEEN_OUTPUTS if result.get(name) is not None]


def _is_close(x: Tensor, y: Tensor) -> bool:
    return bool((x - y).abs().max() <= FOLD_TOLERANCE * x.abs().max().clamp_min(1e-6))


@dataclass(frozen=True)
class AppliedFold:
    """A fold that a model bears, with what restores its weights."""

    fold: Fold
    s: Tensor
    missed: tuple[Tensor, ...]
    """For each changed tensor: its words before the fold minus those that dividing back gives."""

    def undo(self) -> None:
        """Restore the weights as they were before the fold, to the bit; those of later folds are undone already."""
        for (part, factor, is_divided), missed in zip(self.fold.parts(self.s), self.missed, strict=True):
            words = _words(_back(part, factor, is_divided))
            part.copy_((words + missed.to(words)).view(part.dtype))

    def redo(self) -> None:
        """Fold again what `undo` restored: the same operations on the same numbers."""
        self.fold.apply(self.s)


@dataclass(frozen=True)
class AppliedValues:
    """New values of parameters, which can be undone to the bit."""

    values: tuple[tuple[Tensor, Tensor, Tensor], ...]
    """Of each parameter: itself, what it held before, what it holds after."""

    def undo(self) -> None:
        """Restore what they held."""
        for parameter, before, _ in self.values:
            parameter.data.copy_(before)

    def redo(self) -> None:
        """Give them their new values again."""
        for parameter, _, after in self.values:
            parameter.data.copy_(after)


def apply_fold(fold: Fold, s: Tensor) -> AppliedFold:
    """Fold a constrained s into the weights, in place, and return what undoes it."""
    before = [part.clone() for part, _, _ in fold.parts(s)]
    fold.apply(s)
    missed = [
        _narrow(_words(value) - _words(_back(part, factor, is_divided)))
        for value, (part, factor, is_divided) in zip(before, fold.parts(s), strict=True)
    ]
    return AppliedFold(fold, s.clone(), tuple(missed))


def _back(part: Tensor, factor: Tensor, is_divided: bool) -> Tensor:
    return part * factor if is_divided else part / factor


def _words(values: Tensor) -> Tensor:
    return values.contiguous().view(WORDS[values.element_size()])


def _narrow(words: Tensor) -> Tensor:
    """Return the differences in a byte each, unless one is too large (a product that left the normal floats)."""
    return words.to(torch.int8) if not words.numel() or bool((words.abs() < 128).all()) else words
