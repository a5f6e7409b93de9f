"""The samples that a command's options name: the task in its form for a model, its data set, its batches."""

from __future__ import annotations

import argparse
from typing import Any

from datasets import Dataset

from engine.cli import UsageError
from eval.batches import check_length
from eval.tasks import get_task
from eval.tasks.base import Task


def load_samples_of(
    arguments: argparse.Namespace, output_names: tuple[str, ...], config: Any, processor: Any
) -> tuple[Task, Dataset, int | None]:
    """Return the task in its form for these outputs, its data set, and the sequence length (None for images)."""
    task = task_of(arguments).for_outputs(output_names).with_labels(getattr(config, "label2id", None))
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
