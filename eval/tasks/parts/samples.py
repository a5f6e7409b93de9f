"""Calibration samples of a task whose columns are neither plain text nor images: the task makes the inputs itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from calib.sample_files import Raw, Reader
from eval.tasks.base import Task
from eval.tasks.parts.data import load_split, split_names
from eval.tasks.parts.outcome import check_arrays, said_by


@dataclass(frozen=True)
class TaskRows:
    """Rows of a data set as a task turns them into model inputs, without their padding."""

    task: Task
    dataset: Dataset
    columns: dict[str, str]  # the task's name of each → the data's own
    processor: Any = field(repr=False)
    max_length: int | None
    kind: str = "raw"

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, row: int) -> Raw:
        """Return the inputs of one row. Raises: ValueError: with the reason if the task cannot make them."""
        values = self.dataset[row]
        rows = {name: [values[own]] for name, own in self.columns.items()}
        with said_by(self.task.name, "inputs"):
            arrays = self.task.inputs(rows, self.processor, self.max_length)
        check_arrays(self.task.name, "inputs", arrays)
        sample = {name: array[0] for name, array in arrays.items()}
        mask = sample.get("attention_mask")
        if mask is None:
            return sample
        return {name: x[mask > 0] if x.shape == mask.shape else x for name, x in sample.items()}


def task_reader(
    task: Task, source: str, processor: Any, columns: Sequence[str] | None = None, max_length: int | None = None
) -> Reader | None:
    """Return the reader of a task that makes its own inputs, None where calibration reads the columns as they are.

    Args: source: a file, a folder (its train split, or its only one), or a data set id (its train split).
    Raises: ValueError: a column is missing. FileNotFoundError: there is no such path.
    """
    if not task.makes_own_inputs:
        return None
    folder = Path(source).expanduser()
    splits = split_names(folder) if folder.is_dir() else []
    dataset = load_split(source, splits[0] if len(splits) == 1 else "train")
    wanted = dict(zip(task.columns, task.sample_columns(columns) or task.columns, strict=False))
    if len(wanted) != len(columns or task.columns):
        raise ValueError(
            f"task {task.name} takes the columns {', '.join(task.columns)}, got {', '.join(columns or ())}"
        )
    return TaskRows(task, dataset, task.find_columns(dataset, source, wanted), processor, max_length)
