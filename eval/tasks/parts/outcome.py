"""What a task's methods return, and one line for each of the ways in which a user's own may fail to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.metrics.scores import MetricValue

Arrays = dict[str, np.ndarray]
Rows = Mapping[str, Any]


@dataclass(frozen=True)
class Scores:
    """What a system's outputs are worth on a task.

    Attributes:
        metrics: the primary metric first.
        predictions: the discrete predictions of all examples, shape (num_predictions,): one an example, or one a word;
            None where there are none (regression, language modelling). Flips are counted among them.
        is_correct: whether each prediction is right, shape (num_predictions,), or None.
        num_examples: scored examples (rows; blocks of tokens in language modelling).
    """

    metrics: tuple[MetricValue, ...]
    predictions: np.ndarray | None
    is_correct: np.ndarray | None
    num_examples: int


def check_features(task: str, features: object) -> None:
    """Raise ValueError unless they are arrays by name with a "_row", all of one length."""
    check_arrays(task, "features", features)
    assert isinstance(features, dict)
    if "_row" not in features:
        raise ValueError(f"task {task}: features() returned no '_row', the row that each input belongs to")
    lengths = {name: len(array) for name, array in features.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"task {task}: features() returned arrays of different lengths: {lengths}")


def check_arrays(task: str, method: str, found: object) -> None:
    """Raise ValueError unless a task's method returned numpy arrays by name."""
    kind = type(found).__name__
    if isinstance(found, dict) and found:
        wrong = [f"'{name}' is a {type(x).__name__}" for name, x in found.items() if not isinstance(x, np.ndarray)]
        if not wrong:
            return
        kind = f"dict in which {', '.join(wrong[:3])}"
    raise ValueError(f"task {task}: {method}() returned a {kind}, not a dict of numpy arrays")


def check_scores(task: str, found: object) -> Scores:
    """Return what a task's `score` returned. Raises: ValueError: it is no Scores, or holds no metric."""
    if not isinstance(found, Scores):
        raise ValueError(f"task {task}: score() returned a {type(found).__name__}, not eval.tasks.parts.outcome.Scores")
    wrong = [type(each).__name__ for each in found.metrics if not isinstance(each, MetricValue)]
    if wrong or not found.metrics:
        raise ValueError(
            f"task {task}: the metrics of score() are {', '.join(wrong) or 'none'}; they must be MetricValues, as "
            "the functions of eval.metrics.scores return them"
        )
    return found


@contextmanager
def said_by(task: str, method: str) -> Iterator[None]:
    """Name the task and the method in an error that is none of the expected ones, so that it is one line too.

    Raises: RuntimeError: from the error itself, which --debug shows.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise RuntimeError(f"task {task}: {method}() raised {type(error).__name__}: {error}") from error
