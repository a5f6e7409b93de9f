"""Times TensorRT engines of one model against each other on a GPU, in alternation; needs no torch.

    python -m benchmarks.gpu.tensorrt --model M --engines fp16=E1 int8_linear=E2 ... --feeds F.npz --out results.jsonl

Ratios are over the first engine, round by round. A row also keeps the calls a second with several streams, and what a
kernel trace beside the engine (`engine.inspect.cupti`) says of its products.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.rows import append_row, median_interval
from engine.backend import get_backend
from engine.backends.runner import Runner
from engine.backends.tensorrt.inspect import TRACE_SUFFIX
from engine.gpu import find_gpu
from engine.inspect.kernel_trace import product_summary, read_trace
from engine.manifest import Manifest, read_manifest
from engine.run import read_feeds

STREAMS = (1, 2, 4)


def measure(
    runners: dict[str, Runner], feeds: dict[str, np.ndarray], rounds: int, calls: int
) -> dict[str, list[float]]:
    """Return for each engine the median milliseconds of each round's block of calls, on the GPU's own clock."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    names = list(runners)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            own = {key: feeds[key] for key in runners[name].input_names}
            times[name].append(float(np.median(runners[name].time(own, iterations=calls, warmup=5))))
    return times


def described(manifest: Manifest, engine: str, times: list[float], first: list[float]) -> dict[str, Any]:
    """Return what a row says of one engine."""
    ratio, low, high = median_interval([a / b for a, b in zip(first, times, strict=True)])
    row: dict[str, Any] = {
        "ms_median": float(np.median(times)), "ms_rounds": [round(ms, 5) for ms in times],
        "speedup": ratio, "speedup_low": low, "speedup_high": high, "size_bytes": manifest.size_bytes,
        "precision": manifest.precision, "products": manifest.products.summary(), "trtexec": manifest.trtexec,
        "tensorrt": manifest.versions.get("tensorrt"), "gpu": str(find_gpu()),
    }  # fmt: skip
    try:
        kernels = read_trace(f"{engine}{TRACE_SUFFIX}")
    except (FileNotFoundError, ValueError) as error:
        return row | {"kernels": None, "why_no_kernels": str(error)}
    summary = product_summary(kernels)
    return row | {"kernels": {name: {"count": count, "ms": ms} for name, (count, ms) in summary.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", required=True, metavar="NAME=ENGINE")
    parser.add_argument("--feeds", required=True, help="npz; the engines' batch size is taken of it")
    parser.add_argument("--model", required=True, help="what the row calls the model")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=20, help="timed calls of a block")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    engines = dict(each.split("=", 1) for each in arguments.engines)
    with ExitStack() as stack:
        runners = {name: stack.enter_context(get_backend("tensorrt").load(path)) for name, path in engines.items()}
        size = next(iter(runners.values())).batch_size
        feeds = {name: x[:size] for name, x in read_feeds(arguments.feeds)[0].items()}
        times = measure(runners, feeds, arguments.rounds, arguments.calls)
        shapes = {name: list(x.shape) for name, x in feeds.items()}
        for name, path in engines.items():
            row = described(read_manifest(path), path, times[name], next(iter(times.values())))
            row["calls_per_s"] = {n: runners[name].throughput(feeds, n) for n in STREAMS}  # type: ignore[attr-defined]
            row = append_row(arguments.out, "tensorrt", model=arguments.model, engine=name, inputs=shapes, **row)
            print(f"{name:24s} {row['ms_median']:8.4f} ms  {row['speedup']:.3f}x [{row['speedup_low']:.3f}, "
                  f"{row['speedup_high']:.3f}]  {json.dumps(row['kernels'])}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
