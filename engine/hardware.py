"""What the processor can do: an engine is bound to it, and INT8 is only exact and fast with VNNI."""

from __future__ import annotations

import platform
from pathlib import Path

# The instruction sets that decide which kernels run and in which layout weights are stored.
FLAGS = (
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)


def cpu_name(cpuinfo: str = "/proc/cpuinfo") -> str:
    """Return the processor's model name, or the architecture where the system does not tell."""
    return _field("model name", cpuinfo) or platform.processor() or platform.machine()


def cpu_flags(cpuinfo: str = "/proc/cpuinfo") -> tuple[str, ...]:
    """Return those of FLAGS that this processor has, sorted; empty where the system does not tell."""
    words = set((_field("flags", cpuinfo) or _field("Features", cpuinfo)).split())
    return tuple(sorted(words & set(FLAGS)))


def int8_warning(flags: tuple[str, ...]) -> str | None:
    """Return why INT8 products may be inexact on an x86 processor with these flags, or None.

    Without VNNI uint8 x int8 is summed pairwise in 16 bits (vpmaddubsw), which saturates.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or {"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags):
        return None
    return (
        "this CPU has no VNNI: uint8 x int8 products saturate in 16 bits and are slow; build and run on a CPU with "
        "avx512_vnni or avx_vnni, or quantize weights to 7 bits (reduce_range)"
    )


def _field(name: str, cpuinfo: str) -> str:
    try:
        text = Path(cpuinfo).read_text(errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
