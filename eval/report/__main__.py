"""`python -m eval.report RUN`: report.md and report.html of a sweep; `--check` computes them again and compares."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from itertools import zip_longest
from pathlib import Path

from engine.cli import CommandParser, UsageError, print_result, run_command
from eval.report.context import Context
from eval.report.document.markdown import to_markdown
from eval.report.document.page import read_plot, render_page, without_plots, write_whole
from eval.report.hackathon import hackathon_report, read_notes
from eval.report.plots import Plot, draw_all
from eval.report.run_data import SEARCH, RunData, read_run
from eval.report.sections import plain_report
from eval.report.writing import LANGUAGES, Texts

TEMPLATES = {"plain": plain_report, "hackathon": hackathon_report}
MARKDOWN, PAGE, PLOTS_FOLDER, OPTIONS_FILE = "report.md", "report.html", "plots", "report.json"


def report(arguments: argparse.Namespace) -> None:
    """Write the report, or check the one that is there."""
    if not 0 <= arguments.max_loss < 1:
        raise UsageError(f"--max-loss {arguments.max_loss:g} must lie in [0, 1): 0.01 is one point of accuracy")
    run = Path(arguments.run)
    if arguments.check:
        check(run)
        result = {"run": str(run), "check": "equal"}
        print_result(result, f"{run}: the report's tables are what the rows say", arguments.json)
        return
    options = {"template": arguments.template, "lang": arguments.lang, "max_loss": arguments.max_loss}
    path = write_report(run, **options)
    print_result({"run": str(run), "report": str(path), **options}, str(path), arguments.json)


def write_report(run: str | Path, template: str = "plain", lang: str = "en", max_loss: float = 0.01) -> Path:
    """Write report.md, report.html and plots/ into a run folder and return the page's path."""
    run = Path(run)
    data = read_run(run)
    plots = draw_all(data, max_loss)
    if data.search and (map_of_search := read_plot(run / SEARCH / PLOTS_FOLDER / "map")) is not None:
        plots["search"] = map_of_search
    text, page = build(data, plots, template, lang, max_loss)
    (run / PLOTS_FOLDER).mkdir(exist_ok=True)
    for old in (run / PLOTS_FOLDER).glob("*.png"):
        if old.stem not in plots:
            old.unlink()
    for name, plot in plots.items():
        write_whole(run / PLOTS_FOLDER / f"{name}.png", plot.png)
    options = {"template": template, "lang": lang, "max_loss": max_loss}
    write_whole(run / OPTIONS_FILE, (json.dumps(options, sort_keys=True) + "\n").encode())
    write_whole(run / MARKDOWN, text.encode())
    write_whole(run / PAGE, page.encode())
    return run / PAGE


def build(data: RunData, plots: dict[str, Plot], template: str, lang: str, max_loss: float) -> tuple[str, str]:
    """Return the report as Markdown and as a page."""
    notes = read_notes(data.run.path) if template == "hackathon" else {}
    document = TEMPLATES[template](Context(data, Texts(lang), max_loss, plots, notes))
    return to_markdown(document), render_page(document, plots)


def check(run: Path) -> None:
    """Compare the report that is there with what its rows give now. Raises: ValueError: the first difference."""
    for name in (OPTIONS_FILE, MARKDOWN, PAGE):
        if not (run / name).is_file():
            raise FileNotFoundError(f"{run} holds no {name}; write the report with 'python -m eval.report {run}'")
    options = json.loads((run / OPTIONS_FILE).read_text(encoding="utf-8"))
    drawn = {path.stem: Plot("", b"") for path in (run / PLOTS_FOLDER).glob("*.png")}  # only where they stand counts
    text, page = build(read_run(run), drawn, **options)
    pairs = [(MARKDOWN, (run / MARKDOWN).read_text(encoding="utf-8"), text),
             (PAGE, without_plots((run / PAGE).read_text(encoding="utf-8")), without_plots(page))]  # fmt: skip
    for name, found, wanted in pairs:
        for number, (old, new) in enumerate(zip_longest(found.splitlines(), wanted.splitlines(), fillvalue=""), 1):
            if old != new:
                old, new = _around(old, new)
                raise ValueError(
                    f"{run / name}, line {number}: the report says {old!r}, the rows say {new!r}; write it again with "
                    f"'python -m eval.report {run}', or look who changed it"
                )


def _around(old: str, new: str) -> tuple[str, str]:
    """Return the parts of two long lines around their first difference."""
    first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    start = max(0, first - 40)
    return old[start : first + 40], new[start : first + 40]


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    parser = CommandParser("python -m eval.report", "Write report.md and report.html of a sweep.")
    parser.add_argument("run", help="run folder of eval.sweep")
    parser.add_argument("--max-loss", type=float, default=0.01, help="metric that may be lost: 0.01 is one point")
    parser.add_argument("--template", default="plain", choices=tuple(TEMPLATES), help="hackathon: the contest's "
                        "sections, with the prose of notes.yaml in the run folder")  # fmt: skip
    parser.add_argument("--lang", default="en", choices=LANGUAGES, help="language of the report")
    parser.add_argument("--check", action="store_true", help="compute the report again and fail on any difference")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    run_command(parser, report, argv)


if __name__ == "__main__":
    main()
