"""The pages of docs/reference/commands/, written from the commands' own parsers: `python -m docs.generate.commands`.

They are committed, since the parsers need more packages than the site's own venv has; a test compares them.
"""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path
from typing import NoReturn
from unittest import mock

from int8kit.__main__ import COMMANDS

FOLDER = Path(__file__).parents[1] / "reference" / "commands"
# Commands that the door does not name.
MORE = {
    "eval.feeds": ("eval.feeds", "a task's inputs as arrays, for a machine without torch"),
    "eval.demo": ("eval.demo", "train, quantize, export, build, score and report a small ViT (`make demo`)"),
    "engine.calibration_cache": ("engine.calibration_cache", "a Q/DQ file's scales as TensorRT's calibration cache"),
    "engine.inspect.cupti": ("engine.inspect.cupti", "a kernel trace of one command, by CUDA's profiling interface"),
}
RULES = (
    "Every command has `--help` with its defaults, prints its result on stdout (most take `--json` for machines) and",
    "its log on stderr, and writes what it makes whole or not at all. A file or checkpoint named by `--out` is not",
    "overwritten without `--force`; run folders are gone on with, or refused. Exit code 0 is done, 1 failed, 2 wrong",
    "usage.",
)
MADE = "<!-- made by python -m docs.generate.commands -->"


class _FoundError(Exception):
    """Carries a command's parser out of its main()."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


def parser_of(module: str) -> argparse.ArgumentParser:
    """Return the parser that a command's main() makes, caught before it parses."""

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        raise _FoundError(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        try:
            importlib.import_module(module).main([])
        except _FoundError as found:
            return found.parser
    raise RuntimeError(f"{module}.main() parses no arguments")


def pages() -> dict[str, str]:
    """Return file name → text of every page, the list of commands first."""
    named = [(name, name, *each) for name, each in COMMANDS.items()]
    named += [("", name, *each) for name, each in MORE.items()]
    lines = ["# Commands", "", "| command | the same as | does |", "|---|---|---|"]
    made = {}
    for door, name, module, text in named:
        parser = parser_of(module)
        shown = f"int8kit {door}" if door else parser.prog
        same = f"`{parser.prog}`" if door and shown != parser.prog else ""
        lines.append(f"| [`{shown}`]({name}.md) | {same} | {_text(text)} |")
        made[f"{name}.md"] = page(shown, parser)
    lines += ["", *RULES, "", MADE]
    return {"index.md": "\n".join(lines) + "\n", **made}


def page(shown: str, parser: argparse.ArgumentParser) -> str:
    """Return the page of one command: its groups of options as tables."""
    lines = [f"# {shown}", ""]
    if shown != parser.prog:
        lines += [f"The same as `{parser.prog}`.", ""]
    lines += [_text(parser.description or ""), ""]
    either = {id(a) for g in parser._mutually_exclusive_groups if g.required for a in g._group_actions}
    for group in parser._action_groups:
        actions = [each for each in group._group_actions if each.help != argparse.SUPPRESS and each.dest != "help"]
        if not actions:
            continue
        if group.title not in ("options", "positional arguments"):
            lines += [f"## {(group.title or '').capitalize()}", ""]
        lines += ["| option | meaning |", "|---|---|"]
        actions.sort(key=_is_debug)
        lines += [f"| {_flags(each)} | {_meaning(parser, each, id(each) in either)} |" for each in actions]
        lines.append("")
    return "\n".join([*lines, MADE]) + "\n"


def _is_debug(action: argparse.Action) -> bool:
    return action.dest == "debug"  # added first to every parser, needed last


def _flags(action: argparse.Action) -> str:
    long = next((flag for flag in action.option_strings if flag.startswith("--")), None)
    if long is None:
        return f"`{action.metavar or action.dest.upper()}`"
    number = {int: "N", float: "X"}.get(action.type)  # type: ignore[call-overload]
    metavar = action.metavar or number or ("" if action.choices else action.dest.split("_")[-1].upper())
    value = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    return f"`{long} {value if action.nargs != 0 else ''}".rstrip().replace("|", "\\|") + "`"


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action, is_one_of: bool) -> str:
    """Return the help with choices, default and whether it must be given."""
    formatter = parser._get_formatter()
    text = _text(formatter._expand_help(action)) if action.help else ""
    if action.choices:
        text += f"; {', '.join(f'`{each}`' for each in action.choices)}"
    if action.required or (not action.option_strings and action.nargs not in ("?", "*")):
        text += " **(required)**"
    elif is_one_of:
        text += " **(one of these)**"
    return text


def _text(text: str) -> str:
    """Return a help text as Markdown: flags and files as code, nothing read as a mark."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", text)


def main() -> None:
    """Write the pages, and drop those of commands that are gone."""
    wanted = pages()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in set(FOLDER.glob("*.md")) - {FOLDER / name for name in wanted}:
        old.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"{len(wanted)} pages in {FOLDER}")


if __name__ == "__main__":
    main()
