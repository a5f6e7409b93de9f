"""The options that name samples, the same in every command of this package. It imports no torch: --help is quick."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from engine.cli import CommandParser, UsageError
from eval.tasks import TASK_HELP, check_task
from eval.tasks.parts.encoding import PADDINGS

# What logs more than a user wants to read.
NOISY = ("httpx", "datasets", "huggingface_hub", "filelock", "torch", "onnxscript", "onnx_ir", "numexpr", "matplotlib")


@dataclass(frozen=True)
class BatchOptions:
    """How samples become batches.

    Attributes:
        batch_size: samples of one call; the last batch may be smaller.
        seq_length: tokens of a sample; None takes the task's default. Longer samples are cut.
        padding: "max" pads to seq_length, "longest" to the longest sample of the batch.
        num_samples: how many rows, drawn with `seed`; None takes all.
        seed: of that draw.
    """

    batch_size: int = 8
    seq_length: int | None = None
    padding: str = "max"
    num_samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.seq_length is not None and self.seq_length < 2:
            raise ValueError(f"--seq-length must be at least 2, got {self.seq_length}")
        if self.padding not in PADDINGS:
            raise ValueError(f"--padding '{self.padding}' is not known; allowed: {', '.join(PADDINGS)}")
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(f"--num-samples must be at least 1, got {self.num_samples}")


def add_data_arguments(parser: CommandParser) -> None:
    """Add --task, --data, --split and the options of batches."""
    parser.add_argument("--task", required=True, help=f"what to score: {TASK_HELP}")
    parser.add_argument(
        "--data",
        help="hub id (or id:config), folder with SPLIT.parquet|.csv|.jsonl or images; default the task's own",
    )
    parser.add_argument("--split", default="validation", help="split of the data")
    parser.add_argument(
        "--column", nargs="+", metavar="C", help="the data's own names of the task's columns, in the task's order"
    )
    parser.add_argument("--label-column", metavar="C", help="the data's own name of the label column")
    parser.add_argument("--batch-size", type=int, default=8, help="samples of one call")
    parser.add_argument(
        "--seq-length", type=int, help="tokens of a sample, longer ones are cut; default the task's own, e.g. 128"
    )
    parser.add_argument("--num-samples", type=int, help="how many samples, drawn with --seed; default all")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn samples and the bootstrap")


def add_tensorrt_arguments(how: Any, where: Any) -> None:
    """Add what a sweep and a search tell TensorRT's builder, to these groups of options."""
    how.add_argument("--build-arguments", default="",
                        help="flags of build_engine.py for the TensorRT backends, in one string")  # fmt: skip
    where.add_argument("--tensorrt-python", metavar="PYTHON",
                        help="interpreter whose TensorRT backend tensorrt is (8.5 to 9 need an older one)")  # fmt: skip


def add_measured_arguments(group: Any) -> None:
    """Add what a sweep and a search measure to a group of options: model, task, its data, calibration samples."""
    group.add_argument("--model", required=True, help="Hugging Face id, folder, or 'digits'")
    group.add_argument("--task", required=True, help=f"what to score: {TASK_HELP}")
    group.add_argument("--data", help="hub id or folder with SPLIT.parquet; default the task's own")
    group.add_argument("--split", default="validation", help="split that is scored")
    group.add_argument("--column", nargs="+", help="the data's own names of the task's columns")
    group.add_argument("--label-column", help="the data's own name of the label column")
    group.add_argument("--num-samples", type=int, help="how many samples are scored; default all")
    group.add_argument("--samples", help="calibration samples: folder, file or data set id; default --data (train)")
    group.add_argument("--num-calibration", type=int, default=256, help="calibration samples drawn")


def batch_options(arguments: argparse.Namespace, seq_length: int | None) -> BatchOptions:
    """Return the batches that the options ask for. Raises: UsageError: for impossible ones."""
    padding = getattr(arguments, "padding", PADDINGS[0])
    try:
        return BatchOptions(arguments.batch_size, seq_length, padding, arguments.num_samples, arguments.seed)
    except ValueError as error:
        raise UsageError(str(error)) from None


def check_data_arguments(arguments: argparse.Namespace) -> None:
    """Raise UsageError for a --task that there is not and for impossible batches; nothing is imported or executed."""
    batch_options(arguments, arguments.seq_length)
    check_task_argument(arguments.task)


def check_task_argument(name: str) -> None:
    """Raise UsageError for a --task that there is not; nothing is imported or executed for it."""
    try:
        check_task(name)
    except ValueError as error:
        raise UsageError(str(error)) from None


def split_words(values: list[str]) -> list[str]:
    """Return the words of a list flag: parted by commas, blanks, or given one by one."""
    return [word for value in values for word in value.replace(",", " ").split()]


def numbers(flag: str, values: list[str]) -> tuple[int, ...]:
    """Return whole numbers from 1, sorted, each once. Raises: UsageError: none, or words that are none."""
    words = split_words(values)
    if not words:
        raise UsageError(f"the grid is empty: {flag} names nothing")
    wrong = [word for word in words if not word.isdigit() or int(word) < 1]
    if wrong:
        raise UsageError(f"{flag} takes whole numbers from 1, got {', '.join(wrong)}")
    return tuple(sorted({int(word) for word in words}))
