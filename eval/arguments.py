"""The options that name samples, the same in every command of this package, and what they load."""

from __future__ import annotations

import argparse
from typing import Any

from datasets import Dataset

from engine.cli import CommandParser, UsageError
from eval.batches import PADDINGS, BatchOptions, check_length
from eval.tasks import TASK_HELP, get_task
from eval.tasks.base import Task


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


def batch_options(arguments: argparse.Namespace, seq_length: int | None) -> BatchOptions:
    """Return the batches that the options ask for. Raises: UsageError: for impossible ones."""
    padding = getattr(arguments, "padding", PADDINGS[0])
    try:
        return BatchOptions(arguments.batch_size, seq_length, padding, arguments.num_samples, arguments.seed)
    except ValueError as error:
        raise UsageError(str(error)) from None


def load_samples_of(
    arguments: argparse.Namespace, output_names: tuple[str, ...], config: Any, processor: Any
) -> tuple[Task, Dataset, int | None]:
    """Return the task in its form for these outputs, its data set, and the sequence length (None for images)."""
    task = task_of(arguments).for_outputs(output_names).with_labels(getattr(config, "label2id", None))
    batch_options(arguments, arguments.seq_length)
    length = check_length(task, arguments.seq_length, config, processor)
    columns = tuple(arguments.column) if arguments.column else None
    return (
        task,
        task.load(arguments.data, arguments.split, columns=columns, label_column=arguments.label_column),
        length,
    )


def task_of(arguments: argparse.Namespace) -> Task:
    """Return the task of --task. Raises: UsageError: for an unknown one."""
    try:
        return get_task(arguments.task)
    except ValueError as error:
        raise UsageError(str(error)) from None
