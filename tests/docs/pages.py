"""The README and the pages of docs/, and what their blocks of code are: run, run if slow, a file, or not run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|slow): (?P<why>[^\n]*?) -->\n+)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"\n]+)")?[^\n]*\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One block of code of a page."""

    page: str
    line: int
    language: str
    text: str
    title: str | None
    """The file that the block is, in the reader's folder."""
    mark: str | None
    """`not run` or `slow`, with `why` beside it."""
    why: str | None

    @property
    def runs(self) -> bool:
        """Whether the block is run, or written to its file, when its page is."""
        return self.mark != "not run" and (self.language in ("bash", "python") or self.title is not None)


def pages() -> dict[str, Path]:
    """Return name → path of the README and all pages that a person wrote."""
    written = [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.parent.name != "commands"]
    return {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *written)}


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = pages()[page].read_text(encoding="utf-8")
    return [
        Block(page, line=text.count("\n", 0, m.start("language")) + 1, **m.groupdict()) for m in BLOCK.finditer(text)
    ]


def all_blocks() -> list[Block]:
    """Return the blocks of all pages."""
    return [block for page in pages() for block in blocks(page)]


def command_lines(text: str) -> list[list[str]]:
    """Return the words of each line of a bash block, without comments and with continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := re.sub(r"(^|\s)#.*", "", line).split())]
