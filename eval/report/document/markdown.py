"""A document, or a part of it, as Markdown that GitHub shows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval.report.document.blocks import Block, Document, Figure, Items, Prose, Section, Table
from eval.report.writing import table

FENCES = ("```", "~~~")


def to_markdown(document: Document) -> str:
    """Return the whole report."""
    lines = [f"# {document.title}", "", *block_lines(document.lead), *block_lines(document.sections)]
    return "\n".join(lines).rstrip() + "\n"


def block_lines(blocks: Sequence[Block], level: int = 2) -> list[str]:
    """Return blocks as lines, an empty one after each; `level` is that of the headings of sections among them."""
    return [line for block in blocks for line in _lines(block, level)]


def _lines(block: Block, level: int) -> list[str]:
    if isinstance(block, Section):
        return [f"{'#' * level} {block.title}", "", *block_lines(block.blocks, level + 1)]
    if isinstance(block, Prose):
        return [with_rows(block.text, block.rows), ""]
    if isinstance(block, Items):
        return [*(f"- {with_rows(each.text, each.rows)}" for each in block.items), ""]
    if isinstance(block, Table):
        return table(block.headers, [[cell.text for cell in row] for row in block.rows], left=block.left)
    if isinstance(block, Figure):
        return [f"![{block.caption}](plots/{block.name}.png)", ""]
    return [f"```{block.language}", *block.text.splitlines(), "```", ""]


def with_rows(text: str, rows: Sequence[int]) -> str:
    """Return a text with the rows that it is of."""
    return f"{text} ({', '.join(f'#{number}' for number in rows)})" if rows else text


def demoted(text: str, levels: int) -> str:
    """Return a Markdown text with its headings so many levels down; what stands in fences is left alone."""
    lines, fence = [], ""
    for line in text.splitlines():
        mark = next((each for each in FENCES if line.lstrip().startswith(each)), "")
        if mark and fence in ("", mark):
            fence = "" if fence else mark
        is_heading = not fence and re.match(r"#+ ", line)
        lines.append("#" * levels + line if is_heading else line)
    return "\n".join(lines)
