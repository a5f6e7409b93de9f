"""`python -m eval.search`: will INT8 pay here, and where; a recipe proven in the runtime."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import warnings
from typing import Any

from engine.backends.own_options import own_from_words
from engine.cli import EXIT_INTERRUPTED, CommandParser, UsageError, print_result, run_command
from eval.arguments import NOISY, add_measured_arguments, add_tensorrt_arguments, check_task_argument, numbers
from eval.sweep.grid import BUILD_ARGUMENTS, PYTORCH, SweepOptions, backend_names, check_names, usual_of
from eval.tasks import task_path
from quant.recipe import DEFAULT_RECIPE, load_recipe

BASES = (DEFAULT_RECIPE, "int8_linear")


def search(arguments: argparse.Namespace) -> None:
    """Search and print the verdict."""
    options = options_of(arguments)
    from eval.search.answer import answer_of
    from eval.search.page import write_page
    from eval.search.result import SearchOptions
    from eval.search.run import run_search
    from eval.search.saved import summary_of
    from eval.sweep.run import Interrupted

    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    command = shlex.join(["python", "-m", "eval.search", *arguments.words])
    asked = SearchOptions(options, arguments.max_loss, arguments.max_error, not arguments.no_fixes)
    budget_s = arguments.budget * 60 if arguments.budget is not None else None
    try:
        result = run_search(asked, arguments.out, command, budget_s, arguments.sensitivity_only, arguments.parallel,
                            arguments.ray)  # fmt: skip
    except (Interrupted, KeyboardInterrupt):
        print("python -m eval.search: interrupted; the same command goes on from there", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    page = write_page(result, arguments.out)
    if arguments.sensitivity_only:
        worst = sorted(result.measured.alone, key=lambda name: -result.measured.alone[name].output)[:3]
        line = (f"{len(result.measured.units)} units on {result.measured.num_samples} samples; all in INT8 move the "
                f"outputs by {result.measured.together.output:.4f}; most of it: {', '.join(worst)}")  # fmt: skip
    else:
        line = answer_of(result)
    print_result(summary_of(result), f"{line}\n{page}", arguments.json)


def options_of(arguments: argparse.Namespace) -> SweepOptions:
    """Return the checked options. Raises: UsageError: unknown names, numbers that mean nothing."""
    check_task_argument(arguments.task)
    backends = check_names("--backend", [arguments.backend], [name for name in backend_names() if name != PYTORCH])
    own_from_words(BUILD_ARGUMENTS, arguments.build_arguments, arguments.backend)  # not at the first engine
    own = load_recipe(arguments.recipe).calibrator.method
    for recipe in arguments.against:
        if (method := load_recipe(recipe).calibrator.method) != own:
            raise UsageError(f"--against {recipe} calibrates by {method}, and a search measures every recipe by "
                             f"--recipe's {own}; write {method} into its rules (method: {method})")  # fmt: skip
    if arguments.max_loss < 0 or (arguments.max_error is not None and arguments.max_error <= 0):
        raise UsageError("--max-loss is 0 or more, --max-error above 0")
    low = {"--num-calibration": arguments.num_calibration, "--rounds": arguments.rounds - 1,
           "--parallel": arguments.parallel,
           "--threads": arguments.threads or 1, "--budget": arguments.budget or 1,
           "--num-samples": arguments.num_samples if arguments.num_samples is not None else 1}  # fmt: skip
    if wrong := [flag for flag, value in low.items() if value < 1]:
        raise UsageError(f"{', '.join(wrong)} must be at least 1 (--rounds at least 2)")
    batch_sizes, lengths = (numbers(f, v) for f, v in (("--batch-sizes", arguments.batch_sizes),
                                                       ("--seq-lengths", arguments.seq_lengths)))  # fmt: skip
    from eval.chosen_samples import task_of

    task = task_of(arguments)
    samples = arguments.samples or arguments.data or task.default_data
    if samples is None:
        raise UsageError(f"task {task.name} has no default data set; give --data")
    usual = usual_of(backends)
    return SweepOptions(
        model=arguments.model, task=task_path(arguments.task), data=arguments.data, split=arguments.split,
        columns=tuple(arguments.column) if arguments.column else None, label_column=arguments.label_column,
        samples=samples, num_calibration=arguments.num_calibration, num_samples=arguments.num_samples,
        seed=arguments.seed, methods=(own,),
        recipes=tuple(dict.fromkeys((arguments.recipe, *arguments.against))), backends=backends,
        references=usual.references,
        batch_sizes=batch_sizes, seq_lengths=lengths if task.is_text else (None,), shapes="auto",
        threads=arguments.threads or os.cpu_count() or 1, rounds=arguments.rounds,
        device=arguments.device or usual.device,
        qat_arguments="", build_arguments=arguments.build_arguments, tensorrt_python=arguments.tensorrt_python,
        load_clients=(), load_seconds=2.0, max_rounds=max(arguments.rounds, 16),
    )  # fmt: skip


def add_arguments(parser: CommandParser) -> None:
    """Add the options of the search."""
    lists: dict[str, Any] = {"nargs": "*", "metavar": "A,B"}
    what, wanted, how = (parser.add_argument_group(title) for title in ("what to search for", "what to keep", "how"))
    add_measured_arguments(what)
    what.add_argument("--backend", default="onnxruntime", help=f"one of {', '.join(backend_names()[1:])}")
    what.add_argument("--batch-sizes", default=["1,8"], help="samples of a call", **lists)
    what.add_argument("--seq-lengths", default=["64"], help="tokens of a sample; not for images", **lists)
    wanted.add_argument("--max-loss", type=float, default=0.005, help="metric that may be lost: 0.01 is one point")
    wanted.add_argument("--max-error", type=float, help="mean |output - float output| that may be reached")
    how.add_argument("--recipe", default=DEFAULT_RECIPE, help="whose sites are searched: a name or a .yaml file")
    how.add_argument("--against", nargs="*", default=list(BASES), metavar="RECIPE", help="recipes to hold it against")
    how.add_argument("--sensitivity-only", action="store_true", help="stop after measuring what each unit does")
    how.add_argument("--no-fixes", action="store_true", help="calibrate every unit as the recipe does")
    how.add_argument("--budget", type=float, help="minutes: a quarter for fixes, no new shape is begun after all")
    how.add_argument("--parallel", type=int, default=1, help="processes that prepare the engines")
    how.add_argument("--ray", metavar="ADDRESS", help="prepare on this Ray cluster; --out must be on a shared disk")
    how.add_argument("--seed", type=int, default=0, help="of the draws")
    how.add_argument("--rounds", type=int, default=8, help="blocks of 5 calls of every engine at a shape, from 2")
    how.add_argument("--threads", type=int, help="CPU threads of every runtime (default: all cores)")
    how.add_argument("--device", help="of PyTorch: cpu or cuda (default: cuda for a backend that runs on a GPU)")
    add_tensorrt_arguments(how, how)
    how.add_argument("--out", required=True, help="run folder; an interrupted search goes on there")
    how.add_argument("--json", action="store_true", help="print the result as one JSON line")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    warnings.simplefilter("ignore")
    parser = CommandParser("python -m eval.search", "Will INT8 pay here, and where: a recipe, proven in the runtime.")
    add_arguments(parser)
    parser.set_defaults(words=list(sys.argv[1:] if argv is None else argv))
    run_command(parser, search, argv)


if __name__ == "__main__":
    main()
