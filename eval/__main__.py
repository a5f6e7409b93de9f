"""`python -m eval`: the metric of an engine, checkpoint, model or stored outputs, its distance from the reference, its
latency.
"""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import ExitStack

from engine.cli import CommandParser, UsageError, print_result, run_command
from eval.arguments import add_data_arguments, batch_options, load_samples_of, task_of
from eval.batches import PADDINGS
from eval.evaluate import evaluate
from eval.parity.layers import run_layers
from eval.subject import Subject, check_meta, load_model, open_engine, open_model, open_outputs
from eval.summary import log_details, result_row, summary_line

DEFAULT_ITERATIONS = 30


def evaluate_command(arguments: argparse.Namespace) -> None:
    """Evaluate what the options name and print one line."""
    task_of(arguments)  # an unknown task is said before anything is loaded
    if arguments.layers:
        run_layers(arguments)
        return
    if arguments.onnx:
        raise UsageError("--onnx belongs to --layers; build an engine to score a file")
    if arguments.backend not in (None, "pytorch") or (arguments.backend and arguments.engine):
        raise UsageError(
            f"--backend {arguments.backend} does not apply: an engine names its own; --model and --checkpoint run in "
            "pytorch"
        )
    with ExitStack() as stack:
        subject = _open(arguments, stack)
        if subject.meta is not None:
            _take_meta(arguments, subject)
        source = _processor_source(arguments, subject)
        reference = (
            open_model(arguments.reference, arguments.device, arguments.trust_remote_code)
            if arguments.reference
            else None
        )
        by_name = {each.model: each.loaded for each in (reference, subject) if each is not None}
        loaded = by_name.get(source) or load_model(source, trust_remote_code=arguments.trust_remote_code)
        task, dataset, length = load_samples_of(
            arguments, tuple(subject.runner.output_names), loaded.model.config, loaded.processor
        )
        evaluation = evaluate(
            task,
            dataset,
            loaded.processor,
            subject.runner,
            reference=reference.runner if reference else None,
            options=batch_options(arguments, length),
            iterations=0 if subject.meta is not None else arguments.iterations,
            show_progress=sys.stderr.isatty() or not arguments.json,
        )
    log_details(evaluation)
    command = " ".join(["python -m eval", *sys.argv[1:]])
    row = result_row(subject, evaluation, arguments, command)
    print_result(row.as_dict(), summary_line(subject.model, row, evaluation), arguments.json)


def _open(arguments: argparse.Namespace, stack: ExitStack) -> Subject:
    if arguments.engine:
        return stack.enter_context(open_engine(arguments.engine, arguments.threads))
    if arguments.outputs:
        return open_outputs(arguments.outputs)
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    return open_model(arguments.checkpoint or arguments.model, arguments.device, arguments.trust_remote_code)


def _processor_source(arguments: argparse.Namespace, subject: Subject) -> str:
    """Return where the processor comes from.

    --processor, the model itself, --reference, or what the feeds were made with.
    """
    source = (
        arguments.processor
        or arguments.checkpoint
        or arguments.model
        or arguments.reference
        or (subject.meta or {}).get("model")
    )
    if source is None:
        raise UsageError(
            "an engine holds no tokenizer or image processor; give --reference M or --processor M (the model it was "
            "made from)"
        )
    return str(source)


def _take_meta(arguments: argparse.Namespace, subject: Subject) -> None:
    """Take the samples' options from the feeds; those given on the command line must agree."""
    meta = subject.meta or {}
    task = task_of(arguments)
    check_meta(
        meta,
        {
            "task": task.name,
            "task_digest": task.file_digest,
            "data": arguments.data,
            "seq_length": arguments.seq_length,
            "num_samples": arguments.num_samples,
        },
    )
    arguments.data, arguments.split, arguments.column = meta["data"], meta["split"], meta["columns"]
    arguments.label_column, arguments.seq_length, arguments.seed = (
        meta["label_column"],
        meta["seq_length"],
        meta["seed"],
    )
    arguments.num_samples, arguments.batch_size, arguments.padding = (
        meta["num_samples"],
        meta["batch_size"],
        PADDINGS[0],
    )


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
