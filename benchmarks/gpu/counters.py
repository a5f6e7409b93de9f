"""Hardware counters of one layer's products on a GPU, by Nsight Compute (`ncu`): ours in INT8, cuBLAS in fp16.

    python -m benchmarks.gpu.counters --model bert-base --rows 16384 --out rows.jsonl

The tiles are tuned first, without counters. A row for each kernel: its microseconds, the share of the peak that the
tensor cores, the memory and the L2 cache reached, its clock, registers and blocks. ncu runs a kernel several times
with cold caches and by itself, so its times are longer than those of `benchmarks.gpu.kernels`: compare shares.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

METRICS = {
    "us": "gpu__time_duration.sum",
    "tensor_percent": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "tensor_instructions_percent": "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_elapsed",
    "issue_percent": "sm__inst_issued.avg.pct_of_peak_sustained_elapsed",
    "fma_percent": "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_elapsed",
    "alu_percent": "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_elapsed",
    "dram_percent": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_percent": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1_percent": "l1tex__throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_write_bytes": "dram__bytes_write.sum",
    "registers": "launch__registers_per_thread",
    "blocks": "launch__grid_size",
    "sm_clock": "sm__cycles_elapsed.avg.per_second",
}
SIDES = ("int8", "fp16")
SCALES = {"ns": 1e-3, "nsecond": 1e-3, "ms": 1e3, "msecond": 1e3, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9,
          "Ghz": 1e9, "Mhz": 1e6}  # fmt: skip


def launch(model: str, rows: int) -> None:
    """Tune a layer's products, then run each side of each once between the profiler's marks. Runs under ncu."""
    import torch

    from benchmarks.gpu.int8 import Int8Stack
    from benchmarks.gpu.kernels import candidates, model_with, with_tile
    from benchmarks.gpu.shapes import MODELS
    from kernels.tune import tune

    with torch.inference_mode():
        stack = Int8Stack(model_with(MODELS[model], 1), "full", rows // 128, 128, None)
        calls = []
        for op, (n, k) in stack.model.products().items():
            kind, ours = stack.tunables()[op]
            best, _ = tune(candidates(stack, op, kind), lambda tile, op=op, ours=ours: with_tile(stack, op, tile, ours))
            x, w = (torch.randn(*size, device="cuda", dtype=torch.float16) for size in ((rows, k), (n, k)))
            calls += [with_tile(stack, op, best, ours)[0], lambda x=x, w=w: torch.nn.functional.linear(x, w)]
            print("TILE", op, best, flush=True)
        for call in calls:
            call()
        torch.cuda.synchronize()
        for call in calls:
            torch.cuda.cudart().cudaProfilerStart()
            call()
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStop()


def read_counters(text: str) -> list[dict[str, float | str | None]]:
    """Return one dictionary for each kernel of ncu's CSV (page raw): its name and the metrics that ncu knew."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    table = list(csv.DictReader(io.StringIO("\n".join(lines[start:]))))
    units, kernels = table[0], table[1:]

    def number(row: dict[str, str], metric: str) -> float | None:
        try:
            value = float(row[metric].replace(",", ""))
        except (KeyError, ValueError):
            return None
        return value * SCALES.get(units[metric], 1.0)

    return [{"kernel": row["Kernel Name"], **{key: number(row, metric) for key, metric in METRICS.items()}}
            for row in kernels]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-base")
    parser.add_argument("--rows", type=int, default=16384, help="tokens of a call (default: 128 x 128)")
    parser.add_argument("--out", required=True)
    parser.add_argument("--launch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.launch:
        launch(args.model, args.rows)
        return
    if shutil.which("ncu") is None:
        raise SystemExit("ncu (Nsight Compute) is not on the PATH; it comes with CUDA's toolkit")
    from benchmarks.gpu.kernels import environment
    from benchmarks.gpu.shapes import MODELS
    from benchmarks.rows import append_row

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.ncu-rep"
        words = ["ncu", "--profile-from-start", "off", "--clock-control", "none", "--metrics",
                 ",".join(METRICS.values()), "-o", str(report), "-f"]  # fmt: skip
        words += [sys.executable, "-m", "benchmarks.gpu.counters", "--launch", "--model", args.model, "--rows",
                  str(args.rows), "--out", args.out]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if not report.exists():
            raise SystemExit(f"ncu made no report: {(done.stdout + done.stderr)[-800:]}")
        read = ["ncu", "--import", str(report), "--page", "raw", "--csv"]
        found = read_counters(subprocess.run(read, capture_output=True, text=True, check=True).stdout)
    expected = [(op, n, k, side) for op, (n, k) in MODELS[args.model].products().items() for side in SIDES]
    if len(found) != len(expected):
        names = [each["kernel"] for each in found]
        raise SystemExit(f"ncu saw {len(found)} kernels for {len(expected)} products: {names}")
    for (op, n, k, side), counters in zip(expected, found, strict=True):
        append_row(args.out, "gpu_counters", model=args.model, op=op, side=side, m=args.rows, n=n, k=k, **counters,
                   **environment())  # fmt: skip
        print(f"COUNTERS {op} {side} {args.rows}x{n}x{k}: {counters}", flush=True)


if __name__ == "__main__":
    main()
