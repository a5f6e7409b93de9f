"""How a kernel begins and ends beside its neighbours in a stream (programmatic dependent launch, `kernels.device`)."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels import device

EARLY, LATE = tl.constexpr(device.EARLY), tl.constexpr(device.LATE)


@triton.jit
def begin_kernel(PDL: tl.constexpr):
    """Let the next kernel start already (EARLY), and wait for what the one before writes."""
    if PDL:
        if PDL == EARLY:
            gdc_launch_dependents()
        gdc_wait()


@triton.jit
def end_kernel(PDL: tl.constexpr):
    """Let the next kernel start now that the result is written (LATE)."""
    if PDL == LATE:
        gdc_launch_dependents()
