"""`python -m eval.sweep`: measure a grid of methods, recipes, backends, batch sizes and sequence lengths; resumable."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from engine.backends.own_options import own_from_words
from engine.cli import EXIT_INTERRUPTED, CommandParser, UsageError, print_result, run_command
from eval.arguments import (
    NOISY,
    add_measured_arguments,
    add_tensorrt_arguments,
    check_task_argument,
    numbers,
    split_words,
)  # fmt: skip
from eval.results import STATUSES
from eval.sweep.grid import (
    BUILD_ARGUMENTS,
    FLOAT_METHODS,
    INT8_METHODS,
    PYTORCH,
    REFERENCES,
    SweepOptions,
    backend_names,
    check_names,
    usual_of,
)
from eval.sweep.run_folder import MANIFEST, RunFolder
from eval.tasks import task_path
from quant.recipe import DEFAULT_RECIPE, METHODS, load_recipe


def sweep(arguments: argparse.Namespace) -> None:
    """Measure every point that has no row yet and print one summary line."""
    options = options_of(arguments)
    from eval.sweep.run import Interrupted, run_sweep  # torch and transformers, once the flags are right

    for name in NOISY:  # after their imports, which set levels of their own
        logging.getLogger(name).setLevel(logging.ERROR)

    out = Path(arguments.out)
    if arguments.force and (out / MANIFEST).is_file():
        with RunFolder(out).locked():
            shutil.rmtree(out)
    command = shlex.join(["python", "-m", "eval.sweep", *arguments.words])
    budget_s = arguments.budget * 60 if arguments.budget is not None else None
    try:
        result = run_sweep(
            options, out, command, budget_s=budget_s, num_processes=arguments.parallel, ray=arguments.ray,
            retry_failed=arguments.retry_failed,
        )  # fmt: skip
    except Interrupted as interrupted:
        print(f"python -m eval.sweep: {interrupted}", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    parts = [f"{result.counts[name]} {name}" for name in STATUSES if result.counts.get(name)]
    if result.num_left:
        parts.append(f"{result.num_left} left out by --budget (the same command goes on)")
    summary = f"{out}: {result.num_points} points: {', '.join(parts)}; next: python -m eval.report {out}"
    row = {"out": str(out), "num_points": result.num_points, "left": result.num_left, **result.counts}
    print_result(row, summary, arguments.json)


def options_of(arguments: argparse.Namespace) -> SweepOptions:
    """Return the checked options of the command line. Raises: UsageError: an empty grid, unknown names, bad numbers."""
    check_task_argument(arguments.task)
    backends = check_names("--backends", split_words(arguments.backends), backend_names())
    usual = usual_of(backends)
    wanted = [*usual.floats, *METHODS] if arguments.methods is None else split_words(arguments.methods)
    methods = check_names("--methods", wanted, (*FLOAT_METHODS, *INT8_METHODS))
    recipes = tuple(dict.fromkeys(split_words(arguments.recipes)))
    if not recipes and set(methods) & set(INT8_METHODS):
        raise UsageError("the grid is empty: --recipes names nothing, and the methods need one")
    for recipe in recipes:
        load_recipe(recipe)
    for backend in {*backends} - {PYTORCH}:
        own_from_words(BUILD_ARGUMENTS, arguments.build_arguments, backend)  # refused now, not at the first engine
    wanted = list(usual.references) if arguments.references is None else split_words(arguments.references)
    references = () if wanted == ["none"] else check_names("--references", wanted, tuple(REFERENCES))
    low = {"--parallel": arguments.parallel, "--num-calibration": arguments.num_calibration,
           "--rounds": arguments.rounds - 1, "--threads": arguments.threads or 1,
           "--num-samples": arguments.num_samples if arguments.num_samples is not None else 1}  # fmt: skip
    if wrong := [flag for flag, value in low.items() if value < 1]:
        raise UsageError(f"{', '.join(wrong)} must be at least 1 (--rounds at least 2)")
    if arguments.max_rounds < arguments.rounds:
        raise UsageError(f"--max-rounds {arguments.max_rounds} is below --rounds {arguments.rounds}: at least as many")
    if arguments.budget is not None and arguments.budget <= 0:
        raise UsageError(f"--budget {arguments.budget:g} must be above 0 minutes")
    if arguments.load_seconds <= 0:
        raise UsageError(f"--load-seconds {arguments.load_seconds:g} must be above 0")
    batch_sizes, lengths = (numbers(f, v) for f, v in (("--batch-sizes", arguments.batch_sizes),
                                                        ("--seq-lengths", arguments.seq_lengths)))  # fmt: skip
    from eval.chosen_samples import task_of  # a task's file imports datasets, and the user's own is executed

    task = task_of(arguments)
    samples = arguments.samples or arguments.data or task.default_data
    if samples is None:
        raise UsageError(f"task {task.name} has no default data set; give --data")
    return SweepOptions(
        model=arguments.model, task=task_path(arguments.task), data=arguments.data, split=arguments.split,
        columns=tuple(arguments.column) if arguments.column else None, label_column=arguments.label_column,
        samples=samples, num_calibration=arguments.num_calibration, num_samples=arguments.num_samples,
        seed=arguments.seed, methods=methods, recipes=recipes, backends=backends, references=references,
        batch_sizes=batch_sizes, seq_lengths=lengths if task.is_text else (None,),
        shapes=arguments.shapes, threads=arguments.threads or os.cpu_count() or 1, rounds=arguments.rounds,
        device=arguments.device or usual.device,
        qat_arguments=arguments.qat_arguments,
        build_arguments=arguments.build_arguments, tensorrt_python=arguments.tensorrt_python,
        load_clients=numbers("--load-clients", arguments.load_clients) if arguments.load_clients else (),
        load_seconds=arguments.load_seconds, max_rounds=arguments.max_rounds,
    )  # fmt: skip


def add_arguments(parser: CommandParser) -> None:
    """Add the options of the sweep."""
    lists: dict[str, Any] = {"nargs": "*", "metavar": "A,B"}
    what, how, where = (parser.add_argument_group(title) for title in ("what to measure", "how", "where"))
    add_measured_arguments(what)
    how.add_argument("--seed", type=int, default=0, help="of the draws")
    what.add_argument("--methods", help=f"of {', '.join((*FLOAT_METHODS, *INT8_METHODS))} (default: fp32, of GPU "
                        f"backends fp16, and {', '.join(METHODS)})", **lists)  # fmt: skip
    what.add_argument("--recipes", default=[DEFAULT_RECIPE, "int8_linear"], help="recipe names or .yaml files", **lists)
    what.add_argument("--backends", default=["onnxruntime"], help=f"of {', '.join(backend_names())}", **lists)
    what.add_argument("--references", help=f"of {', '.join(REFERENCES)}, or none (default: all; PyTorch's where only "
                      "GPU backends are measured)", **lists)  # fmt: skip
    what.add_argument("--batch-sizes", default=["1,8,32"], help="samples of a call", **lists)
    what.add_argument("--seq-lengths", default=["128"], help="tokens of a sample; not for images", **lists)
    how.add_argument("--shapes", default="auto", choices=("auto", "static", "dynamic"),
                        help="engines for one shape each or one for all; auto: static on GPUs alone")  # fmt: skip
    where.add_argument("--threads", type=int, help="CPU threads of every runtime (default: all cores)")
    how.add_argument("--rounds", type=int, default=8, help="blocks of 5 calls of every system at a shape, from 2")
    how.add_argument("--max-rounds", type=int, default=40, help="rounds are added up to so many, until the 95 %% "
                        "interval of every speed-up is narrower than 10 %%")  # fmt: skip
    where.add_argument("--device", help="of PyTorch: cpu or cuda (default: cuda where only GPU backends are "
                       "measured and a GPU is there)")
    how.add_argument("--qat-arguments", default="", help="flags for train_qat.py, in one string, for method qat")
    add_tensorrt_arguments(how, where)
    what.add_argument("--load-clients", default=[], help="also measure throughput under load, e.g. 1,2,4,8", **lists)
    how.add_argument("--load-seconds", type=float, default=2.0, help="of each measurement under load")
    how.add_argument("--budget", type=float, help="minutes: the most telling points first, the rest left out")
    how.add_argument("--retry-failed", action="store_true", help="measure failed points again")
    where.add_argument("--parallel", type=int, default=1, help="processes that prepare; timing is always done alone")
    where.add_argument("--ray", metavar="ADDRESS", help="prepare on this Ray cluster; --out must be on a shared disk")
    where.add_argument("--out", required=True, help="run folder; an interrupted sweep goes on there")
    where.add_argument("--force", action="store_true", help="start anew in an --out that holds another sweep")
    where.add_argument("--json", action="store_true", help="print the result as one JSON line")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    warnings.simplefilter("ignore")
    parser = CommandParser("python -m eval.sweep", "Measure accuracy against speed over a grid; resumable.")
    add_arguments(parser)
    parser.set_defaults(words=list(sys.argv[1:] if argv is None else argv))
    run_command(parser, sweep, argv)


if __name__ == "__main__":
    main()
