"""The formula of quantization and its gradients: clamp(round_half_even(x / scale)), in float32 whatever x is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quant.formats import NumberFormat


def amax_to_scale(amax: Tensor, number_format: NumberFormat) -> Tensor:
    """Return scale = amax / qmax in float32; a channel that is all zero gets 1 / qmax, which keeps its zeros exact."""
    amax = amax.float()
    # By a tensor: dividing by a number, CUDA multiplies by its reciprocal and the last bit differs from the CPU's.
    return torch.where(amax > 0, amax, torch.ones_like(amax)) / torch.full_like(amax, number_format.qmax)


def steps(x: Tensor, scale: Tensor) -> Tensor:
    """Return round_half_even(x / scale) as float32, not clamped; the division is no multiplication by 1 / scale.

    Args:
        x: any float tensor. scale: broadcastable to x, float32, positive.
    """
    return (x.float() / scale).round_()


def quantize(x: Tensor, scale: Tensor, number_format: NumberFormat) -> Tensor:
    """Return clamp(round_half_even(x / scale), qmin, qmax) as float32: the formula, here alone (see `steps`)."""
    return steps(x, scale).clamp_(number_format.qmin, number_format.qmax)


def fake_quantize(x: Tensor, scale: Tensor, number_format: NumberFormat, dtype: torch.dtype | None = None) -> Tensor:
    """Return x rounded to the format's grid of `scale`, in x's dtype or `dtype`; the arithmetic is always float32.

    The rounding passes gradients straight through, the clamp stops them outside the range; the gradient that reaches
    `scale` is that of LSQ (Esser et al. 2020, arXiv:1902.08153, eq. 3).
    """
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _FakeQuantize.apply(x, scale, number_format, dtype or x.dtype)
    return quantize(x, scale, number_format).mul_(scale).to(dtype or x.dtype)


class _FakeQuantize(torch.autograd.Function):
    """`fake_quantize` with its gradients: keeps x and the scale alone, where autograd would keep five such tensors.

    Plain formulas in both directions, so that torch.compile traces and fuses them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, number_format: NumberFormat, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.range = (number_format.qmin, number_format.qmax)
        return quantize(x, scale, number_format).mul_(scale).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, scale = ctx.saved_tensors
        qmin, qmax = ctx.range
        steps = x.float() / scale
        codes = torch.round(steps)
        inside = (codes >= qmin) & (codes <= qmax)
        to_x = (gradient * inside).to(x.dtype) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_x, None, None, None
        per_value = gradient.float() * torch.where(inside, codes - steps, codes.clamp(qmin, qmax))
        shared = [dim for dim in range(x.dim()) if scale.dim() != x.dim() or scale.shape[dim] == 1]
        return to_x, per_value.sum(shared).reshape(scale.shape), None, None


def channel_amax(x: Tensor, axis: int | None) -> Tensor:
    """Return max |x| in float32: shape (1,) over the whole tensor, or (channels,) along `axis`."""
    if axis is None:
        return x.float().abs().amax().reshape(1)
    other = [dim for dim in range(x.dim()) if dim != axis % x.dim()]
    return x.float().abs().amax(other)


def along_axis(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Return per-channel `values` (channels,) reshaped to broadcast over x along `axis`; unchanged if axis is None."""
    if axis is None:
        return values
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)
