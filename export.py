"""`python export.py`: a checkpoint in, one file for one consumer out, kept only if it computes the same."""

from __future__ import annotations

import argparse

from engine.cli import CommandParser, UsageError, check_free, did_you_mean, run_command

TARGETS = ("onnxruntime", "openvino", "tensorrt", "tensorrt8", "inductor")  # `engine.passes.targets.ALL_TARGETS`


def export(arguments: argparse.Namespace) -> None:
    """Check the flags, then export."""
    check_free(arguments.out, arguments.force)
    if arguments.target not in TARGETS:
        hint = did_you_mean(arguments.target, TARGETS)
        raise UsageError(f"unknown target {arguments.target!r}; known: {', '.join(TARGETS)}{hint}")
    from engine.passes.targets import check_dtype  # onnx_ir: a flag's help does not wait for it

    try:
        dtype = check_dtype(arguments.target, arguments.dtype)
    except ValueError as error:
        raise UsageError(str(error)) from None
    from eval.parity.checked_export import export_checked  # torch and transformers, once the flags are right

    export_checked(arguments, dtype)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser("python export.py", "Export a checkpoint (or a float model) for one consumer.")
    parser.add_argument(
        "--checkpoint", required=True, help="checkpoint folder, or a float model (id, folder, 'digits')"
    )
    parser.add_argument("--target", required=True, help=f"who will read the file: {', '.join(TARGETS)}")
    parser.add_argument(
        "--dtype", help="of targets tensorrt and inductor: type of all that is not INT8, fp16 or bf16 (default: fp16)"
    )
    parser.add_argument(
        "--out",
        required=True,
        help="the file to write; of an encoder-decoder two: OUT with .encoder and .decoder before its suffix",
    )
    parser.add_argument("--force", action="store_true", help="replace --out")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    run_command(parser, export, argv)


if __name__ == "__main__":
    main()
