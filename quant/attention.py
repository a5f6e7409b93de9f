"""Attention with quantizers on Q, K, V and the softmax, through transformers' AttentionInterface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, eager_mask

from quant.sites.roles import ATTENTION_ROLES

ATTENTION_NAME = "int8kit"
# Arguments that change the scores and that this function does not compute: refused rather than answered wrongly.
UNSUPPORTED = ("softcap", "s_aux", "head_mask")


def quantized_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return (output (B, S, H, D), weights or None) of softmax(scaling Q K^T + mask) V with the module's quantizers.

    Args:
        query: (B, H, S, D). key, value: (B, H / groups, T, D). attention_mask: additive, broadcastable to (B, H, S, T).
    Q is scaled before its quantizer, so that the INT8 product needs no scaling after it. Where the recipe
    leaves attention float the call goes to transformers' own sdpa function.
    Raises: ValueError: an argument that changes the scores and is not supported here.
    """
    given = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if given:
        raise ValueError(
            f"{type(module).__name__} passes {', '.join(given)}, which int8kit's attention does not compute"
        )
    quantizers = [getattr(module, name, None) for name in ATTENTION_ROLES]
    is_quantized = any(
        quantizer is not None and quantizer.enabled for quantizer in quantizers
    )  # also while calibrating
    if not is_quantized and not torch.compiler.is_exporting() and not kwargs.get("output_attentions"):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    bias = kwargs.get("position_bias")
    if bias is not None:
        attention_mask = bias if attention_mask is None else attention_mask + bias
    return explicit_attention(module, query, key, value, attention_mask, scaling, dropout)


def explicit_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (output, weights) by two plain products, each side through its quantizer right before the product."""
    q_bmm, k_bmm, v_bmm, softmax = (getattr(module, name, _cast) for name in ATTENTION_ROLES)
    groups = query.shape[1] // key.shape[1]
    if (
        groups > 1
    ):  # grouped KV heads: repeated before rounding, which gives the same numbers and keeps Q/DQ at the product
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(q_bmm(query * scaling), k_bmm(key.transpose(2, 3)))  # (B, H, S, T)
    if mask is not None:
        scores = scores + mask[..., : key.shape[2]]
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
    weights = softmax(weights, query.dtype)
    if dropout and module.training:  # after the quantizer: its range ends at 1, and what is kept becomes p / (1 - rate)
        weights = nn.functional.dropout(weights, p=dropout)
    output = torch.matmul(weights, v_bmm(value))  # (B, H, S, D)
    return output.transpose(1, 2).contiguous(), weights


def _cast(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Stand where a module has no quantizer."""
    return x if dtype is None else x.to(dtype)


def additive_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable = bidirectional_mask_function,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> Tensor | None:
    """Return the mask to add to the scores: (B, 1, 1, T) where only padding is masked, (B, 1, S, T) where later tokens
    or those outside a window are too. Without padding or with a mask of another rank: transformers' eager mask.

    It is the same mask with fewer nodes: 3 for padding instead of 20 (OpenVINO ran MiniLM at batch 1 x 32 1.1 times
    faster with it), and no lookup of truth values (GatherND), which TensorRT 8 lacks.
    """
    if attention_mask is not None and attention_mask.dim() == 2:
        device = attention_mask.device
        is_seen = attention_mask[:, None, None, kv_offset : kv_offset + kv_length].bool()
        if mask_function is not bidirectional_mask_function:
            samples = torch.arange(batch_size, device=device)[:, None, None, None]
            rows = torch.arange(q_length, device=device)[:, None] + q_offset
            columns = torch.arange(kv_length, device=device)[None, :] + kv_offset
            is_seen = is_seen & mask_function(samples, samples[:1] * 0, rows, columns)  # (B, 1, S, T)
        return torch.where(is_seen, torch.zeros((), dtype=dtype, device=device), torch.finfo(dtype).min)
    return eager_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, dtype=dtype, **kwargs
    )


def register_attention() -> None:
    """Make `int8kit` known to transformers, with the mask function without which padding is silently attended to."""
    AttentionInterface.register(ATTENTION_NAME, quantized_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, additive_mask)


register_attention()
