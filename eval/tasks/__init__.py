"""The tasks: one file and one line of this registry each."""

from __future__ import annotations

from engine.cli import near_matches
from eval.tasks.base import Scores, Task
from eval.tasks.digits import DIGITS
from eval.tasks.image_classification import IMAGE_CLASSIFICATION
from eval.tasks.perplexity import PERPLEXITY
from eval.tasks.squad import SQUAD
from eval.tasks.sst2 import SST2
from eval.tasks.stsb import STSB
from eval.tasks.text_classification import TEXT_CLASSIFICATION

TASKS: dict[str, Task] = {
    task.name: task for task in (DIGITS, SST2, STSB, SQUAD, TEXT_CLASSIFICATION, IMAGE_CLASSIFICATION, PERPLEXITY)
}

__all__ = ["TASKS", "Scores", "Task", "get_task"]


def get_task(name: str) -> Task:
    """Return the task of that name. Raises: ValueError: for an unknown one, with near matches and the list."""
    if name in TASKS:
        return TASKS[name]
    near = near_matches(name, list(TASKS))
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"no task '{name}'; {hint}Allowed: {', '.join(TASKS)}")
