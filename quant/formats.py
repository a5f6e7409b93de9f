"""Number formats: which integers a quantized tensor may hold. The one place where a range of integers stands."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NumberFormat:
    """Symmetric integers with zero point 0 and scale = amax / qmax: codes qmin..qmax, kept in a signed integer type.

    The types go by name, so that reading a recipe loads neither torch nor onnx.
    """

    name: str
    """What a recipe's rule calls it."""
    qmin: int
    """The smallest code."""
    qmax: int
    """The largest code: amax lies on it."""
    onnx_type: str
    """The type that holds the codes in an ONNX file, e.g. INT8."""
    torch_type: str
    """The same in torch, e.g. int8."""

    @property
    def ends(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        return self.qmin, self.qmax

    @property
    def is_narrow(self) -> bool:
        """Whether the storage holds integers that are no codes: whoever writes codes must clip them."""
        storage = np.iinfo(self.torch_type)
        return self.qmin > storage.min or self.qmax < storage.max

    @property
    def num_levels(self) -> int:
        """How many codes are not negative: the levels of |x|."""
        return self.qmax + 1


INT8 = NumberFormat("int8", -128, 127, "INT8", "int8")
# Two products of a uint8 and a 7-bit code stay below 2^15 (2 x 255 x 63): a CPU without VNNI adds them exactly.
INT7 = NumberFormat("int7", -63, 63, "INT8", "int8")
FORMATS: dict[str, NumberFormat] = {each.name: each for each in (INT8, INT7)}


def get_format(name: str) -> NumberFormat:
    """Return the format called `name`. Raises: ValueError: if there is none, with its near matches."""
    if name not in FORMATS:
        near = difflib.get_close_matches(str(name), FORMATS, n=2, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(f"unknown format '{name}'{hint}. Allowed: {', '.join(FORMATS)}")
    return FORMATS[name]
