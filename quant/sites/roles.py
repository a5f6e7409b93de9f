"""What a quantizer rounds for its module: a role, which is also the module's attribute that holds the quantizer."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """The value is the attribute's name, and so the last part of the quantizer's name in recipes and files."""

    INPUT = "input_quantizer"
    """What a layer with a weight reads."""
    WEIGHT = "weight_quantizer"
    """A layer's or a table's parameter."""
    OUTPUT = "output_quantizer"
    """What a norm gives."""
    Q = "q_bmm_quantizer"
    """The scaled queries, before the first product of attention."""
    K = "k_bmm_quantizer"
    """The keys, transposed: (B, H, D, T)."""
    V = "v_bmm_quantizer"
    SOFTMAX = "softmax_quantizer"
    """Attention's probabilities: their range is 0 to 1 whatever the data."""
    POSITION_Q = "pos_q_bmm_quantizer"
    """DeBERTa's queries of the table of positions."""
    POSITION_K = "pos_k_bmm_quantizer"
    """Its keys."""

    @property
    def is_of_layer(self) -> bool:
        """Whether it stands at a layer with a weight, not in attention or behind a norm."""
        return self in (Role.INPUT, Role.WEIGHT)


ATTENTION_ROLES = (Role.Q, Role.K, Role.V, Role.SOFTMAX)
POSITION_ROLES = (Role.POSITION_Q, Role.POSITION_K)
