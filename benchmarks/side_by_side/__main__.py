"""The same job by several tools: lines typed, seconds, memory, and what the INT8 file is worth.

    python -m benchmarks.side_by_side --model MODEL --data DATA --python nncf=VENV/bin/python --python olive=...
    python -m benchmarks.side_by_side --table
    python -m benchmarks.side_by_side --tools search-int8kit search-nncf ... --num-samples 512 --limit-s 1800 --out ROWS

The job: the classifier in MODEL to INT8 for a CPU, from 256 sentences of DATA/train.parquet, the same for every tool.
Each recipe in recipes/ runs in its tool's own environment (requirements-KEY.txt); int8kit runs in this one. Then all
files are judged here, in the same runtimes: on the 872 sentences of DATA/validation.parquet, and in turn with float.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas

from benchmarks.accuracy.sst2 import FloatModel, draw_sentences, load_float, read_split
from benchmarks.rows import append_row, read_rows
from benchmarks.runtimes import Artifact
from benchmarks.side_by_side.judge import FLOAT, judge, read_validation, time_all
from benchmarks.side_by_side.lines import counted_lines
from benchmarks.side_by_side.run import Job, run_recipe, versions_of
from benchmarks.side_by_side.table import FLOAT_TITLE, SHAPES, write_tables
from benchmarks.side_by_side.tools import SEARCHES, TOOLS, get_tool
from benchmarks.speed import float_sessions
from engine.cli import CommandParser, UsageError, run_command

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results" / "side_by_side.jsonl"
PAGE = ROOT / "docs" / "side_by_side.md"
Rows = dict[str, dict[str, Any]]


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Rows, dict[str, Artifact]]:
    """Run all recipes in turns; return what each row says so far, and the INT8 files of those that did it."""
    samples = folder / "samples.parquet"
    sentences, labels = read_split(options.data, "train")
    label_of = dict(zip(sentences, labels, strict=True))
    drawn = draw_sentences(options.data, options.num_samples, options.seed)
    pandas.DataFrame({"sentence": drawn, "label": [label_of[each] for each in drawn]}).to_parquet(samples)
    job = Job(Path(options.model).resolve(), samples, options.limit_s)
    pythons = {"int8kit": Path(sys.executable), **read_pythons(options.python)}
    rows: Rows = {}
    artifacts: dict[str, Artifact] = {}
    for key in options.tools:
        tool = get_tool(key)
        rows[key] = {"title": tool.title, "recipe": tool.recipe, "num_lines": len(counted_lines(tool.path)),
                     "status": "ok", "runs": [], "tool_versions": {}}  # fmt: skip
        if tool.environment not in pythons:
            rows[key] |= {"status": "not run", "reason": f"no --python {tool.environment}=PATH was given"}
            continue
        python = pythons[tool.environment]
        rows[key]["tool_versions"] = versions_of(python, tool.packages)
        for turn in range(options.repeats):
            try:
                cost, artifacts[key] = run_recipe(tool, python, job, folder / key)
            except (RuntimeError, FileNotFoundError) as error:
                rows[key] |= {"status": "failed", "reason": str(error)}
                break
            rows[key]["runs"].append(asdict(cost))
            print(f"{tool.title}, run {turn + 1}: {cost.wall_s:.1f} s, {cost.cpu_s:.1f} CPU s, "
                  f"{cost.peak_bytes / 1e6:.0f} MB", flush=True)  # fmt: skip
        print(f"{tool.title}: {rows[key]['status']} {rows[key].get('reason', '')}", flush=True)
    return rows, {key: each for key, each in artifacts.items() if rows[key]["status"] == "ok"}


def evaluate(options: argparse.Namespace, folder: Path, loaded: FloatModel, rows: Rows,
             artifacts: dict[str, Artifact]) -> None:  # fmt: skip
    """Judge the files and time them in turn; what is found is put into the rows."""
    validation = read_validation(loaded, options.data, options.threads)
    sessions = float_sessions(loaded, folder)
    rows[FLOAT] = {"title": FLOAT_TITLE, "recipe": None, "num_lines": None, "status": "ok", "runs": [],
                   "tool_versions": versions_of(Path(sys.executable), ("onnxruntime",))}  # fmt: skip
    plain = next(iter(sessions.values()))
    for key, artifact in {FLOAT: plain, **artifacts}.items():
        rows[key] |= judge(artifact, validation, options.threads)
        print(f"{rows[key]['title']}: {100 * rows[key]['accuracy']:.2f} %", flush=True)
    for name in SHAPES:
        batch, tokens = map(int, name.split("x"))
        timed = time_all(artifacts, sessions, (batch, tokens), loaded.model.config.vocab_size, options.threads,
                         options.rounds, options.seed)  # fmt: skip
        for key, speed in timed.items():
            rows[key].setdefault("speed", {})[name] = speed
        print(name, {key: round(speed["ratio"], 2) for key, speed in timed.items()}, flush=True)


def read_pythons(words: list[str]) -> dict[str, Path]:
    """Return KEY → interpreter of the words KEY=PATH. Raises: UsageError: a word or a path is wrong."""
    known = list(dict.fromkeys(tool.environment for tool in TOOLS.values()))
    found = {}
    for word in words:
        key, _, path = word.partition("=")
        if key not in known:
            raise UsageError(f"--python {word!r} must be KEY=PATH with KEY one of {', '.join(known)}")
        if not Path(path).is_file():
            raise UsageError(f"--python {word!r}: there is no file {path}; name the interpreter of an environment")
        found[key] = Path(path).absolute()  # never resolved: a virtual environment's interpreter is a link
    return found


def run(options: argparse.Namespace) -> None:
    """Measure all tools and append a row for each, or write the tables of the rows."""
    path = Path(options.out)
    if options.table:
        page = PAGE if path.resolve() == ROWS else None
        write_tables(read_rows(path), path.with_suffix(".md"), page)
        print(f"{path.with_suffix('.md')}{f' and {PAGE.relative_to(ROOT)}' if page else ''}: the rows of {path}")
        return
    if options.model is None or options.data is None:
        raise UsageError("--model and --data are needed to measure; --table alone writes the tables")
    read_pythons(options.python)  # a wrong one is said before minutes of work
    started, loads = int(time.time()), [_load()]
    with TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        rows, artifacts = prepare(options, folder)
        loads.append(_load())
        evaluate(options, folder, load_float(options.model), rows, artifacts)
    shared = {"num_samples": options.num_samples, "seed": options.seed, "threads": options.threads,
              "rounds": options.rounds, "loads": loads}  # fmt: skip
    for key in (FLOAT, *options.tools):
        append_row(path, "side_by_side", run=started, tool=key, **rows[key], **shared)
    print(f"{path}: {len(rows)} rows in {time.time() - started:.0f} s; --table writes the tables")


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def parser() -> CommandParser:
    """Return the command's parser."""
    command = CommandParser("python -m benchmarks.side_by_side", __doc__ or "")
    command.add_argument("--model", help="folder of the float classifier")
    command.add_argument("--data", help="folder with train.parquet and validation.parquet")
    command.add_argument("--python", action="append", default=[], metavar="KEY=PATH",
                         help="the interpreter of a tool's environment; repeat for more")  # fmt: skip
    command.add_argument("--tools", nargs="+", choices=[*TOOLS, *SEARCHES], default=list(TOOLS), help="only these")
    command.add_argument("--repeats", type=int, default=1, help="runs of every recipe; the table shows medians")
    command.add_argument("--rounds", type=int, default=15, help="blocks of every file at a shape")
    command.add_argument("--threads", type=int, default=2, help="threads of every runtime while it is judged")
    command.add_argument("--num-samples", type=int, default=256, help="calibration sentences")
    command.add_argument("--seed", type=int, default=0, help="of the draw of sentences and the order of blocks")
    command.add_argument("--limit-s", type=float, default=600, help="seconds after which a recipe is ended")
    command.add_argument("--keep", help="folder that keeps what the tools made and printed (default: a temporary one)")
    command.add_argument("--table", action="store_true", help="write the tables from the rows and measure nothing")
    command.add_argument("--out", default=str(ROWS.relative_to(ROOT)), help="rows are appended here")
    return command


if __name__ == "__main__":
    run_command(parser(), run)
