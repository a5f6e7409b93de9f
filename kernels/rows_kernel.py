"""Kernels that read rows in half precision and write INT8: quantize, and norm and quantize."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.device import INTERPRETED, capability, launch_options, overlap
from kernels.numerics import quantize_int8
from kernels.tiles import RowTile, pick_tile, row_tiles


@triton.jit
def quantize_kernel(
    x, factor, out, M, N, scale, inverse, HAS_FACTOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    PDL: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write INT8 codes of ROWS rows and WIDTH columns."""
    if PDL:
        if PDL == 1:
            gdc_launch_dependents()
        gdc_wait()
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    c = (tl.program_id(1) * WIDTH + tl.arange(0, WIDTH))[None, :]
    inside = (r < M) & (c < N)
    y = tl.load(x + r * N + c, mask=inside, other=0).to(tl.float32)
    if HAS_FACTOR:
        y = y * tl.load(factor + c, mask=c < N, other=1.0)
    tl.store(out + r * N + c, quantize_int8(y, scale, inverse, True, IS_INTERPRETED), mask=inside)
    if PDL == 2:
        gdc_launch_dependents()


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
        if PDL == 1:
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
    if PDL == 2:
        gdc_launch_dependents()


def launch_quantize(
    x: Tensor, factor: Tensor | None, out: Tensor, scale: float, inverse: float, tiles: Sequence[int] | None
) -> None:
    """Write the codes of x (..., N), contiguous, into `out`."""
    width = x.shape[-1]
    rows = x.numel() // width
    block = min(triton.next_power_of_2(width), 1024)
    tile = pick_tile(tiles, rows, RowTile) or row_tiles(block)[0]
    mode = overlap(capability(x), rows)
    quantize_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(width, block))](
        x, x if factor is None else factor, out, rows, width, scale, inverse, HAS_FACTOR=factor is not None,
        ROWS=tile.rows, WIDTH=block, PDL=mode, IS_INTERPRETED=INTERPRETED, num_warps=tile.num_warps,
        **launch_options(mode),
    )  # fmt: skip


def launch_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, factor: Tensor | None, codes: Tensor,
    kept: Tensor, eps: float, scale: float, inverse: float, rms: bool, keep: int, tiles: Sequence[int] | None,
) -> None:  # fmt: skip
    """Write codes and what `keep` numbers (`kernels.rows.KEEPS`) of the norm of x + residual."""
    width = x.shape[-1]
    rows = x.numel() // width
    block = triton.next_power_of_2(width)
    tile = pick_tile(tiles, rows, RowTile) or row_tiles(block)[0]
    mode = overlap(capability(x), rows)
    norm_kernel[(triton.cdiv(rows, tile.rows),)](
        x, x if residual is None else residual, weight, weight if bias is None else bias,
        weight if factor is None else factor, codes, kept, rows, width, eps, scale, inverse, RMS=rms,
        HAS_RESIDUAL=residual is not None, HAS_BIAS=bias is not None, HAS_FACTOR=factor is not None, KEEP=keep,
        ROWS=tile.rows, WIDTH=block, PDL=mode, IS_INTERPRETED=INTERPRETED, num_warps=tile.num_warps,
        **launch_options(mode),
    )  # fmt: skip
