"""Run an engine over stored inputs: the middle step of scoring on a box that has neither torch nor transformers.

feeds.npz holds one array for each input, samples along the first axis; keys that begin with "_" (labels, say) pass
through.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from engine.backend import check_threads, get_backend
from engine.backends.runner import Runner
from engine.cli import CommandParser, check_free, check_positive, print_result, run_command, whole_output
from engine.manifest import read_manifest

DEFAULT_BATCH = 32


def read_feeds(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return (inputs, passed-through arrays) of a feeds file.

    Raises: FileNotFoundError: if it is missing; ValueError: if it is not an npz of plain arrays, holds no input, or
    their lengths differ.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no feeds file {path}; make one with 'python -m eval.feeds --out {path}'")
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(
            f"{path} is not an npz file of plain arrays ({error}); make one with 'python -m eval.feeds'"
        ) from None
    inputs = {name: x for name, x in arrays.items() if not name.startswith("_")}
    lengths = {name: x.shape[0] if x.ndim else 0 for name, x in inputs.items()}
    if not inputs or min(lengths.values()) == 0:
        raise ValueError(f"{path} holds no samples; make one with 'python -m eval.feeds'")
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"{path}: inputs hold different numbers of samples: {lengths}; make it again with 'python -m eval.feeds'"
        )
    return inputs, {name: x for name, x in arrays.items() if name.startswith("_")}


def run_batches(runner: Runner, feeds: Mapping[str, np.ndarray], batch_size: int) -> dict[str, np.ndarray]:
    """Return the outputs over all samples, computed `batch_size` at a time, the last batch as long as what is left."""
    num_samples = len(next(iter(feeds.values())))
    parts = [
        runner({name: x[start : start + batch_size] for name, x in feeds.items()})
        for start in range(0, num_samples, batch_size)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in runner.output_names}


def run(arguments: argparse.Namespace) -> None:
    """Write the outputs and print counts and latency."""
    check_positive(arguments, "batch_size", "threads", "iterations")
    check_free(arguments.out, arguments.force)
    feeds, passed = read_feeds(arguments.feeds)
    backend = get_backend(read_manifest(arguments.engine).backend)
    check_threads(backend, arguments.threads)
    with backend.load(arguments.engine, arguments.threads) as runner:
        batch_size = arguments.batch_size or runner.batch_size or DEFAULT_BATCH
        outputs = run_batches(runner, feeds, batch_size)
        first = {name: x[:batch_size] for name, x in feeds.items()}
        num_first = len(next(iter(first.values())))
        latency_ms = (
            runner.time(first, arguments.iterations, warmup=3)
            if num_first == (runner.static_batch or num_first)
            else []
        )
    with whole_output(arguments.out, arguments.force) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **outputs, **passed)
    num_samples = len(next(iter(feeds.values())))
    p50, p90, p99 = (float(np.percentile(latency_ms, q)) if latency_ms else None for q in (50, 90, 99))
    row = {
        "backend": backend.name,
        "num_samples": num_samples,
        "batch_size": batch_size,
        "latency_ms_p50": p50,
        "latency_ms_p90": p90,
        "latency_ms_p99": p99,
        "iterations": len(latency_ms),
        "outputs": {name: list(y.shape) for name, y in outputs.items()},
    }
    timed = f", {p50:.2f} ms p50 for a batch of {num_first}" if p50 is not None else ""
    print_result(
        row,
        f"{num_samples} samples through {arguments.engine} ({backend.name}){timed}; outputs in {arguments.out}",
        arguments.json,
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser(
        "python -m engine.run", "Run an engine over stored inputs and store its outputs; needs no torch."
    )
    parser.add_argument("--engine", required=True, help="the engine (its OUT.json stands beside it)")
    parser.add_argument(
        "--feeds", required=True, help="npz with one array for each input, samples along the first axis"
    )
    parser.add_argument(
        "--out",
        required=True,
        help="npz to write: one array for each output, and the keys of --feeds that begin with _",
    )
    parser.add_argument(
        "--batch-size", type=int, help="samples a call (default: what the engine was built for, else 32)"
    )
    parser.add_argument(
        "--threads", type=int, help="CPU threads (default: what the engine was built with, else all cores)"
    )
    parser.add_argument("--iterations", type=int, default=20, help="timed calls on the first batch")
    parser.add_argument("--force", action="store_true", help="replace --out")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    run_command(parser, run, argv)


if __name__ == "__main__":
    main()
