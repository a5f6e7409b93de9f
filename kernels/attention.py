"""`torch.ops.int8kit.attention`: Q, K, V and the softmax rounded, or left float, with the quantizer after it fused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
from torch import Tensor

from kernels.attention_kernel import attention_kernel
from kernels.device import capability, check_runs, launch_options
from kernels.numerics import INTERPRETED
from kernels.reference import inverse_of, quantize_reference
from kernels.tiles import AttentionTile, attention_tiles, pick_tile

MAX_KEYS = 4096  # tested so far; the sums of codes stay exact far beyond
HEAD_DIMS = range(1, 129)


@torch.library.custom_op("int8kit::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    score_scale: float,
    value_scale: float,
    out_dtype: torch.dtype,
    out_scale: float = 1.0,
    causal: bool = False,
    round_softmax: bool = True,
    factor: Tensor | None = None,
    tiles: Sequence[int] | None = None,
) -> Tensor:
    """Return softmax(q k^T * score_scale + mask) v * value_scale, heads side by side, shape (B, S_q, H * D).

    Args:
        q: shape (B, S_q, H, D); k, v: (B, S_k, H_kv, D), H a multiple of H_kv; views of one buffer are fine. All INT8,
            or all of one half type. D up to 128, S_k up to 4,096.
        mask: what is added to each key's scores, float, shape (B, S_k), or None. -inf and finfo.min
            both mean "padding".
        score_scale: q's scale x k's scale (x 1 / sqrt(D) unless q's scale has it).
        value_scale: v's scale (1 if not INT8).
        out_dtype: float16, bfloat16, or int8: then clamp(round_half_even(y * factor / out_scale)).
        causal: a query sees no key after itself; the queries are the last of the keys.
        round_softmax: the softmax is rounded to 127ths (amax 1), V is INT8; else it stays float.
        factor: SmoothQuant's 1 / s of the next product, float32, shape (H * D,), or None.
        tiles: a plan of `kernels.tiles.AttentionTile` by S_k, or nothing.
    Raises: ValueError: for dtypes, shapes, devices or a plan that do not fit.
    """
    _check(q, k, v, mask, out_dtype, causal, round_softmax, factor)
    batch, num_queries, heads, head_dim = q.shape
    num_keys = k.shape[1]
    q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v))
    out = q.new_empty((batch, num_queries, heads * head_dim), dtype=out_dtype)
    if out.numel() == 0:
        return out
    target, is_int8 = capability(q), q.dtype == torch.int8
    tile = pick_tile(tiles, num_keys, AttentionTile) or attention_tiles(target, num_keys)[0]
    added = q if mask is None else mask.contiguous()
    # The softmax's codes are 127ths: amax 1, scale 1 / 127.
    value = float(np.float32(value_scale) / np.float32(127)) if round_softmax else value_scale
    launch = launch_options(target, batch * num_queries)
    attention_kernel[(batch * heads, triton.cdiv(num_queries, tile.block_m))](
        q, k, v, added, out, out if factor is None else factor, num_queries, num_keys, heads,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], score_scale, value, out_scale, inverse_of(out_scale),
        SHARE=heads // k.shape[2], HAS_MASK=mask is not None, CAUSAL=causal, ROUND=round_softmax, IS_INT8=is_int8,
        HAS_FACTOR=factor is not None, OUT_INT8=out_dtype == torch.int8, ONE_BLOCK=num_keys <= tile.block_n,
        HEAD_DIM=head_dim, BLOCK_D=max(32, triton.next_power_of_2(head_dim)), BM=tile.block_m, BN=tile.block_n,
        PDL=bool(launch), IS_INTERPRETED=INTERPRETED, num_warps=tile.num_warps, num_stages=tile.num_stages, **launch,
    )  # fmt: skip
    return out


@attention.register_fake
def _(q, k, v, mask, score_scale, value_scale, out_dtype, out_scale=1.0, causal=False, round_softmax=True, factor=None,
      tiles=None):  # fmt: skip
    return q.new_empty((q.shape[0], q.shape[1], q.shape[2] * q.shape[3]), dtype=out_dtype)


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, score_scale: float, value_scale: float,
    out_dtype: torch.dtype, out_scale: float = 1.0, causal: bool = False, round_softmax: bool = True,
    factor: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return what `attention` does, in plain torch: scores and rounded products are exact (float64)."""
    share = q.shape[2] // k.shape[2]
    q, k, v = (each.double().transpose(1, 2) for each in (q, k, v))  # (B, H, S, D)
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    s = q @ k.transpose(2, 3) * score_scale
    if mask is not None:
        s = s + mask.double()[:, None, None, :].clamp(min=-1e30)
    if causal:
        keys, queries = torch.arange(k.shape[2], device=q.device), torch.arange(q.shape[2], device=q.device)
        s = s.masked_fill(keys[None, :] > queries[:, None] + (k.shape[2] - q.shape[2]), float("-inf"))
    p = torch.softmax(s, -1)
    if round_softmax:
        p = torch.round((p * 127).float()).double()
        y = (p @ v).float() * (torch.tensor(value_scale, dtype=torch.float32) / 127).item()
    else:
        y = (p @ v * value_scale).float()
    y = y.transpose(1, 2).flatten(2)
    if out_dtype != torch.int8:
        return y.to(out_dtype)
    return quantize_reference(y if factor is None else y * factor, out_scale)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out_dtype: torch.dtype, causal: bool,
           round_softmax: bool, factor: Tensor | None) -> None:  # fmt: skip
    """Raise ValueError with the first argument that does not fit."""
    check_runs("attention", q, k, v, mask, factor)
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.int8, torch.float16, torch.bfloat16):
        raise ValueError(f"q, k and v are all int8 or all of one half type, got {q.dtype}, {k.dtype}, {v.dtype}")
    if round_softmax and q.dtype != torch.int8:
        raise ValueError(
            f"a rounded softmax multiplies INT8 values, got {v.dtype}; quantize them, or round_softmax=False"
        )
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(f"q (B, S, H, D) fits no k and v: {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if q.shape[3] not in HEAD_DIMS or k.shape[1] > MAX_KEYS:
        raise ValueError(f"heads of at most 128 and {MAX_KEYS} keys, got {q.shape[3]} and {k.shape[1]}")
    if causal and q.shape[1] > k.shape[1]:
        raise ValueError(f"causal attention needs a key for each query, got {q.shape[1]} queries, {k.shape[1]} keys")
    if mask is not None and mask.shape != (k.shape[0], k.shape[1]):
        raise ValueError(f"the mask must have shape {(k.shape[0], k.shape[1])}, got {tuple(mask.shape)}")
    if out_dtype not in (torch.float16, torch.bfloat16, torch.int8):
        raise ValueError(f"attention's result is float16, bfloat16 or int8, got {out_dtype}")
    if factor is not None and (factor.dtype != torch.float32 or factor.shape != (q.shape[2] * q.shape[3],)):
        raise ValueError(f"factor must be float32 of shape ({q.shape[2] * q.shape[3]},), got {tuple(factor.shape)}")
