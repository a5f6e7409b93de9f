"""Kernel traces: every profiler's file is read, names tell precisions, and CUPTI's records are read by offsets."""

from __future__ import annotations

import json
import struct

import pytest

from engine.inspect import cupti
from engine.inspect.kernel_trace import Kernel, product_summary, read_trace
from tests.engine.inspect.kernel_names import HALF_TACTIC, INT8_TACTIC, KERNELS

NSYS = (
    'Processing [x.sqlite]...\n\n"Time (%)","Total Time (ns)","Instances","Avg (ns)","Name"\n'
    f'"75.0","3000000","36","83333.3","{INT8_TACTIC}"\n"25.0","1000000","2","500000","{HALF_TACTIC}"\n'
)
NCU = (
    '==PROF== Connected\n"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
    f'"0","{INT8_TACTIC}","gpu__time_duration.sum","ns","3,000,000"\n"0","{INT8_TACTIC}","sm__warps","%","3"\n'
)
CHROME = json.dumps({"traceEvents": [{"cat": "kernel", "name": INT8_TACTIC, "dur": 1500.0},
                                     {"cat": "kernel", "name": INT8_TACTIC, "dur": 1500.0},
                                     {"cat": "cpu_op", "name": "aten::mm", "dur": 9.0}]})  # fmt: skip
CUPTI = json.dumps({"kernels": [{"name": INT8_TACTIC, "start_ns": 5, "duration_ns": 3_000_000}]})


@pytest.mark.parametrize(("text", "count"), [(NSYS, 36), (NCU, 1), (CHROME, 2), (CUPTI, 1)],
                         ids=["nsys", "ncu", "torch", "cupti"])  # fmt: skip
def test_traces_of_every_profiler_are_read(tmp_path, text, count):
    (tmp_path / "trace").write_text(text)
    first = read_trace(tmp_path / "trace")[0]
    assert first == Kernel(INT8_TACTIC, count, pytest.approx(3.0))
    assert (first.is_product, first.precision) == (True, "int8")


@pytest.mark.parametrize("text", ["", "{", "a,b\n1,2\n", "[1, 2]", '{"kernels": []}'])
def test_what_is_no_trace_is_refused(tmp_path, text):
    (tmp_path / "trace").write_text(text)
    with pytest.raises(ValueError, match=r"is no kernel trace|names no kernel"):
        read_trace(tmp_path / "trace")
    with pytest.raises(FileNotFoundError, match="no kernel trace"):
        read_trace(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "is_product", "precision"), [kernel for kernels in KERNELS.values() for kernel in kernels]
)
def test_kernel_names_tell_precision_or_unknown(name, is_product, precision):
    assert (Kernel(name, 1, None).is_product, Kernel(name, 1, None).precision) == (is_product, precision)


def test_a_summary_counts_product_kernels_alone():
    kernels = [Kernel(INT8_TACTIC, 3, 1.0), Kernel(HALF_TACTIC, 1, 2.0), Kernel("copy_kernel", 5, 9.0)]
    assert product_summary(kernels) == {"fp16": (1, 2.0), "int8": (3, 1.0)}


def test_a_cupti_record_is_read_by_the_headers_offsets():
    import ctypes

    name = ctypes.create_string_buffer(b"kernel_a")
    record = bytearray(160)
    struct.pack_into("<I", record, 0, cupti.CONCURRENT_KERNEL)
    struct.pack_into("<QQ", record, 16, 1000, 1500)
    struct.pack_into("<Q", record, 104, ctypes.addressof(name))
    memory = (ctypes.c_char * len(record)).from_buffer(record)
    assert cupti.read_record(ctypes.addressof(memory)) == {"name": "kernel_a", "start_ns": 1000, "duration_ns": 500}
    struct.pack_into("<I", record, 0, 3)  # a copy, not a kernel
    assert cupti.read_record(ctypes.addressof(memory)) is None


def test_the_recording_ends_where_the_traced_code_fails(monkeypatch):
    calls = []

    class Collector:
        def __init__(self, library):
            self.start = lambda: calls.append("start")

        def stop(self):
            calls.append("stop")
            return [{"name": "a"}]

    monkeypatch.setattr(cupti, "KernelCollector", Collector)
    with pytest.raises(ValueError, match="of the block"), cupti.collect_kernels():
        raise ValueError("of the block")
    with cupti.collect_kernels() as kernels:
        pass
    assert calls == ["start", "stop"] * 2 and kernels == [{"name": "a"}]


def test_cupti_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(cupti.ctypes.util, "find_library", lambda _: None)
    monkeypatch.setattr(cupti.glob, "glob", lambda _: [])
    with pytest.raises(RuntimeError, match="libcupti is not installed; run 'pip install nvidia-cuda-cupti-cu12'"):
        cupti.find_library()
