"""`python -m engine.bug_report`: write one Markdown file for an upstream issue."""

from __future__ import annotations

import argparse

from engine.backend import BACKENDS
from engine.cli import CommandParser, UsageError, check_free, did_you_mean, print_result, run_command, whole_output


def run(arguments: argparse.Namespace) -> None:
    """Write the report and print one line."""
    if arguments.backend not in BACKENDS:
        hint = did_you_mean(arguments.backend, BACKENDS)
        raise UsageError(f"--backend {arguments.backend!r} is none of {', '.join(BACKENDS)}{hint}")
    if bool(arguments.outputs) != bool(arguments.reference):
        raise UsageError("--outputs and --reference belong together: what came out, and what was expected")
    check_free(arguments.out, arguments.force)
    from engine.bug_report.report import write_report  # the linter's graph: a flag's help does not wait for it

    text, rows, failure = write_report(arguments)
    with whole_output(arguments.out, arguments.force) as partial:
        partial.write_text(text, encoding="utf-8")
    worst = max((row.abs_max for row in rows), default=None)
    said = (
        f"it fails: {failure[:80]}"
        if failure
        else f"largest error {worst:.3g}"
        if worst is not None
        else "no errors measured"
    )
    row = {"out": arguments.out, "characters": len(text), "abs_max": worst, "failure": failure}
    print_result(row, f"{arguments.out}: {len(text)} characters; {said}. Read it before you send it", arguments.json)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser(
        "python -m engine.bug_report",
        "Write one Markdown file for an upstream issue: environment, model, reproduction, expected and actual "
        "behaviour, errors. For onnxruntime and openvino the file runs here against ONNX Runtime without optimization, "
        "for tensorrt, tensorrt_rtx and inductor (a .pt2 file) it is built if that can be done here.",
    )
    parser.add_argument(
        "--onnx", required=True, help="the file that shows the fault (for inductor a .pt2), as small as it can be made"
    )
    parser.add_argument("--backend", required=True, help=f"whose fault it is: {', '.join(BACKENDS)}")
    parser.add_argument("--out", required=True, help="the Markdown file to write")
    parser.add_argument("--title", help="the issue's title")
    parser.add_argument("--command", action="append", help="a command that shows the fault; may be given several times")
    parser.add_argument("--expected", help="what should have happened")
    parser.add_argument("--actual", help="what happened")
    parser.add_argument("--feeds", help="npz of inputs (default: made-up numbers)")
    parser.add_argument("--shapes", nargs="+", action="extend", default=[], metavar="NAME:MIN:OPT:MAX",
                        help="shapes of the inputs, such as input_ids:8x64")  # fmt: skip
    parser.add_argument("--outputs", help="npz of outputs computed elsewhere (engine.run), for tensorrt")
    parser.add_argument("--reference", help="npz of the outputs that were expected")
    parser.add_argument("--log", help="a log whose last lines belong into the report")
    parser.add_argument("--no-model", action="store_true", help="do not put a small model's bytes into the text")
    parser.add_argument("--force", action="store_true", help="replace --out")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    run_command(parser, run, argv)


if __name__ == "__main__":
    main()
