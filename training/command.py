"""What `train_qat.py` runs once its flags are right: it imports torch and transformers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser, TrainingArguments

from engine.cli import CommandParser, print_result
from quant.checkpoint import load_checkpoint
from quant.models.pretrained import load_float_model
from quant.recipe import Recipe, load_recipe
from training.arguments import FineTuneArguments, TrainingDefaults
from training.fine_tune import make_trainer, plot_curves, prepare, save_result, score
from training.resume import last_whole_checkpoint
from training.run_folder import describe_run, hold_run, score_row, start_row


@dataclass
class QatTrainingArguments(TrainingDefaults, TrainingArguments):  # type: ignore[misc]  # narrower types of fields
    """transformers' TrainingArguments with the defaults of fine-tuning; every flag is theirs."""


class TrainerParser(CommandParser, HfArgumentParser):
    """Our flags and all of TrainingArguments'."""

    types = (FineTuneArguments, QatTrainingArguments)

    def __init__(self) -> None:
        super().__init__(
            "python train_qat.py", "Fine-tune with quantization-aware training.", dataclass_types=self.types
        )


def train_from(words: list[str]) -> None:
    """Train as the words of a command line say; --output_dir is the run folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "torch", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    given = vars(TrainerParser().parse_args(words))
    if not given["learning_rate"]:
        # A student that starts at its teacher's weights is driven off by Adam's steps, however small its gradients are.
        is_taught = given["recipe"] != "none" and given["teach"] and load_recipe(given["recipe"]).qat.distills
        given["learning_rate"] = 5e-6 if is_taught else 2e-5
    made: list[Any] = [
        t(**{f.name: given[f.name] for f in dataclasses.fields(t) if f.init}) for t in TrainerParser.types
    ]
    train(*made)


def train(arguments: FineTuneArguments, training: QatTrainingArguments) -> None:
    """Train in a run folder that is this process's alone. Raises: KeyboardInterrupt: saying from where it goes on."""
    out = Path(str(training.output_dir))
    recipe = None if arguments.recipe == "none" else load_recipe(arguments.recipe)
    description = describe_run(arguments, training, recipe)
    try:
        with contextlib.ExitStack() as held:
            with training.main_process_first(local=False):
                if training.process_index == 0:
                    resume = held.enter_context(hold_run(out, description, arguments.force))
                else:
                    last = last_whole_checkpoint(out)
                    resume = str(last) if last else None
            _train(arguments, training, recipe, resume)
    except KeyboardInterrupt:
        kept = last_whole_checkpoint(out)
        where = f"goes on from {kept}" if kept else "starts again (no checkpoint was written yet)"
        raise KeyboardInterrupt(f"the same command {where}") from None


def _train(
    arguments: FineTuneArguments, training: QatTrainingArguments, recipe: Recipe | None, resume: str | None
) -> None:
    """Prepare, score before, train, save, score after; print one summary line."""
    out, is_first = Path(str(training.output_dir)), training.process_index == 0
    prepared = prepare(arguments, training, recipe, resume)
    scores: dict[str, dict[str, Any]] = {}
    if is_first and prepared.recipe is not None:
        start = start_row(out, resume, lambda: score(prepared, prepared.loaded, training))
        scores |= {"PTQ": start} if start else {}
    trainer = make_trainer(prepared, arguments, training)
    trainer.train(resume_from_checkpoint=resume)
    if trainer.is_fsdp_enabled:
        trainer.save_model(str(out))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # the rest is the first process's alone
    if not is_first:
        return
    if not trainer.is_fsdp_enabled:
        save_result(prepared, out)
    plot_curves(trainer.state.log_history, out / "curves.png", prepared.task.training_metric)
    saved = load_checkpoint(out) if prepared.recipe is not None else load_float_model(out)
    name = "QAT" if prepared.recipe is not None else "fine-tuned"
    scores[name] = score_row(score(prepared, saved, training))
    row, summary = _result(scores, arguments, trainer, prepared.task.name)
    (out / "result.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    print_result(row, f"{out}: {summary}", arguments.json)


def _result(
    scores: dict[str, dict[str, Any]], arguments: FineTuneArguments, trainer: Any, task: str
) -> tuple[dict[str, Any], str]:
    """Return the result as a row and as one line: float, PTQ, QAT."""
    row: dict[str, Any] = {"model": arguments.model, "task": task, "recipe": arguments.recipe}
    row |= {
        "learning_rate": trainer.args.learning_rate,
        "steps": trainer.state.global_step,
        "train_runtime_s": trainer.state.log_history[-1].get("train_runtime"),
    }
    parts = []
    for name, measured in scores.items():
        if measured["float"] is not None and "float" not in row:
            row["float"] = measured["float"]
            parts.append(f"float {row['float']:.4f}")
        row[name] = {key: value for key, value in measured.items() if not key.startswith("float")}
        error = measured["error_abs_mean"]
        flips = "" if measured["num_flips"] is None else f", {measured['num_flips']} flips"
        distance = "" if error is None else f" (mean |Δ| {error:.4f}{flips})"
        parts.append(f"{name} {measured['metric']:.4f}{distance}")
    return row, "  ".join(parts)
