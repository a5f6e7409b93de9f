"""`python train_qat.py`: fine-tunes a transformer with quantization-aware training, on one GPU, many, or a CPU."""

from __future__ import annotations

import argparse
import re
import sys

from engine.cli import run_command
from eval.tasks import check_task
from quant.recipe import load_recipe
from training.arguments import TrainParser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    words = [re.sub(r"^--out(?==|$)", "--output_dir", word) for word in (sys.argv[1:] if argv is None else argv)]

    def train(arguments: argparse.Namespace) -> None:
        if arguments.help_all:
            from training.command import TrainerParser

            TrainerParser().print_help()
            return
        check_task(arguments.task)  # mistyped names are said before torch is loaded
        if arguments.recipe != "none":
            load_recipe(arguments.recipe)
        from training.command import train_from

        train_from([word for word in words if word != "--debug"] if arguments.debug else words)

    run_command(TrainParser(), train, words)


if __name__ == "__main__":
    main()
