"""The INT8 product for compute capability 9.0, in Gluon: two groups of warps take blocks of the result in turn.

While one of them, four or eight warps, scales, activates, rounds and stores its block, the tensor cores multiply the
other's; a warp of its own loads operands. `kernels.linear_kernel` leaves the tensor cores idle at the end of every step
of K: Triton waits for each INT8 product before it starts the next, which it does for no other type. What holds this one
is shared memory, which is written and read a quarter longer than the tensor cores multiply: hence weights that stay.
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

from kernels.device import launch_options, multiprocessors, overlaps
from kernels.launches import begin_kernel
from kernels.linear_kernel import place_of
from kernels.numerics import FIRST_APPROXIMATE, activate, add_residual, affine, quantize_columns
from kernels.tiles import ProductTile, column_bytes_of, steps_that_fit

GLUON_TYPES = {torch.int8: gl.int8, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
# By the warps of a group: registers of each thread at first, then of the second group's; the loading warps keep
# LOADING, and the first group gets what is left.
REGISTERS, LOADING = {4: (168, 232), 8: (96, 112)}, 24


@gluon.jit
def _share_of(M, N, BM: gl.constexpr, BN: gl.constexpr, PANEL: gl.constexpr):
    """Return first, last and distance of this program's blocks: every n-th of n programs; neighbours with a panel."""
    blocks = gl.cdiv(M, BM) * gl.cdiv(N, BN)
    at, programs = gl.program_id(0), gl.num_programs(0)
    if PANEL:
        return at * blocks // programs, (at + 1) * blocks // programs, 1
    else:
        return at, blocks, programs


@gluon.jit
def _place_of(block, M, N, BM: gl.constexpr, BN: gl.constexpr, PANEL: gl.constexpr):
    """Return first row and column of a block of the result; with a panel, columns of blocks one after the other."""
    if PANEL:
        rows = gl.cdiv(M, BM)
        return (block % rows) * BM, (block // rows) * BN
    else:
        return place_of(block, M, N, BM, BN)


@gluon.jit
def _load(
    x, weight, shared, numbers, PDL: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr, PANEL: gl.constexpr,
):  # fmt: skip
    """Fill the ring with the operands of all blocks of this program, in their order; with a panel, it and x's alone."""
    begin_kernel(PDL)
    a_ring, b_ring, _, _, full, empty, _, _, panel = shared
    M, N, K, _, _, _ = numbers
    steps = gl.cdiv(K, BK)
    first, last, distance = _share_of(M, N, BM, BN, PANEL)
    at = 0
    held = -1
    for block in range(first, last, distance):
        row, column = _place_of(block, M, N, BM, BN, PANEL)
        if PANEL:  # noqa: SIM102 (a constant, what follows is not)
            if column != held:
                for later in range(STAGES):  # nobody multiplies by the panel before any more
                    mbarrier.wait(empty.index((at + later) % STAGES), (((at + later) // STAGES) & 1) ^ 1)
                mbarrier.expect(panel.index(0), PANEL * weight.block_type.nbytes)
                for k in range(PANEL):
                    tma.async_copy_global_to_shared(weight, [column, k * BK], panel.index(0), b_ring.index(k))
                held = column
        for k in range(steps):
            stage = at % STAGES
            mbarrier.wait(empty.index(stage), ((at // STAGES) & 1) ^ 1)
            if PANEL:
                mbarrier.expect(full.index(stage), x.block_type.nbytes)
            else:
                mbarrier.expect(full.index(stage), x.block_type.nbytes + weight.block_type.nbytes)
                tma.async_copy_global_to_shared(weight, [column, k * BK], full.index(stage), b_ring.index(stage))
            tma.async_copy_global_to_shared(x, [row, k * BK], full.index(stage), a_ring.index(stage))
            at += 1


@gluon.jit
def _multiply(
    tensors, shared, numbers, WHO: gl.constexpr, ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr,
    RESIDUAL: gl.constexpr, HAS_FACTOR: gl.constexpr, OUT_INT8: gl.constexpr, GATED: gl.constexpr, PDL: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, EVEN: gl.constexpr,
    PANEL: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Compute every second block of this program, the first or the second of each pair by WHO."""
    begin_kernel(PDL)
    out, residual, scale, bias, factor = tensors
    a_ring, b_ring, staged, others, full, empty, turn, there, panel = shared
    M, N, K, residual_scale, out_scale, out_inverse = numbers
    EXACT: gl.constexpr = ACTIVATION < FIRST_APPROXIMATE
    DOWN: gl.constexpr = WARPS if BM >= 16 * WARPS else 4  # an instruction takes 64 rows by four warps
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[DOWN, WARPS // DOWN], instr_shape=[16, min(BN * DOWN // WARPS, 128), 32]
    )
    steps = gl.cdiv(K, BK)
    at = WHO * steps
    buffer, other = staged.index(WHO), others.index(WHO)
    first, last, distance = _share_of(M, N, BM, BN, PANEL)
    _, first_column = _place_of(first, M, N, BM, BN, PANEL)
    parity = WHO ^ 1  # the first block of the first group waits for nobody
    lap = 0
    for block in range(first + WHO * distance, last, 2 * distance):
        row, column = _place_of(block, M, N, BM, BN, PANEL)
        # What was loaded for the block before has all been seen: a barrier tells two laps of the ring apart, not three.
        mbarrier.wait(turn.index(WHO), parity)
        parity ^= 1
        if PANEL:  # as many were loaded before as there are columns of blocks between
            mbarrier.wait(panel.index(0), ((column - first_column) // BN) & 1)
        stage = at % STAGES
        mbarrier.wait(full.index(stage), (at // STAGES) & 1)
        acc = warpgroup_mma(a_ring.index(stage), b_ring.index(0 if PANEL else stage).permute((1, 0)),
                            gl.zeros((BM, BN), gl.int32, layout), use_acc=False, is_async=True)  # fmt: skip
        if RESIDUAL:
            tma.store_wait(0)  # of the result's type, it comes to where the block before leaves from
            mbarrier.expect(there.index(WHO), residual.block_type.nbytes)
            tma.async_copy_global_to_shared(residual, [row, column // 2 if GATED else column], there.index(WHO), other)
        acc = warpgroup_mma_wait(num_outstanding=1, deps=(acc,))
        at += 1
        for k in range(1, steps):
            stage = at % STAGES
            mbarrier.wait(full.index(stage), (at // STAGES) & 1)
            acc = warpgroup_mma(a_ring.index(stage), b_ring.index(k if PANEL else stage).permute((1, 0)), acc,
                                is_async=True)  # fmt: skip
            acc = warpgroup_mma_wait(num_outstanding=1, deps=(acc,))
            mbarrier.arrive(empty.index((at + STAGES - 1) % STAGES), count=1)  # that of the step before
            at += 1
        mbarrier.arrive(turn.index(WHO ^ 1), count=1)  # its products follow these
        acc = warpgroup_mma_wait(num_outstanding=0, deps=(acc,))
        mbarrier.arrive(empty.index((at + STAGES - 1) % STAGES), count=1)
        at += steps  # those of the other group
        if RESIDUAL:  # before vectors are read: the compiler moves no reading over a barrier, and would keep them all
            mbarrier.wait(there.index(WHO), lap)
            lap ^= 1

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
            y = add_residual(y, other.load(y.type.layout), residual_scale, False)
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
    BK: gl.constexpr, STAGES: gl.constexpr, EVEN: gl.constexpr, PANEL: gl.constexpr, WARPS: gl.constexpr,
    MULTIPLYING: gl.constexpr, LOADING: gl.constexpr,
):  # fmt: skip
    """out = quantize(activation(x (M, K) @ weight (N, K).T * scale + bias) + residual), as `kernels.linear` says.

    Launched with WARPS warps, the first group; as many are the second, four the one that loads. STAGES steps of K lie
    in a ring; `full` and `empty` say of each what it is; `turn` whose products are next, `there` that a group's part of
    the residual has come. EVEN: BN divides N.
    """
    gl.static_assert(STAGES >= 2)  # a step is given back once the next one is there
    a_ring = gl.allocate_shared_memory(x.dtype, [STAGES, BM, BK], x.layout)
    b_ring = gl.allocate_shared_memory(weight.dtype, [PANEL if PANEL else STAGES, BN, BK], weight.layout)
    staged = gl.allocate_shared_memory(out.dtype, [2, BM, BN // 2 if GATED else BN], out.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    there = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    if RESIDUAL and residual.dtype != out.dtype:
        others = gl.allocate_shared_memory(residual.dtype, [2, BM, BN // 2 if GATED else BN], residual.layout)
    else:
        others = staged  # a residual makes room for the result
    panel = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    mbarrier.init(panel.index(0), count=1)
    for group in gl.static_range(2):
        mbarrier.init(turn.index(group), count=1)
        mbarrier.init(there.index(group), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    fence_async_shared()  # the barriers are there before a copy signals one
    tensors = (out, residual, scale, bias, factor)
    shared = (a_ring, b_ring, staged, others, full, empty, turn, there, panel)
    numbers = (M, N, K, residual_scale, out_scale, out_inverse)
    gl.warp_specialize(
        [
            (_multiply, (tensors, shared, numbers, 0, ACTIVATION, HAS_BIAS, RESIDUAL, HAS_FACTOR, OUT_INT8, GATED, PDL,
                         BM, BN, BK, STAGES, EVEN, PANEL, WARPS)),
            (_multiply, (tensors, shared, numbers, 1, ACTIVATION, HAS_BIAS, RESIDUAL, HAS_FACTOR, OUT_INT8, GATED, PDL,
                         BM, BN, BK, STAGES, EVEN, PANEL, WARPS)),
            (_load, (x, weight, shared, numbers, PDL, BM, BN, BK, STAGES, PANEL)),
        ],
        [WARPS, 1],
        [MULTIPLYING, LOADING],
    )  # fmt: skip


def launch_pingpong(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor, out_scale: tuple[float, float],
    activation: int, residual: Tensor | None, residual_scale: float, factor: Tensor | None, gated: bool,
    tile: ProductTile,
) -> None:  # fmt: skip
    """Write the product into `out` (M, N): contiguous matrices that descriptors take, checked, on a GPU of 9.0.

    A tile whose weights are to stay and do not fit runs with weights that come with every block.
    """
    (rows, depth), columns = x.shape, weight.shape[0]
    width = tile.block_n // 2 if gated else tile.block_n
    overlapped = overlaps(90, rows)
    other = out if residual is None else residual
    operands = [
        TensorDescriptor.from_tensor(each, shape, gl.NVMMASharedLayout.get_default_for(shape, kind))
        for each, shape, kind in (
            (x, [tile.block_m, tile.block_k], gl.int8),
            (weight, [tile.block_n, tile.block_k], gl.int8),
            (out, [tile.block_m, width], GLUON_TYPES[out.dtype]),
            (other, [tile.block_m, width], GLUON_TYPES[other.dtype]),
        )
    ]
    blocks = triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)
    stages, panel = steps_that_fit(tile, column_bytes_of(out.dtype, other.dtype, gated), depth)
    registers, multiplying = REGISTERS[tile.num_warps]
    linear_pingpong_kernel[(min(blocks, multiprocessors(x)),)](
        *operands, scale, scale if bias is None else bias, scale if factor is None else factor, rows, columns, depth,
        residual_scale, *out_scale, ACTIVATION=activation, HAS_BIAS=bias is not None, RESIDUAL=residual is not None,
        HAS_FACTOR=factor is not None, OUT_INT8=out.dtype == torch.int8, GATED=gated, PDL=overlapped, BM=tile.block_m,
        BN=tile.block_n, BK=tile.block_k, STAGES=stages, EVEN=columns % tile.block_n == 0, PANEL=panel,
        WARPS=tile.num_warps, MULTIPLYING=multiplying, LOADING=LOADING, num_warps=tile.num_warps, maxnreg=registers,
        **launch_options(overlapped),
    )  # fmt: skip

