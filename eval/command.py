"""What `python -m eval` runs once its flags are right: it imports torch and transformers."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

from engine.cli import print_result
from eval.arguments import batch_options
from eval.chosen_samples import load_samples_of, task_of
from eval.evaluate import evaluate
from eval.parity.layers import run_layers
from eval.subject import Subject, check_meta, load_model, open_engine, open_model, open_outputs
from eval.summary import log_details, result_row, summary_line
from eval.tasks.parts.encoding import PADDINGS


def evaluate_command(arguments: argparse.Namespace) -> None:
    """Evaluate what the options name and print one line."""
    task_of(arguments)  # a wrong file is said before anything is loaded
    if arguments.layers:
        run_layers(arguments)
        return
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
