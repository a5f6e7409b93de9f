"""What the processor can do: an engine is bound to it, and how it sums INT8 products decides what they gain."""

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
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
X86 = ("x86_64", "amd64")


def cpu_name(cpuinfo: str = "/proc/cpuinfo") -> str:
    """Return the processor's model name, or the architecture where the system does not tell."""
    return _field("model name", cpuinfo) or platform.processor() or platform.machine()


def cpu_flags(cpuinfo: str = "/proc/cpuinfo") -> tuple[str, ...]:
    """Return those of FLAGS that this processor has, sorted; empty where the system does not tell."""
    words = set((_field("flags", cpuinfo) or _field("Features", cpuinfo)).split())
    return tuple(sorted(words & set(FLAGS)))


def saturates(flags: tuple[str, ...], machine: str | None = None) -> bool:
    """Return whether the fast uint8 x int8 kernels of a processor with these flags give wrong sums.

    An x86 processor without VNNI adds pairs of products in 16 bits (vpmaddubsw): 255 * 127 * 2 does not fit.
    """
    return (machine or platform.machine()).lower() in X86 and not VNNI & set(flags)


def int8_outlook(flags: tuple[str, ...], machine: str | None = None) -> str:
    """Return in one sentence what INT8 products can gain at most on a processor with these flags, and why.

    Counted in instructions for as many multiply-accumulates, vectors of one width: fp32 takes one FMA for 8 of them;
    VNNI one instruction for 32; without it vpmaddubsw, vpmaddwd and vpaddd for 32: 32 / 3 / 8 = 1.3.
    """
    sets = ", ".join(flags) or "instruction sets unknown"
    if (machine or platform.machine()).lower() not in X86:
        return f"CPU: {sets}; int8kit's INT8 was not run on this kind of processor"
    if not flags:
        return f"CPU: {sets}; sums of INT8 products are taken to saturate here, as without VNNI"
    if saturates(flags, machine):
        return f"CPU: {sets}, no VNNI; INT8 products gain at most about 1.3 times over fp32 here"
    most = "16" if "amx_int8" in flags else "4"
    return f"CPU: {sets}; with VNNI INT8 products gain at most about {most} times over fp32 here"


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
