"""`torch.ops.int8kit.linear`: the INT8 product with what follows it fused; its fake and its plain torch reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.device import runs_kernels
from kernels.reference import ACTIVATIONS, TORCH_ACTIVATIONS, inverse_of, quantize_reference


def interleave(gate: Tensor, up: Tensor) -> Tensor:
    """Return gate's and up's rows in turn, as a gated product wants weight, scale and bias: (N, ...) → (2 N, ...)."""
    return torch.stack((gate, up), dim=1).flatten(0, 1)


@torch.library.custom_op("int8kit::linear", mutates_args=())
def linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    out_scale: float = 1.0,
    activation: str = "none",
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    factor: Tensor | None = None,
    gated: bool = False,
    tiles: Sequence[int] | None = None,
) -> Tensor:
    """Return activation(x @ weight.T * scale + bias) + residual * residual_scale, cast or quantized to `out_dtype`.

    Args:
        x: INT8, shape (..., K). weight: INT8, shape (N, K).
        scale: float32, shape (N,): weight scale x input scale. bias: float32, shape (N,), or None.
        out_dtype: float16, bfloat16, or int8: then clamp(round_half_even(y * factor / out_scale)); the division is
            exact where y is (none, relu), else y * (1 / out_scale): the activation's own error is far larger.
        activation: a name of `kernels.reference.ACTIVATIONS`. "gelu" is within 2e-5; "gelu_fast" (the same function),
            "gelu_tanh", "silu", "quick_gelu" within 3e-5 + 2.5e-4 |y|, as fp16 would round them.
        residual: INT8 or half precision, of the result's shape; multiplied by `residual_scale`.
        factor: SmoothQuant's 1 / s of the next product, float32, (N,) (gated: (N / 2,)), or None; INT8 results only.
        gated: weight rows alternate gate and up (`interleave`); the result, (..., N / 2), is activation(gate) * up.
        tiles: a plan of `kernels.tiles.ProductTile` by M, or nothing.
    Raises: ValueError: for dtypes, shapes, devices or a plan that do not fit.
    """
    has_kernel = runs_kernels("linear", x, weight, scale, bias, residual, factor)
    _check(x, weight, scale, bias, out_dtype, activation, residual, factor, gated)
    if not has_kernel:
        return linear_reference(
            x, weight, scale, bias, out_dtype, out_scale, activation, residual, residual_scale, factor, gated
        )
    from kernels.linear_kernel import launch_linear

    columns, depth = weight.shape
    flat = x.reshape(-1, depth).contiguous()
    out = x.new_empty((*x.shape[:-1], columns // 2 if gated else columns), dtype=out_dtype)
    if out.numel():
        matrix = out.view(flat.shape[0], out.shape[-1])
        other = None if residual is None else residual.reshape(matrix.shape).contiguous()
        launch_linear(flat, weight.contiguous(), scale, bias, matrix, (out_scale, inverse_of(out_scale)),
                      ACTIVATIONS[activation], other, residual_scale, factor, gated, tiles)  # fmt: skip
    return out


@linear.register_fake
def _(x, weight, scale, bias, out_dtype, out_scale=1.0, activation="none", residual=None, residual_scale=1.0,
      factor=None, gated=False, tiles=None):  # fmt: skip
    return x.new_empty((*x.shape[:-1], weight.shape[0] // 2 if gated else weight.shape[0]), dtype=out_dtype)


def linear_reference(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_dtype: torch.dtype, out_scale: float = 1.0,
    activation: str = "none", residual: Tensor | None = None, residual_scale: float = 1.0, factor: Tensor | None = None,
    gated: bool = False,
) -> Tensor:  # fmt: skip
    """Return what `linear` does, in plain torch; float64 holds every sum and rounds where the kernel's FMA does."""
    y = (x.double() @ weight.double().T).float().double() * scale.double()
    y = (y if bias is None else y + bias.double()).float()
    act = TORCH_ACTIVATIONS[activation]
    y = act(y[..., ::2]) * y[..., 1::2] if gated else act(y)
    if residual is not None:
        y = (residual.double() * float(np.float32(residual_scale)) + y.double()).float()
    if out_dtype != torch.int8:
        return y.to(out_dtype)
    return quantize_reference(y if factor is None else y * factor, out_scale)


def _check(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_dtype: torch.dtype, activation: str,
           residual: Tensor | None, factor: Tensor | None, gated: bool) -> None:  # fmt: skip
    """Raise ValueError with the first argument that does not fit."""
    columns, depth = weight.shape
    width = columns // 2 if gated else columns
    if x.dtype != torch.int8 or weight.dtype != torch.int8:
        raise ValueError(f"int8kit::linear multiplies int8 by int8, got {x.dtype} by {weight.dtype}; quantize x first")
    if x.shape[-1] != depth:
        raise ValueError(f"x has {x.shape[-1]} columns, the weight {depth}: {tuple(x.shape)} by {tuple(weight.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    for name, dtype in (("result", out_dtype), ("residual", out_dtype if residual is None else residual.dtype)):
        if dtype not in (torch.float16, torch.bfloat16, torch.int8):
            raise ValueError(f"a product's {name} is float16, bfloat16 or int8, got {dtype}")
    if gated and columns % 2:
        raise ValueError(
            f"a gated weight alternates gate and up, got an odd number of rows: {columns}; use interleave()"
        )
    for name, each, size in (("scale", scale, columns), ("bias", bias, columns), ("factor", factor, width)):
        if each is not None and (each.dtype != torch.float32 or each.shape != (size,)):
            raise ValueError(f"{name} must be float32 of shape ({size},), got {each.dtype} of {tuple(each.shape)}")
    if residual is not None and residual.shape != (*x.shape[:-1], width):
        raise ValueError(
            f"the residual must have the result's shape {(*x.shape[:-1], width)}, got {tuple(residual.shape)}"
        )
