"""`python -m calib`: a float model and samples (or another tool's checkpoint) in, a calibrated INT8 checkpoint out."""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from typing import TYPE_CHECKING

from calib.defaults import IMPORT_RECIPE, SAMPLE_FLAGS, STATISTICS_FILE
from engine.cli import CommandParser, UsageError, run_command
from eval.arguments import check_task_argument
from eval.tasks import TASK_HELP
from quant.recipe import BIAS_CORRECTION, DEFAULT_RECIPE, METHODS, ROUNDING, load_recipe, shipped_recipes

if TYPE_CHECKING:
    from calib.samples import Samples
    from quant.models.pretrained import LoadedModel


def calibrate(arguments: argparse.Namespace) -> None:
    """Check the flags, then calibrate."""
    _check_import_flags(arguments)
    # Mistyped names are said before torch is loaded.
    recipe = load_recipe(getattr(arguments, "recipe", IMPORT_RECIPE if arguments.import_amax else DEFAULT_RECIPE))
    if arguments.import_amax and recipe.smoothquant.alpha is not None:
        raise UsageError(
            f"recipe '{recipe.name}' searches SmoothQuant on samples; an import brings its own factors, or none: "
            f"take {IMPORT_RECIPE}, or one with 'smoothquant: {{alpha: null}}'"
        )
    if arguments.task:
        check_task_argument(arguments.task)
    from calib import command

    if arguments.import_amax:
        command.take_ranges(arguments, recipe)
    else:
        command.calibrate(arguments, recipe, partial(_draw_samples, arguments))


def _draw_samples(arguments: argparse.Namespace, loaded: LoadedModel) -> Samples:
    """Return the samples, read by the task's own columns where one is given."""
    from calib.samples import load_samples
    from eval.tasks import get_task
    from eval.tasks.parts.samples import task_reader

    reader, columns = None, arguments.column
    if arguments.task:
        task = get_task(arguments.task)
        reader = task_reader(task, arguments.samples, loaded.processor, arguments.column, arguments.max_length)
        columns = task.sample_columns(arguments.column)
    return load_samples(
        arguments.samples,
        loaded,
        reader=reader,
        columns=columns,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        skip_bad=arguments.skip_bad,
    )


def _check_import_flags(arguments: argparse.Namespace) -> None:
    """Raise UsageError for flags of samples beside --import-amax, and for its own flags without it."""
    theirs = dict.fromkeys(("allow_partial", "keep_weights"), False)
    unused = SAMPLE_FLAGS if arguments.import_amax else theirs
    given = [f"--{name.replace('_', '-')}" for name, default in unused.items() if getattr(arguments, name) != default]
    if given:
        reason = "not used with --import-amax, which reads no samples" if arguments.import_amax else "for --import-amax"
        raise UsageError(f"{', '.join(given)} is {reason}")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser("python -m calib", "Quantize a transformer after training, from samples.")
    parser.add_argument("--model", required=True, help="Hugging Face id, folder, or 'digits'")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--samples", help="folder, file or data set id to draw samples from")
    source.add_argument(
        "--statistics",
        nargs="+",
        metavar="FILE",
        help=f"reuse the {STATISTICS_FILE} of earlier runs (added up) instead of samples",
    )
    source.add_argument(
        "--import-amax",
        metavar="FILE",
        help="take amax and weights from a checkpoint of pytorch-quantization or ModelOpt (file or folder)",
    )
    parser.add_argument("--allow-partial", action="store_true", help="import what matches instead of refusing")
    parser.add_argument("--keep-weights", action="store_true", help="import ranges alone; the weights stay --model's")
    parser.add_argument("--task", help=f"what a sample's columns are: {TASK_HELP}")
    parser.add_argument(
        "--recipe",
        default=argparse.SUPPRESS,
        help=f"{', '.join(shipped_recipes())}, or a .yaml file (default: {DEFAULT_RECIPE}, or {IMPORT_RECIPE} "
        "with --import-amax)",
    )
    parser.add_argument("--method", choices=METHODS, help="calibrator in place of the recipe's own")
    parser.add_argument(
        "--bias-correction",
        choices=BIAS_CORRECTION,
        help="auto: into the biases goes what rounding shifts outputs by, where held-out samples say that it helps",
    )
    parser.add_argument(
        "--rounding",
        choices=ROUNDING,
        help="of weights: learned (AdaRound) takes minutes and errs less; the more samples, the better it learns",
    )
    parser.add_argument("--num-samples", type=int, default=SAMPLE_FLAGS["num_samples"], help="how many samples to draw")
    parser.add_argument("--column", nargs="+", help="columns of the samples to use (default: the usual names)")
    parser.add_argument("--seed", type=int, default=SAMPLE_FLAGS["seed"], help="of the draw")
    parser.add_argument(
        "--batch-size", type=int, default=SAMPLE_FLAGS["batch_size"], help="samples for each forward pass"
    )
    parser.add_argument("--max-length", type=int, help="tokens at which text is cut (default: the model's maximum)")
    parser.add_argument("--skip-bad", action="store_true", help="skip unreadable samples instead of stopping")
    parser.add_argument("--device", help="where the model runs (default: the GPU of this rank, else cpu)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run model code that comes with --model")
    parser.add_argument("--out", required=True, help="checkpoint folder to write")
    parser.add_argument("--force", action="store_true", help="replace --out")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run_command(parser, calibrate, argv)


if __name__ == "__main__":
    main()
