"""The whole way on scikit-learn's digits, offline: train, calibrate, QAT, build, score, search, report.

`make demo` runs it: one sweep and one search with the settings below and their report, the same functions as
`python -m eval.sweep`, `eval.search` and `eval.report`; nothing is imported from here.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.backend import outlook
from engine.cli import CommandParser, check_free, run_command
from eval.report.__main__ import write_report
from eval.report.run_data import SEARCH, RunData, label, read_run
from eval.report.writing import milliseconds
from eval.sweep.grid import REFERENCES, Shape, SweepOptions, System
from eval.sweep.run_folder import MANIFEST, RunFolder

if TYPE_CHECKING:
    from eval.search.result import SearchResult

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
    num_calibration=256, num_samples=None, seed=0, methods=("fp32", "max", "mse", "qat"),
    recipes=("int8_full",), backends=("onnxruntime", "openvino"),
    references=tuple(name for name in REFERENCES if name != "pytorch-compiled"),  # it compiles for a minute
    batch_sizes=(1, 32), seq_lengths=(None,), shapes="auto", threads=os.cpu_count() or 1, rounds=6, device="cpu",
    qat_arguments=QAT_ARGUMENTS, load_clients=(), load_seconds=0.5,
)  # fmt: skip
# What of it may stay in INT8 without moving the outputs by more than half of what all of it does?
SEARCHED = replace(
    OPTIONS, methods=("max",), backends=("onnxruntime",), references=("onnxruntime-fastest",), batch_sizes=(32,),
    rounds=4, max_rounds=4,
)  # fmt: skip
NOTE = """
{num_samples} test images; error: mean |logit - float logit|; KB: what is loaded.
ms: of a batch of {batch_size} on {num_cpus} CPUs; speed-up over the fastest float ONNX Runtime session."""


def table(data: RunData, search: SearchResult) -> str:
    """Return the table of the largest batch, about 80 columns wide, with what the search chose as its last line."""
    from eval.search.answer import answer_of

    shape = data.shapes[-1]
    lines = [f"{'configuration':<38} {'accuracy':>8} {'error':>7} {'KB':>5} {'ms':>6} {'speed-up':>8}"]
    lines += [_line(label(system), data, system, shape) for system in data.systems]
    chosen = search.chosen
    if chosen is not None and search.proof is not None:
        plan = next((each for each in search.plans if each.path == chosen.recipe), None)
        share = f"{len(plan.units)} of {len(search.measured.units)} units, " if plan else ""
        lines.append(_line(f"search: {share}{label(chosen).rpartition(', ')[2]}", search.proof, chosen, shape))
    else:
        lines.append(f"search: {answer_of(search)}")
    num_samples = next((row.row.num_samples for row in data.rows if row.row.num_samples), 0)
    note = NOTE.format(num_samples=num_samples, batch_size=shape.batch_size, num_cpus=data.options.threads)
    return "\n".join([*lines, note])


def _line(name: str, data: RunData, system: System, shape: Shape) -> str:
    row = data.row(system, shape)
    if row is None or row.row.status != "ok":
        reason = "not measured" if row is None else f"{row.row.status}: {row.row.error}"
        return f"{name:<38} {reason[:60]}"
    r = row.row
    size = "-" if r.size_bytes is None else f"{r.size_bytes / 1000:.0f}"
    accuracy = "-" if r.metric is None else f"{100 * r.metric:.2f}%"
    error = "-" if r.error_abs_mean is None else f"{r.error_abs_mean:.4f}"
    latency = milliseconds(row.details.latency_ms)
    return f"{name:<38} {accuracy:>8} {error:>7} {size:>5} {latency:>6} {row.details.speedup or 0:>7.2f}x"


def search_in(run: Path, data: RunData) -> SearchResult:
    """Search in the run's folder, on what the sweep has made there, for half of the error; write its page."""
    from eval.search.page import write_page
    from eval.search.result import SearchOptions
    from eval.search.run import run_search

    whole = System(SEARCHED.methods[0], SEARCHED.recipes[0], SEARCHED.backends[0])
    row = data.ok(whole)
    half = None if row is None or row.row.error_abs_mean is None else row.row.error_abs_mean / 2
    folder = run / SEARCH
    folder.mkdir()
    (folder / "artifacts").symlink_to(Path("..") / RunFolder(run).artifacts.name, target_is_directory=True)
    result = run_search(SearchOptions(SEARCHED, 0.01, half), folder, "python -m eval.demo")
    write_page(result, folder)
    return result


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
    say(f"one sweep on the digits: float, calibrators and QAT, on ONNX Runtime and OpenVINO, into {run}")
    try:
        run_sweep(OPTIONS, run, "python -m eval.demo")
        data = read_run(run)
        say(f"a search for a plan with half of the error of {OPTIONS.recipes[0]}")
        try:
            search = search_in(run, data)
        finally:  # should the search be stopped, the sweep's report is there all the same
            path = write_report(run)
    except Interrupted as interrupted:
        raise KeyboardInterrupt from interrupted
    print("\n".join([*about_this_cpu, "", table(data, search)]))
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
