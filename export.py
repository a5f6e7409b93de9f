"""`python export.py`: a checkpoint in, one ONNX file for one consumer out, kept only if it computes the same."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import onnx

from engine.cli import CommandParser, UsageError, check_free, print_result, run_command, whole_output
from engine.qdq import TARGETS, check_dtype, prepare_for_target
from eval.parity import check_parity
from quant.checkpoint import is_checkpoint, load_checkpoint, read_description
from quant.onnx_export import export_onnx
from quant.pretrained import LoadedModel, load_float_model
from quant.tensor_quantizer import HALF_TYPES, rounded_scales


def export(arguments: argparse.Namespace) -> None:
    """Export, run the target's passes, check parity, keep the file; print one summary line."""
    check_free(arguments.out, arguments.force)
    if arguments.target not in TARGETS:
        raise UsageError(f"unknown target {arguments.target!r}; known: {', '.join(TARGETS)}")
    try:
        dtype = check_dtype(arguments.target, arguments.dtype)
    except ValueError as error:
        raise UsageError(str(error)) from None
    loaded, metadata = _load(arguments.checkpoint)
    print(f"export to {arguments.target} ...", file=sys.stderr)
    with _scales_of(loaded, dtype), whole_output(arguments.out, arguments.force) as path:
        exported = export_onnx(loaded.model, processor=loaded.processor)
        onnx.save(prepare_for_target(exported, arguments.target, metadata, dtype), path)
        print("check parity ...", file=sys.stderr)
        report = check_parity(path, loaded, backend=arguments.target)
        size_bytes = path.stat().st_size
    row = {"onnx": arguments.out, "target": arguments.target, "size_bytes": size_bytes, **metadata, **vars(report)}
    print_result(row, f"{arguments.out}: {arguments.target}, {size_bytes / 1e6:.1f} MB; {report}", arguments.json)


def _scales_of(loaded: LoadedModel, dtype: str | None) -> AbstractContextManager[None]:
    """Return the block in which the model's scales are the ones that a file of `dtype` can hold."""
    return nullcontext() if dtype is None else rounded_scales(loaded.model, HALF_TYPES[dtype])


def _load(name: str) -> tuple[LoadedModel, dict[str, str]]:
    """Return the checkpoint, or a float model, and what the ONNX file says of its origin."""
    if not is_checkpoint(name):
        return load_float_model(name), {"int8kit.source": Path(name).name}
    description = read_description(name)
    names = {"int8kit.recipe": description["recipe"]["name"], "int8kit.recipe_digest": description["recipe_digest"]}
    return load_checkpoint(name), {"int8kit.source": Path(name).name, **names}


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser("python export.py", "Export a checkpoint (or a float model) to ONNX for one consumer.")
    parser.add_argument(
        "--checkpoint", required=True, help="checkpoint folder, or a float model (id, folder, 'digits')"
    )
    parser.add_argument("--target", required=True, help=f"who will read the file: {', '.join(TARGETS)}")
    parser.add_argument("--dtype", help="target tensorrt: type of all that is not INT8, fp16 (its default) or bf16")
    parser.add_argument("--out", required=True, help="the ONNX file to write")
    parser.add_argument("--force", action="store_true", help="replace --out")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    run_command(parser, export, argv)


if __name__ == "__main__":
    main()
