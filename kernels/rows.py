"""`torch.ops.int8kit.quantize` and `norm_quantize`: from half precision to INT8 in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.device import capability, check_runs, launch_options
from kernels.numerics import INTERPRETED, quantize_int8
from kernels.reference import inverse_of, quantize_reference
from kernels.tiles import RowTile, pick_tile, row_tiles

KEEPS = ("none", "sum", "normed")  # what `norm_quantize` returns beside the codes


@triton.jit
def quantize_kernel(
    x, factor, out, M, N, scale, inverse, HAS_FACTOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    PDL: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write INT8 codes of ROWS rows and WIDTH columns."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    c = (tl.program_id(1) * WIDTH + tl.arange(0, WIDTH))[None, :]
    inside = (r < M) & (c < N)
    y = tl.load(x + r * N + c, mask=inside, other=0).to(tl.float32)
    if HAS_FACTOR:
        y = y * tl.load(factor + c, mask=c < N, other=1.0)
    tl.store(out + r * N + c, quantize_int8(y, scale, inverse, True, IS_INTERPRETED), mask=inside)


@triton.jit
def norm_kernel(
    x, residual, weight, bias, factor, codes, kept, M, N, eps, scale, inverse,
    RMS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_FACTOR: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Normalize ROWS whole rows (WIDTH >= N) of x + residual; write their codes and, by KEEP, the sum or the norm."""
    c = tl.arange(0, WIDTH)[None, :]
    scaled = tl.load(weight + c, mask=c < N, other=0).to(tl.float32)  # before the wait: no kernel writes it
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    inside = (r < M) & (c < N)
    y = tl.load(x + r * N + c, mask=inside, other=0).to(tl.float32)
    if HAS_RESIDUAL:
        y += tl.load(residual + r * N + c, mask=inside, other=0).to(tl.float32)
    if KEEP == 1:
        kept_sum = y.to(kept.dtype.element_ty)
        tl.store(kept + r * N + c, kept_sum, mask=inside)
        y = kept_sum.to(tl.float32)  # as a model in half precision: the norm reads the sum that is kept
    if not RMS:
        y = tl.where(c < N, y - (tl.sum(y, 1) / N)[:, None], 0.0)
    y = y * tl.rsqrt(tl.sum(y * y, 1) / N + eps)[:, None] * scaled
    if HAS_BIAS:
        y += tl.load(bias + c, mask=c < N, other=0).to(tl.float32)
    if KEEP == 2:
        tl.store(kept + r * N + c, y.to(kept.dtype.element_ty), mask=inside)
    if HAS_FACTOR:
        y = y * tl.load(factor + c, mask=c < N, other=1.0)
    tl.store(codes + r * N + c, quantize_int8(y, scale, inverse, True, IS_INTERPRETED), mask=inside)


@torch.library.custom_op("int8kit::quantize", mutates_args=())
def quantize(x: Tensor, scale: float, factor: Tensor | None = None, tiles: Sequence[int] | None = None) -> Tensor:
    """Return clamp(round_half_even(x * factor / scale), -128, 127) in INT8, the division exact in float32.

    Args: x: float16, bfloat16 or float32, shape (..., N). factor: SmoothQuant's 1 / s, float32, shape (N,), or None.
        tiles: a plan of `kernels.tiles.RowTile` by rows, or nothing.
    Raises: ValueError: for shapes, a scale or a plan that do not fit.
    """
    check_runs("quantize", x, factor)
    width = x.shape[-1]
    _check_vectors(width, factor=factor)
    x = x.contiguous()
    out = torch.empty_like(x, dtype=torch.int8)
    if x.numel() == 0:
        return out
    rows, target = x.numel() // width, capability(x)
    block = min(triton.next_power_of_2(width), 1024)
    tile = pick_tile(tiles, rows, RowTile) or row_tiles(block)[0]
    launch = launch_options(target, rows)
    quantize_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(width, block))](
        x, x if factor is None else factor, out, rows, width, scale, inverse_of(scale), HAS_FACTOR=factor is not None,
        ROWS=tile.rows, WIDTH=block, PDL=bool(launch), IS_INTERPRETED=INTERPRETED, num_warps=tile.num_warps, **launch,
    )  # fmt: skip
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
    check_runs("norm_quantize", x, weight, bias, residual, factor)
    width = x.shape[-1]
    _check_vectors(width, factor=factor)
    if keep not in KEEPS:
        raise ValueError(f"keep is one of {', '.join(KEEPS)}, got {keep!r}")
    if weight.shape != (width,) or (bias is not None and bias.shape != (width,)):
        raise ValueError(f"the norm's weight and bias must have shape ({width},), got {tuple(weight.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"the residual must have x's shape {tuple(x.shape)}, got {tuple(residual.shape)}")
    x = x.contiguous()
    codes = torch.empty_like(x, dtype=torch.int8)
    kept = torch.empty_like(x) if keep != "none" else x.new_empty(0)
    if x.numel() == 0:
        return codes, kept
    rows, target = x.numel() // width, capability(x)
    block = triton.next_power_of_2(width)
    tile = pick_tile(tiles, rows, RowTile) or row_tiles(block)[0]
    launch = launch_options(target, rows)
    norm_kernel[(triton.cdiv(rows, tile.rows),)](
        x, x if residual is None else residual.contiguous(), weight, weight if bias is None else bias,
        weight if factor is None else factor, codes, kept, rows, width, eps, scale, inverse_of(scale), RMS=rms,
        HAS_RESIDUAL=residual is not None, HAS_BIAS=bias is not None, HAS_FACTOR=factor is not None,
        KEEP=KEEPS.index(keep), ROWS=tile.rows, WIDTH=block, PDL=bool(launch), IS_INTERPRETED=INTERPRETED,
        num_warps=tile.num_warps, **launch,
    )  # fmt: skip
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
