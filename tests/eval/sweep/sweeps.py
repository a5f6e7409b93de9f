"""A small sweep on a tiny model, as several tests run it; also in child processes that are killed."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import threading
from pathlib import Path

from eval.sweep import run_folder
from eval.sweep.grid import SweepOptions
from eval.sweep.run import run_sweep
from eval.timing import latency

COMMAND = "python -m eval.sweep (test)"


def sweep_options(model: str, data: str, **changes) -> SweepOptions:
    """Return a grid of few points."""
    options = SweepOptions(
        model=model, task="sst2", data=data, split="validation", columns=None, label_column=None, samples=data,
        num_calibration=8, num_samples=None, seed=0, methods=("fp32", "max"), recipes=("int8_linear",),
        backends=("onnxruntime",), references=("pytorch",), batch_sizes=(1, 2), seq_lengths=(8,), shapes="auto",
        threads=1, rounds=2, device="cpu", qat_arguments="", load_clients=(), load_seconds=0.1,
    )  # fmt: skip
    return dataclasses.replace(options, **changes)


def run_and_die(options: SweepOptions, out: Path, seed: int | None) -> None:
    """Run the sweep, and kill this process at a random moment or in the middle of a random write; None: never."""
    latency.PAUSE_S = 0.0
    rng = random.Random(seed)
    if seed is not None and seed % 2:
        threading.Timer(rng.uniform(0.2, 3.0), os.kill, (os.getpid(), signal.SIGKILL)).start()
    elif seed is not None:
        _die_while_writing(rng.randint(1, 4))
    run_sweep(options, out, COMMAND)


def _die_while_writing(number: int) -> None:
    """Kill this process at its n-th write of a row (half of it written) or rename of an artifact."""
    left = [number]
    replace, write = os.replace, run_folder.os.write

    def counted_replace(source, target) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    def counted_write(descriptor: int, data: bytes) -> int:
        left[0] -= 1
        if left[0] == 0:
            write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data)

    os.replace = counted_replace
    run_folder.os.write = counted_write
