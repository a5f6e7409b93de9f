"""The run folder of `train_qat.py`: whose it is, from where it goes on, and how the model scored before training."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from eval.evaluate import Evaluation
from eval.tasks import get_task, task_path
from quant.recipe import Recipe
from training.arguments import FineTuneArguments
from training.resume import last_whole_checkpoint, set_broken_aside

RUN_FILE = "run.json"
START_FILE = "start.json"
LOCK_FILE = ".train.lock"
NOT_COMPARED = (
    "output_dir", "logging_dir", "disable_tqdm", "resume_from_checkpoint", "local_rank", "log_level", "run_name",
)  # fmt: skip


@contextmanager
def hold_run(out: Path, description: dict[str, Any], force: bool) -> Iterator[str | None]:
    """Hold the folder for this process and yield the checkpoint to resume from, None for a run from the start.

    Raises: FileExistsError: it holds another run, or something else. RuntimeError: another process trains there.
    """
    _refuse_other(out, description, force)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / LOCK_FILE, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise RuntimeError(f"{out} is in use by {holder}; wait for it to end, or choose another --out") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield claim_run(out, description, force)


def claim_run(out: Path, description: dict[str, Any], force: bool) -> str | None:
    """Write OUT/run.json and return the checkpoint to resume from, if the folder holds the same run.

    Raises: FileExistsError: the folder holds another run, or something else.
    """
    if _is_same_run(out, description):
        set_broken_aside(out)
        last = last_whole_checkpoint(out)
        return str(last) if last else None
    _refuse_other(out, description, force)
    out.mkdir(parents=True, exist_ok=True)
    for old in sorted(out.glob("checkpoint-*")):
        aside = out / f"old-{old.name}"
        shutil.rmtree(aside, ignore_errors=True)  # of the run before the last
        old.rename(aside)
    (out / START_FILE).unlink(missing_ok=True)
    (out / RUN_FILE).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return None


def _is_same_run(out: Path, description: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((out / RUN_FILE).read_text(encoding="utf-8")) == description)
    except (OSError, ValueError):  # not there, or cut off
        return False


def _refuse_other(out: Path, description: dict[str, Any], force: bool) -> None:
    """Raise FileExistsError for a folder with anything of value in it; a run that took no step left only our notes."""
    if force or not out.exists() or _is_same_run(out, description):
        return
    if any(each.name not in (RUN_FILE, START_FILE, LOCK_FILE) for each in out.iterdir()):
        raise FileExistsError(f"{out} holds another run; choose another --out, or start anew there with --force true")


def describe_run(arguments: FineTuneArguments, training: TrainingArguments, recipe: Recipe | None) -> dict[str, Any]:
    """Return what must be equal for a run to be resumed: arguments, recipe and the training options."""
    own = {k: v for k, v in dataclasses.asdict(arguments).items() if k not in ("force", "json")}
    digest = get_task(arguments.task).file_digest
    own |= {"task": task_path(arguments.task), "task_digest": digest} if digest else {}
    options = {k: v for k, v in training.to_dict().items() if k not in NOT_COMPARED}
    return json.loads(
        json.dumps({**own, "recipe_digest": recipe.digest if recipe else None, "training": options}, default=str)
    )


def score_row(evaluation: Evaluation) -> dict[str, Any]:
    """Return what a result says of one model, with the float model's metric where it was measured beside it."""
    reference = evaluation.reference_scores
    return {
        "metric_name": evaluation.scores.metrics[0].name,
        "metric": evaluation.scores.metrics[0].value,
        "error_abs_mean": evaluation.error.abs_mean if evaluation.error else None,
        "num_flips": evaluation.num_flips,
        "float": reference.metrics[0].value if reference is not None else None,
    }


def start_row(out: Path, resume: str | None, score_now: Callable[[], Evaluation]) -> dict[str, Any] | None:
    """Return the score of the model as it was before the first step: measured now, or on a resume as it was noted then.

    None on a resume without that note: the model at hand has been trained, and its score is not the calibrated one's.
    """
    note = out / START_FILE
    if resume is None:
        row = score_row(score_now())
        note.write_text(json.dumps(row) + "\n", encoding="utf-8")
        return row
    return json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
