"""Every block of the README and of docs/ runs, page by page in a reader's folder, or says why it does not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.docs.pages import BLOCK, ROOT, all_blocks, blocks, command_lines, pages
from tests.docs.reader import make_folder
from tests.docs.shell import Shell, warm_shell

COMMAND = re.compile(r"^\s*(?:\$ )?(?:python3?|int8kit|torchrun|pip|make) ", re.MULTILINE)
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def cases() -> list[object]:
    """Return (page, is_slow) of pages with something to run; one with slow blocks stands twice, once without them."""
    found: list[object] = []
    for page in pages():
        runnable = [block for block in blocks(page) if block.runs]
        if any(block.mark is None for block in runnable):
            found.append(pytest.param(page, False, id=page))
        if any(block.mark == "slow" for block in runnable):
            found.append(pytest.param(page, True, id=f"{page}, slow", marks=pytest.mark.slow))
    return found


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    with warm_shell(tmp_path_factory.mktemp("shell")) as found:
        yield found


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("reader"))


@pytest.fixture
def folder(reader: Path, tmp_path: Path) -> Path:
    """A fresh copy of the reader's folder."""
    return Path(shutil.copytree(reader, tmp_path / "here", symlinks=True))


@pytest.mark.parametrize(("page", "is_slow"), cases())
def test_the_blocks_of_a_page_run_in_order(page: str, is_slow: bool, shell: Shell, folder: Path) -> None:
    for block in blocks(page):
        if not block.runs or (block.mark == "slow" and not is_slow):
            continue
        where = f"{page}, line {block.line}"
        if block.title is not None:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text)
            continue
        code, output = (shell.bash if block.language == "bash" else shell.python)(block.text, folder)
        assert code == 0, f"{where} ended with {code}:\n{output[-3000:]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path: Path, shell: Shell, folder: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs")], "outputs are of one machine: clear them"
    code, output = shell.python("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"), folder)
    assert code == 0, output[-3000:]


def test_what_does_not_run_says_why_and_no_command_hides_in_plain_text() -> None:
    for block in all_blocks():
        where = f"{block.page}, line {block.line}"
        assert block.mark is None or (block.why and len(block.why) >= 10), f"{where}: say why"
        if block.language:
            assert block.runs or block.mark, f"{where}: give it a title, or a mark '<!-- not run: reason -->'"
        else:
            assert not COMMAND.search(block.text), f"{where}: commands belong into a bash block"


def test_a_block_that_fails_is_seen(shell: Shell, folder: Path) -> None:
    """The first failing command ends its block, and the output says which."""
    code, output = shell.bash("python -m calib --model nowhere/absent --samples reviews.csv --out o\necho on", folder)
    assert code == 1 and "nowhere/absent" in output and "on\n" not in output.splitlines()[-1:]
    code, output = shell.python("raise KeyError('x')", folder)
    assert code == 1 and "KeyError: 'x'" in output
    assert shell.bash("int8kit --help | grep -c quantize && python -c 'import sys; sys.exit(3)'", folder)[0] == 3


def test_the_front_door_is_short_and_the_same_in_both_languages() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")]
    assert all(len(text.splitlines()) <= 130 for text in texts)
    mine, theirs = ([m.group("text") for m in BLOCK.finditer(text)] for text in texts)
    theirs = [block.replace("report runs/sweep --lang zh", "report runs/sweep") for block in theirs]
    assert [command_lines(block) for block in mine] == [command_lines(block) for block in theirs]
    figures = [re.findall(r"\| +([\d.]+) x \|", text) for text in texts]
    assert figures[0] and figures[0] == figures[1]
