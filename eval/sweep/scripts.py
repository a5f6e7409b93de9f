"""Runs the project's own scripts, from whatever folder a sweep was started in."""

from __future__ import annotations

import ctypes
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from eval.sweep.grid import SweepOptions, System

ROOT = Path(__file__).parents[2]
PATH_FLAGS = ("--model", "--data", "--init", "--checkpoint")  # whose value may be a path as typed
FILES = (".yaml", ".yml", ".py")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def training_words(options: SweepOptions, system: System) -> list[str]:
    """Return the words with which train_qat.py trains a system, paths as they were typed."""
    words = ["--model", options.model, "--task", options.task, "--recipe", str(system.recipe)]
    words += ["--data", options.data] if options.data else []
    words += ["--seed", str(options.seed)]
    own = shlex.split(options.qat_arguments)
    if not any(word.split("=")[0] == "--init" for word in own):  # which has its calibration behind it
        words += ["--num_samples", str(options.num_calibration)]
    return words + own


def from_anywhere(words: Iterable[str]) -> list[str]:
    """Return the words of a script that runs in another folder: paths that are there are made whole.

    A hub id, a task or a recipe's name stays as it is, also where a folder happens to have it.
    """
    found, before = [], ""
    for word in words:
        flag, is_joined, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if (flag in PATH_FLAGS or value.endswith(FILES)) and value and Path(value).exists():
            value = str(Path(value).resolve())
        found.append(f"{flag}={value}" if is_joined else value or word)
        before = word
    return found


def die_with_parent() -> None:
    """Let this process be killed when the thread that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_script(script: str, *words: str) -> None:
    """Run one of the project's scripts. Raises: RuntimeError: its last line, where it fails."""
    done = subprocess.run([sys.executable, str(ROOT / script), *words], cwd=ROOT, capture_output=True, text=True,
                          preexec_fn=die_with_parent)  # fmt: skip
    if done.returncode < 0:
        raise RuntimeError(f"{script} was killed by signal {-done.returncode}")
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip() and "it/s]" not in line]
        raise RuntimeError(lines[-1] if lines else f"{script} ended with exit code {done.returncode}")
