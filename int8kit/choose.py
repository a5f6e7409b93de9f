"""Which runtime a machine is served best by, and why."""

from __future__ import annotations

from engine.backend import get_backend
from engine.cli import UsageError
from engine.gpu import find_gpu
from engine.hardware import VNNI, cpu_flags


def choose_backend(wanted: str) -> tuple[str, str]:
    """Return a runtime's name and the reason in a sentence.

    "auto": our own engine on an NVIDIA GPU that it can be built on; OpenVINO on a CPU with VNNI, where it is the faster
    one; ONNX Runtime elsewhere: without VNNI OpenVINO's INT8 is slower than float (docs/design.md).
    Raises: UsageError: the wanted one is not here.
    """
    if wanted != "auto":
        backend = get_backend(wanted)
        if reason := backend.check_build() or backend.check_run():
            raise UsageError(f"backend {wanted} cannot be used here: {reason}. Leave out --backend to take what can")
        return wanted, f"backend {wanted}: as asked"
    if find_gpu() is not None and get_backend("inductor").check_build() is None:
        return "inductor", f"backend inductor: {find_gpu()} is here"
    if VNNI & set(cpu_flags()) and get_backend("openvino").check_build() is None:
        return "openvino", "backend openvino: this CPU has VNNI, where it is the faster one"
    if VNNI & set(cpu_flags()):
        return "onnxruntime", "backend onnxruntime: OpenVINO, which is faster on this CPU, is not installed"
    return "onnxruntime", "backend onnxruntime: a CPU without VNNI, where it is the one that gains"
