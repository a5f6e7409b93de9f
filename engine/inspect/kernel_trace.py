"""Which kernels a GPU really ran: traces of any profiler, and what a kernel's name says of its precision.

It is the only witness where TensorRT shows a whole encoder as one Myelin node.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.inspect.layers import INT8, UNKNOWN

# Parts of kernel names, as cuBLASLt, CUTLASS, cuDNN, xmma, TensorRT's fused attention and Inductor write them; real
# names by architecture: `tests/engine/inspect/kernel_names.py`.
PRODUCT = re.compile(
    r"gemm|gemv|xmma|cutlass|conv|fprop|imma|hmma|mha|flash|attention|matmul|bmm|cublas|i8816cudnn|nvjet|splitk", re.I
)
NO_PRODUCT = re.compile(r"splitkreduce|reduce_kernel|copy|memset|memcpy|elementwise|triton_(?:poi|red|per)_", re.I)
TEMPLATE = re.compile(r"triton_tem_", re.I)  # Inductor's products and attention; their names list what is fused too
# cuBLAS's kernels since Hopper name the types of both factors, the sum and the result by a letter each (one letter
# where the factors are alike); xmma's name the first factor's type first.
NVJET = re.compile(r"nvjet_(?:sm\d+_)?([a-z])[a-z]*_", re.I)
NVJET_TYPES = {"q": "fp8", "r": "fp8", "h": "fp16", "t": "bf16", "s": "fp32", "d": "fp64"}
XMMA = re.compile(r"xmma_(?:[a-z]+_)*?(i8|e4m3|e5m2|bf16|f16|tf32|f32|f64)(?=i8|i32|e4m3|e5m2|bf16|f16|tf32|f32|f64)")
XMMA_TYPES = {"i8": INT8, "e4m3": "fp8", "e5m2": "fp8", "bf16": "bf16", "f16": "fp16", "tf32": "fp32", "f32": "fp32",
              "f64": "fp64"}  # fmt: skip
# All others, in this order: a number format between separators, or the shape of the instruction (i16832: INT8,
# s884 after fp16: a sum in fp32).
TYPES = (
    (INT8, re.compile(r"i8i8|i8816|i16832|igmma|(?<![a-z0-9])(?:i|u|s)8(?![a-z0-9])|int8|imma|igemm|_int_mm", re.I)),
    ("fp8", re.compile(r"e4m3|e5m2|fp8", re.I)),
    ("bf16", re.compile(r"bf16|bfloat", re.I)),
    ("fp16", re.compile(r"h884|hmma|h1688|h16816|fp?16|half|hgemm", re.I)),
    ("fp64", re.compile(r"d884|dgemm|fp?64|double", re.I)),
    ("fp32", re.compile(r"sgemm|fp?32|ffma|s1688|float", re.I)),
)
NAME_COLUMNS = ("Name", "Kernel Name", "name", "kernel")
# Column → how many milliseconds one unit is.
TIME_COLUMNS = {"Total Time (ns)": 1e-6, "Duration (ns)": 1e-6, "Duration": 1e-6, "duration_ns": 1e-6,
                "gpu__time_duration.sum": 1e-6, "time_ms": 1.0}  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel."""

    name: str
    count: int
    time_ms: float | None

    @property
    def is_product(self) -> bool:
        """Whether its name is that of a matrix product, a convolution or fused attention."""
        if TEMPLATE.search(self.name):
            return True
        return bool(PRODUCT.search(self.name)) and not NO_PRODUCT.search(self.name)

    @property
    def precision(self) -> str:
        """What its name says it multiplies, or unknown."""
        if (nvjet := NVJET.search(self.name)) is not None:
            return NVJET_TYPES.get(nvjet.group(1).lower(), UNKNOWN)
        if (xmma := XMMA.search(self.name)) is not None:
            return XMMA_TYPES[xmma.group(1)]
        return next((precision for precision, pattern in TYPES if pattern.search(self.name)), UNKNOWN)


def read_trace(path: str | Path) -> list[Kernel]:
    """Return the kernels of a trace, the longest first.

    It takes what `engine.inspect.cupti` writes, a list of names, a Chrome trace (torch's profiler), and the CSV of
    `nsys stats --report cuda_gpu_kern_sum` (or `_trace`) and of `ncu --csv`.
    Raises: FileNotFoundError: if it is missing; ValueError: if it is none of these or holds no kernel.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no kernel trace {path}; make one with 'python -m engine.inspect.cupti' or a profiler on the GPU"
        )
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        rows = _rows(json.loads(text)) if text.lstrip()[:1] in ("{", "[") else _csv_rows(text)
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is no kernel trace: {str(error)[:100]}; give JSON or the CSV of nsys or ncu"
        ) from None
    kernels = _summed(rows)
    if not kernels:
        raise ValueError(f"{path} names no kernel; trace a run of the engine on the GPU")
    return kernels


def product_summary(kernels: Iterable[Kernel]) -> dict[str, tuple[int, float]]:
    """Return precision → (launches, milliseconds) of the product kernels, by their names."""
    sums: dict[str, tuple[int, float]] = {}
    for kernel in kernels:
        if kernel.is_product:
            count, time_ms = sums.get(kernel.precision, (0, 0.0))
            sums[kernel.precision] = (count + kernel.count, time_ms + (kernel.time_ms or 0.0))
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def _rows(content: Any) -> list[tuple[str, int, float | None]]:
    if isinstance(content, dict) and "traceEvents" in content:
        events = [e for e in content["traceEvents"] if "kernel" in str(e.get("cat", "")).lower()]
        return [(e["name"], 1, float(e["dur"]) / 1e3) for e in events]  # Chrome traces count microseconds
    rows: list[tuple[str, int, float | None]] = []
    for each in content["kernels"] if isinstance(content, dict) else content:
        if isinstance(each, str):
            rows.append((each, 1, None))
            continue
        time_ms = next((float(each[key]) * unit for key, unit in TIME_COLUMNS.items() if key in each), None)
        rows.append((next(each[key] for key in NAME_COLUMNS if key in each), int(each.get("count", 1)), time_ms))
    return rows


def _csv_rows(text: str) -> list[tuple[str, int, float | None]]:
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if _has_name_column(line)), None)
    if start is None:
        raise ValueError(f"no line has a column {' or '.join(NAME_COLUMNS)}")
    rows: list[tuple[str, int, float | None]] = []
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        name = next((row[key] for key in NAME_COLUMNS if row.get(key)), None)
        if name is None:
            continue
        if row.get("Metric Name") and row["Metric Name"] not in TIME_COLUMNS:  # ncu writes a line for each metric
            continue
        column = next((key for key in TIME_COLUMNS if row.get(key)), None)
        word = row[column] if column else row.get("Metric Value")
        unit = TIME_COLUMNS[column] if column else 1e-6
        count = int((row.get("Instances") or "1").replace(",", ""))
        rows.append((name, count, float(word.replace(",", "")) * unit if word else None))
    return rows


def _has_name_column(line: str) -> bool:
    return any(f'"{name}"' in line or name in line.split(",") for name in NAME_COLUMNS)


def _summed(rows: list[tuple[str, int, float | None]]) -> list[Kernel]:
    sums: dict[str, tuple[int, float | None]] = {}
    for name, count, time_ms in rows:
        before, total = sums.get(name, (0, None))
        sums[name] = (before + count, total if time_ms is None else (total or 0.0) + time_ms)
    kernels = [Kernel(name, count, time_ms) for name, (count, time_ms) in sums.items()]
    return sorted(kernels, key=lambda kernel: -(kernel.time_ms or 0.0))
