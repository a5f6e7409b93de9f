"""What the ops ask of the GPU they run on: its capability, its multiprocessors, and what it can read by descriptor."""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

# Triton's interpreter, the tests' way to run the kernels on a CPU; read as Triton reads it, which may be missing here.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def _properties(index: int) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(index)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def capability(x: Tensor) -> int:
    """Return 10 x major + minor of the tensor's GPU; 90 in Triton's interpreter, so that its descriptors are tested."""
    return 90 if INTERPRETED else _properties(x.get_device())[0]


def multiprocessors(x: Tensor) -> int:
    """Return the number of multiprocessors of the tensor's GPU; 4 in Triton's interpreter."""
    return 4 if INTERPRETED else _properties(x.get_device())[1]


def can_describe(x: Tensor) -> bool:
    """Return whether a TMA descriptor takes this matrix: rows and address are multiples of 16 bytes."""
    return (x.shape[-1] * x.element_size()) % 16 == 0 and x.data_ptr() % 16 == 0 and x.numel() > 0


# Up to so many rows a kernel's programs wait on the GPU already while those of the kernel before it run (programmatic
# dependent launch, 9.0 and newer). On an H200 that is 5 % of BERT-base at 32 x 128 and costs 3 % at 128 x 128: programs
# that wait take room from those that work. Starting them once those before have written costs 2 to 5 % at both.
OVERLAPPED_ROWS = 4096


def overlaps(target: int, rows: int) -> bool:
    """Return whether a kernel over that many rows starts beside the one before it on a GPU of that capability."""
    return target >= 90 and rows <= OVERLAPPED_ROWS and not INTERPRETED


def launch_options(overlapped: bool) -> dict[str, bool]:
    """Return what such a launch asks of Triton; its interpreter knows no such thing."""
    return {"launch_pdl": True} if overlapped else {}


def runs_kernels(op: str, *tensors: Tensor | None) -> bool:
    """Return whether an op's tensors go to its Triton kernel (True) or, on a CPU, to its plain torch reference.

    Raises: ValueError: where they are not all on one device, the current one if that is a GPU.
    """
    devices = {tensor.device for tensor in tensors if tensor is not None}
    found = ", ".join(sorted(str(device) for device in devices))
    kind = found.partition(":")[0]
    if len(devices) != 1 or kind not in ("cuda", "cpu"):
        raise ValueError(f"int8kit::{op} needs its tensors on one CUDA device, or all on the CPU, got {found}")
    if kind == "cuda" and devices.pop().index != torch.cuda.current_device():  # Triton launches on the current one
        raise ValueError(f"int8kit::{op} runs on the current device, got {found}; torch.cuda.set_device it")
    return kind == "cuda" or INTERPRETED
