"""What is refused before torch is loaded, the same for the command and for Python."""

from __future__ import annotations

from pathlib import Path

from engine.backend import BACKENDS
from engine.cli import UsageError, did_you_mean
from eval.arguments import check_task_argument
from quant.recipe import load_recipe

AUTO = "auto"
MAX_LOSS = 0.005  # of the task's metric: half a point of accuracy


def check_quantize(
    model: str, samples: str | None, task: str | None, data: str | None, backend: str, recipe: str,
    max_loss: float | None, num_samples: int, seq_length: int | None,
) -> None:  # fmt: skip
    """Raise UsageError or FileNotFoundError for what cannot be right; see `int8kit.pipeline.quantize`."""
    if backend != AUTO and backend not in BACKENDS:
        near = did_you_mean(backend, (AUTO, *BACKENDS))
        raise UsageError(f"unknown backend '{backend}'{near}; known: {AUTO}, {', '.join(BACKENDS)}")
    if task is None and samples is None:
        raise UsageError("give --samples (a file or folder of texts or images), or --task with its data")
    if task is not None:
        check_task_argument(task)
    elif idle := [flag for flag, value in (("--data", data), ("--max-loss", max_loss)) if value is not None]:
        raise UsageError(f"{' and '.join(idle)} say how a task is scored; add --task")
    if num_samples < 2 or (seq_length is not None and seq_length < 1) or (max_loss or 0) < 0:
        raise UsageError("--num-samples starts at 2, --seq-length at 1, --max-loss at 0")
    load_recipe(recipe)
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_local and not Path(model).expanduser().exists():
        raise FileNotFoundError(f"no model {model}; give a folder of save_pretrained or a hub id")
