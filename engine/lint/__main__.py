"""`python -m engine.lint`: say what the linter finds in a Q/DQ ONNX file."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import (
    EXIT_FAILED,
    CommandParser,
    UsageError,
    columns_here,
    cut_left,
    did_you_mean,
    print_result,
    run_command,
    wrapped,
)
from engine.lint.claims import CONSUMERS, LEVELS

if TYPE_CHECKING:
    from engine.lint.report import LintReport

SHOWN_NAMES = 3


def as_text(report: LintReport, columns: int, show_all: bool) -> str:
    """Return the report for a terminal of so many columns."""
    lines = []
    for finding in report.findings:
        number = len(finding.nodes)
        lines.append(f"{finding.level:8}{finding.rule}  ({number} place{'' if number == 1 else 's'})")
        for word, text in (("why", finding.reason), ("mend", finding.mend)):
            lines += wrapped(text, columns, f"{word:8}")
        shown = number if show_all else min(number, SHOWN_NAMES)
        counted = Counter(finding.names[:shown])
        names = [name if times == 1 else f"{name} ({times} times)" for name, times in counted.items()]
        for index, name in enumerate(names):
            shown_name = name if show_all else cut_left(name, max(columns, 30) - 8)
            lines.append(f"{'at' if index == 0 else '':8}{shown_name}")
        if number > shown:
            lines.append(f"{'':8}and {number - shown} more (--all names them)")
        lines.append("")
    return "\n".join([*lines, *wrapped(f"judged for {report.consumer}: {report.summary()}", columns)])


def run(arguments: argparse.Namespace) -> None:
    """Print the findings; exit 1 under --strict if there is an error."""
    if arguments.consumer is not None and arguments.consumer not in CONSUMERS:
        hint = did_you_mean(arguments.consumer, CONSUMERS)
        raise UsageError(f"--for {arguments.consumer!r} is none of {', '.join(CONSUMERS)}{hint}")
    from engine.lint.report import RULES, lint  # onnx_ir: a flag's help does not wait for it
    from engine.source import read_onnx

    if arguments.explain:
        width = max(map(len, RULES))
        for rule in RULES.values():
            print(f"{rule.name:{width}}  {rule.level:7}  {rule.claim:7}  {', '.join(rule.consumers)}")
        return
    if arguments.model is None:
        raise UsageError("name the ONNX file to lint, or ask for --rules")
    report = lint(read_onnx(arguments.model), arguments.consumer)
    row = {
        "model": str(Path(arguments.model)),
        "for": report.consumer,
        **{f"{level}s": report.count(level) for level in LEVELS},
        **{key: value for key, value in asdict(report).items() if key != "consumer"},
    }
    print_result(row, as_text(report, columns_here(), arguments.all), arguments.json)
    if arguments.strict and report.count("error"):
        raise SystemExit(EXIT_FAILED)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser(
        "python -m engine.lint",
        "Say which products of a Q/DQ ONNX file will not run in INT8 or not fuse, why, and what to do. Needs no GPU; "
        "takes files of this project, of ONNX Runtime's tool and of ModelOpt. A file of this project is judged for the "
        "target it was exported for, any other for TensorRT; --for decides otherwise.",
    )
    parser.add_argument("model", nargs="?", help="the ONNX file")
    parser.add_argument("--for", dest="consumer", help=f"who will run it: {', '.join(CONSUMERS)}")
    parser.add_argument("--strict", action="store_true", help="exit 1 if there is an error")
    parser.add_argument("--all", action="store_true", help="name every place instead of the first three")
    parser.add_argument("--rules", dest="explain", action="store_true", help="list the rules and stop")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    run_command(parser, run, argv)


if __name__ == "__main__":
    main()
