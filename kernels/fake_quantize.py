"""`fake_quantize` in one Triton kernel each way, for eager training on a GPU: the plain formula is a dozen launches.

The scale is taken from the range, the gradients of x and of the range come from one pass over x, and a linear layer's
operand leaves in the dtype that autocast would cast it to. torch.compile fuses the plain formula itself and CPUs have
no launch to save: both keep `quant.tensor_quantizer.fake_quantize`, which this file is tested against.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

BLOCK = 2048  # values that a program holds at once
MAX_PROGRAMS = 1024  # of a per-tensor backward: each leaves one partial sum
MAX_SIZE = 2**31 - MAX_PROGRAMS * BLOCK  # offsets are int32


@triton.jit
def _scale_of(stored, QMAX: tl.constexpr, IS_LOG2: tl.constexpr, IS_INTERPRETED: tl.constexpr):
    if IS_LOG2:
        amax = tl.exp2(stored) if IS_INTERPRETED else libdevice.exp2(stored)  # tl.exp2 is an approximation on a GPU
    else:
        amax = tl.where(stored > 0, stored, 1.0)
    return tl.div_rn(amax, QMAX)


@triton.jit
def _round_half_even(x):
    # Adding 1.5 x 2^23 leaves no fraction bits, so the sum is rounded, ties to even; exact for |x| < 2^22.
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _forward(x_ptr, range_ptr, y_ptr, size, row_size, QMIN: tl.constexpr, QMAX: tl.constexpr, IS_LOG2: tl.constexpr,
             PER_ROW: tl.constexpr, BLOCK: tl.constexpr, IS_INTERPRETED: tl.constexpr):  # fmt: skip
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_inside = offsets < size
    x = tl.load(x_ptr + offsets, is_inside, 0.0).to(tl.float32)
    stored = tl.load(range_ptr + offsets // row_size, is_inside, 1.0) if PER_ROW else tl.load(range_ptr)
    scale = _scale_of(stored, QMAX, IS_LOG2, IS_INTERPRETED)
    steps = tl.div_rn(x, scale + tl.zeros_like(x))
    codes = _round_half_even(tl.clamp(steps, QMIN - 1, QMAX + 1, propagate_nan=tl.PropagateNan.ALL))
    codes = tl.clamp(codes, QMIN, QMAX, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + offsets, (codes * scale).to(y_ptr.dtype.element_ty), is_inside)


@triton.jit
def _backward(x_ptr, range_ptr, gradient_ptr, to_x_ptr, to_range_ptr, size, row_size, num_blocks, damping,
              QMIN: tl.constexpr, QMAX: tl.constexpr, IS_LOG2: tl.constexpr, PER_ROW: tl.constexpr,
              BLOCK: tl.constexpr, IS_INTERPRETED: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    if PER_ROW:  # this program's own row
        start, stop, stride = program * row_size, (program + 1) * row_size, BLOCK
        stored = tl.load(range_ptr + program)
    else:  # every n-th block of the tensor
        start, stop, stride = program * BLOCK, size, tl.num_programs(0) * BLOCK
        stored = tl.load(range_ptr)
    scale = _scale_of(stored, QMAX, IS_LOG2, IS_INTERPRETED)
    total = tl.zeros([BLOCK], tl.float32)
    for block in range(num_blocks):
        offsets = start + block * stride + tl.arange(0, BLOCK)
        is_inside = offsets < stop
        x = tl.load(x_ptr + offsets, is_inside, 0.0).to(tl.float32)
        gradient = tl.load(gradient_ptr + offsets, is_inside, 0.0).to(tl.float32)
        steps = tl.div_rn(x, scale + tl.zeros_like(x))
        bounded = tl.clamp(steps, QMIN - 1, QMAX + 1)
        codes = _round_half_even(bounded)
        is_unclamped = (codes >= QMIN) & (codes <= QMAX)
        tl.store(to_x_ptr + offsets, tl.where(is_unclamped, gradient, 0.0).to(to_x_ptr.dtype.element_ty), is_inside)
        if IS_LOG2:
            slope = tl.where(is_unclamped, codes - steps, tl.clamp(codes, QMIN, QMAX))
            total += gradient * slope
    if IS_LOG2:  # d scale / d log2(amax) = scale ln 2
        tl.store(to_range_ptr + program, tl.sum(total) * scale * 0.6931471805599453 * damping)


class _FusedFakeQuantize(torch.autograd.Function):
    """The two kernels as one differentiable function; saves x and the range alone.

    Plain integer arithmetic, not triton.cdiv: those are traced functions, 5 us a call, as much as a launch.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stored_range: Tensor, codes: tuple[float, float], is_log2: bool, per_row: bool,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        y = torch.empty_like(x, dtype=dtype)
        size = x.numel()
        row_size = size // x.shape[0] if per_row else size
        ctx.save_for_backward(x, stored_range)
        ctx.options = (size, row_size, codes, is_log2, per_row)
        _forward[(-(-size // BLOCK),)](
            x, stored_range, y, size, row_size, *codes, is_log2, per_row, BLOCK, INTERPRETED, num_warps=8
        )
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        x, stored_range = ctx.saved_tensors
        size, row_size, codes, is_log2, per_row = ctx.options
        if not (gradient.is_contiguous() and x.is_contiguous()) and gradient.stride() != x.stride():
            gradient = torch.empty_like(x, dtype=gradient.dtype).copy_(gradient)  # the kernels walk both as stored
        to_x = torch.empty_like(x)
        num_programs = x.shape[0] if per_row else min(-(-size // BLOCK), MAX_PROGRAMS)
        partial = torch.empty(num_programs if is_log2 else 0, dtype=torch.float32, device=x.device)
        damping = math.sqrt(stored_range.numel() / size / codes[1])  # LSQ's gradient scale, eq. 4
        block = min(1 << (row_size - 1).bit_length(), BLOCK)
        num_blocks = -(-(row_size if per_row else -(-size // num_programs)) // block)
        _backward[(num_programs,)](
            x, stored_range, gradient, to_x, partial, size, row_size, num_blocks, damping, *codes, is_log2, per_row,
            block, INTERPRETED, num_warps=8 if block > 1024 else 4,
        )  # fmt: skip
        if not is_log2:
            return to_x, None, None, None, None, None
        return to_x, partial if per_row else partial.sum(0, keepdim=True), None, None, None, None


INTERPRETED = bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1: the tests' way to run the kernels on a CPU


def can_fuse(x: Tensor, stored_range: Tensor, axis: int | None) -> bool:
    """Return whether the kernels take this tensor: on a GPU, per tensor or per channel along its first axis."""
    is_row_wise = axis == 0 and x.is_contiguous() and stored_range.numel() == x.shape[0]
    return (x.is_cuda or INTERPRETED) and (axis is None or is_row_wise) and 0 < x.numel() <= MAX_SIZE


def fused_fake_quantize(
    x: Tensor, stored_range: Tensor, ends: tuple[int, int], *, is_log2: bool, axis: int | None, dtype: torch.dtype
) -> Tensor:
    """Return x on the grid of amax / qmax between two integers, differentiable in x and in a range log2(amax).

    Args:
        x: float tensor that `can_fuse` allows. stored_range: amax or log2(amax), float32, shape (1,) or (x.shape[0],).
        ends: (qmin, qmax). axis: None or 0. dtype: of the result.
    Source: LSQ (Esser et al. 2020, arXiv:1902.08153, eq. 3 and 4) on log2(amax) (Jain et al. 2020, arXiv:1903.08066).
    """
    if not x.is_contiguous() and torch.empty_like(x, device="meta").stride() != x.stride():
        x = x.contiguous()  # it has gaps or overlaps in storage
    options = ((float(ends[0]), float(ends[1])), is_log2, axis is not None, dtype)
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            return _FusedFakeQuantize.apply(x, stored_range, *options)
    return _FusedFakeQuantize.apply(x, stored_range, *options)
