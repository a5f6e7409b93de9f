"""Where the kernels' tests run: on a GPU, else on the CPU in Triton's interpreter (tests/conftest.py sets it)."""

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need the package triton")

ON_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
needs_device = pytest.mark.skipif(
    not (ON_GPU or INTERPRETED), reason="needs a GPU of capability 8.0 or newer, or TRITON_INTERPRET=1"
)
needs_gpu = pytest.mark.skipif(not ON_GPU or INTERPRETED, reason="needs a GPU of capability 8.0 or newer")


def on_gpu(cases: Sequence[Any]) -> Sequence[Any]:
    """Return the cases of a GPU test; elsewhere the first alone, so that one skip says why."""
    return cases if ON_GPU and not INTERPRETED else cases[:1]


def integers(low: int, high: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.int8) -> torch.Tensor:
    """Return random integers from low to high - 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).to(dtype).to(DEVICE)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float16, scale: float = 1.0) -> torch.Tensor:
    """Return random normal values."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype).to(DEVICE)
