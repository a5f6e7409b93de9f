"""Float control, PTQ, QAT, QAT + LSQ and QAT + distillation on SST-2, scored in ONNX Runtime.

    python -m benchmarks.accuracy.qat_sst2 --model DIR --data DIR --out benchmarks/results/qat_sst2.jsonl [--parallel 4]

Every variant takes the same number of steps from the same float model; nothing is selected on the validation split.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.commands import SCORE, TRAIN_FLAGS, run, score_checkpoint
from benchmarks.rows import append_row

LABELS = {"distill_logits": 0.0, "distill_hidden": 0.0, "dropout": True}
FIXED = {"activation_ranges": "frozen", "weight_ranges": "retaken"}
VARIANTS: dict[str, dict[str, Any]] = {
    "float control": {"recipe": "none"},
    "QAT": FIXED | LABELS,
    "QAT + LSQ": LABELS,
    "QAT + LSQ + logits": {"distill_hidden": 0.0},
    "QAT + LSQ + distillation": {},
    "QAT + distillation": FIXED,
}


def train(arguments: argparse.Namespace, variant: str, seed: int, work: Path) -> dict[str, Any]:
    """Return the row of one training run."""
    options = dict(VARIANTS[variant])
    name = f"{variant.replace(' ', '_')}-{seed}"
    recipe = options.pop("recipe", None)
    if recipe is None:
        recipe = str(work / f"{name}.yaml")
        qat = "\n".join(f"  {key}: {str(value).lower()}" for key, value in options.items())
        Path(recipe).write_text(f"extends: {arguments.recipe}\nname: {variant}\n" + (f"qat:\n{qat}\n" if qat else ""))
    out, log, start = work / name, work / f"{name}.log", time.time()
    rate = arguments.learning_rate or 0  # 0: the command's own default, which depends on the teacher
    method = ["--method", arguments.method] if arguments.method else []
    flags = f"--task sst2 --seq_length 64 --max_steps {arguments.steps} --seed {seed} --learning_rate {rate}".split()
    paths = ["--model", arguments.model, "--data", arguments.data, "--recipe", recipe, "--out", str(out)]
    command = [sys.executable, "train_qat.py", *paths, *flags, *TRAIN_FLAGS, *method]
    trained = run(command, log)
    row = {
        "variant": variant,
        "seed": seed,
        "steps": arguments.steps,
        "recipe": arguments.recipe,
        "learning_rate": trained["learning_rate"],
        "seconds": time.time() - start,
        "pytorch": trained,
    }
    return row | {"onnxruntime": score(arguments, out, log)}


def score(arguments: argparse.Namespace, checkpoint: Path, log: Path) -> dict[str, Any]:
    """Return the row of `python -m eval` for the engine that ONNX Runtime runs."""
    evaluation = ["--task", "sst2", "--seq-length", "64", "--batch-size", "32", "--data", arguments.data]
    evaluation += ["--reference", arguments.model]
    result = score_checkpoint(checkpoint, checkpoint.with_name(f"{checkpoint.name}.engine"), evaluation, log)
    return {key: result[key] for key in SCORE}


def ptq(arguments: argparse.Namespace, seed: int, work: Path) -> dict[str, Any]:
    """Return the row of the recipe after calibration alone."""
    out, log = work / f"PTQ-{seed}", work / f"PTQ-{seed}.log"
    paths = ["--model", arguments.model, "--samples", f"{arguments.data}/train.parquet", "--out", str(out)]
    flags = ["--recipe", arguments.recipe, "--seed", str(seed), "--json"]
    flags += ["--method", arguments.method] if arguments.method else []
    run([sys.executable, "-m", "calib", *paths, *flags], log)
    return {
        "variant": "PTQ",
        "seed": seed,
        "recipe": arguments.recipe,
        "onnxruntime": score(arguments, out, log),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", default="int8_full")
    parser.add_argument("--variants", nargs="+", default=["PTQ", *VARIANTS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--learning-rate", type=float, help="of every variant (default: each one's own)")
    parser.add_argument("--method", help="calibrator of every variant (default: each command's own)")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.parallel) as pool:
        work = Path(folder)
        jobs = [
            pool.submit(ptq, arguments, s, work) if v == "PTQ" else pool.submit(train, arguments, v, s, work)
            for s in arguments.seeds
            for v in arguments.variants
        ]
        for job in as_completed(jobs):
            try:
                row = job.result()
            except RuntimeError as error:
                print(error, file=sys.stderr, flush=True)
                continue
            row = append_row(arguments.out, "qat_sst2", **row)
            score_row = row["onnxruntime"]
            print(
                f"{row['variant']:36s} seed {row['seed']}  ORT acc {score_row['metric'] * 100:.2f}  "
                f"|d| {score_row['error_abs_mean']:.4f}  flips {score_row['num_flips']}  {row.get('seconds', 0):.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
