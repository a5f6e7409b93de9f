"""Every target that export.py writes for: the ONNX files of `engine.passes.qdq`, and the program for our kernels."""

from __future__ import annotations

from engine.passes import qdq
from engine.passes.half import HALF_TYPES

PROGRAM_TARGET = "inductor"  # no ONNX file: made by `quant.int8_program`
ALL_TARGETS = (*qdq.TARGETS, PROGRAM_TARGET)


def takes_dtype(target: str) -> bool:
    """Whether a target's file is typed as fp16 or bf16, and not fp32."""
    return target == PROGRAM_TARGET or qdq.takes_dtype(target)


def check_dtype(target: str, dtype: str | None) -> str | None:
    """Return the half type of a target's file, None for fp32.

    Raises: ValueError: a type that the target has not.
    """
    if target != PROGRAM_TARGET:
        return qdq.check_dtype(target, dtype)
    if dtype not in (None, *HALF_TYPES):
        raise ValueError(f"unknown dtype {dtype!r}; target {target} takes {', '.join(HALF_TYPES)}")
    return dtype or next(iter(HALF_TYPES))
