"""Collect the names and times of the kernels a GPU runs, through NVIDIA's CUPTI library and ctypes alone.

`python -m engine.inspect.cupti --engine E --out kernels.json` runs an engine under it; `collect_kernels()` wraps any
code.
Needs libcupti: it comes with CUDA's toolkit, or by `pip install nvidia-cuda-cupti-cu12` (cu11 for TensorRT 8).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import ctypes.util
import glob
import json
import sys
from collections.abc import Iterator
from typing import Any

from engine.cli import CommandParser, check_free, print_result, run_command, whole_output

CONCURRENT_KERNEL = 10  # CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL; kernels are not serialized for it
BUFFER_BYTES, ALIGNMENT = 1 << 20, 8
FORCE_FLUSH = 1
# CUpti_ActivityKernel3 (CUDA 7) to 9 (12.8) begin alike: kind u32, 12 bytes of settings, start u64 at 16, end u64 at
# 24, and after sizes and ids the name, a char pointer, at 104 (cupti_activity.h).
START_OFFSET, END_OFFSET, NAME_OFFSET = 16, 24, 104
REQUESTED = ctypes.CFUNCTYPE(
    None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)
)
COMPLETED = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


class KernelCollector:
    """Records every kernel between `start` and `stop`; one at a time in a process.

    Raises: RuntimeError: if libcupti cannot be loaded or refuses, with its reason.
    """

    def __init__(self, library: str | None = None) -> None:
        self._cupti = ctypes.CDLL(library or find_library())
        self._kernels: list[dict[str, Any]] = []
        self._buffers: dict[int, Any] = {}  # address → the memory that CUPTI writes into, kept alive
        self._requested, self._completed = REQUESTED(self._give_buffer), COMPLETED(self._take_buffer)

    def start(self) -> None:
        """Begin to record."""
        self._call("cuptiActivityRegisterCallbacks", self._requested, self._completed)
        self._call("cuptiActivityEnable", ctypes.c_uint32(CONCURRENT_KERNEL))

    def stop(self) -> list[dict[str, Any]]:
        """Return the kernels recorded, in the order of their start: name, start_ns, duration_ns."""
        self._call("cuptiActivityFlushAll", ctypes.c_uint32(FORCE_FLUSH))
        self._call("cuptiActivityDisable", ctypes.c_uint32(CONCURRENT_KERNEL))
        return sorted(self._kernels, key=lambda kernel: kernel["start_ns"])

    def _give_buffer(self, buffer: Any, size: Any, max_records: Any) -> None:
        memory = ctypes.create_string_buffer(BUFFER_BYTES + ALIGNMENT)
        address = (ctypes.addressof(memory) + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        self._buffers[address] = memory
        buffer[0], size[0], max_records[0] = address, BUFFER_BYTES, 0

    def _take_buffer(self, context: int, stream: int, buffer: int, size: int, valid_size: int) -> None:
        record = ctypes.c_void_p()
        while (
            self._cupti.cuptiActivityGetNextRecord(
                ctypes.c_void_p(buffer), ctypes.c_size_t(valid_size), ctypes.byref(record)
            )
            == 0
            and record.value
        ):
            if (kernel := read_record(record.value)) is not None:
                self._kernels.append(kernel)
        self._buffers.pop(buffer, None)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._cupti, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._cupti.cuptiGetResultString(status, ctypes.byref(text))
            reason = text.value.decode() if text.value else f"error {status}"
            raise RuntimeError(
                f"{function} failed: {reason}; profiling needs a GPU, its driver and the right to profile"
            )


def read_record(address: int) -> dict[str, Any] | None:
    """Return a kernel's record at an address, None for records of another kind."""
    if ctypes.c_uint32.from_address(address).value != CONCURRENT_KERNEL:
        return None
    start = ctypes.c_uint64.from_address(address + START_OFFSET).value
    end = ctypes.c_uint64.from_address(address + END_OFFSET).value
    name = ctypes.c_char_p.from_address(address + NAME_OFFSET).value or b"?"
    return {"name": name.decode(errors="replace"), "start_ns": start, "duration_ns": end - start}


def find_library() -> str:
    """Return where libcupti is: the system's, CUDA's toolkit's, or the pip package's.

    Raises: RuntimeError: if it is nowhere.
    """
    if found := ctypes.util.find_library("cupti"):
        return found
    places = ["/usr/local/cuda*/extras/CUPTI/lib64", "/usr/local/cuda*/lib64"]
    places += [f"{path}/nvidia/cuda_cupti/lib" for path in sys.path] + [f"{path}/nvidia/cu*/lib" for path in sys.path]
    for place in places:
        for path in sorted(glob.glob(f"{place}/libcupti.so*"), reverse=True):
            return path
    raise RuntimeError("libcupti is not installed; run 'pip install nvidia-cuda-cupti-cu12' (cu11 beside TensorRT 8)")


@contextlib.contextmanager
def collect_kernels(library: str | None = None) -> Iterator[list[dict[str, Any]]]:
    """Yield a list that holds the kernels of the block once it has ended."""
    collector, kernels = KernelCollector(library), []  # type: ignore[var-annotated]
    collector.start()
    try:
        yield kernels
    finally:  # also where the block fails: what records on costs every later kernel time
        kernels.extend(collector.stop())


def run(arguments: argparse.Namespace) -> None:
    """Run an engine on its feeds under CUPTI and write the kernels of its last calls."""
    from engine.backend import get_backend
    from engine.manifest import read_manifest
    from engine.run import read_feeds, run_batches

    check_free(arguments.out, arguments.force)
    feeds, _ = read_feeds(arguments.feeds)
    with get_backend(read_manifest(arguments.engine).backend).load(arguments.engine) as runner:
        batch_size = runner.batch_size or 1
        first = {name: x[:batch_size] for name, x in feeds.items()}
        run_batches(runner, first, batch_size)  # warm-up: what is loaded or chosen at the first call is not traced
        with collect_kernels(arguments.library) as kernels:
            run_batches(runner, first, batch_size)
    if not kernels:
        raise RuntimeError(f"{arguments.engine} ran no kernel on a GPU; a CPU engine has none")
    with whole_output(arguments.out, arguments.force) as partial:
        partial.write_text(json.dumps({"kernels": kernels}) + "\n")
    total_ms = sum(kernel["duration_ns"] for kernel in kernels) / 1e6
    row = {"out": arguments.out, "kernels": len(kernels), "time_ms": total_ms}
    print_result(row, f"{arguments.out}: {len(kernels)} kernels of one call, {total_ms:.3f} ms", arguments.json)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser("python -m engine.inspect.cupti", "Trace the kernels of one call of an engine on a GPU.")
    parser.add_argument("--engine", required=True, help="the engine (its OUT.json stands beside it)")
    parser.add_argument("--feeds", required=True, help="npz with one array for each input")
    parser.add_argument("--out", required=True, help="JSON to write: name, start_ns and duration_ns of each kernel")
    parser.add_argument("--library", help="path of libcupti; default: searched for")
    parser.add_argument("--force", action="store_true", help="replace --out")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    run_command(parser, run, argv)


if __name__ == "__main__":
    main()
