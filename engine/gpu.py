"""Which NVIDIA GPU is here, asked of the driver itself (libcuda through ctypes): an engine is bound to it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# CUdevice_attribute of the driver's API.
MAJOR, MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the process sees."""

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


def find_gpu(library: str = "libcuda.so.1") -> Gpu | None:
    """Return the first GPU, or None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    )
    return None if failed else Gpu(name.value.decode(), (major.value, minor.value))


@contextmanager
def enough_memory(doing: str, mend: str) -> Iterator[None]:
    """Say in one line that the GPU's memory did not suffice for something, and what to do.

    torch has a type for it; what Triton and CUDA themselves raise says it in words alone.

    Raises: RuntimeError: the memory did not suffice.
    """
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        raise RuntimeError(f"out of GPU memory while {doing}; {mend}") from None
