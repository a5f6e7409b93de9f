"""The tasks: one file and one line of this registry each, or the user's own file behind --task."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import did_you_mean

if TYPE_CHECKING:  # a task's file imports datasets, and some torch: a wrong name is said before
    from eval.tasks.base import Task

TASKS = {
    "digits": "eval.tasks.digits",
    "sst2": "eval.tasks.sst2",
    "stsb": "eval.tasks.stsb",
    "squad": "eval.tasks.squad",
    "text-classification": "eval.tasks.text_classification",
    "ner": "eval.tasks.ner",
    "image-classification": "eval.tasks.image_classification",
    "perplexity": "eval.tasks.perplexity",
}
TASK_HELP = f"{', '.join(TASKS)}, or your own file (my_task.py), which is executed as Python code"


def get_task(name: str) -> Task:
    """Return the task of that name, or the one that a file of the user's own defines: the file is executed.

    Raises: ValueError: an unknown name, with near matches and the list; a file that fails or defines no single task.
        FileNotFoundError: there is no such file.
    """
    check_task(name)
    from eval.tasks.parts.user_file import load_task, task_in

    return task_in(importlib.import_module(TASKS[name]), TASKS[name]) if name in TASKS else load_task(name)


def check_task(name: str) -> None:
    """Raise ValueError for a name of no task, with near matches and the list; nothing is imported or executed."""
    if name in TASKS or Path(name).suffix == ".py":
        return
    hint = did_you_mean(name, TASKS, "{} ", most=3)
    raise ValueError(f"no task '{name}'; {hint}Allowed: {', '.join(TASKS)}, or the path of your own my_task.py")


def task_path(name: str) -> str:
    """Return --task so that it means the same from every folder: the whole path of a file, a name as it is."""
    return name if name in TASKS or Path(name).suffix != ".py" else str(Path(name).expanduser().resolve())
