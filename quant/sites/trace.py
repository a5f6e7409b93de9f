"""Which layers read the same tensor: found by one forward through tensor identity, not by a table for each family."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from quant.attention import additive_mask, explicit_attention
from quant.models.example_inputs import example_inputs, without_cache
from quant.modules import QuantEmbedding, is_norm
from quant.own_attention import set_attention, traced_attention
from quant.sites.layer_class import quant_class
from quant.sites.products import WatchProducts

TensorKey = tuple[int, int, int, int, int, int]
TRACE_ATTENTION = "int8kit_trace"


@dataclass(frozen=True)
class Producer:
    """The layer or norm whose output channels may be a tensor's channels."""

    name: str
    channels: tuple[int, int] | None = None
    """Which of its output channels (start, end) the tensor holds, as V in GPT-2's joint product; None is all."""


@dataclass
class ModelTrace:
    """What one forward showed. Keys are equal exactly where two layers see the same values in the same memory."""

    layer_inputs: dict[str, tuple[TensorKey, ...]] = field(default_factory=dict)
    """Layer name → its inputs, in the order of execution: several where a layer serves more than once (ALBERT)."""
    outputs: dict[TensorKey, str] = field(default_factory=dict)
    """Output tensor → the linear layer or norm that made it."""
    attentions: dict[str, Producer | None] = field(default_factory=dict)
    """Attention module → the layer that made V, whole heads side by side (None where it is made otherwise)."""
    scalings: dict[str, float] = field(default_factory=dict)
    """Attention module → the factor that Q is multiplied by."""
    attention_outputs: dict[TensorKey, str] = field(default_factory=dict)
    """Output of attention → its attention module."""
    norms: dict[str, tuple[TensorKey, ...]] = field(default_factory=dict)
    """Norm name → its outputs, one for each call."""
    peaks: dict[str, float] = field(default_factory=dict)
    """Norm name → the largest |output| of all channels over that of the middle one: a few may be far above the rest."""
    last_layers: dict[str, str] = field(default_factory=dict)
    """Layer → the layer that ran last before it with as many output channels as this one has input channels."""
    layer_classes: dict[str, Any] = field(default_factory=dict)
    """Every layer that can carry quantizers, reached or not → the class that does."""
    bare_weights: tuple[str, ...] = ()
    """Parameters that are multiplied by something else than a layer that takes quantizers."""

    def producer_of(self, layer: str) -> Producer | None:
        """Return what may be the producer of a layer's input channels; whether it is one a trial fold tells.

        The norm that made the input, the value projection behind attention, else the last layer of that width: up of
        a gated MLP (act(gate) * up), or FC1 before an activation that keeps factors (ReLU).
        """
        key = self.layer_inputs[layer][0]
        attention = self.attention_outputs.get(key)
        if attention is not None:
            return self.attentions[attention]
        maker = self.outputs.get(key) or self.last_layers.get(layer)
        return None if maker is None else Producer(maker)


def tensor_key(x: Tensor) -> TensorKey:
    """Return what identifies a tensor's values while it is alive: memory, extent, last axis and version.

    The last axis by length and stride: a map of pixels seen as (B, C, H, W) is not the one seen as (B, H * W, C).
    """
    return (
        x.untyped_storage().data_ptr(),
        int(x.storage_offset()),
        x.numel(),
        x.shape[-1] if x.dim() else 0,
        x.stride(-1) if x.dim() else 0,
        x._version,
    )


def trace_model(model: PreTrainedModel, inputs: dict[str, Tensor] | None = None) -> ModelTrace:
    """Return what one forward of the float model on example inputs shows about shared tensors and attention.

    Every tensor seen is kept alive until the end, so that no memory is used twice and no key is met by chance.
    Raises: ValueError: the model does not run on these inputs.
    """
    inputs = example_inputs(model) if inputs is None else inputs
    names = {module: name for name, module in model.named_modules()}
    trace, alive = ModelTrace(layer_classes=_layer_classes(model)), []
    last_of_width: dict[int, str] = {}
    recent: deque[tuple[str, Tensor]] = deque(maxlen=3)  # Q, K and V, in whatever order

    def see_layer(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        alive.extend([args[0], output])
        trace.layer_inputs[names[module]] = _and(trace.layer_inputs.get(names[module]), tensor_key(args[0]))
        trace.outputs.setdefault(tensor_key(output), names[module])
        if (before := last_of_width.get(args[0].shape[-1])) is not None:
            trace.last_layers.setdefault(names[module], before)
        last_of_width[output.shape[-1]] = names[module]
        recent.append((names[module], output))

    def see_norm(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        alive.append(output)
        trace.norms[names[module]] = _and(trace.norms.get(names[module]), tensor_key(output))
        trace.outputs[tensor_key(output)] = names[module]
        trace.peaks[names[module]] = max(trace.peaks.get(names[module], 0.0), _peak(output))

    def see_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any):
        value_layer = _value_layer(value, trace) or _copied_layer(value, recent)
        scaling = kwargs.get("scaling")
        trace.scalings.setdefault(names[module], query.shape[-1] ** -0.5 if scaling is None else float(scaling))
        output, weights = explicit_attention(module, query, key, value, mask, scaling)
        alive.extend([value, output])
        trace.attentions.setdefault(names[module], value_layer)
        trace.attention_outputs[tensor_key(output.flatten(2))] = names[module]
        return output, weights

    hooks = [m.register_forward_hook(see_norm if is_norm(m) else see_layer)
             for m in model.modules() if is_norm(m) or names[m] in trace.layer_classes]  # fmt: skip
    AttentionInterface.register(TRACE_ATTENTION, see_attention)
    AttentionMaskInterface.register(TRACE_ATTENTION, additive_mask)
    before = model.config._attn_implementation
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad(), traced_attention(model, see_attention):
            set_attention(model, TRACE_ATTENTION)
            try:
                with WatchProducts(model, trace.layer_classes) as products:
                    model(**inputs, **without_cache(model))  # a cache copies V, which hides who made it
            except Exception as error:  # a model of a family that nobody tried raises what it likes
                raise ValueError(_does_not_run(model, inputs, error)) from error
            finally:
                set_attention(model, before)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    trace.bare_weights = tuple(products.found)
    return trace


def _layer_classes(model: nn.Module) -> dict[str, Any]:
    classes = {name: quant_class(module) for name, module in model.named_modules()}
    return {name: each for name, each in classes.items() if each and not issubclass(each, QuantEmbedding)}


def _does_not_run(model: PreTrainedModel, inputs: dict[str, Tensor], error: Exception) -> str:
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in inputs.items())
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return (
        f"{type(model).__name__} does not run with int8kit's attention on {shapes}: {why}. If the float model runs on "
        "such inputs, this family is not supported yet (CONTRIBUTING.md, 'Add a family'); else give insert_quantizers "
        "inputs that it takes"
    )


def _peak(x: Tensor) -> float:
    """Return the largest |x| of all channels over that of the middle channel; 0 where that is 0.

    A percentile of all values would lie within the outlying channel, which holds more than a thousandth of them.
    """
    if not x.numel():
        return 0.0
    largest = x.detach().float().abs().reshape(-1, x.shape[-1]).amax(0)
    middle = float(largest.median())
    return float(largest.max()) / middle if middle else 0.0


def _and(keys: tuple[TensorKey, ...] | None, key: TensorKey) -> tuple[TensorKey, ...]:
    """Return the keys with one more, each once."""
    return tuple(dict.fromkeys((*(keys or ()), key)))


def _value_layer(value: Tensor, trace: ModelTrace) -> Producer | None:
    """Return the layer whose output, or whose channels side by side, seen as (B, H, S, D), is `value`; else None."""
    batch, num_heads, length, head_dim = value.shape
    storage, width = value.untyped_storage().data_ptr(), num_heads * head_dim
    whole = (storage, int(value.storage_offset()), value.numel(), width, value.stride(-1), value._version)
    if whole in trace.outputs:
        return Producer(trace.outputs[whole])
    row = value.stride(2)  # the width of the larger product
    if row <= width or value.stride(1) != head_dim or value.stride(3) != 1:
        return None
    start = int(value.storage_offset()) % row
    larger = trace.outputs.get(
        (storage, int(value.storage_offset()) - start, batch * length * row, row, 1, value._version)
    )
    return None if larger is None else Producer(larger, (start, start + width))


def _copied_layer(value: Tensor, recent: Iterable[tuple[str, Tensor]]) -> Producer | None:
    """Return the layer of which `value` (B, H, S, D) is a copy with the heads moved (Whisper); found by its numbers."""
    heads_last = value.transpose(1, 2).flatten(2)  # (B, S, H D)
    for name, output in recent:
        if output.shape == heads_last.shape and torch.equal(output, heads_last):
            return Producer(name)
    return None
