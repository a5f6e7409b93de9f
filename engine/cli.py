"""What every command shares: parsing with near matches, one-line errors, and outputs written whole or not at all.

It lives on the ground floor because `engine/` runs alone on a deployment box; all other commands import it from here.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
COLOUR = re.compile(r"\x1b\[[\d;]*m")
EXPORTER_ADVICE = re.compile(r"This is step \d/\d of exporting the model.*?## Exception summary ")
MAX_EXPORTER = 400  # characters
WIDEST = 110  # columns of a report


class UsageError(ValueError):
    """A command line that cannot be right: reported in one line, exit code 2."""


class DefaultsHelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """States a default where there is one and the text does not say it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if "(default" in (action.help or "") or action.default in (None, "", []) or action.default is False:
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default)).replace('%', '%%')})"
        return super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """An argument parser that states defaults in --help and answers a mistyped flag or choice with its near matches."""

    def __init__(self, prog: str, description: str, **kwargs: Any) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=DefaultsHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )
        self.mistyped: list[str] = []
        self.add_debug()

    def add_debug(self) -> None:
        """Add --debug, unless other options bring one of their own (TrainingArguments)."""
        if "--debug" not in self._flags():
            self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the parsed arguments; an unknown flag ends the program with its near matches and exit code 2."""
        given = [word.split("=")[0] for word in (sys.argv[1:] if args is None else args)]
        self.mistyped = [word for word in given if word.startswith("--") and word not in self._flags()]
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse_unknown(unknown)
        return known

    def refuse_unknown(self, words: list[str], more_flags: list[str] | None = None) -> NoReturn:
        """End the program for unknown flags, each with its near matches among this parser's and more."""
        self.error(f"unknown argument {', '.join(self._with_near(word, more_flags) for word in words)}")

    def _flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    def _with_near(self, word: str, more_flags: list[str] | None = None) -> str:
        flags = dict.fromkeys([*self._flags(), *(more_flags or [])])
        return word + did_you_mean(word.split("=")[0], flags, " ({})", most=3)

    def error(self, message: str) -> NoReturn:
        if self.mistyped:  # argparse complains of a missing flag first, where the flag was there but mistyped
            message = f"unknown argument {', '.join(self._with_near(word) for word in self.mistyped)}"
        print(f"{self.prog}: {message}. See {self.prog} --help", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Raise UsageError for a number below 1; one that is not given is None."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value} must be at least 1")


def did_you_mean(word: str, allowed: Iterable[str], form: str = "; {}", most: int = 1) -> str:
    """Return a hint such as "; did you mean onnx?" for a refusal's end, "" where nothing allowed looks like `word`.

    Args:
        form: how it stands in its sentence, such as " ({})".
        most: how many near matches are named, the best first.
    """
    near = difflib.get_close_matches(word, list(allowed), n=most, cutoff=0.5)
    return form.format(f"did you mean {', '.join(near)}?") if near else ""


def run_command(
    parser: CommandParser, command: Callable[[argparse.Namespace], None], argv: list[str] | None = None
) -> NoReturn:
    """Parse `argv`, call `command` and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    An expected error (ValueError, OSError, RuntimeError, ImportError) is printed in one line; `--debug` shows more.
    SIGTERM is treated like Ctrl-C, so that temporary outputs are removed; a KeyboardInterrupt that bears a message
    says what was kept.
    """
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        command(arguments)
    except KeyboardInterrupt as ended:
        print(f"{parser.prog}: interrupted; {str(ended) or 'nothing was written'}", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # the reader of the output has gone (| head): nothing is left to say, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_DONE) from None
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if arguments.debug:
            raise
        print(f"{parser.prog}: {one_line(error)}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED) from None
    raise SystemExit(EXIT_DONE)


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, with its type where the message alone says nothing.

    Of torch's ONNX exporter, whose messages are pages in colour, what went wrong is kept and the advice dropped.
    """
    text = " ".join(COLOUR.sub("", str(error)).split())
    shorter = EXPORTER_ADVICE.sub("", text)
    if shorter != text and len(shorter) > MAX_EXPORTER:
        shorter = f"{shorter[:MAX_EXPORTER]}... (--debug shows all)"
    return shorter if shorter else type(error).__name__


def _raise_interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def whole_output(out: str | Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `out` for a file or folder, and rename it onto `out` only when the block ends well.

    Files that the block writes beside the temporary one (the weights of a large ONNX file, an engine's manifest) go
    beside `out` before, all in one turn: of two processes with one `out` the later is refused, or replaces all.

    Raises: FileExistsError: if `out` exists and `force` is false (said before any work is done, and again after it).
        OSError: the disk is full, with the name of `out`.
    """
    target = Path(out)
    check_free(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield holder / target.name
        with _one_at_a_time(target.parent):
            check_free(target, force)
            for beside in sorted(holder.iterdir()):
                if beside.name != target.name:
                    # Without `out` itself what stands beside it is of a process that was killed between the two.
                    check_free(target.parent / beside.name, force or beside.name == f"{target.name}.json")
                    os.replace(beside, target.parent / beside.name)
            replace_path(holder / target.name, target)
    except OSError as error:
        if error.errno not in DISK_FULL or error.filename is not None:
            raise
        raise type(error)(error.errno, f"{target} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that put outputs in place there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders: there the last one wins, as without this
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_free(out: str | Path, force: bool) -> None:
    """Raise FileExistsError if `out` exists and `force` is false."""
    if Path(out).exists() and not force:
        raise FileExistsError(f"{out} exists; choose another --out, or replace it with --force")


def replace_path(source: Path, target: Path) -> None:
    """Put `source` in the place of `target`; an older folder is moved aside first, so one of the two always stands."""
    if target.is_dir() and not target.is_symlink():
        aside = source.parent / f"{target.name}.old"
        os.replace(target, aside)
    os.replace(source, target)


def print_result(row: dict[str, Any], summary: str, as_json: bool) -> None:
    """Print one result on stdout: the row as one JSON line for machines, else the summary line."""
    print(json.dumps(row, sort_keys=True, ensure_ascii=False) if as_json else summary, flush=True)


def columns_here() -> int:
    """Return the columns of the terminal, at most WIDEST: reports are readable down to 60."""
    return min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)


def cut_left(text: str, width: int) -> str:
    """Return a text cut from the left to a width: what tells layers apart stands at the end of their names."""
    return text if len(text) <= width else "..." + text[-(width - 3) :]


def wrapped(text: str, columns: int, first: str = "", rest: str | None = None) -> list[str]:
    """Return a text as lines of at most so many columns: `first` before the first, `rest` (as many blanks) before the
    others."""
    indent = " " * len(first) if rest is None else rest
    return textwrap.wrap(text, max(columns, 30), initial_indent=first, subsequent_indent=indent)
