"""The documentation's site: it builds strictly, loads nothing from elsewhere, and says each thing once."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, all_blocks, command_lines, pages

MIN_SAID = 60  # characters of a sentence that counts as said twice
OWN = ROOT / ".venv-docs" / "bin" / "python"  # of make docs
PYTHON = sys.executable if importlib.util.find_spec("mkdocs") else str(OWN) if OWN.exists() else None
SITE = pytest.mark.skipif(PYTHON is None, reason="mkdocs is not installed (make setup, or make docs)")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    words = [str(PYTHON), "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@SITE
def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|iframe)[^>]* src=[\"']?(?:https?:)?//|<link[^>]*href=[\"']?(?:https?:)?//")
    canonical = re.compile(r"<link[^>]*rel=[\"']?canonical[^>]*>")
    texts = {page: canonical.sub("", page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert len(texts) > 40 and not [page for page, text in texts.items() if loaded.search(text)]
    styles = [path for path in site.rglob("*.css") if re.search(r"url\([\"']?https?:|@import", path.read_text())]
    assert not styles


@SITE
def test_made_pages_hold_what_they_are_made_of(site: Path) -> None:
    recipes = (site / "reference" / "recipes.html").read_text()
    assert all(path.stem in recipes for path in (ROOT / "quant" / "recipes").glob("*.yaml"))
    assert "norm_output" in recipes
    assert "error_abs_median" in (site / "reference" / "rows.html").read_text()
    assert "insert_quantizers" in (site / "tutorials" / "first_steps.html").read_text()
    assert (site / "repository" / "benchmarks" / "results" / "tables.html").is_file()


def test_the_pages_of_commands_are_those_of_their_parsers() -> None:
    from docs.generate.commands import FOLDER, pages

    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    assert found == pages(), "python -m docs.generate.commands writes them"


def test_every_command_has_its_page() -> None:
    from docs.generate.commands import MORE
    from int8kit.__main__ import COMMANDS

    modules = {module for module, _ in (*COMMANDS.values(), *MORE.values())}
    parsers = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for room in ("calib", "engine", "eval", "int8kit")
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"^    run_command\(", path.read_text(), flags=re.MULTILINE) and path.name != "cli.py"
    }
    assert parsers <= modules


def test_nothing_stands_twice() -> None:
    """A sentence, or a row of a table with figures, has one page; others link to it."""
    said = defaultdict(set)
    for name, path in pages().items():
        if name == "README.md":  # a short entry to what the pages say at length
            continue
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for paragraph in re.split(r"\n\s*\n|\n(?=[|#-])", text):
            for sentence in re.split(r"(?<=[.:;?!])\s", " ".join(paragraph.split())):
                if len(sentence) >= MIN_SAID:
                    said[sentence].add(name)
    twice = {sentence: names for sentence, names in said.items() if len(names) > 1}
    assert not twice


def test_commands_in_blocks_have_the_flags_that_they_name() -> None:
    """Also those that are not run here: by the parsers, or the names of the Trainer's options."""
    from docs.generate.commands import MORE, parser_of
    from int8kit.__main__ import COMMANDS
    from training.arguments import TrainParser, trainer_options

    by_name = {name: module for name, (module, _) in {**COMMANDS, **MORE}.items()}
    wanted: dict[str, set[str]] = defaultdict(set)
    for block in (each for each in all_blocks() if each.language == "bash"):
        for words in command_lines(block.text):
            module = module_of(words, by_name)
            if words[0] == "make":
                assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), f"{block.page}: make {words[1]}"
            elif module is not None:
                start = next(i for i, word in enumerate(words) if word in ("-m", "int8kit") or word.endswith(".py"))
                flags = {word.split("=")[0] for word in words[start:] if word.startswith("--")}
                wanted[module] |= flags
    assert len(wanted) >= 10
    for module, flags in wanted.items():
        parser = parser_of(module)
        known = {flag for action in parser._actions for flag in action.option_strings}
        if isinstance(parser, TrainParser):
            known |= {f"--{name}" for name in trainer_options()}
        assert flags <= known, f"{module} has no {flags - known}"


def module_of(words: list[str], by_name: dict[str, str]) -> str | None:
    """Return the module that a line of bash runs, None where it is none of ours."""
    if words[0] == "int8kit":
        return by_name.get(words[1]) if len(words) > 1 and not words[1].startswith("-") else None
    script = next((word for word in words if word in ("train_qat.py", "export.py", "build_engine.py")), None)
    if script is not None:
        return script.removesuffix(".py")
    if words[0] == "python" and words[1:2] == ["-m"]:
        names = (words[2], f"{words[2]}.__main__")
        return next((name for name in names if (ROOT / f"{name.replace('.', '/')}.py").is_file()), None)
    return None
