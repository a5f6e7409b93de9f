"""The INT8 product as one persistent Triton kernel: operands and result through TMA descriptors, or plain pointers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.device import INTERPRETED, can_describe, capability, launch_options, multiprocessors, overlaps
from kernels.launches import begin_kernel
from kernels.numerics import FIRST_APPROXIMATE, activate, add_residual, affine, quantize_columns
from kernels.tiles import FLAT, ProductTile, pick_tile, product_tiles

GROUP = tl.constexpr(8)  # rows of blocks walked together, so that their operands stay in L2


@triton.jit
def place_of(block, M, N, BM: tl.constexpr, BN: tl.constexpr):
    """Return first row and column of a block of the result."""
    block_rows = tl.cdiv(M, BM)
    width = GROUP * tl.cdiv(N, BN)
    group = block // width
    size = tl.minimum(block_rows - group * GROUP, GROUP)
    return (group * GROUP + (block % width) % size) * BM, ((block % width) // size) * BN


@triton.jit
def _load_block(
    source, first_row, first_column, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr
):
    """Return the block at (first_row, first_column) of a contiguous matrix, zeros outside it."""
    if TMA:
        return source.load([first_row, first_column])
    else:
        r = first_row + tl.arange(0, ROWS)
        c = first_column + tl.arange(0, COLUMNS)
        inside = (r < rows)[:, None] & (c < columns)[None, :]
        return tl.load(source + r.to(tl.int64)[:, None] * columns + c[None, :], mask=inside, other=0)


@triton.jit
def _store_block(target, block, first_row, first_column, rows, columns, TMA: tl.constexpr):
    if TMA:
        target.store([first_row, first_column], block)
    else:
        r = first_row + tl.arange(0, block.shape[0])
        c = first_column + tl.arange(0, block.shape[1])
        inside = (r < rows)[:, None] & (c < columns)[None, :]
        tl.store(target + r.to(tl.int64)[:, None] * columns + c[None, :], block, mask=inside)


@triton.jit
def _part(acc, PART: tl.constexpr, PARTS: tl.constexpr):
    """Return columns PART * BN / PARTS and on of a block, by halving: between registers nothing moves."""
    left, right = acc.reshape(acc.shape[0], 2, acc.shape[1] // 2).permute(0, 2, 1).split()
    if PARTS == 2:
        return left if PART == 0 else right
    else:
        return _part(left if PART < PARTS // 2 else right, PART % (PARTS // 2), PARTS // 2)


@triton.jit
def _finish(
    y, first_row, first_column, rows, columns, out, residual, factor, residual_scale, out_scale, out_inverse,
    RESIDUAL: tl.constexpr, HAS_FACTOR: tl.constexpr, OUT_INT8: tl.constexpr, EXACT: tl.constexpr, TMA: tl.constexpr,
    EVEN: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Add the residual, quantize or cast, and store one block of the result."""
    if RESIDUAL:
        other = _load_block(residual, first_row, first_column, rows, columns, y.shape[0], y.shape[1], TMA)
        y = add_residual(y, other, residual_scale, IS_INTERPRETED)
    if OUT_INT8:
        column = first_column + tl.arange(0, y.shape[1])
        block = quantize_columns(y, column, columns, factor, out_scale, out_inverse, HAS_FACTOR, EXACT, EVEN,
                                 IS_INTERPRETED)  # fmt: skip
    else:
        block = y.to(out.dtype if TMA else out.dtype.element_ty)
    _store_block(out, block, first_row, first_column, rows, columns, TMA)


@triton.jit
def linear_kernel(
    x, weight, out, residual, scale, bias, factor, M, N, K, residual_scale, out_scale, out_inverse,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr, HAS_FACTOR: tl.constexpr,
    OUT_INT8: tl.constexpr, GATED: tl.constexpr, PARTS: tl.constexpr, TMA: tl.constexpr, PDL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLATTEN: tl.constexpr, EVEN: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """out = quantize(activation(x (M, K) @ weight (N, K).T * scale + bias) + residual); `kernels.linear` says the rest.

    The result leaves in PARTS, columns by columns: less of it is float32 in registers, or staged in shared memory, at a
    time. Gated: weight rows alternate gate and up, the two accumulators of a pair are neighbours in one thread.
    EVEN: BN divides N.
    """
    begin_kernel(PDL)
    for block in tl.range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(N, BN), tl.num_programs(0), flatten=FLATTEN):
        row, column = place_of(block, M, N, BM, BN)
        acc = tl.zeros((BM, BN), dtype=tl.int32)
        for k in range(tl.cdiv(K, BK)):
            a = _load_block(x, row, k * BK, M, K, BM, BK, TMA)
            b = _load_block(weight, column, k * BK, N, K, BN, BK, TMA)
            acc = tl.dot(a, b.T, acc, out_dtype=tl.int32)
        if GATED:
            gate, up = acc.reshape(BM, BN // 2, 2).split()
            pair = column + 2 * tl.arange(0, BN // 2)
            y = activate(affine(gate, pair, N, scale, bias, HAS_BIAS, EVEN, IS_INTERPRETED), ACTIVATION,
                         IS_INTERPRETED)  # fmt: skip
            y = y * affine(up, pair + 1, N, scale, bias, HAS_BIAS, EVEN, IS_INTERPRETED)
            _finish(y, row, column // 2, M, N // 2, out, residual, factor, residual_scale, out_scale, out_inverse,
                    RESIDUAL, HAS_FACTOR, OUT_INT8, ACTIVATION < FIRST_APPROXIMATE, TMA, EVEN,
                    IS_INTERPRETED)  # fmt: skip
        else:
            for part in tl.static_range(PARTS):
                y = affine(_part(acc, part, PARTS), column + tl.arange(0, BN // PARTS), N, scale, bias, HAS_BIAS,
                            EVEN, IS_INTERPRETED)  # fmt: skip
                _finish(activate(y, ACTIVATION, IS_INTERPRETED), row, column, M, N, out, residual, factor,
                        residual_scale, out_scale, out_inverse, RESIDUAL, HAS_FACTOR, OUT_INT8,
                        ACTIVATION < FIRST_APPROXIMATE, TMA, EVEN, IS_INTERPRETED)  # fmt: skip
                column += BN // PARTS


def launch_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor, out_scale: tuple[float, float],
    activation: int, residual: Tensor | None, residual_scale: float, factor: Tensor | None, gated: bool,
    tiles: Sequence[int] | None,
) -> None:  # fmt: skip
    """Write the product into `out` (M, N): contiguous matrices, checked; `out_scale` with its inverse."""
    (rows, depth), columns = x.shape, weight.shape[0]
    operands = (x, weight, out, out if residual is None else residual)
    target = capability(x)
    tile = pick_tile(tiles, rows, ProductTile) or product_tiles(target, rows, columns)[0]
    uses_tma = target >= 90 and all(can_describe(each) for each in operands)
    if tile.takes_turns:
        if target == 90 and uses_tma and not INTERPRETED:
            from kernels.hopper_kernel import launch_pingpong

            launch_pingpong(x, weight, scale, bias, out, out_scale, activation, residual, residual_scale, factor, gated,
                            tile)  # fmt: skip
            return
        tile = product_tiles(target, rows, columns)[0]
    parts = 2 if gated else tile.parts(out.element_size())
    stored = [tile.block_m, tile.block_n // parts]
    blocks = ([tile.block_m, tile.block_k], [tile.block_n, tile.block_k], stored, stored)
    passed = (
        [TensorDescriptor.from_tensor(*pair) for pair in zip(operands, blocks, strict=True)] if uses_tma else operands
    )
    num_blocks = triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)
    overlapped = overlaps(target, rows)
    linear_kernel[(min(num_blocks, multiprocessors(x) * tile.per_sm),)](
        *passed, scale, scale if bias is None else bias, scale if factor is None else factor, rows, columns, depth,
        residual_scale, *out_scale, ACTIVATION=activation, HAS_BIAS=bias is not None, RESIDUAL=residual is not None,
        HAS_FACTOR=factor is not None, OUT_INT8=out.dtype == torch.int8, GATED=gated, PARTS=parts, TMA=uses_tma,
        PDL=overlapped, BM=tile.block_m, BN=tile.block_n, BK=tile.block_k, FLATTEN=tile.schedule == FLAT,
        EVEN=columns % tile.block_n == 0, IS_INTERPRETED=INTERPRETED, num_warps=tile.num_warps,
        num_stages=tile.num_stages, **launch_options(overlapped),
    )  # fmt: skip
