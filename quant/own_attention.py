"""Attention that a model writes out in its own file, where transformers' AttentionInterface does not reach.

Each class here subclasses the float module it stands for, keeps its parameters, and computes the two products through
`quantized_attention`. A new one is a class and a line in OWN_ATTENTIONS; `tests/quant/test_families.py` compares it
with the float module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DisentangledSelfAttention,
    build_relative_position,
)
from transformers.models.mobilevit.modeling_mobilevit import MobileViTSelfAttention
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from quant.attention import quantized_attention
from quant.sites.roles import ATTENTION_ROLES, POSITION_ROLES, Role


class OwnAttention:
    """What the classes here share: the attention function, and the roles of the quantizers that it has."""

    attend: Callable[..., tuple[Tensor, Tensor | None]] = staticmethod(quantized_attention)
    roles: tuple[Role, ...] = ATTENTION_ROLES

    def _attend(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Any:
        """Return (output (B, S, H * D), weights) of attention over (B, H, S, D)."""
        dropout = self.dropout.p if self.training else 0.0
        output, weights = self.attend(self, q, k, v, mask, scaling=scaling, dropout=dropout, is_causal=False)
        return output.flatten(2), weights


class QuantMPNetSelfAttention(OwnAttention, MPNetSelfAttention):
    """MPNet's attention, whose relative bias is added to the mask."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, position_bias: Tensor | None = None,
        output_attentions: bool = False, **kwargs: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Return (output (B, S, hidden), weights where asked for)."""
        q, k, v = (_heads(layer(hidden_states), self.attention_head_size) for layer in (self.q, self.k, self.v))
        mask = attention_mask
        if position_bias is not None:
            mask = position_bias if mask is None else position_bias + mask
        output, weights = self._attend(q, k, v, mask, self.attention_head_size**-0.5)
        return (self.o(output), weights) if output_attentions else (self.o(output),)


class QuantMobileViTSelfAttention(OwnAttention, MobileViTSelfAttention):
    """MobileViT's attention over the patches at one place of every pixel; no mask."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the output, (B x pixels of a patch, patches, hidden)."""
        layers = (self.query, self.key, self.value)
        q, k, v = (_heads(layer(hidden_states), self.attention_head_size) for layer in layers)
        return self._attend(q, k, v, None, self.attention_head_size**-0.5)[0]


class QuantDisentangledSelfAttention(OwnAttention, DisentangledSelfAttention):
    """DeBERTa-v2's attention: content x content, content x position and position x content, every product in INT8."""

    roles = (*ATTENTION_ROLES, *POSITION_ROLES)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, output_attentions: bool = False,
        query_states: Tensor | None = None, relative_pos: Tensor | None = None, rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Return (output (B, S, hidden), weights or None); `attention_mask` is true where a token is seen."""
        size = self.attention_head_size
        q = _heads(self.query_proj(hidden_states if query_states is None else query_states), size)
        k, v = (_heads(layer(hidden_states), size) for layer in (self.key_proj, self.value_proj))
        scaling = (size * (1 + sum(name in self.pos_att_type for name in ("c2p", "p2c")))) ** -0.5
        # zeros where seen, the lowest float elsewhere: a mask like everyone's
        zero = torch.zeros((), dtype=q.dtype, device=q.device)
        mask = torch.where(attention_mask.bool(), zero, torch.finfo(q.dtype).min)  # (B, 1, S, S)
        if self.relative_attention and rel_embeddings is not None:
            mask = mask + self._position_scores(q * scaling, k, relative_pos, rel_embeddings, scaling)
        output, weights = self._attend(q, k, v, mask, scaling)
        return output, weights if output_attentions else None

    def _position_scores(
        self, q: Tensor, k: Tensor, relative_pos: Tensor | None, rel_embeddings: Tensor, scaling: float
    ) -> Tensor:
        """Return the scores of positions, (B, H, S, S); q is scaled already.

        Source: He et al. 2021, DeBERTa, eq. 4 (arXiv:2006.03654), as transformers computes it.
        """
        span = self.pos_ebd_size
        if relative_pos is None:
            relative_pos = build_relative_position(
                q, k, bucket_size=self.position_buckets, max_position=self.max_relative_positions
            )
        index = relative_pos.to(q.device, torch.long).reshape(1, 1, q.shape[2], k.shape[2])
        index = index.expand(q.shape[0], q.shape[1], -1, -1)  # (B, H, S, S): distance of query and key
        table = self.pos_dropout(rel_embeddings)[0 : span * 2].unsqueeze(0)  # (1, P, hidden)
        identity = nn.Identity()
        quantizers = {role: getattr(self, role, identity) for role in self.roles}
        scores: Tensor | float = 0.0
        if "c2p" in self.pos_att_type:
            layer = self.key_proj if self.share_att_key else self.pos_key_proj
            position = quantizers[Role.POSITION_K](_heads(layer(table), self.attention_head_size).transpose(2, 3))
            per_distance = torch.matmul(quantizers[Role.Q](q), position)  # (B, H, S, P)
            scores = torch.gather(per_distance, -1, (index + span).clamp(0, 2 * span - 1))
        if "p2c" in self.pos_att_type:
            layer = self.query_proj if self.share_att_key else self.pos_query_proj
            position = quantizers[Role.POSITION_Q](_heads(layer(table), self.attention_head_size) * scaling)
            per_distance = torch.matmul(position, quantizers[Role.K](k.transpose(2, 3)))  # (B, H, P, S)
            backward = span - index.transpose(2, 3)  # at (query i, key j): the distance from j to i, turned round
            scores = scores + torch.gather(per_distance, -2, backward.clamp(0, 2 * span - 1))
        return scores  # type: ignore[return-value]  # a model with relative attention has one of the two


def _heads(x: Tensor, size: int) -> Tensor:
    """Return (B, S, H * D) as (B, H, S, D)."""
    return x.view(*x.shape[:-1], -1, size).transpose(1, 2)


OWN_ATTENTIONS: dict[type, type] = {
    MPNetSelfAttention: QuantMPNetSelfAttention,
    MobileViTSelfAttention: QuantMobileViTSelfAttention,
    DisentangledSelfAttention: QuantDisentangledSelfAttention,
}


def quantizer_roles(attention: nn.Module) -> tuple[Role, ...]:
    """Return the roles of the quantizers that an attention module can carry."""
    own = OWN_ATTENTIONS.get(type(attention), type(attention))
    return own.roles if issubclass(own, OwnAttention) else ATTENTION_ROLES


def swap_attention(attention: nn.Module) -> None:
    """Let a module that writes its attention out compute it through quantizers (in place)."""
    if type(attention) in OWN_ATTENTIONS:
        attention.__class__ = OWN_ATTENTIONS[type(attention)]


def set_attention(model: Any, name: str) -> None:
    """Let the model's attention go through the function and the mask registered under `name`."""
    if model._can_set_attn_implementation():
        model.set_attn_implementation(name)
    elif any(isinstance(module, OwnAttention) for module in model.modules()):
        model.config._attn_implementation = name  # its own attention takes the mask of that name


@contextmanager
def traced_attention(model: nn.Module, attend: Callable) -> Iterator[None]:
    """Let the attentions of the model's own file call `attend` inside the block."""
    swapped = [(module, type(module)) for module in model.modules() if type(module) in OWN_ATTENTIONS]
    for module, _ in swapped:
        swap_attention(module)
        module.__dict__["attend"] = attend
    try:
        yield
    finally:
        for module, float_class in swapped:
            del module.__dict__["attend"]
            module.__class__ = float_class
