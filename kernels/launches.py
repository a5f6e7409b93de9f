"""How a kernel begins beside the one before it in a stream (programmatic dependent launch, `kernels.device`)."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin_kernel(PDL: tl.constexpr):
    """Let the next kernel start already, and wait for what the one before writes."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
