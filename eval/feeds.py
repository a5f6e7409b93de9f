"""Writes feeds.npz: a task's samples as model inputs, for a machine that has neither torch nor transformers.

There `python -m engine.run` turns them into outputs.npz, and here `python -m eval --outputs outputs.npz` scores those.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from engine.cli import CommandParser, check_free, print_result, run_command, whole_output
from eval.arguments import add_data_arguments, batch_options, check_data_arguments


def write_feeds(arguments: argparse.Namespace) -> None:
    """Write the inputs, padded to one length, and what scoring needs to make the same samples again."""
    check_free(arguments.out, arguments.force)
    check_data_arguments(arguments)
    from eval.batches import iter_batches, select_feeds  # torch and transformers, once the flags are right
    from eval.chosen_samples import load_samples_of
    from eval.pytorch_runner import PyTorchRunner
    from eval.subject import META_KEY, load_model

    loaded = load_model(arguments.model)
    runner = PyTorchRunner(loaded)  # its forward says which inputs and outputs an exported file has
    task, dataset, length = load_samples_of(arguments, runner.output_names, loaded.model.config, loaded.processor)
    options = batch_options(arguments, length)
    parts: list[dict[str, np.ndarray]] = [
        select_feeds(features, runner.input_names)
        for features in iter_batches(task, dataset, loaded.processor, options)
    ]
    if not parts:
        raise ValueError(f"task {task.name}: there are no samples to write; check --data, --split and --num-samples")
    feeds = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    meta = {
        "task": task.name,
        "task_digest": task.file_digest,
        "data": arguments.data,
        "split": arguments.split,
        "columns": arguments.column,
        "label_column": arguments.label_column,
        "batch_size": arguments.batch_size,
        "seq_length": length,
        "num_samples": arguments.num_samples,
        "seed": arguments.seed,
        "model": arguments.model,
    }
    with whole_output(arguments.out, arguments.force) as partial, open(partial, "wb") as file:
        np.savez(file, **feeds, **{META_KEY: np.array(json.dumps(meta))})  # type: ignore[arg-type]
    shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in feeds.items())
    row = meta | {"out": arguments.out, "inputs": {name: list(array.shape) for name, array in feeds.items()}}
    print_result(row, f"{arguments.out}: {shapes}", arguments.json)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser(
        "python -m eval.feeds", "Write a task's samples as model inputs for engine.run on another machine."
    )
    parser.add_argument(
        "--model", required=True, help="the model the engine was made from: its processor makes the inputs"
    )
    add_data_arguments(parser)
    parser.add_argument("--out", required=True, help="npz to write: one array per input, samples along the first axis")
    parser.add_argument("--force", action="store_true", help="replace --out")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    run_command(parser, write_feeds, argv)


if __name__ == "__main__":
    main()
