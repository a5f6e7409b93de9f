"""Plain torch for what the kernels share: the activations' names and formulas, the one formula of an INT8 code."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# By the number that the kernels know each by (`kernels.numerics.activate`): its place in this dict.
TORCH_ACTIVATIONS = {
    "none": lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_fast": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
    "quick_gelu": lambda y: y * torch.sigmoid(1.702 * y),
}
ACTIVATIONS = {name: number for number, name in enumerate(TORCH_ACTIVATIONS)}


def inverse_of(scale: float) -> float:
    """Return 1 / scale, both rounded to float32: what the kernels' division starts from.

    Raises: ValueError: if the scale is not a positive float32 number.
    """
    single = np.float32(scale)
    if not (np.isfinite(single) and single > 0 and np.isfinite(np.float32(1) / single)):
        raise ValueError(f"a scale must be positive and finite in float32, got {scale}; calibrate the quantizer")
    return float(np.float32(1) / single)


def quantize_reference(y: Tensor, scale: float) -> Tensor:
    """Return clamp(round_half_even(y / scale), -128, 127) in INT8; y in float32, the division rounded to float32."""
    return torch.clamp(
        torch.round(y.float() / torch.tensor(scale, dtype=torch.float32, device=y.device)), -128, 127
    ).to(torch.int8)
