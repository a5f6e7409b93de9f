"""The project's own commands as the benchmarks start them: one command, and the way from a checkpoint to its score."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

TURNS = itertools.count()
# Of every training run: nothing is saved, scored or chosen on the way, and the result is one JSON line.
TRAIN_FLAGS = (
    "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false", "--disable_tqdm", "true",
    "--json",
)  # fmt: skip
SCORE = ("metric", "error_abs_mean", "num_flips", "num_samples", "backend")  # what most rows keep of an evaluation


def run(command: list[str], log: Path) -> dict[str, Any]:
    """Return the JSON line that a command prints last; its log goes to `log`. Jobs take the GPUs in turn.

    Raises: RuntimeError: the command failed; the end of its log is in the text.
    """
    visible = {}
    if (count := torch.cuda.device_count()) > 1:
        visible = {"CUDA_VISIBLE_DEVICES": str(next(TURNS) % count)}
    with log.open("a", encoding="utf-8") as file:
        file.write(" ".join(command) + "\n")
        file.flush()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True, env=os.environ | visible)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{log.read_text()[-1500:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def score_checkpoint(checkpoint: Path, engine: Path, evaluation: list[str], log: Path) -> dict[str, Any]:
    """Return the row of `python -m eval` for the engine that ONNX Runtime runs.

    Args:
        checkpoint: folder of a float or quantized model.
        engine: where the engine goes; the ONNX file goes beside it.
        evaluation: task, data and reference as flags of `python -m eval`. Latency is not measured.
        log: file that takes the commands and what they log.
    Raises: RuntimeError: a command failed.
    """
    onnx, python = str(engine.with_suffix(".onnx")), sys.executable
    export = ["export.py", "--checkpoint", str(checkpoint), "--target", "onnxruntime", "--out", onnx, "--json"]
    build = ["build_engine.py", "--onnx", onnx, "--backend", "onnxruntime", "--out", str(engine), "--json"]
    run([python, *export], log)
    run([python, *build], log)
    return run([python, "-m", "eval", "--engine", str(engine), *evaluation, "--iterations", "0", "--json"], log)
