"""`int8kit quantize`: the flags; what runs is `int8kit.pipeline`."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings

from engine.backend import BACKENDS
from engine.cli import CommandParser, print_result, run_command
from int8kit.checks import AUTO, MAX_LOSS, check_quantize
from quant.recipe import DEFAULT_RECIPE


def run(arguments: argparse.Namespace) -> None:
    """Check the flags, quantize, print the table."""
    check_quantize(arguments.model, arguments.samples, arguments.task, arguments.data, arguments.backend,
                   arguments.recipe, arguments.max_loss, arguments.num_samples, arguments.seq_length)  # fmt: skip
    print(f"int8kit: loading torch and {arguments.model} ...", file=sys.stderr, flush=True)
    from int8kit.pipeline import quantize

    result = quantize(
        arguments.model, arguments.samples, arguments.out, task=arguments.task, data=arguments.data,
        backend=arguments.backend, recipe=arguments.recipe, max_loss=arguments.max_loss,
        num_samples=arguments.num_samples, column=arguments.column, seq_length=arguments.seq_length,
        threads=arguments.threads, seed=arguments.seed,
    )  # fmt: skip
    print_result(result.to_dict(), f"{result.table()}\n{result.out}/report.html", arguments.json)
    if arguments.push_to_hub:  # after the result, which a hub that refuses must not hide
        from int8kit.hub import push

        print(f"pushed to {push(result.out, arguments.push_to_hub)}", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("calib").setLevel(logging.INFO)  # which columns and which split are taken
    parser = CommandParser("int8kit quantize", "A float transformer and samples in, a tested INT8 model out.")
    parser.add_argument("model", help="Hugging Face id or folder")
    parser.add_argument("--samples", help="texts or images to calibrate from: a file, a folder, a data set id")
    parser.add_argument("--column", nargs="+", help="columns of the samples (default: the usual names)")
    parser.add_argument("--task", help="score it too: sst2, stsb, squad, text-classification, ... or my_task.py")
    parser.add_argument("--data", help="data of --task: hub id or folder with SPLIT.parquet")
    parser.add_argument("--max-loss", type=float, help="of the task's metric; a search follows where the recipe loses "
                        f"more (default: {MAX_LOSS:g})")  # fmt: skip
    parser.add_argument("--backend", default=AUTO, help=f"{AUTO} takes what is fastest here; or {', '.join(BACKENDS)}")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="a shipped recipe or a .yaml file")
    parser.add_argument("--num-samples", type=int, default=256, help="samples drawn for calibration")
    parser.add_argument("--seq-length", type=int, help="tokens at which it is timed and scored (default: the "
                        "samples' own; with --task 128, or what the model takes)")  # fmt: skip
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload the folder to this Hugging Face repository")
    parser.add_argument("--out", required=True, help="folder to write; what is there of the same run is used again")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    run_command(parser, run, argv)


if __name__ == "__main__":
    main()
