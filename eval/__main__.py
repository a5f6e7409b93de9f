"""`python -m eval`: the metric of an engine, checkpoint, model or stored outputs, its distance from the reference, its
latency.
"""

from __future__ import annotations

import argparse
import logging
import sys

from engine.backend import BACKENDS
from engine.cli import CommandParser, UsageError, run_command
from eval.arguments import add_data_arguments, check_data_arguments
from eval.tasks.parts.encoding import PADDINGS

DEFAULT_ITERATIONS = 30


def evaluate_command(arguments: argparse.Namespace) -> None:
    """Check the flags, then evaluate."""
    check_data_arguments(arguments)
    if arguments.onnx and not arguments.layers:
        raise UsageError("--onnx belongs to --layers; build an engine to score a file")
    is_named = arguments.backend not in (None, "pytorch") or (arguments.backend and arguments.engine)
    if is_named and not arguments.layers:
        raise UsageError(
            f"--backend {arguments.backend} does not apply: an engine names its own; --model and --checkpoint run in "
            "pytorch"
        )
    if arguments.engine and not arguments.layers and not (arguments.processor or arguments.reference):
        raise UsageError(
            "an engine holds no tokenizer or image processor; give --reference M or --processor M (the model it was "
            "made from)"
        )
    if arguments.layers:
        _check_layers(arguments)
    from eval import command  # torch and transformers, once the flags are right

    command.evaluate_command(arguments)


def _check_layers(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what --layers cannot compare."""
    if not (arguments.checkpoint or arguments.model):
        raise UsageError("--layers compares the layers of --checkpoint CKPT (or --model M); an engine alone shows none")
    if arguments.backend in (None, *BACKENDS):
        return
    if arguments.onnx is None:
        raise UsageError(f"--backend {arguments.backend!r} has no target to export to; name the file with --onnx")
    raise UsageError(f"--backend {arguments.backend!r} runs no engine; --layers takes {', '.join(BACKENDS)}")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for name in ("httpx", "datasets", "huggingface_hub", "filelock", "onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)
    parser = CommandParser("python -m eval", "Score a model on a task and hold it against a reference.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--engine", help="an engine of build_engine.py")
    what.add_argument("--checkpoint", help="a checkpoint folder, fake-quantized in PyTorch")
    what.add_argument("--model", help="a float model: hub id, folder or digits")
    what.add_argument("--outputs", help="npz of 'python -m engine.run', from feeds of 'python -m eval.feeds'")
    add_data_arguments(parser)
    parser.add_argument(
        "--reference", help="the float model to compare outputs and predictions with, on the same feeds"
    )
    parser.add_argument(
        "--processor",
        help="model whose tokenizer or image processor to use; default its own or --reference's",
    )
    parser.add_argument("--backend", help="pytorch, for --model and --checkpoint; an engine names its own")
    parser.add_argument(
        "--layers",
        action="store_true",
        help="instead: errors of each layer of --checkpoint on one batch: float, fake-quantized, ONNX, --backend",
    )
    parser.add_argument("--onnx", help="of --layers: the file exported from --checkpoint; default: exported now")
    parser.add_argument(
        "--padding", default=PADDINGS[0], choices=PADDINGS, help="pad to --seq-length, or to the longest of each batch"
    )
    parser.add_argument(
        "--iterations", type=int, default=DEFAULT_ITERATIONS, help="timed calls on the first batch; 0 measures none"
    )
    parser.add_argument(
        "--threads", type=int, help="CPU threads; default what the engine was built with, else all cores"
    )
    parser.add_argument("--device", default="cpu", help="of PyTorch models: cpu or cuda")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code that a hub repository brings with it"
    )
    parser.add_argument("--json", action="store_true", help="print the result row as one JSON line")
    run_command(parser, evaluate_command, argv)


if __name__ == "__main__":
    main()
