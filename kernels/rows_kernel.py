"""Kernels that read rows in half precision and write INT8: quantize, and norm and quantize."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from kernels.device import INTERPRETED, capability, launch_options, overlaps
from kernels.launches import begin_kernel
from kernels.numerics import of_columns, quantize_int8
from kernels.tiles import RowTile, pick_tile, row_tiles


@triton.jit
def quantize_kernel(
    x, factor, out, M, N, scale, inverse, HAS_FACTOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    PDL: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write INT8 codes of ROWS rows and WIDTH columns."""
    begin_kernel(PDL)
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    c = (tl.program_id(1) * WIDTH + tl.arange(0, WIDTH))[None, :]
    inside = (r < M) & (c < N)
    y = tl.load(x + r * N + c, mask=inside, other=0).to(tl.float32)
    if HAS_FACTOR:
        y = y * tl.load(factor + c, mask=c < N, other=1.0)
    tl.store(out + r * N + c, quantize_int8(y, scale, inverse, True, IS_INTERPRETED), mask=inside)


@triton.jit
def _read_rows(x, residual, kept, r, c, M, N, HAS_RESIDUAL: tl.constexpr, KEEP: tl.constexpr, EVEN: tl.constexpr):
    """Return x + residual in float32, zeros outside the matrix; KEEP 1 writes it."""
    at = r * N + c[None, :]
    if EVEN:
        y = tl.load(x + at).to(tl.float32)
        if HAS_RESIDUAL:
            y += tl.load(residual + at).to(tl.float32)
    else:
        inside = (r < M) & (c < N)[None, :]
        y = tl.load(x + at, mask=inside, other=0).to(tl.float32)
        if HAS_RESIDUAL:
            y += tl.load(residual + at, mask=inside, other=0).to(tl.float32)
    if KEEP == 1:
        kept_sum = y.to(kept.dtype.element_ty)
        if EVEN:
            tl.store(kept + at, kept_sum)
        else:
            tl.store(kept + at, kept_sum, mask=(r < M) & (c < N)[None, :])
        y = kept_sum.to(tl.float32)  # as a model in half precision: the norm reads the sum that is kept
    return y


@triton.jit
def _write_rows(
    y, scaled, bias, factor, codes, kept, r, c, M, N, scale, inverse, HAS_BIAS: tl.constexpr, HAS_FACTOR: tl.constexpr,
    KEEP: tl.constexpr, EVEN: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Finish the norm of y, whose rows have length 1; write its codes, and with KEEP 2 the norm itself."""
    at = tl.max_contiguous(r * N + c[None, :], [1, 8])  # as many codes for a thread as halves: nothing is exchanged
    inside = (r < M) & (c < N)[None, :]
    y = y * scaled
    if HAS_BIAS:
        y += of_columns(bias, c, N, EVEN).to(tl.float32)
    if KEEP == 2:
        if EVEN:
            tl.store(kept + at, y.to(kept.dtype.element_ty))
        else:
            tl.store(kept + at, y.to(kept.dtype.element_ty), mask=inside)
    if HAS_FACTOR:
        y = y * of_columns(factor, c, N, EVEN)
    if EVEN:
        tl.store(codes + at, quantize_int8(y, scale, inverse, True, IS_INTERPRETED))
    else:
        tl.store(codes + at, quantize_int8(y, scale, inverse, True, IS_INTERPRETED), mask=inside)


@triton.jit
def norm_kernel(
    x, residual, weight, bias, factor, codes, kept, M, N, eps, scale, inverse,
    RMS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_FACTOR: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, EVEN: tl.constexpr, PDL: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Normalize ROWS whole rows of x + residual; write their codes and, by KEEP, the sum or the norm.

    A row is held in WIDTH columns and REST more, powers of two both (768 is 512 and 256; 1,024 would be a third more),
    or REST is 0. EVEN: ROWS divides M, and WIDTH + REST is N.
    """
    c = tl.arange(0, WIDTH)
    scaled = of_columns(weight, c, N, EVEN).to(tl.float32)  # before the wait: no kernel writes it
    if REST:
        d = WIDTH + tl.arange(0, REST)
        scaled_rest = of_columns(weight, d, N, EVEN).to(tl.float32)
    begin_kernel(PDL)
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    y = _read_rows(x, residual, kept, r, c, M, N, HAS_RESIDUAL, KEEP, EVEN)
    if REST:
        z = _read_rows(x, residual, kept, r, d, M, N, HAS_RESIDUAL, KEEP, EVEN)
    if not RMS:
        total = tl.sum(y, 1)
        if REST:
            total += tl.sum(z, 1)
        mean = (total / N)[:, None]
        y = y - mean if EVEN else tl.where((c < N)[None, :], y - mean, 0.0)
        if REST:
            z = z - mean if EVEN else tl.where((d < N)[None, :], z - mean, 0.0)
    power = tl.sum(y * y, 1)
    if REST:
        power += tl.sum(z * z, 1)
    by = tl.rsqrt(power / N + eps)[:, None]
    _write_rows(y * by, scaled, bias, factor, codes, kept, r, c, M, N, scale, inverse, HAS_BIAS, HAS_FACTOR, KEEP, EVEN,
                IS_INTERPRETED)  # fmt: skip
    if REST:
        _write_rows(z * by, scaled_rest, bias, factor, codes, kept, r, d, M, N, scale, inverse, HAS_BIAS, HAS_FACTOR,
                    KEEP, EVEN, IS_INTERPRETED)  # fmt: skip


def launch_quantize(
    x: Tensor, factor: Tensor | None, out: Tensor, scale: float, inverse: float, tiles: Sequence[int] | None
) -> None:
    """Write the codes of x (..., N), contiguous, into `out`."""
    width = x.shape[-1]
    rows = x.numel() // width
    block = min(triton.next_power_of_2(width), 1024)
    tile = pick_tile(tiles, rows, RowTile) or row_tiles(block)[0]
    overlapped = overlaps(capability(x), rows)
    quantize_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(width, block))](
        x, x if factor is None else factor, out, rows, width, scale, inverse, HAS_FACTOR=factor is not None,
        ROWS=tile.rows, WIDTH=block, PDL=overlapped, IS_INTERPRETED=INTERPRETED, num_warps=tile.num_warps,
        **launch_options(overlapped),
    )  # fmt: skip


def launch_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, factor: Tensor | None, codes: Tensor,
    kept: Tensor, eps: float, scale: float, inverse: float, rms: bool, keep: int, tiles: Sequence[int] | None,
) -> None:  # fmt: skip
    """Write codes and what `keep` numbers (`kernels.rows.KEEPS`) of the norm of x + residual."""
    width = x.shape[-1]
    rows = x.numel() // width
    block, rest = widths(width)
    tile = pick_tile(tiles, rows, RowTile) or row_tiles(triton.next_power_of_2(width))[0]
    overlapped = overlaps(capability(x), rows)
    norm_kernel[(triton.cdiv(rows, tile.rows),)](
        x, x if residual is None else residual, weight, weight if bias is None else bias,
        weight if factor is None else factor, codes, kept, rows, width, eps, scale, inverse, RMS=rms,
        HAS_RESIDUAL=residual is not None, HAS_BIAS=bias is not None, HAS_FACTOR=factor is not None, KEEP=keep,
        ROWS=tile.rows, WIDTH=block, REST=rest, EVEN=block + rest == width and rows % tile.rows == 0, PDL=overlapped,
        IS_INTERPRETED=INTERPRETED, num_warps=tile.num_warps,
        **launch_options(overlapped),
    )  # fmt: skip


def widths(width: int) -> tuple[int, int]:
    """Return two powers of two (or one, and 0) that a row of that width is held in: as wide together, if there are."""
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    if rest & (rest - 1) == 0:
        return first, rest
    return 2 * first, 0
