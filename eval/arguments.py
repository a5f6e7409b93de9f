"""The options that name samples, the same in every command of this package. It imports no torch: --help is quick."""

from __future__ import annotations

import argparse

from engine.cli import CommandParser, UsageError
from eval.tasks import TASK_HELP, check_task


def add_data_arguments(parser: CommandParser) -> None:
    """Add --task, --data, --split and the options of batches."""
    parser.add_argument("--task", required=True, help=f"what to score: {TASK_HELP}")
    parser.add_argument(
        "--data",
        help="hub id (or id:config), folder with SPLIT.parquet|.csv|.jsonl or images; default the task's own",
    )
    parser.add_argument("--split", default="validation", help="split of the data")
    parser.add_argument(
        "--column", nargs="+", metavar="C", help="the data's own names of the task's columns, in the task's order"
    )
    parser.add_argument("--label-column", metavar="C", help="the data's own name of the label column")
    parser.add_argument("--batch-size", type=int, default=8, help="samples of one call")
    parser.add_argument(
        "--seq-length", type=int, help="tokens of a sample, longer ones are cut; default the task's own, e.g. 128"
    )
    parser.add_argument("--num-samples", type=int, help="how many samples, drawn with --seed; default all")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn samples and the bootstrap")


def check_task_argument(arguments: argparse.Namespace) -> None:
    """Raise UsageError for a --task that there is not; nothing is imported or executed for it."""
    try:
        check_task(arguments.task)
    except ValueError as error:
        raise UsageError(str(error)) from None
