"""The arithmetic that all kernels share: exact division, rounding to INT8, activations. Runs inside Triton kernels.

The torch references of the same formulas are in `kernels.reference`.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Adding 1.5 x 2^23 to a float32 leaves no fraction bits: the sum is rounded, ties to even, and its low bits are the
# integer. Exact for |x| < 2^22. Float to int, and 8 bits to float, are instructions at a fraction of the FMA's rate
# (32 bits to float is not, on Hopper).
MAGIC = tl.constexpr(12582912.0)
MAGIC_BITS = tl.constexpr(0x4B400000)
LOG2_E = tl.constexpr(1.4426950408889634)

FIRST_APPROXIMATE = tl.constexpr(
    2
)  # from here on the activation is itself rounded: an exact division after it is wasted


@triton.jit
def int8_to_float(codes):
    """Return INT8 codes as float32: exact, by two additions, since the conversion from 8 bits is a slow instruction."""
    return (codes.to(tl.int32) + MAGIC_BITS).to(tl.float32, bitcast=True) - MAGIC


@triton.jit
def int8_to_half(codes):
    """Return INT8 codes as float16: exact, since the bits 0x6400 + n are 1024 + n; slow otherwise, as above."""
    return (codes.to(tl.int16) + 0x6480).to(tl.float16, bitcast=True) - 1152.0


@triton.jit
def fma(a, b, c, IS_INTERPRETED: tl.constexpr):
    """Return a * b + c, rounded once on a GPU (the interpreter rounds twice)."""
    if IS_INTERPRETED:
        return a * b + c
    else:
        return tl.fma(a, b, c)


@triton.jit
def of_columns(vector, column, num_columns, EVEN: tl.constexpr):
    """Return a value for each column, (1, columns), zeros beyond the matrix; EVEN: none lies beyond it."""
    if EVEN:
        return tl.load(vector + column)[None, :]
    else:
        return tl.load(vector + column, mask=column < num_columns, other=0.0)[None, :]


@triton.jit
def affine(
    acc, column, num_columns, scale, bias, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, IS_INTERPRETED: tl.constexpr
):
    """Return sum * scale + bias in float32."""
    y = acc.to(tl.float32)
    by = of_columns(scale, column, num_columns, EVEN)
    if HAS_BIAS:
        return fma(y, by, of_columns(bias, column, num_columns, EVEN), IS_INTERPRETED)
    else:
        return y * by


@triton.jit
def quantize_int8(y, scale, inverse, EXACT: tl.constexpr, IS_INTERPRETED: tl.constexpr):
    """Return clamp(round_half_even(y / scale), -128, 127) in INT8.

    y: float32, infinities allowed. inverse: 1 / scale rounded to float32 (not EXACT: or that times a factor of y).
    EXACT: the division is rounded to float32 as the formula says. y * inverse alone can be two units in the last place
    off, which puts a few codes in a million one step away; one correction by the remainder (Markstein 1990) makes it
    the rounded quotient for two FMAs more. Bounding y instead of the quotient keeps infinities out of the remainder.
    """
    if EXACT:
        y = tl.minimum(tl.maximum(y, -128.0 * scale), 127.0 * scale)
        if IS_INTERPRETED:  # its fma rounds twice, so that the remainder would not be exact
            steps = tl.div_rn(y, scale + tl.zeros_like(y))
        else:
            steps = y * inverse
            steps = tl.fma(tl.fma(steps, -scale, y), inverse, steps)  # -steps would cost an instruction, -scale is one
        bits = steps + MAGIC
    else:  # rounded once, by the addition that leaves no fraction; bounded after it, which is the same
        bits = fma(y, inverse, MAGIC, IS_INTERPRETED)
        bits = tl.minimum(tl.maximum(bits, MAGIC - 128.0), MAGIC + 127.0)
    return bits.to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def quantize_columns(
    y, column, num_columns, factor, scale, inverse, HAS_FACTOR: tl.constexpr, EXACT: tl.constexpr, EVEN: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Return `quantize_int8` of y times its columns' factor; where not EXACT, both are one multiplication."""
    if HAS_FACTOR:
        by = of_columns(factor, column, num_columns, EVEN)
        if EXACT:
            y = y * by
        else:
            inverse = inverse * by
    return quantize_int8(y, scale, inverse, EXACT, IS_INTERPRETED)


@triton.jit
def add_residual(y, other, scale, IS_INTERPRETED: tl.constexpr):
    """Return y + other * scale; other: INT8 or half precision."""
    other = int8_to_float(other) if other.dtype == tl.int8 else other.to(tl.float32)
    return fma(other, scale, y, IS_INTERPRETED)


@triton.jit
def tanh(x, IS_INTERPRETED: tl.constexpr):
    """Return tanh(x): one instruction on a GPU, with a relative error of 2^-11 (PTX's tanh.approx)."""
    if IS_INTERPRETED:
        return 1.0 - 2.0 / (1.0 + tl.exp2(tl.minimum(x, 40.0) * (2.0 * LOG2_E)))
    else:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def half_sigmoid(y, twice, IS_INTERPRETED: tl.constexpr):
    """Return y * sigmoid(2 * twice) as y / 2 * (1 + tanh(twice)): within 2.5e-4 |y|, as fp16 would round it."""
    half = 0.5 * y
    return fma(half, tanh(twice, IS_INTERPRETED), half, IS_INTERPRETED)


@triton.jit
def gelu_fast(y, IS_INTERPRETED: tl.constexpr):
    """Return y * Phi(y) with erf(y / sqrt(2)) as tanh of a polynomial: within 3e-5 + 2.5e-4 |y|, in 8 instructions."""
    w = tl.minimum(y * y, 36.0)
    p = fma(fma(w, -3.51516837e-4, 3.70056463e-2, IS_INTERPRETED), w, 7.97507884e-1, IS_INTERPRETED)
    return half_sigmoid(y, y * p, IS_INTERPRETED)


@triton.jit
def gelu_erf(y, IS_INTERPRETED: tl.constexpr):
    """Return y * Phi(y) as max(y, 0) - g(|y|), where g(v) = v * Phi(-v) is a polynomial on 0 to 4.5.

    A minimax fit of degree 10: the error stays below 2e-5 for every y. It is FMAs alone; erf costs more than the
    product, and this still twice as much as `gelu_fast`.
    """
    u = fma(tl.minimum(tl.abs(y), 4.5), 2.0 / 4.5, -1.0, IS_INTERPRETED)
    p = fma(u, -0.0425867549, 0.0217824658, IS_INTERPRETED)
    p = fma(p, u, 0.176380353, IS_INTERPRETED)
    p = fma(p, u, -0.176314974, IS_INTERPRETED)
    p = fma(p, u, -0.204907194, IS_INTERPRETED)
    p = fma(p, u, 0.434781351, IS_INTERPRETED)
    p = fma(p, u, -0.202968289, IS_INTERPRETED)
    p = fma(p, u, -0.147215802, IS_INTERPRETED)
    p = fma(p, u, 0.246592396, IS_INTERPRETED)
    p = fma(p, u, -0.133039507, IS_INTERPRETED)
    p = fma(p, u, 0.0274971341, IS_INTERPRETED)
    return tl.maximum(y, 0.0) - p


@triton.jit
def activate(y, ACTIVATION: tl.constexpr, IS_INTERPRETED: tl.constexpr):
    """Return the activation that `kernels.reference.ACTIVATIONS` numbers, of a float32 tensor."""
    if ACTIVATION == 1:
        y = tl.maximum(y, 0.0)
    elif ACTIVATION == 2:
        y = gelu_erf(y, IS_INTERPRETED)
    elif ACTIVATION == 3:
        y = gelu_fast(y, IS_INTERPRETED)
    elif ACTIVATION == 4:
        cubic = fma(y * y, 0.044715 * 0.7978845608028654, 0.7978845608028654, IS_INTERPRETED)
        y = half_sigmoid(y, y * cubic, IS_INTERPRETED)
    elif ACTIVATION == 5:
        y = half_sigmoid(y, 0.5 * y, IS_INTERPRETED)
    elif ACTIVATION == 6:
        y = half_sigmoid(y, 0.851 * y, IS_INTERPRETED)
    return y
