"""SQuAD v1.1: float, PTQ and QAT of a model whose answering head is trained on other questions (squadshifts).

    python -m benchmarks.accuracy.squad_qa --model MODEL --data DIR --work FOLDER --out ROWS      (a GPU box)

DIR holds train.parquet and validation.parquet in SQuAD's columns. Scores are PyTorch's, INT8 simulated there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.commands import TRAIN_FLAGS, run
from benchmarks.rows import append_row
from eval.arguments import BatchOptions
from eval.evaluate import evaluate
from eval.pytorch_runner import PyTorchRunner
from eval.tasks import get_task
from quant.checkpoint import load_checkpoint
from quant.models.pretrained import load_float_model

TRAINING = (
    "--task", "squad", "--per_device_train_batch_size", "32", "--bf16", "true", "--dataloader_num_workers", "4",
    *TRAIN_FLAGS,
)  # fmt: skip


def make(arguments: argparse.Namespace, name: str) -> Path:
    """Return the folder of one variant: the float model, its calibrated or its trained INT8 model."""
    out, log = arguments.work / name, arguments.work / f"{name}.log"
    data = ["--data", str(arguments.data)]
    if name == "float":
        words = [*TRAINING, "--recipe", "none", "--model", arguments.model, "--learning_rate", "1e-4"]
        words += ["--num_train_epochs", str(arguments.epochs), *data, "--seed", str(arguments.seed), "--out", str(out)]
        run([sys.executable, "train_qat.py", *words], log)
        return out
    source = ["--model", str(arguments.work / "float"), "--recipe", arguments.recipe]
    if name == "PTQ":
        samples = ["--samples", f"{arguments.data}/train.parquet", "--column", "question", "context"]
        run([sys.executable, "-m", "calib", *source, *samples, "--max-length", "384", "--json", "--out", str(out)], log)
        return out
    words = [*TRAINING, *source, *data, "--max_steps", str(arguments.steps), "--seed", str(arguments.seed)]
    run([sys.executable, "train_qat.py", *words, "--init", str(arguments.work / "PTQ"), "--out", str(out)], log)
    return out


def score(arguments: argparse.Namespace, name: str, folder: Path) -> dict[str, float]:
    """Return F1 and exact match over the validation split, in percent."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_float_model(folder) if name == "float" else load_checkpoint(folder)
    task = get_task("squad")
    dataset = task.load(str(arguments.data), "validation")
    options = BatchOptions(64, 384, "longest", arguments.num_samples)
    found = evaluate(task, dataset, loaded.processor, PyTorchRunner(loaded, device), options=options)
    return {metric.name: 100 * metric.value for metric in found.scores.metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="encoder to train the head on")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", default="int8_smoothquant")
    parser.add_argument("--epochs", type=int, default=2, help="of the float training")
    parser.add_argument("--steps", type=int, default=600, help="of QAT, batch 32")
    parser.add_argument("--num-samples", type=int, help="validation questions; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in ("float", "PTQ", "QAT"):
        start = time.time()
        folder = make(arguments, name)
        seconds = time.time() - start
        row = append_row(
            arguments.out, "squad_qa", variant=name, recipe=None if name == "float" else arguments.recipe,
            seconds=seconds, **score(arguments, name, folder),
        )  # fmt: skip
        print(f"{name:6s} F1 {row['f1']:.2f}  EM {row['exact_match']:.2f}  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
