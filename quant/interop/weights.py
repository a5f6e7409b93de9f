"""The weights of a foreign checkpoint, as the float weights of our model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.checkpoint import float_state_dict
from quant.fake_quantize import along_axis
from quant.interop.files import ForeignCheckpoint, split_quantizer_key
from quant.interop.names import KeyResolver
from quant.modules import QuantConv1D, QuantLayer


@dataclass
class WeightMatch:
    """Which parameters a checkpoint gives; all empty where it holds ranges alone."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Our parameter's name → its value."""
    unmatched: list[tuple[str, str]] = field(default_factory=list)
    """(the checkpoint's name, why it found no place)."""
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def match_weights(model: PreTrainedModel, foreign: ForeignCheckpoint, resolver: KeyResolver) -> WeightMatch:
    """Return the checkpoint's weights under our names, what the packages did to them undone; `model` stays as it is."""
    match = WeightMatch()
    own = float_state_dict(model, dict(model.state_dict()))
    buffers = {name for name, _ in model.named_buffers()}
    found: dict[str, Tensor] = {}
    for key, tensor in foreign.tensors.items():
        if split_quantizer_key(key) is not None or resolver.weight_of(key, buffers):
            continue
        name = resolver.weight_of(key, own)
        if name is None:
            match.unmatched.append((key, "this model has no such parameter"))
        else:
            found[name] = tensor
    if not found:
        return match
    _undo_changes(model, found, foreign, resolver)
    for name, tensor in found.items():
        if tensor.shape == own[name].shape:
            match.tensors[name] = tensor
        else:
            match.unmatched.append((name, "its shape differs here: a checkpoint of another model?"))
    given = {own[name].data_ptr() for name in found}  # tied weights are stored once
    match.missing = [name for name in own if own[name].data_ptr() not in given and name not in buffers]
    changed = [name for name, new in match.tensors.items() if not _is_same(own[name], new)]
    if changed:
        match.notes.append(
            f"{len(changed)} of {len(match.tensors)} weights differ from the model's own and are taken over"
        )
    return match


def _is_same(own: Tensor, new: Tensor) -> bool:
    """Return whether two weights are equal, but for the ulp that multiplying by s and dividing again costs."""
    return torch.allclose(own.cpu().float(), new.float(), rtol=1e-6, atol=0)


def _undo_changes(
    model: PreTrainedModel, found: dict[str, Tensor], foreign: ForeignCheckpoint, resolver: KeyResolver
) -> None:
    """Undo what ModelOpt does to weights, in place of `found`: Conv1D transposed, SmoothQuant's s multiplied in."""
    layers: dict[str, Any] = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, QuantLayer)}
    conv1d = [name for name, layer in layers.items() if isinstance(layer, QuantConv1D) and name in found]
    if any(found[name].shape != layers[name].weight.shape == found[name].T.shape for name in conv1d):
        for name in conv1d:  # all of them: the square ones do not show it by their shape
            found[name] = found[name].T
    for quantizer, tensors in foreign.quantizer_tensors().items():
        name = f"{resolver.place_of(quantizer).rpartition('.')[0]}.weight"
        factor = tensors.get("_pre_quant_scale")
        if factor is None or name not in layers or name not in found:
            continue
        axis = layers[name].input_axis
        if factor.numel() == found[name].shape[axis]:  # also where our site is off: the layer must stay the float one
            found[name] = found[name].float() * along_axis(factor.float().reshape(-1), found[name], axis)
