"""What the integer types of Q/DQ hold: their ends and the zero point of symmetric numbers, from the types alone."""

from __future__ import annotations

import numpy as np


def symmetric_zero(dtype: np.dtype) -> int | None:
    """Return the zero point that makes an integer type symmetric: 0 of int8, 128 of uint8; None of any other type.

    With it a uint8 code is the int8 code + 128, the same number.
    """
    if dtype not in (np.int8, np.uint8):
        return None
    ends = np.iinfo(dtype)
    return (ends.min + ends.max + 1) // 2
