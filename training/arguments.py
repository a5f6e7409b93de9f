"""The options of `train_qat.py`: our own, and the Trainer's of which ours differ in the default.

It imports neither torch nor transformers, so that `--help` and a mistyped flag are answered at once. Of the Trainer's
other hundred options names and types are read from its source; transformers itself parses them afterwards.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import sys
import types
import typing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from engine.cli import CommandParser
from eval.tasks import TASK_HELP

NUMBERS = {"int": int, "float": float}


@dataclass
class FineTuneArguments:
    """What is trained, on what, and how it is quantized."""

    model: str = field(metadata={"help": "Hugging Face id, folder, or 'digits'"})
    task: str = field(metadata={"help": f"what to train for: {TASK_HELP}"})
    data: str | None = field(default=None, metadata={"help": "hub data set id or folder (default: the task's own)"})
    recipe: str = field(default="int8_full", metadata={"help": "recipe name or file; 'none' trains the float model"})
    init: str | None = field(default=None, metadata={"help": "calibrated checkpoint to start from"})
    seq_length: int | None = field(default=None, metadata={"help": "tokens of a sample (default: the task's)"})
    padding: str = field(default="longest", metadata={"help": "longest (of the batch) or max (fixed shapes: compile)"})
    method: str | None = field(
        default=None, metadata={"help": "calibrator at the start (default: mse where ranges learn, else the recipe's)"}
    )
    num_samples: int = field(default=256, metadata={"help": "training samples to calibrate from"})
    teach: bool = field(default=True, metadata={"help": "distil from the float model as the recipe says"})
    force: bool = field(default=False, metadata={"help": "start anew in an --out that holds another run"})
    json: bool = field(default=False, metadata={"help": "print the result as one JSON line"})


@dataclass
class TrainingDefaults:
    """The fields of transformers' TrainingArguments with the defaults of fine-tuning."""

    learning_rate: float = field(
        default=0.0, metadata={"help": "of the weights (default: 5e-6 with a teacher, 2e-5 without)"}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "samples of a step on each device"})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "samples of an evaluation batch"})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "learning rate schedule"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "passes over the training data"})
    eval_strategy: str = field(default="epoch", metadata={"help": "no, steps or epoch"})
    save_strategy: str = field(default="epoch", metadata={"help": "no, steps or epoch"})
    save_total_limit: int = field(default=2, metadata={"help": "checkpoints kept"})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "keep the best checkpoint by the metric"})
    logging_steps: float = field(default=50, metadata={"help": "steps between two log lines"})
    report_to: str = field(default="none", metadata={"help": "tensorboard, wandb, ..."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "leave off: the batches are made of raw columns"}
    )
    warmup_steps: float = field(default=0.06, metadata={"help": "steps, or a share of all steps, with a rising rate"})


class TrainParser(CommandParser):
    """Our flags first; the Trainer's others are known by name and listed by --help-all."""

    def __init__(self) -> None:
        super().__init__(
            "python train_qat.py",
            "Fine-tune a transformer with quantization-aware training, on one GPU, many, or a CPU. Every option of "
            "transformers' TrainingArguments is taken too (--bf16, --max_steps, --fsdp, ...): --help-all lists them.",
        )
        self.add_argument("--help-all", action="store_true", help="list the Trainer's options too, and stop")
        self.add_argument(
            "--output_dir", "--output-dir", dest="output_dir", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        self.add_argument("--out", dest="output_dir", help="the run folder to write; the same command goes on there")
        for title, options in (("what is trained, and how", FineTuneArguments), ("training", TrainingDefaults)):
            group = self.add_argument_group(title)
            for each in dataclasses.fields(options):
                _add(group, each, typing.get_type_hints(options)[each.name])

    def add_debug(self) -> None:
        """Add --debug: alone it shows an error's traceback, with words (underflow_overflow) it is the Trainer's."""
        self.add_argument("--debug", nargs="*", help="alone: show the traceback of an error; with words: the Trainer's")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the parsed flags of ours. Ends the program, exit code 2: an unknown flag, with its near matches, or a
        word where the Trainer takes a number, or flags of a calibration beside --init."""
        words = sys.argv[1:] if args is None else args
        known, rest = self.parse_known_args(words, namespace)
        known.debug = known.debug == []
        if not known.help_all:
            self._check_theirs(rest)
            self._check_ours(known, words)
        return known

    def _check_theirs(self, words: list[str]) -> None:
        """End the program for words that the Trainer does not take either."""
        theirs = trainer_options()
        flags = [flag for name in theirs for flag in _spellings(name, True)]
        unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in flags]
        if unknown:
            self.refuse_unknown(unknown, flags)
        for word, following in zip(words, [*words[1:], ""], strict=False):
            flag, _, value = word.partition("=")
            value = value or following
            kind = theirs.get(_field_of(flag), "")
            if kind in NUMBERS and not value.startswith("--"):
                try:
                    NUMBERS[kind](value)
                except ValueError:
                    self.error(f"argument {flag}: invalid {kind} value: {value!r}")

    def _check_ours(self, known: argparse.Namespace, words: list[str]) -> None:
        """End the program for flags that are missing, or cannot stand together."""
        missing = [name for name in ("model", "task", "output_dir") if getattr(known, name) is None]
        if missing:
            names = ", ".join("--out" if name == "output_dir" else f"--{name}" for name in missing)
            self.error(f"the following arguments are required: {names}")
        given = {_field_of(word.split("=")[0]) for word in words}
        if "resume_from_checkpoint" in given:
            self.error(
                "--resume_from_checkpoint: leave it out; the same command with the same --out goes on from its last "
                "whole checkpoint, and --init starts a new run from a checkpoint"
            )
        for name in ("method", "num_samples"):
            if known.init and name in given:
                self.error(f"--{name} is of a calibration, which --init {known.init} has behind it; leave one out")


@cache
def trainer_options() -> dict[str, str]:
    """Return name -> annotated type of every field of transformers' TrainingArguments, read from its source.

    Raises: RuntimeError: transformers is not installed.
    """
    found = importlib.util.find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("transformers is not installed; run 'make setup'")
    path = Path(found.submodule_search_locations[0]) / "training_args.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments":
            return {
                each.target.id: ast.unparse(each.annotation).replace(" | None", "")
                for each in node.body
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            }
    raise RuntimeError(f"{path} has no class TrainingArguments; install the pinned transformers: make setup")


def _field_of(flag: str) -> str:
    """Return the name of the field that a flag sets, in either spelling."""
    return flag.removeprefix("--").replace("-", "_")


def _spellings(name: str, has_no: bool) -> list[str]:
    """Return the flags that transformers' HfArgumentParser makes of a field's name."""
    names = [name, f"no_{name}"] if has_no else [name]
    return [f"--{each}" for name in names for each in dict.fromkeys((name, name.replace("_", "-")))]


def _add(group: Any, option: dataclasses.Field[Any], kind: Any) -> None:
    """Add the flags of a field as HfArgumentParser does: a boolean takes true, false or nothing; --no_x beside."""
    kinds = [each for each in typing.get_args(kind) if each is not types.NoneType] or [kind]
    is_required = option.default is dataclasses.MISSING
    settings: dict[str, Any] = {"default": None if is_required else option.default, "help": option.metadata["help"]}
    if kinds[0] is bool:
        settings |= {"type": _as_bool, "nargs": "?", "const": True, "metavar": "true|false"}
    else:
        settings |= {"type": kinds[0], "metavar": option.name.upper()}
    group.add_argument(f"--{option.name}", **settings)
    if "_" in option.name:
        hidden = settings | {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        group.add_argument(f"--{option.name.replace('_', '-')}", dest=option.name, **hidden)
    if kinds[0] is bool and option.default is True:
        group.add_argument(*_spellings(f"no_{option.name}", False), dest=option.name, action="store_false",
                           default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # fmt: skip


def _as_bool(word: str) -> bool:
    """Return what HfArgumentParser understands by a word."""
    if word.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if word.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"true or false is wanted, got {word!r}")
