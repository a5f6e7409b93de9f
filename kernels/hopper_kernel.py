"""The INT8 product for compute capability 9.0, in Gluon: two groups of four warps take blocks of the result in turn.

While one of them scales, activates, rounds and stores its block, the tensor cores multiply the other's; a warp of its
own loads operands. `kernels.linear_kernel` leaves the tensor cores idle at the end of every step of K: Triton waits for
each INT8 product before it starts the next, which it does for no other type.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.device import launch_options, multiprocessors, overlap
from kernels.launches import begin_kernel, end_kernel
from kernels.linear_kernel import place_of
from kernels.numerics import FIRST_APPROXIMATE, activate, add_residual, affine, quantize_columns
from kernels.tiles import ProductTile

GLUON_TYPES = {torch.int8: gl.int8, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
REGISTERS = 168  # of each of the 384 threads at first; the loading warps give theirs to the others
SHARED_BYTES = 227 * 1024  # what one program may take


@gluon.jit
def _load(
    x, weight, shared, numbers, PDL: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Fill the ring with the operands of all blocks of this program, in their order."""
    begin_kernel(PDL)
    a_ring, b_ring, _, full, empty, _ = shared
    M, N, K, _, _, _ = numbers
    steps = gl.cdiv(K, BK)
    at = 0
    for block in range(gl.program_id(0), gl.cdiv(M, BM) * gl.cdiv(N, BN), gl.num_programs(0)):
        row, column = place_of(block, M, N, BM, BN)
        for k in range(steps):
            stage = at % STAGES
            mbarrier.wait(empty.index(stage), ((at // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(stage), x.block_type.nbytes + weight.block_type.nbytes)
            tma.async_copy_global_to_shared(x, [row, k * BK], full.index(stage), a_ring.index(stage))
            tma.async_copy_global_to_shared(weight, [column, k * BK], full.index(stage), b_ring.index(stage))
            at += 1


@gluon.jit
def _multiply(
    tensors, shared, numbers, WHO: gl.constexpr, ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr,
    RESIDUAL: gl.constexpr, HAS_FACTOR: gl.constexpr, OUT_INT8: gl.constexpr, GATED: gl.constexpr, PDL: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, EVEN: gl.constexpr,
):  # fmt: skip
    """Compute every second block of this program, the first or the second of each pair by WHO."""
    begin_kernel(PDL)
    out, residual, scale, bias, factor = tensors
    a_ring, b_ring, staged, full, empty, turn = shared
    M, N, K, residual_scale, out_scale, out_inverse = numbers
    EXACT: gl.constexpr = ACTIVATION < FIRST_APPROXIMATE
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, min(BN, 128), 32]
    )
    steps = gl.cdiv(K, BK)
    at = WHO * steps
    buffer = staged.index(WHO)
    first = gl.program_id(0) + WHO * gl.num_programs(0)
    parity = WHO ^ 1  # the first block of the first group waits for nobody
    for block in range(first, gl.cdiv(M, BM) * gl.cdiv(N, BN), 2 * gl.num_programs(0)):
        # What was loaded for the block before has all been seen: a barrier tells two laps of the ring apart, not three.
        mbarrier.wait(turn.index(WHO), parity)
        parity ^= 1
        stage = at % STAGES
        mbarrier.wait(full.index(stage), (at // STAGES) & 1)
        acc = warpgroup_mma(a_ring.index(stage), b_ring.index(stage).permute((1, 0)),
                            gl.zeros((BM, BN), gl.int32, layout), use_acc=False, is_async=True)  # fmt: skip
        acc = warpgroup_mma_wait(num_outstanding=1, deps=(acc,))
        at += 1
        for _ in range(1, steps):
            stage = at % STAGES
            mbarrier.wait(full.index(stage), (at // STAGES) & 1)
            acc = warpgroup_mma(a_ring.index(stage), b_ring.index(stage).permute((1, 0)), acc, is_async=True)
            acc = warpgroup_mma_wait(num_outstanding=1, deps=(acc,))
            mbarrier.arrive(empty.index((at + STAGES - 1) % STAGES), count=1)  # that of the step before
            at += 1
        mbarrier.arrive(turn.index(WHO ^ 1), count=1)  # its products follow these
        acc = warpgroup_mma_wait(num_outstanding=0, deps=(acc,))
        mbarrier.arrive(empty.index((at + STAGES - 1) % STAGES), count=1)
        at += steps  # those of the other group

        row, column = place_of(block, M, N, BM, BN)
        if GATED:
            gate, up = acc.reshape([BM, BN // 2, 2]).split()
            pair = column + 2 * gl.arange(0, BN // 2, layout=gl.SliceLayout(0, gate.type.layout))
            y = activate(affine(gate, pair, N, scale, bias, HAS_BIAS, EVEN, False), ACTIVATION, False)
            y = y * affine(up, pair + 1, N, scale, bias, HAS_BIAS, EVEN, False)
            column = column // 2
            columns = N // 2
        else:
            each = column + gl.arange(0, BN, layout=gl.SliceLayout(0, layout))
            y = activate(affine(acc, each, N, scale, bias, HAS_BIAS, EVEN, False), ACTIVATION, False)
            columns = N
        own = column + gl.arange(0, y.shape[1], layout=gl.SliceLayout(0, y.type.layout))
        if RESIDUAL:
            r = row + gl.arange(0, BM, layout=gl.SliceLayout(1, y.type.layout))
            inside = (r < M)[:, None] & (own < columns)[None, :]
            other = gl.load(residual + r.to(gl.int64)[:, None] * columns + own[None, :], mask=inside, other=0)
            y = add_residual(y, other, residual_scale, False)
        if OUT_INT8:
            result = quantize_columns(y, own, columns, factor, out_scale, out_inverse, HAS_FACTOR, EXACT, EVEN, False)
        else:
            result = y.to(out.dtype)
        tma.store_wait(0)  # the block before has left the buffer
        buffer.store(result)
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [row, column], buffer)
    tma.store_wait(0)


@gluon.jit
def linear_pingpong_kernel(
    x, weight, out, residual, scale, bias, factor, M, N, K, residual_scale, out_scale, out_inverse,
    ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr, RESIDUAL: gl.constexpr, HAS_FACTOR: gl.constexpr,
    OUT_INT8: gl.constexpr, GATED: gl.constexpr, PDL: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr, EVEN: gl.constexpr,
):  # fmt: skip
    """out = quantize(activation(x (M, K) @ weight (N, K).T * scale + bias) + residual), as `kernels.linear` says.

    Launched with four warps, the first group; eight more are the second and the one that loads. STAGES steps of K lie
    in a ring; `full` and `empty` say of each what it is. EVEN: BN divides N.
    """
    gl.static_assert(STAGES >= 2)  # a step is given back once the next one is there
    a_ring = gl.allocate_shared_memory(x.dtype, [STAGES, BM, BK], x.layout)
    b_ring = gl.allocate_shared_memory(weight.dtype, [STAGES, BN, BK], weight.layout)
    staged = gl.allocate_shared_memory(out.dtype, [2, BM, BN // 2 if GATED else BN], out.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(turn.index(0), count=1)
    mbarrier.init(turn.index(1), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    fence_async_shared()  # the barriers are there before a copy signals one
    tensors = (out, residual, scale, bias, factor)
    shared = (a_ring, b_ring, staged, full, empty, turn)
    numbers = (M, N, K, residual_scale, out_scale, out_inverse)
    gl.warp_specialize(
        [
            (_multiply, (tensors, shared, numbers, 0, ACTIVATION, HAS_BIAS, RESIDUAL, HAS_FACTOR, OUT_INT8, GATED, PDL,
                         BM, BN, BK, STAGES, EVEN)),
            (_multiply, (tensors, shared, numbers, 1, ACTIVATION, HAS_BIAS, RESIDUAL, HAS_FACTOR, OUT_INT8, GATED, PDL,
                         BM, BN, BK, STAGES, EVEN)),
            (_load, (x, weight, shared, numbers, PDL, BM, BN, BK, STAGES)),
        ],
        [4, 1],
        [232, 24],
    )  # fmt: skip
    end_kernel(PDL)


def launch_pingpong(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor, out_scale: tuple[float, float],
    activation: int, residual: Tensor | None, residual_scale: float, factor: Tensor | None, gated: bool,
    tile: ProductTile,
) -> None:  # fmt: skip
    """Write the product into `out` (M, N): contiguous matrices that descriptors take, checked, on a GPU of 9.0."""
    (rows, depth), columns = x.shape, weight.shape[0]
    width = tile.block_n // 2 if gated else tile.block_n
    mode = overlap(90, rows)
    operands = [
        TensorDescriptor.from_tensor(each, shape, gl.NVMMASharedLayout.get_default_for(shape, kind))
        for each, shape, kind in (
            (x, [tile.block_m, tile.block_k], gl.int8),
            (weight, [tile.block_n, tile.block_k], gl.int8),
            (out, [tile.block_m, width], GLUON_TYPES[out.dtype]),
        )
    ]
    blocks = triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)
    linear_pingpong_kernel[(min(blocks, multiprocessors(x)),)](
        *operands, out if residual is None else residual, scale, scale if bias is None else bias,
        scale if factor is None else factor, rows, columns, depth, residual_scale, *out_scale, ACTIVATION=activation,
        HAS_BIAS=bias is not None, RESIDUAL=residual is not None, HAS_FACTOR=factor is not None,
        OUT_INT8=out.dtype == torch.int8, GATED=gated, PDL=mode, BM=tile.block_m, BN=tile.block_n, BK=tile.block_k,
        STAGES=stages_of(tile, width * out.element_size()), EVEN=columns % tile.block_n == 0, num_warps=4,
        maxnreg=REGISTERS, **launch_options(mode),
    )  # fmt: skip


def stages_of(tile: ProductTile, row_bytes: int) -> int:
    """Return how many steps of K fit beside two blocks of the result, whose rows take that many bytes."""
    left = SHARED_BYTES - 2 * tile.block_m * row_bytes - 1024  # barriers, and what the compiler keeps
    return min(tile.num_stages, left // ((tile.block_m + tile.block_n) * tile.block_k))
