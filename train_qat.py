"""`python train_qat.py`: fine-tunes a transformer with quantization-aware training, on one GPU, many, or a CPU."""

from __future__ import annotations

import argparse
import re
import sys

from engine.cli import run_command
from quant.recipe import load_recipe
from training.arguments import TrainParser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    words = [re.sub(r"^--out(?==|$)", "--output_dir", word) for word in (sys.argv[1:] if argv is None else argv)]

    def train(arguments: argparse.Namespace) -> None:
        if not arguments.help_all and arguments.recipe != "none":
            load_recipe(arguments.recipe)  # a mistyped recipe is said before torch is loaded
        from training.command import TrainerParser, train_from

        if arguments.help_all:
            TrainerParser().print_help()
            return
        train_from(words)

    run_command(TrainParser(), train, words)


if __name__ == "__main__":
    main()
