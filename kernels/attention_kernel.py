"""Attention as a Triton kernel: softmax rounded to 127ths (two loops over the keys) or left float (one loop)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import INTERPRETED, capability, launch_options, overlaps
from kernels.launches import begin_kernel
from kernels.numerics import LOG2_E, MAGIC, int8_to_half, quantize_int8
from kernels.tiles import AttentionTile, attention_tiles

NO_MASK, KEY_MASK, FULL_MASK = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

LOWEST = tl.constexpr(-1e30)  # a mask of finfo.min times log2(e) would be -inf, and a row of those NaN


@triton.jit
def _load_rows(source, rows, length, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return rows of one head, zeros beyond `length` and beyond the head."""
    d = tl.arange(0, BLOCK_D)
    inside = (rows < length)[:, None]
    if HEAD_DIM < BLOCK_D:
        inside = inside & (d < HEAD_DIM)[None, :]
    return tl.load(source + rows.to(tl.int64)[:, None] * stride + d[None, :], mask=inside, other=0)


@triton.jit
def _scores(
    q, k, mask, mask_row, queries, keys, num_queries, num_keys, offset, scale, MASK: tl.constexpr,
    CAUSAL: tl.constexpr, IS_INT8: tl.constexpr,
):  # fmt: skip
    """Return q k^T * scale + mask in float32, times log2(e) (`scale` holds it): exp2 takes the place of exp."""
    if IS_INT8:
        s = tl.dot(q, k.T, out_dtype=tl.int32).to(tl.float32)
    else:
        s = tl.dot(q, k.T)
    if MASK == FULL_MASK:
        seen = (queries < num_queries)[:, None] & (keys < num_keys)[None, :]
        added = tl.load(mask + queries.to(tl.int64)[:, None] * mask_row + keys[None, :], mask=seen, other=float("-inf"))
        added = tl.where((keys < num_keys)[None, :], tl.maximum(added.to(tl.float32) * LOG2_E, LOWEST), float("-inf"))
        s = s * scale + added
    elif MASK == KEY_MASK:
        added = tl.load(mask + keys, mask=keys < num_keys, other=float("-inf")).to(tl.float32)
        added = tl.where(keys < num_keys, tl.maximum(added * LOG2_E, LOWEST), float("-inf"))
        s = s * scale + added[None, :]
    else:
        s = tl.where((keys < num_keys)[None, :], s * scale, float("-inf"))
    if CAUSAL:
        s = tl.where(keys[None, :] <= (queries + offset)[:, None], s, float("-inf"))
    return s


@triton.jit
def attention_kernel(
    q, k, v, mask, out, factor, num_queries, num_keys, heads,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    mask_batch, mask_row, mask_head, score_scale, value_scale, out_scale, out_inverse,
    SHARE: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, ROUND: tl.constexpr, IS_INT8: tl.constexpr,
    HAS_FACTOR: tl.constexpr, OUT_INT8: tl.constexpr, ONE_BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PDL: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One (batch, head) and BM queries. ROUND: codes of the softmax are known only once its sum is, hence two loops.

    Codes of the softmax (0 to 127) and V's are exact in fp16, their sums (at most 254 * 128) exact in float32: the fp16
    product gives INT8's integers to the bit, without the transposed V that the INT8 tensor cores want.
    """
    begin_kernel(PDL)
    head, batch = tl.program_id(0) % heads, (tl.program_id(0) // heads).to(tl.int64)
    queries = tl.program_id(1) * BM + tl.arange(0, BM)
    offset = num_keys - num_queries  # causal: the queries are the last of the keys
    q += batch * q_batch + head * q_head
    k += batch * k_batch + (head // SHARE) * k_head
    v += batch * v_batch + (head // SHARE) * v_head
    mask += batch * mask_batch + head * mask_head
    block = tl.arange(0, BN)
    rows = _load_rows(q, queries, num_queries, q_row, HEAD_DIM, BLOCK_D)
    scale = score_scale * LOG2_E
    end = num_keys
    if CAUSAL:
        end = tl.minimum(num_keys, (tl.program_id(1) + 1) * BM + offset)
    if ONE_BLOCK:  # all keys are in registers
        keys = _load_rows(k, block, num_keys, k_row, HEAD_DIM, BLOCK_D)
        s = _scores(rows, keys, mask, mask_row, queries, block, num_queries, num_keys, offset, scale, MASK, CAUSAL,
                    IS_INT8)  # fmt: skip
        p = tl.exp2(s - tl.max(s, 1)[:, None])
        total = tl.sum(p, 1)
        values = _load_rows(v, block, num_keys, v_row, HEAD_DIM, BLOCK_D)
        if ROUND:
            p = (p * (127.0 / total)[:, None] + MAGIC) - MAGIC
            values = int8_to_half(values)
            total = total * 0.0 + 1.0
        elif IS_INT8:
            values = int8_to_half(values)
        acc = tl.dot(p.to(values.dtype), values)
    else:
        top = tl.full((BM,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((BM,), dtype=tl.float32)
        acc = tl.zeros((BM, BLOCK_D), dtype=tl.float32)
        for start in tl.range(0, end, BN):
            keys = _load_rows(k, start + block, num_keys, k_row, HEAD_DIM, BLOCK_D)
            s = _scores(rows, keys, mask, mask_row, queries, start + block, num_queries, num_keys, offset, scale, MASK,
                        CAUSAL, IS_INT8)  # fmt: skip
            new_top = tl.maximum(top, tl.max(s, 1))
            p = tl.exp2(s - new_top[:, None])
            shrink = tl.exp2(top - new_top)
            total = total * shrink + tl.sum(p, 1)
            if not ROUND:
                values = _load_rows(v, start + block, num_keys, v_row, HEAD_DIM, BLOCK_D)
                if IS_INT8:
                    values = int8_to_half(values)
                acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None])
            top = new_top
        if ROUND:
            norm = 127.0 / total
            total = total * 0.0 + 1.0
            for start in tl.range(0, end, BN):
                keys = _load_rows(k, start + block, num_keys, k_row, HEAD_DIM, BLOCK_D)
                s = _scores(rows, keys, mask, mask_row, queries, start + block, num_queries, num_keys, offset, scale,
                            MASK, CAUSAL, IS_INT8)  # fmt: skip
                p = (tl.exp2(s - top[:, None]) * norm[:, None] + MAGIC) - MAGIC
                values = _load_rows(v, start + block, num_keys, v_row, HEAD_DIM, BLOCK_D)
                acc = tl.dot(p.to(tl.float16), int8_to_half(values), acc)
    if ROUND:
        y = acc * value_scale
    else:
        y = acc * (value_scale / total)[:, None]
    d = tl.arange(0, BLOCK_D)
    if HAS_FACTOR:
        y = y * tl.load(factor + head * HEAD_DIM + d, mask=d < HEAD_DIM, other=1.0)[None, :]
    where = out + (batch * num_queries + queries)[:, None] * (heads * HEAD_DIM) + head * HEAD_DIM + d[None, :]
    inside = (queries < num_queries)[:, None] & (d < HEAD_DIM)[None, :]
    if OUT_INT8:
        tl.store(where, quantize_int8(y, out_scale, out_inverse, True, IS_INTERPRETED), mask=inside)
    else:
        tl.store(where, y.to(out.dtype.element_ty), mask=inside)


def launch_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, score_scale: float, value_scale: float,
    out_scale: tuple[float, float], causal: bool, round_softmax: bool, factor: Tensor | None,
    tile: AttentionTile | None,
) -> None:  # fmt: skip
    """Write attention into `out` (B, S_q, H * D), contiguous; checked before; `out_scale` with its inverse."""
    (batch, num_queries, heads, head_dim), num_keys = q.shape, k.shape[1]
    target = capability(q)
    tile = tile or attention_tiles(target, num_keys)[0]
    kind, strides = NO_MASK, (0, 0, 0)
    if mask is not None:
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
        four = mask[:, None, None, :] if mask.dim() == 2 else mask
        steps = [0 if size == 1 else step for size, step in zip(four.shape, four.stride(), strict=True)]
        kind, strides = (KEY_MASK if four.shape[2] == 1 else FULL_MASK), (steps[0], steps[2], steps[1])
    overlapped = overlaps(target, batch * num_queries)
    attention_kernel[(batch * heads, triton.cdiv(num_queries, tile.block_m))](
        q, k, v, q if mask is None else mask, out, out if factor is None else factor, num_queries, num_keys, heads,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *strides, score_scale, value_scale, *out_scale,
        SHARE=heads // k.shape[2], MASK=kind.value, CAUSAL=causal, ROUND=round_softmax, IS_INT8=q.dtype == torch.int8,
        HAS_FACTOR=factor is not None, OUT_INT8=out.dtype == torch.int8, ONE_BLOCK=num_keys <= tile.block_n,
        HEAD_DIM=head_dim, BLOCK_D=max(32, triton.next_power_of_2(head_dim)), BM=tile.block_m, BN=tile.block_n,
        PDL=overlapped, IS_INTERPRETED=INTERPRETED, num_warps=tile.num_warps, num_stages=tile.num_stages,
        **launch_options(overlapped),
    )  # fmt: skip
