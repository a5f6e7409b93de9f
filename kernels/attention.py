"""`torch.ops.int8kit.attention`: Q, K, V and the softmax rounded, or left float, with the quantizer after it fused."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.device import runs_kernels
from kernels.reference import inverse_of, quantize_reference
from kernels.rows import quantize
from kernels.tiles import CUDNN_ATTENTION, TORCHS, AttentionTile, pick_tile

MAX_KEYS = 4096  # tested so far; the sums of codes stay exact far beyond
HEAD_DIMS = range(1, 129)


class NoKernelError(RuntimeError):
    """A part of torch that was asked for its attention has none for these shapes and this mask."""


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
            or all of one half type. D up to 128, S_k up to 4,096; beyond, half types go to torch's own attention.
        mask: what is added to the scores, float: shape (B, S_k) for padding, else (1 or B, 1 or H, 1 or S_q, S_k), or
            None. -inf and finfo.min both mean "not seen".
        score_scale: q's scale x k's scale (x 1 / sqrt(D) unless q's scale has it).
        value_scale: v's scale (1 if not INT8).
        out_dtype: float16, bfloat16, or int8: then clamp(round_half_even(y * factor / out_scale)).
        causal: a query sees no key after itself; the queries are the last of the keys.
        round_softmax: the softmax is rounded to 127ths (amax 1), V is INT8; else it stays float.
        factor: SmoothQuant's 1 / s of the next product, float32, shape (H * D,), or None.
        tiles: a plan of `kernels.tiles.AttentionTile` by S_k, or nothing; one of TORCHS in it hands attention that is
            all half to torch, with `quantize` after it.
    Raises: ValueError: for dtypes, shapes, devices or a plan that do not fit.
    """
    has_kernel = runs_kernels("attention", q, k, v, mask, factor)
    _check(q, k, v, mask, out_dtype, causal, round_softmax, factor)
    inverse = inverse_of(out_scale)
    if not has_kernel:
        return attention_reference(
            q, k, v, mask, score_scale, value_scale, out_dtype, out_scale, causal, round_softmax, factor
        )
    q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v))
    tile = pick_tile(tiles, k.shape[1], AttentionTile)
    if is_torchs(q, k, tile):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if tile == CUDNN_ATTENTION else nullcontext():
            return _torch_attention(q, k, v, mask, score_scale, value_scale, out_dtype, out_scale, causal, factor)
    from kernels.attention_kernel import launch_attention

    out = q.new_empty((*q.shape[:2], q.shape[2] * q.shape[3]), dtype=out_dtype)
    # The softmax's codes are 127ths: amax 1, scale 1 / 127.
    value = float(np.float32(value_scale) / np.float32(127)) if round_softmax else value_scale
    if out.numel():
        launch_attention(q, k, v, mask, out, score_scale, value, (out_scale, inverse), causal, round_softmax, factor,
                         None if tile in TORCHS else tile)  # fmt: skip
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
        s = s + _four_axes(mask).double().clamp(min=-1e30)
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


def is_torchs(q: Tensor, k: Tensor, tile: AttentionTile | None = None) -> bool:
    """Return whether torch's own attention computes it: chosen (half types alone), or beyond the kernel's limits."""
    return q.dtype != torch.int8 and (tile in TORCHS or q.shape[3] not in HEAD_DIMS or k.shape[1] > MAX_KEYS)


def _torch_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, score_scale: float, value_scale: float,
    out_dtype: torch.dtype, out_scale: float, causal: bool, factor: Tensor | None,
) -> Tensor:  # fmt: skip
    added = None if mask is None else _four_axes(mask).to(q.dtype)
    if added is None and causal and q.shape[1] != k.shape[1]:  # torch's flag takes the queries for the first keys
        added = torch.zeros((1, 1, 1, k.shape[1]), dtype=q.dtype, device=q.device)
    if added is not None and causal:
        queries, keys = torch.arange(q.shape[1], device=q.device), torch.arange(k.shape[1], device=q.device)
        is_later = keys[None, :] > queries[:, None] + (k.shape[1] - q.shape[1])
        added = added.masked_fill(is_later, torch.finfo(q.dtype).min)
    if added is not None:
        added = added.expand(q.shape[0], added.shape[1], q.shape[1], k.shape[1])
    try:
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), added, is_causal=causal and added is None,
            scale=score_scale, enable_gqa=q.shape[2] != k.shape[2],
        ).transpose(1, 2).flatten(2)  # fmt: skip
    except RuntimeError as error:
        if "No available kernel" in str(error):
            raise NoKernelError(str(error).splitlines()[0]) from None
        raise
    y = y if value_scale == 1 else y * value_scale
    return quantize(y, out_scale, factor) if out_dtype == torch.int8 else y.to(out_dtype)


def _four_axes(mask: Tensor) -> Tensor:
    return mask[:, None, None, :] if mask.dim() == 2 else mask


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out_dtype: torch.dtype, causal: bool,
           round_softmax: bool, factor: Tensor | None) -> None:  # fmt: skip
    """Raise ValueError with the first argument that does not fit."""
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.int8, torch.float16, torch.bfloat16):
        raise ValueError(f"q, k and v are all int8 or all of one half type, got {q.dtype}, {k.dtype}, {v.dtype}")
    if round_softmax and q.dtype != torch.int8:
        raise ValueError(
            f"a rounded softmax multiplies INT8 values, got {v.dtype}; quantize them, or round_softmax=False"
        )
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(f"q (B, S, H, D) fits no k and v: {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if q.dtype == torch.int8 and (q.shape[3] not in HEAD_DIMS or k.shape[1] > MAX_KEYS):
        raise ValueError(
            f"INT8 attention takes heads of at most 128 and {MAX_KEYS} keys, got {q.shape[3]} and {k.shape[1]}"
        )
    if causal and q.shape[1] > k.shape[1]:
        raise ValueError(f"causal attention needs a key for each query, got {q.shape[1]} queries, {k.shape[1]} keys")
    if mask is not None:
        full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        wanted = (full[0], full[3]) if mask.dim() == 2 else full
        fits = [have in (1, want) for have, want in zip(mask.shape, wanted, strict=False)]
        if (
            len(mask.shape) not in (2, 4)
            or not all(fits)
            or mask.shape[-1] != full[3]
            or (mask.dim() == 2 and mask.shape[0] != full[0])
        ):
            raise ValueError(f"the mask must have shape {(full[0], full[3])} or be broadcast to {full}, got "
                             f"{tuple(mask.shape)}")  # fmt: skip
    if out_dtype not in (torch.float16, torch.bfloat16, torch.int8):
        raise ValueError(f"attention's result is float16, bfloat16 or int8, got {out_dtype}")
    if factor is not None and (factor.dtype != torch.float32 or factor.shape != (q.shape[2] * q.shape[3],)):
        raise ValueError(f"factor must be float32 of shape ({q.shape[2] * q.shape[3]},), got {tuple(factor.shape)}")
