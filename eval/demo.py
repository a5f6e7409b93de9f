"""The whole way on scikit-learn's digits, offline: train, quantize with each calibrator, export, build, score, compare.

`make demo` runs it. It calls the same functions as the commands and prints one table; nothing is imported from here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import transformers

from calib.apply import apply_statistics
from calib.collect import collect
from calib.samples import load_samples
from calib.statistics import Statistics
from engine.backend import BuildOptions, get_backend
from engine.cli import CommandParser, run_command, whole_output
from engine.qdq import prepare_for_target
from eval.batches import BatchOptions
from eval.evaluate import Evaluation, evaluate
from eval.latency import compare
from eval.pytorch_runner import PyTorchRunner
from eval.tasks import get_task
from quant.checkpoint import load_checkpoint, save_checkpoint
from quant.insert import insert_quantizers
from quant.onnx_export import export_onnx
from quant.pretrained import DIGITS, LoadedModel, load_float_model
from quant.recipe import Recipe, load_recipe

say = partial(print, file=sys.stderr, flush=True)  # progress; the table alone goes to stdout
FLOAT = "float"
METHODS = ("max", "percentile", "entropy", "mse")
BACKENDS = ("onnxruntime", "openvino")
BASELINE = (FLOAT, "onnxruntime")
NOTE = """
360 test images; error: mean |logit - float logit|; KB: the file that runs.
ms: median of a batch of {batch_size} on {num_cpus} CPUs; speed-up over float ONNX Runtime.
INT8 in PyTorch is simulated, so it has no time of its own."""
NUM_SAMPLES, BATCH_SIZE, NUM_BLOCKS = 256, 32, 6


@dataclass(frozen=True)
class System:
    """One line of the table before its latency; `size_bytes` is None for what runs from no file."""

    method: str
    backend: str
    runner: Any
    evaluation: Evaluation
    size_bytes: int | None = None


def quantize(recipe: Recipe, statistics: Statistics, method: str, folder: Path) -> LoadedModel:
    """Return the digits model calibrated by one method, as its checkpoint in `folder` gives it back."""
    loaded = load_float_model(DIGITS)
    insert_quantizers(loaded.model, recipe)
    apply_statistics(loaded.model, statistics, method)
    save_checkpoint(loaded.model, folder, processor=loaded.processor)
    return load_checkpoint(folder)


def build(loaded: LoadedModel, backend: str, stem: Path) -> Path:
    """Return the engine of a model: exported for the backend's target, then built."""
    path = stem.with_suffix(f".{backend}.onnx")
    onnx.save(prepare_for_target(export_onnx(loaded.model, processor=loaded.processor), backend), path)
    return get_backend(backend).build(path, stem.with_suffix(f".{backend}"), BuildOptions()).path


def gather(folder: Path, stack: ExitStack) -> list[System]:
    """Return every system of the demo, scored on the test images; what is built is kept in `folder`."""
    task = get_task(DIGITS)
    images = task.load(None, "test")
    loaded = load_float_model(DIGITS)
    reference = PyTorchRunner(loaded)

    def score(runner: Any) -> Evaluation:
        options = BatchOptions(batch_size=BATCH_SIZE)
        return evaluate(
            task, images, loaded.processor, runner, reference=reference, options=options, show_progress=False
        )

    recipe = load_recipe("int8_linear")
    observed = load_float_model(DIGITS)
    sites = insert_quantizers(observed.model, recipe)
    say(f"calibrating {sum(site.enabled for site in sites)} quantizers on {NUM_SAMPLES} training images, one pass")
    statistics = collect(observed.model, load_samples(DIGITS, observed, num_samples=NUM_SAMPLES))
    systems = []
    for method in (FLOAT, *METHODS):
        say(f"{method}: export, build, score")
        model = loaded if method == FLOAT else quantize(recipe, statistics, method, folder / method)
        runner = reference if method == FLOAT else PyTorchRunner(model)
        systems.append(System(method, "pytorch", runner, score(runner)))
        for backend in BACKENDS:
            engine = build(model, backend, folder / f"{method}-model")
            engine_runner = stack.enter_context(get_backend(backend).load(engine))
            size = sum(p.stat().st_size for p in (engine.rglob("*") if engine.is_dir() else [engine]) if p.is_file())
            systems.append(System(method, backend, engine_runner, score(engine_runner), size))
    return systems


def table(systems: list[System]) -> str:
    """Return the table, 60 columns wide; latencies are measured here, in alternating blocks of one run."""
    timed = {f"{s.method} {s.backend}": s for s in systems if s.backend != "pytorch" or s.method == FLOAT}
    pixels = load_samples(DIGITS, load_float_model(DIGITS), num_samples=BATCH_SIZE)
    feeds = {"pixel_values": next(iter(pixels))["pixel_values"].numpy()}
    say(f"timing {len(timed)} systems in alternating blocks, batch {BATCH_SIZE}")
    runners = {name: s.runner for name, s in timed.items()}
    results = compare(runners, feeds, " ".join(BASELINE), num_blocks=NUM_BLOCKS)
    lines = [f"{'method':<10} {'backend':<11} {'accuracy':>8} {'error':>7} {'KB':>5} {'ms':>6} {'speed-up':>8}"]
    for system in systems:
        result = results.get(f"{system.method} {system.backend}")
        error = system.evaluation.error
        lines.append(
            f"{system.method:<10} {system.backend:<11} {100 * system.evaluation.scores.metrics[0].value:>7.2f}% "
            f"{0 if error is None else error.abs_mean:>7.4f} "
            f"{'-' if system.size_bytes is None else round(system.size_bytes / 1000):>5} "
            + (f"{result.latency.latency_ms_p50:>6.2f} {result.speedup:>7.2f}x" if result else f"{'-':>6} {'-':>8}")
        )
    return "\n".join(lines)


def demo(arguments: argparse.Namespace) -> None:
    """Run the demo and print its table."""
    started = time.perf_counter()
    transformers.logging.disable_progress_bar()  # a bar for each saved file says nothing here
    with ExitStack() as stack:
        out = arguments.out or Path(stack.enter_context(tempfile.TemporaryDirectory()), "demo")
        folder = stack.enter_context(whole_output(out, arguments.force))
        folder.mkdir(exist_ok=True)
        with ExitStack() as engines:
            print(table(gather(folder, engines)))
    print(NOTE.format(batch_size=BATCH_SIZE, num_cpus=os.cpu_count()))
    say(f"done in {time.perf_counter() - started:.0f} s")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser("python -m eval.demo", "Train, quantize, export, build and score a small ViT; no network.")
    parser.add_argument("--out", help="keep the checkpoints, ONNX files and engines in this folder")
    parser.add_argument("--force", action="store_true", help="replace --out")
    run_command(parser, demo, argv)


if __name__ == "__main__":
    main()
