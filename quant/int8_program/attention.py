"""Attention of a program: one op of `kernels/`, whatever the recipe rounds in it; and the mask that it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from kernels.attention import HEAD_DIMS, MAX_KEYS, attention
from quant.attention import UNSUPPORTED, additive_mask, explicit_attention
from quant.formats import INT8
from quant.int8_program.markers import MASK, QUANTIZE
from quant.sites.roles import ATTENTION_ROLES

PROGRAM_ATTENTION = "int8kit_program"


def program_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Return (output (B, S, H, D), None) of `quant.attention.quantized_attention`, as one op where there is one for it.

    Raises: ValueError: an argument that changes the scores and is not supported here.
    """
    given = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if given:
        raise ValueError(f"{type(module).__name__} passes {', '.join(given)}, which int8kit's attention lacks")
    bias = kwargs.get("position_bias")
    if bias is not None:
        attention_mask = bias if attention_mask is None else attention_mask + bias
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    found: list[Any] = [getattr(module, role, None) for role in ATTENTION_ROLES]
    active = [each for each in found if each is not None and each.is_active]
    q, k, v = (each.transpose(1, 2) for each in (query, key, value))  # (B, S, H, D)
    if not active:
        output = attention(q, k, v, attention_mask, scaling, 1.0, q.dtype, round_softmax=False)
    elif _has_kernel(found, active) and _fits(query, key):
        scales = [each.number for each in found[:3]]
        # Q's quantizer stands after the scaling of Q: one division does both
        codes = [
            QUANTIZE(x, scale, None, *each.format.ends)
            for x, scale, each in zip((q, k, v), (scales[0] / scaling, *scales[1:]), found, strict=False)
        ]
        output = attention(
            *codes, attention_mask, scales[0] * scales[1], scales[2], q.dtype, round_softmax=found[3] in active
        )
    else:
        return explicit_attention(module, query, key, value, attention_mask, scaling)[0], None
    return output.unflatten(-1, (q.shape[2], q.shape[3])), None


def _fits(query: Tensor, key: Tensor) -> bool:
    """Return whether the INT8 kernel takes such heads and so many keys; a free number of keys is limited instead."""
    keys: int | torch.SymInt = key.shape[2]
    return query.shape[-1] in HEAD_DIMS and not (isinstance(keys, int) and keys > MAX_KEYS)


def _has_kernel(quantizers: list[Any], active: list[Any]) -> bool:
    """Return whether the op rounds what these quantizers round: Q, K and V, and the softmax to 127ths or not at all."""
    *factors, softmax = quantizers
    return all(each in active for each in factors) and (softmax not in active or softmax.format == INT8)


def program_mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0,
    mask_function: Callable = bidirectional_mask_function, attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32, **kwargs: Any,
) -> Tensor | None:  # fmt: skip
    """Return the mask as a marker where it is padding alone, or padding and causal; else `additive_mask`'s."""
    is_causal = mask_function is causal_mask_function
    if attention_mask is None and mask_function is bidirectional_mask_function:
        return None  # everything is seen
    is_plain = attention_mask is not None and attention_mask.dim() == 2
    if is_plain and (is_causal or mask_function is bidirectional_mask_function):
        return MASK(attention_mask, q_length, is_causal, dtype)
    options = {"mask_function": mask_function, "attention_mask": attention_mask, "dtype": dtype, **kwargs}
    return additive_mask(batch_size, q_length, kv_length, q_offset, kv_offset, **options)


AttentionInterface.register(PROGRAM_ATTENTION, program_attention)
AttentionMaskInterface.register(PROGRAM_ATTENTION, program_mask)
