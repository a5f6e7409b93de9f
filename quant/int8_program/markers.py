"""Ops that stand in a traced graph for what the passes fuse or `lower` writes out; none is left in a saved program.

They compute nothing: only their shapes and types are known, to torch.export's fake tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

LIBRARY = torch.library.Library("int8kit_program", "DEF")
LIBRARY.define("quantize(Tensor x, float scale, Tensor? factor, int qmin, int qmax) -> Tensor")
LIBRARY.define("dequantize(Tensor codes, float scale, ScalarType dtype) -> Tensor")
LIBRARY.define("product(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor")
LIBRARY.define("activation(Tensor x, str name) -> Tensor")
LIBRARY.define("mask(Tensor is_seen, SymInt q_length, bool causal, ScalarType dtype) -> Tensor")

_OPS = torch.ops.int8kit_program
QUANTIZE, DEQUANTIZE = _OPS.quantize.default, _OPS.dequantize.default
PRODUCT, ACTIVATION, MASK = _OPS.product.default, _OPS.activation.default, _OPS.mask.default


@torch.library.register_fake("int8kit_program::quantize", lib=LIBRARY)
def quantize(x: Tensor, scale: float, factor: Tensor | None, qmin: int, qmax: int) -> Tensor:
    """Return clamp(round_half_even(x * factor / scale), qmin, qmax) in INT8."""
    return torch.empty_like(x, dtype=torch.int8)


@torch.library.register_fake("int8kit_program::dequantize", lib=LIBRARY)
def dequantize(codes: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return codes * scale in `dtype`."""
    return torch.empty_like(codes, dtype=dtype)


@torch.library.register_fake("int8kit_program::product", lib=LIBRARY)
def product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Return x (..., K) @ (weight (N, K) * scale (N,)).T + bias; x in half precision, weight INT8, the rest float32."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.register_fake("int8kit_program::activation", lib=LIBRARY)
def activation(x: Tensor, name: str) -> Tensor:
    """Return the activation of that name in `kernels.reference.TORCH_ACTIVATIONS`."""
    return torch.empty_like(x)


@torch.library.register_fake("int8kit_program::mask", lib=LIBRARY)
def mask(is_seen: Tensor, q_length: int, causal: bool, dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores: (B, 1, 1, T), or causal (B, 1, q_length, T), from is_seen (B, T)."""
    rows = q_length if causal else 1
    return is_seen.new_empty((is_seen.shape[0], 1, rows, is_seen.shape[1]), dtype=dtype)
