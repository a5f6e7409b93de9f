"""Find, without a GPU, every product of a Q/DQ ONNX file that will not run in INT8 or will not fuse.

A new rule is a small function in `lint_numbers`, `lint_placement`, `lint_blocks`, `lint_operators` or `lint_speed`, a
line in its table that says what it claims, and a file in `benchmarks/` on which the consumers bear it out.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from engine.cli import EXIT_FAILED, CommandParser, UsageError, near_matches, print_result, run_command
from engine.lint_blocks import BLOCK_RULES
from engine.lint_findings import CONSUMERS, LEVELS, Finding, Judgement, Rule, judge
from engine.lint_graph import LintGraph
from engine.lint_numbers import NUMBER_RULES
from engine.lint_operators import OPERATOR_RULES
from engine.lint_placement import PLACEMENT_RULES
from engine.lint_speed import SPEED_RULES
from engine.source import read_onnx

ALL_RULES = (*OPERATOR_RULES, *NUMBER_RULES, *PLACEMENT_RULES, *BLOCK_RULES, *SPEED_RULES)
RULES: dict[str, Rule] = {rule.name: rule for rule in ALL_RULES}
DEFAULT_CONSUMER = "tensorrt"
SHOWN_NAMES = 3
WIDEST = 110  # columns; the report is readable down to 60


@dataclass(frozen=True)
class LintReport:
    """What the linter says of one file."""

    consumer: str
    findings: tuple[Finding, ...]
    linears: int
    linears_int8: int
    attention_products: int
    attention_products_int8: int
    is_refused: bool = False

    def count(self, level: str) -> int:
        """Return how many findings there are of a level."""
        return sum(finding.level == level for finding in self.findings)

    def summary(self) -> str:
        """Return one line such as "36 of 38 linear layers and 0 of 12 attention products run in INT8; 0 errors"."""
        counts = ", ".join(f"{self.count(level)} {level}{'' if self.count(level) == 1 else 's'}" for level in LEVELS)
        if not self.linears and not self.attention_products:
            return f"no product was seen in the file, so nothing was judged; {counts}"
        verb = "are INT8 in the file, which it refuses" if self.is_refused else "run in INT8"
        return (
            f"{self.linears_int8} of {self.linears} linear layers and {self.attention_products_int8} of "
            f"{self.attention_products} attention products {verb}; {counts}"
        )


def consumer_of(metadata: dict[str, str]) -> str:
    """Return whom a file is for: what its metadata says, else TensorRT."""
    target = metadata.get("int8kit.target", "")
    return target if target in CONSUMERS else DEFAULT_CONSUMER


def lint(model: onnx.ModelProto, consumer: str | None = None) -> LintReport:
    """Return what is wrong with a Q/DQ model for a consumer (default: the file's own target, else tensorrt).

    Raises: ValueError: for an unknown consumer, or a malformed graph.
    """
    judgement = judge_model(model, consumer)
    linear = [product for product in judgement.products if product.is_linear]
    attention = [product for product in judgement.products if not product.is_linear]
    return LintReport(
        judgement.consumer,
        judgement.findings,
        len(linear),
        sum(map(judgement.runs_in_int8, linear)),
        len(attention),
        sum(map(judgement.runs_in_int8, attention)),
        judgement.is_refused,
    )


def judge_model(model: onnx.ModelProto, consumer: str | None = None) -> Judgement:
    """Return what all rules say of a model for a consumer (default: the file's own target, else tensorrt), with the
    products that they speak of.

    Raises: ValueError: for an unknown consumer, or a malformed graph.
    """
    graph = LintGraph(model)
    return judge(graph, consumer or consumer_of(graph.metadata), RULES.values())


def as_text(report: LintReport, columns: int, show_all: bool) -> str:
    """Return the report for a terminal of so many columns."""
    lines = []
    for finding in report.findings:
        number = len(finding.nodes)
        lines.append(f"{finding.level:8}{finding.rule}  ({number} place{'' if number == 1 else 's'})")
        for word, text in (("why", finding.reason), ("mend", finding.mend)):
            lines += _wrapped(f"{word:8}", text, columns)
        shown = number if show_all else min(number, SHOWN_NAMES)
        counted = Counter(finding.names[:shown])
        names = [name if times == 1 else f"{name} ({times} times)" for name, times in counted.items()]
        for index, name in enumerate(names):
            shown_name = name if show_all else cut_left(name, max(columns, 30) - 8)
            lines.append(f"{'at' if index == 0 else '':8}{shown_name}")
        if number > shown:
            lines.append(f"{'':8}and {number - shown} more (--all names them)")
        lines.append("")
    return "\n".join([*lines, *_wrapped("", f"judged for {report.consumer}: {report.summary()}", columns)])


def cut_left(text: str, width: int) -> str:
    """Return a text cut from the left to a width: what tells layers apart stands at the end of their names."""
    return text if len(text) <= width else "..." + text[-(width - 3) :]


def _wrapped(first: str, text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, max(columns, 30), initial_indent=first, subsequent_indent=" " * len(first))


def run(arguments: argparse.Namespace) -> None:
    """Print the findings; exit 1 under --strict if there is an error."""
    if arguments.consumer is not None and arguments.consumer not in CONSUMERS:
        near = near_matches(arguments.consumer, list(CONSUMERS))
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--for {arguments.consumer!r} is none of {', '.join(CONSUMERS)}{hint}")
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
    columns = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
    print_result(row, as_text(report, columns, arguments.all), arguments.json)
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
