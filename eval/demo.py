"""The whole way on scikit-learn's digits, offline: train, quantize with each calibrator and QAT, build, score, report.

`make demo` runs it: one sweep with the settings below and its report, the same functions as `python -m eval.sweep` and
`python -m eval.report`; nothing is imported from here.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path

from engine.backend import outlook
from engine.cli import CommandParser, check_free, run_command
from eval.report.__main__ import write_report
from eval.report.run_data import RunData, label, read_run
from eval.report.writing import milliseconds
from eval.sweep.grid import REFERENCES, SweepOptions
from eval.sweep.run_folder import MANIFEST

say = partial(print, file=sys.stderr, flush=True)  # progress; the table and the report's path alone go to stdout
RUN = Path("runs/demo")
DIGITS = "digits"  # the model and the task
NOISY = ("httpx", "datasets", "torch", "onnxscript", "onnx_ir", "matplotlib", "transformers")
QAT_ARGUMENTS = (
    "--max_steps 60 --per_device_train_batch_size 64 --learning_rate 1e-5 --eval_strategy no --save_strategy no "
    "--load_best_model_at_end false --disable_tqdm true"
)
OPTIONS = SweepOptions(
    model=DIGITS, task=DIGITS, data=None, split="test", columns=None, label_column=None, samples=DIGITS,
    num_calibration=256, num_samples=None, seed=0, methods=("fp32", "max", "percentile", "entropy", "mse", "qat"),
    recipes=("int8_full",), backends=("onnxruntime", "openvino"),
    references=tuple(name for name in REFERENCES if name != "pytorch-compiled"),  # it compiles for a minute
    batch_sizes=(1, 8, 32), seq_lengths=(None,), shapes="auto", threads=os.cpu_count() or 1, rounds=6, device="cpu",
    qat_arguments=QAT_ARGUMENTS, load_clients=(1, 2, 4), load_seconds=0.5,
)  # fmt: skip
NOTE = """
{num_samples} test images; error: mean |logit - float logit|; KB: what is loaded.
ms: of a batch of {batch_size} on {num_cpus} CPUs; speed-up over the fastest float ONNX Runtime session."""


def table(data: RunData) -> str:
    """Return the table of the largest batch, about 80 columns wide."""
    shape = data.shapes[-1]
    lines = [f"{'configuration':<38} {'accuracy':>8} {'error':>7} {'KB':>5} {'ms':>6} {'speed-up':>8}"]
    for system in data.systems:
        row = data.row(system, shape)
        if row is None or row.row.status != "ok":
            reason = "not measured" if row is None else f"{row.row.status}: {row.row.error}"
            lines.append(f"{label(system):<38} {reason[:60]}")
            continue
        r = row.row
        size = "-" if r.size_bytes is None else f"{r.size_bytes / 1000:.0f}"
        accuracy = "-" if r.metric is None else f"{100 * r.metric:.2f}%"
        error = "-" if r.error_abs_mean is None else f"{r.error_abs_mean:.4f}"
        latency = milliseconds(row.details.latency_ms)
        lines.append(f"{label(system):<38} {accuracy:>8} {error:>7} {size:>5} {latency:>6} "
                     f"{row.details.speedup or 0:>7.2f}x")  # fmt: skip
    num_samples = next((row.row.num_samples for row in data.rows if row.row.num_samples), 0)
    note = NOTE.format(num_samples=num_samples, batch_size=shape.batch_size, num_cpus=data.options.threads)
    return "\n".join([*lines, note])


def demo(arguments: argparse.Namespace) -> None:
    """Run the sweep, write its report, print the table and the report's path."""
    started = time.perf_counter()
    import transformers  # with torch: not for --help

    from eval.sweep.run import Interrupted, run_sweep

    for name in NOISY:  # after their imports, which set levels of their own
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.disable_progress_bar()  # a bar for each saved file says nothing here
    run = Path(arguments.out or RUN)
    is_ours = (run / MANIFEST).is_file() and (arguments.force or not arguments.out)
    if is_ours:
        shutil.rmtree(run)
    check_free(run, force=False)
    about_this_cpu = outlook(OPTIONS.backends)
    say("\n".join(about_this_cpu))
    say(f"one sweep on the digits: float, four calibrators and QAT, on ONNX Runtime and OpenVINO, into {run}")
    try:
        run_sweep(OPTIONS, run, "python -m eval.demo")
    except Interrupted as interrupted:
        raise KeyboardInterrupt from interrupted
    path = write_report(run)
    print("\n".join([*about_this_cpu, "", table(read_run(run))]))
    say(f"done in {time.perf_counter() - started:.0f} s")
    print(f"\nreport: {path.resolve()}")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    parser = CommandParser("python -m eval.demo", "Train, quantize, build, score and report a small ViT; no network.")
    parser.add_argument("--out", help=f"run folder for everything that is made; default {RUN}, made anew each time")
    parser.add_argument("--force", action="store_true", help="replace --out")
    run_command(parser, demo, argv)


if __name__ == "__main__":
    main()
