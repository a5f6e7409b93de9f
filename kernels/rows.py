"""`torch.ops.int8kit.quantize` and `norm_quantize`: from half precision to INT8 in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.device import runs_kernels
from kernels.reference import inverse_of, quantize_reference

KEEPS = ("none", "sum", "normed")  # what `norm_quantize` returns beside the codes


@torch.library.custom_op("int8kit::quantize", mutates_args=())
def quantize(x: Tensor, scale: float, factor: Tensor | None = None, tiles: Sequence[int] | None = None) -> Tensor:
    """Return clamp(round_half_even(x * factor / scale), -128, 127) in INT8, the division exact in float32.

    Args: x: float16, bfloat16 or float32, shape (..., N). factor: SmoothQuant's 1 / s, float32, shape (N,), or None.
        tiles: a plan of `kernels.tiles.RowTile` by rows, or nothing.
    Raises: ValueError: for shapes, a scale or a plan that do not fit.
    """
    has_kernel = runs_kernels("quantize", x, factor)
    _check_vectors(x.shape[-1], factor=factor)
    inverse = inverse_of(scale)
    x = x.contiguous()
    if not has_kernel:
        return quantize_float(x, scale, factor)
    from kernels.rows_kernel import launch_quantize

    out = torch.empty_like(x, dtype=torch.int8)
    if x.numel():
        launch_quantize(x, factor, out, scale, inverse, tiles)
    return out


@quantize.register_fake
def _(x, scale, factor=None, tiles=None):
    return torch.empty_like(x.contiguous(), dtype=torch.int8)


@torch.library.custom_op("int8kit::norm_quantize", mutates_args=())
def norm_quantize(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    scale: float,
    residual: Tensor | None = None,
    factor: Tensor | None = None,
    rms: bool = False,
    keep: str = "none",
    tiles: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return INT8 codes of norm(x + residual), and in x's dtype what `keep` names (else an empty tensor).

    Args:
        x, residual: half precision, shape (..., N). weight, bias: of the norm, shape (N,), half or float32.
        eps: inside the root. scale: of the codes. factor: SmoothQuant's 1 / s, float32, shape (N,), or None.
        rms: RMSNorm instead of LayerNorm. tiles: a plan of `kernels.tiles.RowTile` by rows, or nothing.
        keep: "sum" (x + residual, the stream of a pre-norm model), "normed" (of a post-norm model), or "none".
    Raises: ValueError: for shapes, a scale, `keep` or a plan that do not fit.
    """
    has_kernel = runs_kernels("norm_quantize", x, weight, bias, residual, factor)
    width = x.shape[-1]
    _check_vectors(width, factor=factor)
    if keep not in KEEPS:
        raise ValueError(f"keep is one of {', '.join(KEEPS)}, got {keep!r}")
    if weight.shape != (width,) or (bias is not None and bias.shape != (width,)):
        raise ValueError(f"the norm's weight and bias must have shape ({width},), got {tuple(weight.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"the residual must have x's shape {tuple(x.shape)}, got {tuple(residual.shape)}")
    inverse = inverse_of(scale)
    x = x.contiguous()
    if not has_kernel:
        y, total = norm_reference(x, weight, bias, eps, residual, rms, keep)
        kept = {"none": x.new_empty(0), "sum": total, "normed": y.to(x.dtype)}[keep]
        return quantize_reference(y.float() if factor is None else y.float() * factor, scale), kept
    from kernels.rows_kernel import launch_norm

    codes = torch.empty_like(x, dtype=torch.int8)
    kept = torch.empty_like(x) if keep != "none" else x.new_empty(0)
    if x.numel():
        launch_norm(x, None if residual is None else residual.contiguous(), weight, bias, factor, codes, kept, eps,
                    scale, inverse, rms, KEEPS.index(keep), tiles)  # fmt: skip
    return codes, kept


@norm_quantize.register_fake
def _(x, weight, bias, eps, scale, residual=None, factor=None, rms=False, keep="none", tiles=None):
    plain = x.contiguous()
    return torch.empty_like(plain, dtype=torch.int8), torch.empty_like(plain) if keep != "none" else x.new_empty(0)


def quantize_float(x: Tensor, scale: float, factor: Tensor | None = None) -> Tensor:
    """Return what `quantize` does, in plain torch."""
    return quantize_reference(x.float() if factor is None else x.float() * factor, scale)


def norm_reference(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None = None,
                   rms: bool = False, keep: str = "none") -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return norm(x + residual) in float64, not yet quantized, and the sum in x's dtype."""
    total = x.float() if residual is None else x.float() + residual.float()
    kept = total.to(x.dtype)
    y = (kept if keep == "sum" else total).double()
    if rms:
        y = F.rms_norm(y, y.shape[-1:], weight.double(), eps)
    else:
        y = F.layer_norm(y, y.shape[-1:], weight.double(), None, eps)
    return (y if bias is None else y + bias.double()), kept


def _check_vectors(width: int, **vectors: Tensor | None) -> None:
    for name, each in vectors.items():
        if each is not None and (each.dtype != torch.float32 or each.shape != (width,)):
            raise ValueError(f"{name} must be float32 of shape ({width},), got {each.dtype} of {tuple(each.shape)}")
